"""Asks layers again about what an audit holds: has the policy changed what passes?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibrant.core import Chat, InputError, LayerVerdict, Message
from calibrant.defend.defended import Caller, Layer, StackSpec, blocker
from calibrant.defend.pii_guard import pii_guard
from calibrant.serve.proxy.audit import read


@dataclass
class Replayed:
    """What came of it."""

    requests: int = 0
    """Requests that were answered or blocked then."""
    policy: list[str] = field(default_factory=list)
    """What else of the stack is otherwise, such as personal data that the model would read now."""
    cut: bool = False
    """Whether the audit lacks its closing line: its last lines may be missing."""
    unread: list[str] = field(default_factory=list)
    """Layers of only one of the two: new, gone, or on another side."""
    changed: list[str] = field(default_factory=list)
    """One line each for a request that would end otherwise, or a layer of both that says otherwise."""

    def summary(self) -> str:
        """In words, the first twenty changes with it."""
        told = [f"{self.requests} requests asked again, {len(self.changed)} differences"]
        if self.cut:
            told.append("the audit has no closing line: it is still written, or its last lines are missing")
        return "\n".join([*told, *self.policy, *self.unread, *self.changed[:20]])


def replayed(audit: Path, layers: Sequence[Layer], spec: StackSpec | None = None) -> Replayed:
    """Ask ``layers`` about the chats and replies of ``audit``: what would end otherwise?

    A request that was blocked and would pass now has no reply here: it is told as one that reaches the model.
    With ``spec``, the file of the layers, also what the policy of the audit hides from the model, and how it
    refuses.

    Raises:
        InputError: the audit holds no texts. EvidenceError: it was changed.
    """
    lines = read(audit)
    first = next(lines)
    if first.get("keep") != "full":
        raise InputError(
            f"{audit.name} holds digests of texts, which can not be read again", hint="serve with --keep full"
        )
    then = {(one["side"], one["name"]) for one in first["policy"]["layers"]}
    now = {(layer.side, layer.name) for layer in layers}
    found = Replayed()
    for many, what in ((now - then, "new"), (then - now, "gone")):
        found.unread += [f"layer '{name}' ({side}) is {what}" for side, name in sorted(many)]
    if spec is not None:
        found.policy = list(_otherwise(first["policy"], spec))
    callers, closed = [Caller(layer) for layer in layers], False
    for number, line in enumerate(lines, 2):
        closed = bool(line.get("closed"))
        if line.get("outcome") in ("answered", "blocked_input", "blocked_output"):
            found.requests += 1
            found.changed += [f"line {number}: {change}" for change in _changes(line, callers)]
    found.cut = not closed
    return found


def _otherwise(then: Mapping[str, Any], now: StackSpec) -> Iterator[str]:
    """What the stack does beside its layers."""
    before, hides = then.get("hide"), None if now.hide is None else pii_guard(now.hide).identity.digest
    if before != hides:
        yield (
            "personal data is hidden now, which the model read then"
            if before is None
            else "personal data that was hidden then would reach the model"
            if hides is None
            else "other personal data is hidden now than then: see 'hide' of both stacks"
        )
    if then.get("refusal") != now.refusal:
        yield "a blocked user reads another refusal"
    if then.get("show_reasoning", True) != now.show_reasoning:
        yield f"reasoning is {'shown' if now.show_reasoning else 'hidden'} now"


def _changes(line: Mapping[str, Any], callers: Sequence[Caller]) -> Iterator[str]:
    """What is otherwise in one request."""
    chat = Chat(messages=tuple(Message(**turn) for turn in line["chat"]))
    said = {
        (side["side"], side["choice"], one["layer"]): one["answer"]
        for side in line["verdicts"]
        for one in side["layers"]
        if one["status"] == "answered"
    }
    asked: list[tuple[str, int, Chat]] = [("input", 0, chat)]
    asked += [
        ("output", int(at), chat.then("assistant", reply)) for at, reply in line["replies"].items() if reply
    ]
    outcome, blocks = "answered", ""
    for side, choice, read_by in asked:
        verdicts: list[LayerVerdict] = []
        for caller in callers:
            if caller.layer.side == side:
                verdicts += caller.verdicts([read_by])
        for one in verdicts:
            now, before = one.verdict, said.get((side, choice, one.layer), one.verdict.answer)
            if now.answer != before:
                yield f"layer '{one.layer}' said {before}, says {now.answer}: {now.reason[:100]}"
        stopped = blocker(verdicts, ended=True)
        if stopped is not None:
            outcome, blocks = f"blocked_{side}", f" by '{stopped.layer}'"
            break
    if line["outcome"] == "blocked_input" and outcome == "answered":
        yield "it was blocked, and would reach the model"
    elif outcome.partition("_")[0] != line["outcome"].partition("_")[0]:
        then, ends = (text.replace("_", " on the ") for text in (line["outcome"], outcome))
        yield f"it was {then}, and would be {ends}{blocks}"
