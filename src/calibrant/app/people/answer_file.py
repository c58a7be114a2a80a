"""An append-only file of people's answers on the disk, held by one sitting at a time: votes, or labels."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from calibrant.core import InputError
from calibrant.data.files import RawRow, raw_rows
from calibrant.data.rows import Refused


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
            InputError: no .jsonl file, on other data, by simulated raters, held by another process, or
                refused by the disk.
        """
        if path.suffix != ".jsonl":
            raise InputError(f"{path}: votes are written as JSON lines", hint=f"name it {path.stem}.jsonl")
        self._path = path
        with writing(path):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
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
        size = os.fstat(self._handle).st_size
        with writing(self._path):
            try:
                rest = line
                while rest:
                    rest = rest[os.write(self._handle, rest) :]
                os.fsync(self._handle)
            except OSError:
                os.ftruncate(self._handle, size)
                raise

    def close(self) -> None:
        """Let go; closing twice does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _begin(self, read: Callable[[Iterable[RawRow], str], T], header: bytes, about: tuple[str, str]) -> T:
        """Lock the file and read what is in it; a new one gets its header."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self._path} is being voted into", hint="wait, or give each rater a file of their own"
            ) from None
        if os.fstat(self._handle).st_size == 0:
            self.append(header)
        rows, data = list(raw_rows(self._path)), self._path.read_bytes()
        ends = data.endswith(b"\n")
        cut = not ends and isinstance(rows[-1][1], Refused)  # a kill cut the last line, which was never given
        held = read(rows[:-1] if cut else rows, str(self._path))
        self._check(held, about)
        if cut:
            with writing(self._path):
                os.ftruncate(self._handle, data.rfind(b"\n") + 1)
        elif not ends:
            self.append(b"\n")
        return held

    def _check(self, held: T, about: tuple[str, str]) -> None:
        """Nothing is written to a file that is about something else."""
        data, source = about
        if held.data != data:
            said = "is about other comparisons" if held.data else "does not say what it is about"
            raise InputError(
                f"{self._path} {said}, not those of {source}",
                hint="the data must be unchanged; for other data name a new file of votes",
            )
        if held.simulated:
            raise InputError(
                f"{self._path} holds votes of simulated raters", hint="people's votes go to another file"
            )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into a plain sentence.

    Raises:
        InputError: disk full, no permission, no such folder, ...
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {(error.strerror or type(error).__name__).lower()}",
            hint="free space or choose another place, then run the same command again: votes given are kept",
        ) from error
