"""Checkpoints: how many lines a ledger had, and the root of their tree, signed and kept elsewhere.

A chain of digests does not show that its last lines were cut off, or that it was written anew from some line
to its end. A checkpoint that lies outside the hands of who keeps the ledger shows both.

Source: RFC 6962 (the root, ``merkle``); C2SP tlog-checkpoint, whose three lines are the payload: the name of
the log, its size, the root in base64. It is signed as a DSSE envelope (``signatures``).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from calibrant.core.errors import EvidenceError, InputError
from calibrant.core.verdict import Verdict
from calibrant.ledger.merkle import SIZE, Tree, leaf_hash
from calibrant.ledger.signatures import PrivateKey, PublicKey, sealed, signers

KIND = "application/vnd.c2sp.tlog-checkpoint"
"""Payload type of the envelope."""
QUESTION = "do the witnessed lines stand in this ledger as they stood?"


class Checkpoint(NamedTuple):
    """What a log was at a time."""

    origin: str
    """Name of the log: one line, without blanks at its ends."""
    size: int
    """Its lines."""
    root: bytes
    """Of their tree."""

    def text(self) -> str:
        """The three lines."""
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read them; lines behind are extensions, which say nothing here.

        Raises:
            EvidenceError: it is no checkpoint.
        """
        try:
            origin, size, root, *_, end = text.split("\n")
            found = cls(origin, int(size), b64decode(root, validate=True))
        except (ValueError, NotBase64):
            found, end = None, ""
        if found is None or end or not origin.strip() or not _is_plain(size) or len(found.root) != SIZE:
            raise EvidenceError(
                f"no checkpoint: {text[:80]!r}",
                hint="the log's name, its size, the root in base64, a line each",
            )
        return found


def _is_plain(size: str) -> bool:
    """Decimal, ASCII, without zeros before it: one way to write a number."""
    return size.isascii() and size.isdigit() and (size == "0" or not size.startswith("0"))


def checkpoint_of(lines: Iterable[bytes], origin: str) -> Checkpoint:
    """Of the whole lines of a ledger, in order.

    Raises:
        InputError: ``origin`` is blank, or not one line.
    """
    if not origin.strip() or origin != origin.strip() or "\n" in origin or not origin.isprintable():
        raise InputError(f"'{origin!r}' names no log", hint="one line of text, without blanks at its ends")
    tree = Tree(map(leaf_hash, lines))
    return Checkpoint(origin, len(tree), tree.root())


def signed(checkpoint: Checkpoint, keys: Iterable[PrivateKey]) -> dict[str, Any]:
    """As an envelope."""
    return sealed(checkpoint.text().encode(), keys, KIND)


def witnessed(
    envelope: Mapping[str, Any], trusted: Sequence[PublicKey]
) -> tuple[Checkpoint, list[PublicKey]]:
    """The checkpoint of an envelope, and which of the trusted keys signed it.

    Raises:
        EvidenceError: it is no envelope of a checkpoint.
    """
    payload, keys = signers(envelope, trusted, KIND)
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        raise EvidenceError("no checkpoint: it is not UTF-8") from None
    return Checkpoint.parse(text), keys


def tail(lines: Sequence[bytes], seen: Sequence[Checkpoint]) -> Verdict:
    """Whether the lines of a ledger begin with what each checkpoint saw; unknown without one.

    'Yes' says how far: what was written behind the last checkpoint is held by nobody outside.
    """
    if not seen:
        return Verdict(question=QUESTION, answer="unknown", reason="no checkpoint from outside was given")
    if len({one.origin for one in seen}) > 1:
        names = ", ".join(sorted({f"'{one.origin}'" for one in seen}))
        return Verdict(question=QUESTION, answer="no", reason=f"checkpoints of several logs: {names}")
    tree, last = Tree(map(leaf_hash, lines)), max(one.size for one in seen)
    for one in sorted(seen, key=lambda one: one.size):
        if one.size > len(tree):
            lost = one.size - len(tree)
            told = f"a checkpoint saw {one.size} lines, {len(tree)} are left: the last {lost} were cut off"
            return Verdict(question=QUESTION, answer="no", reason=told)
        if tree.root(one.size) != one.root:
            told = (
                f"lines 1 to {one.size} are not those that a checkpoint saw: one was edited, moved or removed"
            )
            return Verdict(question=QUESTION, answer="no", reason=told)
    rest = len(tree) - last
    told = f"lines 1 to {last} are as witnessed" + (f"; {rest} later ones are not witnessed" if rest else "")
    return Verdict(question=QUESTION, answer="yes", reason=told)
