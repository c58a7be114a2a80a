"""An append-only file of votes on the disk, held by one sitting at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calibrant.core import InputError
from calibrant.data.files import raw_rows
from calibrant.data.rows import Preferences, Refused
from calibrant.data.votes import Votes, header, votes_from


class VoteFile:
    """The votes on some comparisons; every line is on the disk before ``append`` returns."""

    def __init__(self, path: Path, comparisons: Preferences) -> None:
        """Open or make ``path``, which must be about ``comparisons`` and hold no simulated votes.

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
            self.votes = self._begin(comparisons)
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

    def _begin(self, comparisons: Preferences) -> Votes:
        """Lock the file and read what is in it; a new one gets its header."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self._path} is being voted into", hint="wait, or give each rater a file of their own"
            ) from None
        if os.fstat(self._handle).st_size == 0:
            self.append(header(comparisons.digest, comparisons.source))
        rows, data = list(raw_rows(self._path)), self._path.read_bytes()
        ends = data.endswith(b"\n")
        cut = not ends and isinstance(rows[-1][1], Refused)  # a kill cut the last line, which was never given
        votes = votes_from(rows[:-1] if cut else rows, str(self._path))
        self._check(votes, comparisons)
        if cut:
            with writing(self._path):
                os.ftruncate(self._handle, data.rfind(b"\n") + 1)
        elif not ends:
            self.append(b"\n")
        return votes

    def _check(self, votes: Votes, comparisons: Preferences) -> None:
        """Nothing is written to a file that is about something else."""
        if votes.data != comparisons.digest:
            about = "is about other comparisons" if votes.data else "does not say what it is about"
            raise InputError(
                f"{self._path} {about}, not those of {comparisons.source}",
                hint="the data must be unchanged; for other data name a new file of votes",
            )
        if votes.simulated:
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
