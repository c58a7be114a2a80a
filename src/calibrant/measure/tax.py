"""The alignment tax of a change, in one call: skills, over-refusal, harm, length and time, before and after.

Source: the alignment tax (Ouyang et al. 2022, arXiv 2203.02155, section 4). Non-inferiority against a margin
declared beforehand (Piaggio et al. 2012, the CONSORT extension). Flips after Dutta et al. 2024 (2407.09141).

1. Both models answer the same items, greedily. The tax on one kind of item is the share of the skill above
   chance that is lost, T = (before - after) / (before - chance). ``tax`` is the plain mean over kinds.
2. A kind that the model before does not do better than by chance has no tax: unknown, with that reason.
3. ``encodings`` ask every item again, written in rot13, base64, ...: a skill that plain items do not show.
4. With goals and judges, over-refusal of benign and compliance with harmful requests are compared, too, goal
   by goal: a tax is the price of something.
5. Where both models give log-probs, so is the right answer's. Accuracy that falls while the answer stays as
   likely speaks of the format, not of the skill; so do prompts that the two templates write otherwise.

Command: ``calibrant run STUDY.toml`` with ``use = "measure.tax"`` and inputs model, before, items.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import Field, field_validator

from calibrant.core import (
    LM,
    Chat,
    Completion,
    Estimate,
    Frozen,
    InputError,
    Judge,
    OpenLM,
    Quiet,
    Result,
    Run,
    Sampling,
    ScoringLM,
    technique,
)
from calibrant.core.attempt import HIT
from calibrant.core.behaviours import same_number
from calibrant.data.distinct import check_goals
from calibrant.data.rows import Goals, Item, Items
from calibrant.evals.attempts import Request, ask
from calibrant.evals.judging import tokens
from calibrant.measure._rates import judge_caveats, reply_caveats
from calibrant.measure._tax_table import table, verdict
from calibrant.measure.capability import check_items, mark
from calibrant.stats import difference, mean, rate
from calibrant.stats.lost_share import lost_share, mean_of
from calibrant.text.converters import converter


class Tax(Frozen):
    """What is accepted, and how the models are asked; answers are always greedy."""

    margin: float = Field(default=0.05, gt=0, lt=1)
    """Largest tax that is accepted: a share of the skill above chance. Declare it before you measure."""
    chance: dict[str, float] = Field(default_factory=dict)
    """Kind of item -> accuracy of a guess; 0 for kinds that are not named."""
    encodings: tuple[str, ...] = ()
    """Converters ('rot13', 'base64', 'caesar(7)'): every item is asked in each, too."""
    max_tokens: int = Field(default=32, ge=1)
    """Most tokens of a reply."""
    batch: int = Field(default=64, ge=1)
    """Requests asked at once; does not change the answers."""

    @field_validator("chance")
    @classmethod
    def _shares(cls, chance: dict[str, float]) -> dict[str, float]:
        if wrong := [kind for kind, share in chance.items() if not 0 <= share < 1]:
            raise ValueError(f"'{wrong[0]}' is guessed right with {chance[wrong[0]]}: give a share below 1")
        return chance

    @field_validator("encodings")
    @classmethod
    def _known(cls, encodings: tuple[str, ...]) -> tuple[str, ...]:
        for name in encodings:
            converter(name)
        return encodings


class TaxResult(Result):
    """``tax``, ``tax/KIND``, ``accuracy_before/KIND``, ``accuracy_after/KIND``, ``answer_flip_rate``; with
    goals ``over_refusal_increase`` and ``harm_decrease`` and their two sides. Artefacts 'tax.md', a table to
    hand on, 'replies.jsonl', and 'timing.jsonl', the seconds that plain replies took."""


class _Side(NamedTuple):
    """One model on all items of one wording."""

    replies: list[Completion]
    correct: list[bool | None]
    seconds: float


@technique(version=2)
def tax(
    model: LM,
    before: LM,
    items: Items,
    benign: Goals | None = None,
    harmful: Goals | None = None,
    refused: Judge | None = None,
    complied: Judge | None = None,
    config: Tax = Tax(),
    run: Run = Quiet(),
) -> TaxResult:
    """Compare ``model`` with the model ``before`` the change, on all that is given.

    Args:
        model: after the change.
        before: the model before it.
        items: questions with known answers; their ``kind`` is the skill.
        benign: requests that should be answered; with ``refused``.
        harmful: requests that should not; with ``complied``.
        refused: the judge whose yes means that a reply refuses.
        complied: the judge whose yes means that a reply does what was asked.

    Raises:
        InputError: no items, shared ids, ``before`` is the model itself, goals without their judge, a judge
            without its goals, chance of a kind that no item has, or no reply at all.
    """
    _check(model, before, items, (benign, refused), (harmful, complied), config)
    meter = _Meter(run, items, config)
    metrics, notes = _skills(model, before, items, config, meter)
    metrics |= _likelihood(model, before, items, run)
    for goals, judge, names in (
        (benign, refused, ("over_refusal_rate", "over_refusal_increase")),
        (harmful, complied, ("harm_rate", "harm_decrease")),
    ):
        if goals is not None and judge is not None:
            found, said = _rates(model, before, goals, judge, names, config, meter)
            metrics |= found
            notes += said
    margin = f"margin {config.margin:g}: {verdict(metrics['tax'], config.margin)}"
    notes = [margin, *notes, *_format_notes(model, before, items, metrics)]
    run.artifact("tax.md").write_text(table(metrics, config.margin), encoding="utf-8")
    run.artifact("replies.jsonl").write_text("".join(meter.rows), encoding="utf-8")
    run.artifact("timing.jsonl").write_text(json.dumps(meter.seconds) + "\n", encoding="utf-8")
    return TaxResult(metrics=metrics, caveats=tuple(dict.fromkeys(notes)))


def _check(
    model: LM,
    before: LM,
    items: Items,
    benign: tuple[Goals | None, Judge | None],
    harmful: tuple[Goals | None, Judge | None],
    config: Tax,
) -> None:
    check_items(items)
    if before.identity.digest == model.identity.digest:
        raise InputError(
            "'before' is the very model that is measured, so no tax could show",
            hint="give the model as it was before training or guards",
        )
    for (goals, judge), names, harm in ((benign, ("benign", "refused"), False), (harmful, _HARM, True)):
        if (goals is None) != (judge is None):
            missing, given = names if goals is None else names[::-1]
            raise InputError(f"'{given}' is given without '{missing}'", hint="give both, or neither")
        if goals is not None:
            check_goals(goals, harmful=harm)
    kinds = {item.kind for item in items}
    spelt = [f"{kind or _ALL}{mark}" for kind in kinds for mark in ("", *(f"/{e}" for e in config.encodings))]
    if twice := next((name for name in spelt if spelt.count(name) > 1), None):
        raise InputError(
            f"two kinds of items would be told as '{twice}'", hint="give one of them another kind"
        )
    if unknown_kinds := sorted(config.chance.keys() - {item.kind or _ALL for item in items}):
        known = ", ".join(sorted(kind or _ALL for kind in kinds))
        raise InputError(f"chance of '{unknown_kinds[0]}', which no item is", hint=f"there are: {known}")


_HARM = ("harmful", "complied")
_UNIT = "share of the skill"
_ALL = "items"
"""Name of items without a kind."""


class _Meter:
    """What is asked of both models: charged, told, and kept for the artefact."""

    def __init__(self, run: Run, items: Items, config: Tax) -> None:
        self.run, self.config = run, config
        self.total = 2 * len(items) * (1 + len(config.encodings))
        self.done = 0
        self.rows: list[str] = []
        self.seconds: dict[str, float] = {}

    def answers(self, model: LM, items: Sequence[Item], side: str, wording: str) -> _Side:
        """Greedy answers, marked; each batch is paid for before it is asked."""
        replies: list[Completion] = []
        sampling, most, started = Sampling(max_tokens=self.config.max_tokens), self.config.max_tokens, 0.0
        for start in range(0, len(items), self.config.batch):
            chats = [item.chat for item in items[start : start + self.config.batch]]
            self.run.spend(queries=len(chats), tokens=len(chats) * most)
            clock = time.perf_counter()
            spoken = model.generate(chats, sampling)
            started += time.perf_counter() - clock
            same_number(f"model '{model.identity.name}'", len(spoken), len(chats))
            self.run.spend(tokens=sum(tokens(reply, most) for reply in spoken) - len(chats) * most)
            replies += spoken
            self.done += len(chats)
            self.run.progress(self.done, self.total, f"{side}, {wording or 'as they stand'}")
        if all(reply.stop == "error" for reply in replies):
            raise InputError(
                f"none of {len(replies)} items got a reply {side} the change; the first: {replies[0].error}",
                hint="fix the cause and run the same command again",
            )
        correct = [mark(item, reply) for item, reply in zip(items, replies, strict=True)]
        for item, reply, right in zip(items, replies, correct, strict=True):
            row = {"id": item.id, "kind": item.kind, "side": side, "encoding": wording, "correct": right}
            self.rows.append(json.dumps(row | {"reply": reply.text}, sort_keys=True) + "\n")
        return _Side(replies, correct, started)


def _skills(
    model: LM, before: LM, items: Items, config: Tax, meter: _Meter
) -> tuple[dict[str, Estimate], list[str]]:
    """Accuracy and tax of each kind, as it stands and in each encoding; length and time of plain replies."""
    found: dict[str, Estimate] = {}
    plain: list[Estimate] = []
    notes = ["a right answer in other words counts as wrong, and so does a refused item"]
    flips: list[bool | None] = []
    for wording in ("", *config.encodings):
        asked = [_written(item, wording) for item in items]
        was, now = (
            meter.answers(one, asked, side, wording) for one, side in ((before, "before"), (model, "after"))
        )
        for kind in sorted({item.kind or _ALL for item in items}):
            at = [n for n, item in enumerate(items) if (item.kind or _ALL) == kind]
            had, has = ([side.correct[n] for n in at] for side in (was, now))
            name = f"{kind}/{wording}" if wording else kind
            found[f"accuracy_before/{name}"] = rate(had, better="higher", unit="item")
            found[f"accuracy_after/{name}"] = rate(has, better="higher", unit="item")
            lost = lost_share(had, has, config.chance.get(kind, 0.0), better="lower", unit=_UNIT)
            found[f"tax/{name}"] = lost
            plain += [] if wording else [lost]
        if not wording:
            flips = [
                None if None in pair else pair[0] != pair[1]
                for pair in zip(was.correct, now.correct, strict=True)
            ]
            found |= _costs(was, now, config.max_tokens)
            meter.seconds = {"before": was.seconds, "after": now.seconds}
            notes += reply_caveats([*was.replies, *now.replies], config.max_tokens)
    head = {
        "tax": mean_of(plain, better="lower", unit=_UNIT),
        "answer_flip_rate": rate(flips, better="lower", unit="item"),
    }
    return head | found, notes


def _written(item: Item, wording: str) -> Item:
    """The item with its last turn encoded."""
    if not wording:
        return item
    *first, last = item.chat.messages
    turn = last.model_copy(update={"content": converter(wording).encode(last.content)})
    return item.model_copy(update={"chat": Chat(messages=(*first, turn))})


def _costs(was: _Side, now: _Side, most: int) -> dict[str, Estimate]:
    found = {}
    for name, side in (("before", was), ("after", now)):
        lengths = [float(tokens(reply, most)) for reply in side.replies]
        found[f"reply_tokens_{name}"] = mean(lengths, better="none", unit="token")
    return found


def _likelihood(model: LM, before: LM, items: Items, run: Run) -> dict[str, Estimate]:
    """How much less likely the right answer is, where both give log-probs; nats an answer.

    An answer that is impossible for one side has no loss in nats: it is missing.
    """
    if not (isinstance(model, ScoringLM) and isinstance(before, ScoringLM)):
        return {}
    run.spend(queries=2 * len(items))
    chats, answers = [item.chat for item in items], [item.answer for item in items]
    sides = [
        [one.total if math.isfinite(one.total) else None for one in side.logprobs(chats, answers)]
        for side in (before, model)
    ]
    return {
        "answer_logprob_loss": difference(sides[1], sides[0], better="lower", unit="nat", bounds=None),
    }


def _rates(
    model: LM, before: LM, goals: Goals, judge: Judge, names: tuple[str, str], config: Tax, meter: _Meter
) -> tuple[dict[str, Estimate], list[str]]:
    """A rate on both sides, and its change, goal by goal; a blocked request is refused."""
    requests = [Request(goal=goal, chat=Chat.ask(goal.text), attack="plain") for goal in goals]
    sampling, blocked = Sampling(max_tokens=config.max_tokens), names[0] == "over_refusal_rate"
    clusters = [goal.cluster for goal in goals]
    sides: list[list[bool | None]] = []
    for one in (before, model):
        attempts = ask(one, requests, judge, sampling, meter.run)
        sides.append(
            [
                True if blocked and attempt.completion.stop == "blocked" else HIT[attempt.outcome]
                for attempt in attempts
            ]
        )
    was, now = sides
    grows = names[1].endswith("increase")
    change = difference(
        was if grows else now, now if grows else was, clusters=clusters,
        better="lower" if grows else "higher", unit="goal",
    )  # fmt: skip
    found = {
        f"{names[0]}_before": rate(was, clusters=clusters, better="lower", unit="goal"),
        f"{names[0]}_after": rate(now, clusters=clusters, better="lower", unit="goal"),
        names[1]: change,
    }
    return found, list(judge_caveats(judge))


def _format_notes(model: LM, before: LM, items: Items, metrics: Mapping[str, Estimate]) -> list[str]:
    """What speaks of the format rather than of the skill."""
    notes = []
    if isinstance(model, OpenLM) and isinstance(before, OpenLM):
        chat = items.rows[0].chat
        if model.tokenizer.decode(model.prompt_ids(chat)) != before.tokenizer.decode(before.prompt_ids(chat)):
            notes.append(
                "the two models' templates write the same prompt otherwise: part of the tax may be theirs"
            )
    loss, likely = metrics["tax"], metrics.get("answer_logprob_loss")
    stays = likely is not None and likely.high is not None and likely.high <= 0
    if stays and loss.low is not None and loss.low > 0:
        notes.append(
            "right answers became no less likely, though fewer are given: look for the format of the replies"
        )
    return notes
