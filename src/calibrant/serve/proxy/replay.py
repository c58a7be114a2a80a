"""Asks layers again about what an audit holds: has the policy changed what passes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calibrant.core import Chat, InputError, Message
from calibrant.defend._layer import Caller, Layer
from calibrant.serve.proxy.audit import read


@dataclass
class Replayed:
    """What came of it."""

    asked: int = 0
    """Verdicts that were asked for again."""
    changed: list[str] = field(default_factory=list)
    """One line each for a verdict that is another now."""

    def summary(self) -> str:
        """In words, the first twenty changes with it."""
        told = f"{self.asked} verdicts asked again, {len(self.changed)} are others now"
        return "\n".join([told, *self.changed[:20]])


def replayed(audit: Path, layers: Sequence[Layer]) -> Replayed:
    """Verdicts of ``layers`` on the chats and replies of ``audit``, compared with those that stand there.

    A layer that the audit does not name, or that was not asked then, is not compared.

    Raises:
        InputError: the audit holds no texts, or none of these layers. EvidenceError: it was changed.
    """
    lines = read(audit)
    first = next(lines)
    if first.get("keep") != "full":
        raise InputError(
            f"{audit.name} holds digests of texts, which can not be read again", hint="serve with --keep full"
        )
    callers = {(layer.side, layer.name): Caller(layer) for layer in layers}
    found = Replayed()
    known = {(one["side"], one["name"]) for one in first["policy"]["layers"]}
    if not known & set(callers):
        raise InputError(f"{audit.name} names none of these layers", hint="give the stack that was served")
    for number, line in enumerate(lines, 2):
        chat = Chat(messages=tuple(Message(**turn) for turn in line.get("chat", ())))
        for side in line.get("verdicts", ()):
            read_by = chat
            if side["side"] == "output":
                reply = line["replies"].get(str(side["choice"]))
                if not reply:
                    continue
                read_by = chat.then("assistant", reply)
            for said in side["layers"]:
                caller = callers.get((side["side"], said["layer"]))
                if caller is None or said["status"] != "answered":
                    continue
                now = caller.verdicts([read_by])[0].verdict
                found.asked += 1
                if now.answer != said["answer"]:
                    found.changed.append(
                        f"line {number}: layer '{said['layer']}' said {said['answer']}, says {now.answer}: "
                        f"{now.reason[:100]}"
                    )
    return found
