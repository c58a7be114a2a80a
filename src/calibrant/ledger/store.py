"""The ledger: an append-only file of records, with the files and folders that they name.

A kill at any moment leaves either the old state or the new one: files come in by draft, fsync and rename,
records as ``lines`` has it: under a lock, whole or not at all.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from calibrant.core.digest import canonical, digest_bytes
from calibrant.core.errors import EvidenceError, InputError
from calibrant.core.record import Artifact, Entry, Evidence, Record
from calibrant.ledger.layout import (
    RECORDS,
    START,
    disk,
    is_digest,
    link_faults,
    linked,
    read_line,
    read_lines,
)
from calibrant.ledger.lines import Lines
from calibrant.ledger.objects import Objects

_RESTORE = "run `calibrant verify` to see every problem, and restore the file from a copy"
_UNSOUND = "compute job and result with calibrant.core.record, from exactly what the record holds"


class _Known(NamedTuple):
    """A line that is in order."""

    record: Record
    digest: str
    previous: str | None


class Ledger:
    """A folder of evidence. It is made on the first write; reading one that is not there finds nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._objects = Objects(root)
        self._stamp = (-1, -1)
        self._entries: tuple[Entry, ...] = ()
        self._known: dict[str, _Known] = {}

    def append(self, record: Record) -> Entry:
        """Write ``record`` as the last line, safely beside other processes, and return its entry.

        The line also carries the digest of the line before it. That link is the ledger's and no part of the
        record: its digest is the same wherever it is kept. The entry holds the record as it reads back: NaN
        has become None. The same record, to the byte, is never written twice; appending it again returns the
        entry that is there.

        Raises:
            EvidenceError: the record would not read back, or a digest in it does not follow from its content.
            InputError: the disk is full or refuses; the file is left as it was.
        """
        bare = _canonical(record)
        kept = _checked(bare, f"the record of '{record.technique}'", _UNSOUND)
        path = self.root / RECORDS
        with disk("writing", path):
            self.root.mkdir(parents=True, exist_ok=True)
        with Lines(path, wait=True, aside=path.with_suffix(".cut")) as file:
            lines = list(file)
            seq = _place(bare, lines)
            if seq == len(lines):
                file.add([b"".join(linked(bare, digest_bytes(lines[-1]) if lines else START))])
        return Entry(seq=seq, digest=kept.digest, record=kept.record)

    def entries(self) -> tuple[Entry, ...]:
        """All entries in order; ``seq`` counts lines from 0. A last line that was cut short is ignored.

        Raises:
            EvidenceError: a line is malformed or altered (its number, from 1, is named).
        """
        path = self.root / RECORDS
        with disk("reading", path):
            try:
                state = path.stat()
            except FileNotFoundError:
                return ()
        stamp = (state.st_size, state.st_mtime_ns)
        if stamp != self._stamp:
            lines = read_lines(self.root)[0]
            found, links = [], []
            digests = [digest_bytes(line) for line in lines]
            for seq, (key, line) in enumerate(zip(digests, lines, strict=True)):
                # Equal bytes read equal, so only new lines are parsed after each append.
                if key not in self._known:
                    self._known[key] = _checked(line, f"{path}, line {seq + 1}", _RESTORE)
                known = self._known[key]
                links.append(known.previous)
                held = known.previous is not None
                found.append(Entry(seq=seq, digest=known.digest, record=known.record, linked=held))
            broken = link_faults(digests, links)
            if broken:
                raise EvidenceError(f"{path}: {'; '.join(broken[:3])}", hint=_RESTORE)
            self._entries, self._stamp = tuple(found), stamp
        return self._entries

    def evidence(self) -> Evidence:
        """Everything a gate may look at."""
        return Evidence(entries=self.entries())

    def find(self, job: str) -> Entry | None:
        """The latest finished entry of this job digest whose artefacts are all there, or None."""
        for entry in reversed(self.entries()):
            record = entry.record
            if (
                record.job == job
                and record.status == "finished"
                and not any(map(self._objects.missing, record.artifacts))
            ):
                return entry
        return None

    def get(self, prefix: str) -> Entry:
        """The entry whose record, result or job digest starts with ``prefix`` (6 hex digits or more).

        When several entries of one job match, the latest finished one is meant, else the latest.

        Raises:
            InputError: not such a prefix, none found, or entries of several jobs found (all are named).
        """
        wanted = prefix.lower()
        if len(wanted) < 6 or not is_digest(wanted.ljust(64, "0")):
            raise InputError(
                f"'{prefix}' is not a digest", hint="give 6 to 64 hex digits, as `calibrant log` shows"
            )
        matches = [
            entry
            for entry in self.entries()
            if any(d.startswith(wanted) for d in (entry.digest, entry.record.result, entry.record.job))
        ]
        if not matches:
            raise InputError(f"no record in {self.root} starts with '{prefix}'", hint="see `calibrant log`")
        if len({entry.record.job for entry in matches}) > 1:
            names = ", ".join(
                f"{e.digest[:12]} ({e.record.job_id or e.record.technique})" for e in matches[:8]
            )
            raise InputError(
                f"'{prefix}' fits {len(matches)} records: {names}", hint="name one record's digest"
            )
        return max(matches, key=lambda entry: (entry.record.status == "finished", entry.seq))

    def store(self, path: Path, name: str) -> Artifact:
        """Keep a file or folder by content; see ``Objects.store``."""
        return self._objects.store(path, name)

    def open(self, artifact: Artifact) -> Path:
        """The stored file or folder, to read; see ``Objects.open``."""
        return self._objects.open(artifact)

    def work(self, job: str) -> Path:
        """The folder where a job may leave what it needs after a kill; made when it is not there."""
        path = self._work(job)
        with disk("making", path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def cache(self) -> Path:
        """The folder where jobs keep what saves others work; it may be deleted at any time."""
        return self.root / "cache"

    def clear_work(self, job: str) -> None:
        """Remove the work folder of a finished job, and the lock beside it, if they are there."""
        path = self._work(job)
        with disk("removing", path), suppress(FileNotFoundError):
            path.with_suffix(".lock").unlink(missing_ok=True)
            shutil.rmtree(path)

    def _work(self, job: str) -> Path:
        if not is_digest(job):
            raise InputError(f"'{job}' is not a job digest", hint="give all 64 hex digits")
        return self.root / "work" / job


def _canonical(record: Record) -> bytes:
    """The canonical bytes of the record's statement, without a link and the newline."""
    try:
        return canonical(record.statement())
    except (ValueError, TypeError) as error:
        raise EvidenceError(
            f"the record of '{record.technique}' has no canonical form: {error}",
            hint="put only JSON values and well-formed Unicode into a record",
        ) from error


def _checked(line: bytes, where: str, hint: str) -> _Known:
    """What a line that is in order holds; EvidenceError naming ``where`` otherwise."""
    found = read_line(line)
    if found.record is None or found.problems:
        raise EvidenceError(f"{where}: {'; '.join(found.problems)}", hint=hint)
    return _Known(found.record, found.digest, found.previous)


def _place(bare: bytes, lines: list[bytes]) -> int:
    """The line that holds just this statement, behind whatever line it came; else where it will stand."""
    before, link, behind = linked(bare, START)
    length = len(before) + len(link) + len(behind)
    for seq, line in enumerate(lines):
        if len(line) == length and line.startswith(before) and line.endswith(behind):
            return seq
        if line == bare:
            return seq
    return len(lines)
