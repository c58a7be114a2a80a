"""One append-only file of JSON objects, one a line: lock, torn last line, fsync, keys, replay.

1. One writer: the file is locked (``flock``) from opening to closing. A second writer is refused, or waits
   where it asks to. Readers need no lock.
2. All or nothing: what ``add`` was given is on the disk when it returns, or the file is as it was. With
   ``durable=False`` it is with the system, so that it outlives this process; ``sync`` has it on the disk.
3. Only ``add`` changes the file, so one that is opened by mistake stays as it is. A torn last line, which a
   kill cut short, was never confirmed: it is passed over, and taken off before the next line is written.
   One that lacks nothing but its end is whole: it counts, and is ended then.
4. Any other line that cannot be read is an error that gives its number: another hand changed the file.
"""

from __future__ import annotations

import fcntl
import os
import stat
from array import array
from binascii import unhexlify
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

from calibrant.core.errors import EvidenceError, InputError
from calibrant.core.written import parse_json
from calibrant.ledger.layout import disk, reason
from calibrant.ledger.objects import sync

_BLOCK = 1 << 12
T = TypeVar("T")


class Lines(AbstractContextManager["Lines"]):
    """The file at ``path``, held for writing until it is closed."""

    def __init__(
        self, path: Path, *, wait: bool = False, aside: Path | None = None, key: bytes = b""
    ) -> None:
        """Open and lock ``path``, or begin it.

        Args:
            path: a file; links are followed.
            wait: wait until another writer closes the file, rather than be refused.
            aside: where a last line without an end is moved to, whole or not: for a file whose readers pass
                over it.
            key: how every line begins before 64 hex digits: ``{"id":"``. Then ``find`` has an index: 16 bytes
                a line in memory, and no text.

        Raises:
            InputError: not a file, not named .jsonl, held by another writer, or refused by the disk.
            EvidenceError: a line does not begin with its key.
        """
        if path.suffix != ".jsonl":
            raise InputError(f"{path} is written as JSON lines", hint=f"name it {path.stem}.jsonl")
        self.path, self._aside, self._key = path, aside, key
        self._synced, self._made = True, not os.path.lexists(path)
        with disk("opening", path):
            self._file = locked(path, _held(path), wait=wait)
        try:
            with disk("reading", path):
                size = os.fstat(self._file.fileno()).st_size
                if not size:  # without its name in the folder no line of a new file is found again
                    sync(path.resolve().parent)
                last = _unended(self._file.fileno(), size)
            whole = aside is None and _is_object(last)
            self._glue = b"\n" if whole else b""
            self.torn = b"" if whole else last
            """The bytes of a last line that a kill cut short; b"" where there is none."""
            self._end, self._mended = size - len(self.torn), not self.torn
            self._keys, self._places = self._index() if key else (array("Q"), array("Q"))
            self.indexed = len(self._keys)
            """Lines that ``find`` knows: those that lay here when the file was opened."""
        except BaseException:
            self._let_go()
            raise

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        """Whole lines in order, without their ends."""
        return _stream(self.path, self._end)

    def find(self, key: str, read: Callable[[bytes], T], what: str) -> tuple[int, T] | None:
        """Place and content of the last line with this key among the ``indexed`` ones.

        Raises:
            EvidenceError: ``read`` refuses the line, as in ``replay``.
        """
        short, begin = _short(key.encode()), self._key + key.encode() + b'"'
        spot = bisect_right(self._keys, short)
        while spot and self._keys[spot - 1] == short:
            spot -= 1
            place = self._places[spot]
            line = self.read(place)
            if line.startswith(begin):
                try:
                    return place, read(line)
                except (ValueError, RecursionError) as error:
                    number = sum(other <= place for other in self._places)
                    raise _damaged(self.path, number, line, what, error) from None
        return None

    def read(self, place: int) -> bytes:
        """The line at ``place``, without its end."""
        size = _BLOCK
        with disk("reading", self.path):
            while True:
                block = os.pread(self._file.fileno(), size, place)
                line, end, _ = block.partition(b"\n")
                if end or len(block) < size:
                    return line
                size *= 8

    def add(self, lines: Iterable[bytes], *, durable: bool = True) -> list[int]:
        """Append lines, given without their ends, and return their places.

        Raises:
            InputError: the disk is full or refuses, or another program changed the file meanwhile.
            ValueError: a line holds an end of line.
        """
        lines = list(lines)
        data = b"\n".join([*lines, b""])
        if data.count(b"\n") != len(lines):
            raise ValueError(f"{self.path}: a line holds an end of line")
        start = self._end + len(self._glue)
        with disk("writing", self.path):
            self._mend()
            if not self._is_as_left():
                raise InputError(
                    f"{self.path} was changed or replaced by another program while it was open",
                    hint="let one program write to it, then run the same command again",
                )
            try:
                rest = self._glue + data
                while rest:
                    rest = rest[os.write(self._file.fileno(), rest) :]
                if durable:
                    os.fsync(self._file.fileno())
            except BaseException:  # an interrupt may come between two writes, too
                self._mended = False
                with suppress(OSError):
                    self._mend()
                raise
        self._glue, self._end, self._synced = b"", start + len(data), durable
        return list(accumulate((len(line) + 1 for line in lines), initial=start))[:-1]

    def sync(self) -> None:
        """Have every line on the disk.

        Raises:
            InputError: the disk refuses.
        """
        if not self._synced:
            with disk("writing", self.path):
                os.fsync(self._file.fileno())
            self._synced = True

    def close(self) -> None:
        """``sync``, and let go of the file; one that was begun and got no line goes. Twice does nothing."""
        if not self._file.closed:
            try:
                self.sync()
                if self._made and not self._end and self._is_as_left():
                    self.path.unlink()  # under the lock: one who waits looks for the name again
            finally:
                self._let_go()

    def _mend(self) -> None:
        """Take off what stands behind the whole lines."""
        if not self._mended:
            if self.torn and self._aside:
                with self._aside.open("ab") as kept:
                    kept.write(self.torn + b"\n")
                    kept.flush()
                    os.fsync(kept.fileno())
            self.torn = b""
            os.ftruncate(self._file.fileno(), self._end)
            os.fsync(self._file.fileno())
            self._mended = True

    def _is_as_left(self) -> bool:
        """Whether no other program wrote to the file, or put another one in its place."""
        state = os.fstat(self._file.fileno())
        with suppress(FileNotFoundError):
            return state.st_size == self._end and os.path.samestat(state, self.path.stat())
        return False

    def _index(self) -> tuple[array[int], array[int]]:
        """The first 64 bits of each line's key, in order, and the line's place."""
        keys, places, place, begin = list[int](), list[int](), 0, len(self._key)
        for number, line in enumerate(self, start=1):
            try:
                if not line.startswith(self._key):
                    raise ValueError(f"it does not begin with {self._key.decode()}")
                keys.append(_short(line[begin : begin + 64]))
            except ValueError as error:
                raise _damaged(self.path, number, line, "a line of this file", error) from None
            places.append(place)
            place += len(line) + 1
        order = sorted(range(len(keys)), key=keys.__getitem__)
        return array("Q", map(keys.__getitem__, order)), array("Q", map(places.__getitem__, order))

    def _let_go(self) -> None:
        with suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_UN)  # a process forked meanwhile would hold it on
        self._file.close()


def replay(source: Lines | Path, read: Callable[[bytes], T], what: str) -> Iterator[T]:
    """What the lines say, in order: the whole ones of a file that is held, or all of one that is not.

    Raises:
        InputError: the disk refuses.
        EvidenceError: ``read`` raises ValueError: the line, named by its number, is not ``what``.
    """
    path, lines = (source, _stream(source)) if isinstance(source, Path) else (source.path, iter(source))
    for number, line in enumerate(lines, start=1):
        try:
            value = read(line)
        except (ValueError, RecursionError) as error:
            raise _damaged(path, number, line, what, error) from None
        yield value


def _stream(path: Path, end: int = -1) -> Iterator[bytes]:
    """The lines before ``end``, without their ends."""
    with disk("reading", path), path.open("rb", buffering=1 << 17) as file:
        place = 0
        for line in file:
            if place == end:
                break
            place += len(line)
            yield line.removesuffix(b"\n")


def _damaged(path: Path, number: int, line: bytes, what: str, error: Exception) -> EvidenceError:
    why = "it holds NUL bytes, which a power cut or UTF-16 leaves" if b"\0" in line else reason(error)
    return EvidenceError(
        f"{path}, line {number} is not {what}: {why}",
        hint="the file was changed or damaged after it was written; delete it and run again",
    )


def locked(path: Path, held: InputError, *, wait: bool = False) -> FileIO:
    """The file that has this name when the lock is held: another may have been put there meanwhile.

    Whoever holds it may take the name away. With ``wait`` it is waited for.

    Raises:
        InputError: ``held`` where another holds it, or not a file.
        OSError: the disk refuses.
    """
    file = path.open("a+b", buffering=0)
    try:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise InputError(f"{path} is not a file", hint="name a file on a disk")
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        with suppress(FileNotFoundError):  # the one before had no line to add, and took the name away
            if os.path.samestat(state, path.stat()):
                return file
    except BlockingIOError:
        file.close()
        raise held from None
    except BaseException:
        file.close()
        raise
    file.close()
    return locked(path, held, wait=wait)


def _held(path: Path) -> InputError:
    return InputError(
        f"{path} is being written by another process or session",
        hint="wait until that one is done, or give each writer a file of its own",
    )


def _unended(handle: int, size: int) -> bytes:
    """What stands behind the last end of line."""
    length = _BLOCK
    while True:
        block = os.pread(handle, length, max(size - length, 0))
        if b"\n" in block or length >= size:
            return block[block.rfind(b"\n") + 1 :]
        length *= 8


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(parse_json(text.decode()), dict)
    except ValueError:
        return False


def _short(key: bytes) -> int:
    """The first 64 bits of a key in hex digits; ValueError where it is none."""
    return int.from_bytes(unhexlify(key[:16]))
