"""The verifier: is everything in a ledger as it was recorded?

It answers *intact* only: every line is a canonical record whose digests follow from its content, every line
follows the one that it was written after, and every artefact is there with the right bytes. It does not say
*current* (nothing newer replaces it) or *sufficient* (a gate would accept it).

What it cannot see: the last line edited or removed, since no line after it carries its digest; and a ledger
rewritten from some line to its end. Both change the digest of the last line (``Report.head``): who keeps that
digest elsewhere can tell. Lines from before there were links hold each other by nothing at all, and are
*unknown*, not intact.

Nothing of the writer (``store``) is used here, only the description of the layout.
"""

from __future__ import annotations

from pathlib import Path

from calibrant.core.config import Frozen
from calibrant.core.digest import digest_bytes, digest_file, manifest
from calibrant.core.record import Artifact
from calibrant.core.verdict import Verdict
from calibrant.ledger.layout import (
    START,
    artifact_faults,
    disk,
    link_faults,
    object_path,
    read_line,
    read_lines,
    tree_path,
)

LAST = "the last line is held by no line after it, so keep the head elsewhere"
"""What even an intact ledger does not show."""


class Report(Frozen):
    """What a verification found."""

    problems: tuple[str, ...] = ()
    """Everything that is not as it was recorded, one sentence each, with line numbers from 1."""
    notices: tuple[str, ...] = ()
    """What a reader should know although nothing is wrong with it."""
    records: int = 0
    """Whole lines looked at."""
    artifacts: int = 0
    """Artefacts that the records name; one named by two records counts twice."""
    bytes: int = 0
    """Size of the stored files behind them, each counted once."""
    deep: bool = True
    """True when the bytes of every artefact were read, not only its size."""
    head: str = ""
    """SHA-256 of the last whole line: it fixes every line of a linked ledger, for who keeps it elsewhere."""
    unlinked: int = 0
    """Lines at the head that carry no link to the line before them: they could have been edited unseen."""

    @property
    def verdict(self) -> Verdict:
        """Intact: yes, no, or unknown when there are no records or bytes were not read."""
        question = "are the recorded lines and artefacts intact?"
        if self.problems:
            return Verdict(question=question, answer="no", reason="; ".join(self.problems[:3]))
        if not self.records:
            return Verdict(question=question, answer="unknown", reason="there are no records")
        if not self.deep and self.artifacts:
            return Verdict(question=question, answer="unknown", reason="the artefacts' bytes were not read")
        if self.unlinked:
            told = (
                f"lines 1 to {self.unlinked} carry no link, so they could have been edited, moved or removed"
            )
            return Verdict(question=question, answer="unknown", reason=told)
        counts = f"{self.records} records, {self.artifacts} artefacts, {self.bytes} bytes as recorded"
        return Verdict(question=question, answer="yes", reason=f"{counts}; {LAST}")


def verify(root: Path, *, deep: bool = True) -> Report:
    """Check every line and artefact of the ledger at ``root``; all problems at once, nothing is changed.

    With ``deep`` every stored byte is hashed; without it only presence and sizes are compared.

    Raises:
        InputError: the ledger is there and cannot be read.
    """
    lines, cut = read_lines(root)
    problems: list[str] = []
    first: dict[str, int] = {}
    named = []
    digests, links = [digest_bytes(line) for line in lines], []
    for number, line in enumerate(lines, 1):
        found = read_line(line)
        problems += [f"line {number}: {fault}" for fault in found.problems]
        earlier = first.setdefault(found.digest or digests[number - 1], number)
        if earlier != number:
            problems.append(f"line {number}: the same record as line {earlier}")
        # What cannot be read has been reported, and breaks the next line's link in any case.
        links.append(found.previous if found.record else digests[number - 2] if number > 1 else START)
        named += [(number, artifact) for artifact in (found.record.artifacts if found.record else ())]
    problems += link_faults(digests, links)
    stock = _Stock(root, deep)
    with disk("verifying", root):
        for number, artifact in named:
            problems += [
                f"line {number}: artefact '{artifact.name}': {fault}" for fault in stock.faults(artifact)
            ]
        notices = (
            [f"the last line was cut short ({len(cut)} bytes); the next record repairs it"] if cut else []
        )
        unnamed = stock.unnamed()
    if unnamed:
        notices.append(
            f"{unnamed} stored {'file is' if unnamed == 1 else 'files are'} named by no record: "
            "a job ended before it was recorded, or a record was removed"
        )
    return Report(
        problems=tuple(problems),
        notices=tuple(notices),
        records=len(lines),
        artifacts=len(named),
        bytes=sum(size for size in stock.sizes.values() if size is not None),
        deep=deep,
        head=digests[-1] if digests else "",
        unlinked=next((at for at, link in enumerate(links) if link is not None), len(links)),
    )


class _Stock:
    """The stored files, each looked at once however many records name it."""

    def __init__(self, root: Path, deep: bool) -> None:
        self.root = root
        self.deep = deep
        self.sizes: dict[str, int | None] = {}
        self._altered: set[str] = set()

    def faults(self, artifact: Artifact) -> list[str]:
        """What is wrong with the stored bytes of one artefact."""
        if artifact_faults(artifact):
            return []  # its description is unsound and was reported with the line
        files = {"": artifact.digest} if artifact.files is None else artifact.files
        faults = [
            f"{fault}: {name or found}" for name, found in files.items() if (fault := self._look(found))
        ]
        sizes = [self.sizes[found] for found in files.values()]
        size = sum(s for s in sizes if s is not None)
        if None not in sizes and size != artifact.bytes:
            faults.append(f"has {size} bytes, recorded were {artifact.bytes}")
        if artifact.files is not None and self.deep:
            faults += self._tree_faults(artifact.digest, artifact.files)
        return faults

    def unnamed(self) -> int:
        """How many stored files no record names."""
        stored = {path.name for path in (self.root / "objects").glob("*/*")}
        return len(stored - set(self.sizes))

    def _look(self, found: str) -> str:
        path = object_path(self.root, found)
        if found not in self.sizes:
            self.sizes[found] = path.stat().st_size if path.is_file() else None
            if self.deep and path.is_file() and digest_file(path) != found:
                self._altered.add(found)
        if self.sizes[found] is None:
            return "missing"
        return "altered" if found in self._altered else ""

    def _tree_faults(self, whole: str, files: dict[str, str]) -> list[str]:
        """A folder that was laid out may hold copies, so it is compared as well."""
        tree = tree_path(self.root, whole)
        if not tree.is_dir():
            return []
        lying = manifest(tree)
        wrong = sorted(name for name in files.keys() | lying.keys() if files.get(name) != lying.get(name))
        return [f"trees/{whole} differs (remove it: it is restored when opened): {name}" for name in wrong]
