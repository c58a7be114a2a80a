"""A judge as a guard: what decides whether an attack succeeded also decides whether a text may pass.

1. On 'output' the judge is asked about the reply, in its chat, against a goal: the last request, the whole
   conversation, or a text of the user's. On 'input', where there is no reply, every message together stands
   in its place; a judge of replies is not made for that, so this side has to be switched on.
2. One answer of the judge lets a text pass, 'no' unless the settings say 'yes': whoever harms is asked
   "harmful?", whoever keeps a rule is asked "kept?". A threshold on the judge's score can block more, and
   never less.
3. A judge that is unsure, raises, gives the wrong number of verdicts, something that is no verdict, or a
   score that is not finite, is 'unknown', which blocks.
4. What the judge's calibration says of its errors stands in every reason. A guard lets pass what its judge
   misses: with ``passes = "no"``, 1 - sensitivity of what does harm.

In a stack file: ``guard = {use = "defend.judge_guard", inputs = {judge = "testbed:judge/harmful"}}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field, field_validator

from calibrant.core import (
    Chat,
    Completion,
    Frozen,
    Goal,
    Guard,
    Identity,
    InputError,
    Judge,
    Side,
    Verdict,
    digest,
)
from calibrant.core.behaviours import same_number
from calibrant.core.errors import nearest
from calibrant.defend._reading import NO_REPLY, QUESTION, ends_with_reply, joined, known_views
from calibrant.text.decodings import readings

_NAMES = ("last_user", "conversation")
_HOLE = re.compile(r"\{(\w*)\}")


class JudgeGuard(Frozen):
    """What the judge is told, and which of its verdicts let a text pass."""

    passes: Literal["no", "yes"] = "no"
    """The judge's answer that lets a text pass; the other one and 'unknown' block."""
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    """On the judge's own scale: also blocked from this score on (``passes = "no"``), or below it (``"yes"``).
    It lets nothing pass that the answer blocks, and a verdict without a score is then unknown."""
    goal_on_output: str = "{last_user}"
    """The goal that a reply is judged against: {last_user} = the latest request, {conversation} = every
    message before the reply, line by line; or a text of your own."""
    goal_on_input: str = ""
    """The same for a request, whose messages are judged together as if they were the reply; "": the guard
    answers on 'output' only."""
    views: tuple[str, ...] = ()
    """Codecs that the text is also decoded with; each view is judged by itself, and all must pass."""

    _views = field_validator("views")(known_views)

    @field_validator("goal_on_output", "goal_on_input")
    @classmethod
    def _known_names(cls, goal: str) -> str:
        for name in _HOLE.findall(goal):
            if name not in _NAMES:
                raise ValueError(
                    f"unknown '{{{name}}}'{nearest(name, _NAMES)}; known: {{last_user}}, {{conversation}}"
                )
        return goal

    @field_validator("goal_on_output")
    @classmethod
    def _not_blank(cls, goal: str) -> str:
        if not goal.strip():
            raise ValueError("a reply is judged against a goal, and this one is blank")
        return goal


def judge_guard(judge: Judge, config: JudgeGuard = JudgeGuard()) -> Guard:
    """A guard that lets pass what ``judge`` answers with ``config.passes``.

    Any view that is blocked is a no; else any that is unclear is 'unknown'; else 'yes'.
    """
    return _Judging(judge=judge, config=config)


class _Row(NamedTuple):
    """One question to the judge."""

    goal: Goal
    chat: Chat
    reply: Completion
    view: str


@dataclass(frozen=True)
class _Judging:
    """The guard that ``judge_guard`` makes."""

    judge: Judge
    config: JudgeGuard

    @property
    def identity(self) -> Identity:
        parts = {"rule": "judge_guard/1", "config": digest(self.config), "judge": self.judge.identity.digest}
        parts["calibration"] = self._calibration
        return Identity(name=f"judge guard ({self.judge.identity.name})", kind="guard", parts=parts)

    @property
    def sides(self) -> tuple[Side, ...]:
        """'input' too where there is a goal for it."""
        return ("input", "output") if self.config.goal_on_input else ("output",)

    def ask(self, chats: Sequence[Chat], side: Side) -> list[Verdict]:
        """One verdict a chat. Raises InputError: no such side."""
        if side not in ("input", "output"):
            raise InputError(f"a guard has no side {side!r:.40}", hint="ask about 'input' or 'output'")
        if side not in self.sides:
            return [_unknown("it judges replies; set goal_on_input to judge requests, too") for _ in chats]
        asked = [self._rows(chat, side) for chat in chats]
        said = iter(self._said([row for rows in asked for row in rows]))
        return [_worst([self._verdict(row, next(said)) for row in rows]) for rows in asked]

    def _rows(self, chat: Chat, side: Side) -> list[_Row]:
        """What the judge is asked about; nothing where there is no text to ask about."""
        if side == "output" and not ends_with_reply(chat):
            return []
        before = chat if side == "input" else Chat(messages=chat.messages[:-1])
        text = joined(chat) if side == "input" else chat.messages[-1].content
        template = self.config.goal_on_input if side == "input" else self.config.goal_on_output
        told = {"last_user": before.last_user, "conversation": joined(before)}
        aim = _HOLE.sub(lambda hole: told[hole[1]], template)  # in one pass: no text is a template
        goal = Goal(id=digest(aim)[:16], text=aim)
        views = {"as it is": text, **readings(text, self.config.views)}
        if views["as written"] == text:  # without what nobody sees it is the same
            del views["as written"]
        return [_Row(goal, before, Completion(text=read), view) for view, read in views.items()]

    def _said(self, rows: Sequence[_Row]) -> list[Verdict | str]:
        """What the judge says of each, or why there is no verdict. Where it fails on several, each is asked
        about alone, so that none depends on the others."""
        if not rows:
            return []
        try:
            given = self.judge.judge([r.goal for r in rows], [r.chat for r in rows], [r.reply for r in rows])
            same_number("it", len(given), len(rows))
            return [_checked(one) for one in given]
        except Exception as error:  # noqa: BLE001  # a judge may be code from elsewhere, and its crash blocks
            if len(rows) > 1:
                return [said for row in rows for said in self._said([row])]
            return [f"the judge failed: {type(error).__name__}: {_message(error)}"]

    def _verdict(self, row: _Row, said: Verdict | str) -> Verdict:
        if isinstance(said, str):
            return _unknown(said)
        asked = said.question or str(getattr(self.judge, "question", ""))
        why = f"the judge ({self._calibration}) says {said.answer} to '{asked}' of the text read {row.view}"
        why = f"{why}: {said.reason}" if said.reason else why
        answer, cut = said.answer, self.config.threshold
        if answer == self.config.passes:
            passed = cut is None or (said.score is not None and (said.score < cut) == (answer == "no"))
            if cut is not None:
                side = "from" if answer == "no" else "below"
                why += f"; score {said.score}, blocked {side} {cut:g}{' on' if answer == 'no' else ''}"
            lost = cut is not None and said.score is None
            return self._told("unknown" if lost else "yes" if passed else "no", why, said)
        return self._told("unknown" if answer == "unknown" else "no", why, said)

    def _told(self, answer: Literal["yes", "no", "unknown"], why: str, said: Verdict) -> Verdict:
        return Verdict(question=QUESTION, answer=answer, reason=why, score=said.score, tokens=said.tokens)

    @property
    def _calibration(self) -> str:
        return str(getattr(self.judge, "calibration", "uncalibrated"))


def _checked(said: object) -> Verdict | str:
    """A verdict that is one, or why it is none."""
    if not isinstance(said, Verdict):
        return f"the judge failed: it gave a {type(said).__name__}, not a Verdict"
    if said.answer not in ("yes", "no", "unknown"):
        return f"the judge failed: {said.answer!r:.40} is no answer"
    if said.score is not None and not math.isfinite(said.score):
        return f"the judge failed: {said.score} is no score"
    return said


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    """A 'no' of any view, else an 'unknown', else 'yes'; with the tokens of all."""
    if not verdicts:
        return NO_REPLY
    order = {"no": 0, "unknown": 1, "yes": 2}
    found = min(verdicts, key=lambda verdict: order[verdict.answer])
    return found.model_copy(update={"tokens": sum(verdict.tokens for verdict in verdicts)})


def _message(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001
        return "it has no message"


def _unknown(reason: str) -> Verdict:
    return Verdict(question=QUESTION, answer="unknown", reason=reason)
