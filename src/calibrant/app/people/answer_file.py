"""An append-only file of people's answers on the disk, held by one session at a time: votes, or labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from calibrant.core import InputError
from calibrant.data.files import RawRow, raw_rows
from calibrant.ledger.lines import Lines


class Answers(Protocol):
    """What is read back: votes, or labels."""

    @property
    def data(self) -> str:
        """Digest of what was answered on."""
        ...

    @property
    def simulated(self) -> bool:
        """Whether the raters are simulated."""
        ...


T = TypeVar("T", bound=Answers)


class AnswerFile(Generic[T]):
    """The answers on some data; every line is on the disk before ``append`` returns."""

    def __init__(
        self, path: Path, read: Callable[[Iterable[RawRow], str], T], header: bytes, about: tuple[str, str]
    ) -> None:
        """Open or make ``path``, which must be about the data and hold no simulated answers.

        Args:
            path: a .jsonl file.
            read: replays its lines.
            header: the first line of a new file.
            about: digest of the data, and where it came from.

        Raises:
            InputError: see ``Lines``; on other data, or by simulated raters.
        """
        self._lines = Lines(path)
        try:
            self.held = self._begin(read, header, about)
        except BaseException:
            self.close()
            raise

    def append(self, line: bytes) -> None:
        """Write a whole line and see it to the disk, or leave the file as it was.

        Raises:
            InputError: the disk refuses.
        """
        self._lines.add([line.removesuffix(b"\n")])

    def close(self) -> None:
        """Let go; closing twice does nothing."""
        self._lines.close()

    def _begin(self, read: Callable[[Iterable[RawRow], str], T], header: bytes, about: tuple[str, str]) -> T:
        """Read what is in the file; a new one gets its header."""
        path = self._lines.path
        if header.startswith(self._lines.half) and not any(self._lines):
            self.append(header)
        rows = list(raw_rows(path))
        if self._lines.half.strip():
            rows.pop()  # a kill cut it short, so it was never given
        held = read(rows, str(path))
        self._check(held, about)
        return held

    def _check(self, held: T, about: tuple[str, str]) -> None:
        """Nothing is written to a file that is about something else."""
        data, source = about
        if held.data != data:
            said = "is about other comparisons" if held.data else "does not say what it is about"
            raise InputError(
                f"{self._lines.path} {said}, not those of {source}",
                hint="the data must be unchanged; for other data name a new file of votes",
            )
        if held.simulated:
            raise InputError(
                f"{self._lines.path} holds votes of simulated raters",
                hint="people's votes go to another file",
            )
