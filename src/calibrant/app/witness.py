"""Checkpoints of a ledger in a file outside it: ``calibrant seal`` writes one, ``verify`` reads them.

The file has an envelope a line. Kept where who keeps the ledger may not write (an auditor's mail, a second
repository), it shows that the ledger's end was cut off or that it was written anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from calibrant.core import EvidenceError, InputError, Verdict
from calibrant.core.digest import canonical
from calibrant.core.written import parse_json
from calibrant.ledger.checkpoints import QUESTION, Checkpoint, checkpoint_of, signed, tail, witnessed
from calibrant.ledger.layout import disk, read_lines
from calibrant.ledger.lines import Lines
from calibrant.ledger.signatures import PrivateKey, PublicKey


class Tail(NamedTuple):
    """What checkpoints say of a ledger."""

    verdict: Verdict
    notices: tuple[str, ...] = ()
    """What a reader should know of them."""


def seal(root: Path, key: Path, to: Path, name: str = "") -> Checkpoint:
    """Append a signed checkpoint of the ledger at ``root`` to the file ``to``; ``name`` of the log, else that
    of the file's first checkpoint, else of the folder.

    Raises:
        InputError: the ledger is empty, the key is none, ``to`` lies in the ledger, or the disk refuses.
        EvidenceError: the ledger's lines are not those that a checkpoint of the file saw.
    """
    signer = PrivateKey.read(key)
    lines, _ = read_lines(root)
    if not lines:
        raise InputError(f"there are no records in {root}", hint="give --ledger, or run a study first")
    if root.resolve() in to.resolve().parents:
        raise InputError(
            f"{to} lies in the ledger, and would be changed with it",
            hint="give a file that others keep: another repository, an auditor's folder",
        )
    before = [witnessed(one, ())[0] for one in _envelopes(to)] if to.exists() else []
    said = tail(lines, before)
    if said.answer == "no":
        raise EvidenceError(f"{to}: {said.reason}", hint="restore the ledger from a copy, or name a new file")
    made = checkpoint_of(lines, name or (before[0].origin if before else root.resolve().name))
    if before and made.origin != before[0].origin:
        raise InputError(
            f"{to} is of the log '{before[0].origin}'", hint="leave --name out, or name a new file"
        )
    with disk("writing", to):
        to.parent.mkdir(parents=True, exist_ok=True)
    with Lines(to) as file:
        file.add([canonical(signed(made, [signer]))])
    return made


def tail_of(root: Path, witness: Path, trusted: Sequence[Path]) -> Tail:
    """Whether the ledger at ``root`` begins with what the checkpoints of ``witness`` saw.

    Only those count that a ``trusted`` key signed.

    Raises:
        InputError: a file is not there, or holds no such key. EvidenceError: a line is no envelope.
    """
    keys = [PublicKey.read(path) for path in trusted]
    found, others = [], 0
    for envelope in _envelopes(witness):
        checkpoint, by = witnessed(envelope, keys)
        if by:
            found.append(checkpoint)
        else:
            others += 1
    notices = []
    if others:
        notices.append(f"{others} of {others + len(found)} checkpoints are signed by no key that you trust")
    if not found:
        why = (
            "no checkpoint is signed by a key that you trust" if others else "the witness holds no checkpoint"
        )
        return Tail(Verdict(question=QUESTION, answer="unknown", reason=why), tuple(notices))
    return Tail(tail(read_lines(root)[0], found), tuple(notices))


def _envelopes(path: Path) -> list[dict[str, object]]:
    with disk("reading", path):
        lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(filter(None, lines), 1):
        try:
            value = parse_json(line.decode())
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise EvidenceError(f"{path}, line {number}: no envelope", hint="one JSON object a line")
        found.append(value)
    return found
