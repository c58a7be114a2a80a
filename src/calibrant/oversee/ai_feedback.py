"""AI feedback: a model labels preference pairs under a constitution (RLAIF; 2212.08073, section 4).

Where this departs from common recipes:
1. Every pair is read in both orders, and the label is their mean; what the model says of the side alone, and
   not of the answer, cancels. A pair of which one order could not be read gets no label.
2. Labels are soft (``chosen_probability``), and clamped where asked: after reasoning to .4 - .6, as in the
   paper.
3. Every label names the principle that it was made under.
4. The given order of ``pairs``, people's say, is never shown; agreement with it is measured, with position
   bias.

    calibrant show oversee.ai_feedback
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from calibrant.core import (
    LM,
    Chat,
    ConfigError,
    Estimate,
    InputError,
    Quiet,
    Result,
    Run,
    Sampling,
    digest,
    technique,
    unknown,
)
from calibrant.core.behaviours import same_number
from calibrant.core.digest import canonical
from calibrant.data.constitution import Constitution, Principle
from calibrant.data.rows import Pair, Preferences
from calibrant.oversee._comparing import (
    Asked,
    Comparing,
    comparison,
    filled,
    preferred,
    question_of,
    readings,
    side,
)
from calibrant.stats import mean, rate

_AFTER_REASONING = 0.6
_NONE = Principle.model_construct(id="", text="")
_CONSISTENT = 0.5
"""Below this share of pairs a caveat says so."""
"""Asks by ``unprincipled``."""


class AIFeedback(Comparing):
    """How pairs are labelled."""

    choose: Literal["sampled", "priority"] = "sampled"
    """'sampled': one principle a pair, drawn by the run's seed. 'priority': the first, from the highest
    priority down, that names the same side in both orders."""
    think: str = ""
    """Asks for reasoning before the verdict; {comparison} is filled in. "" asks for none."""
    thinking: Sampling = Sampling(max_tokens=256)
    """How the reasoning is sampled."""
    clamp: float | None = Field(default=None, ge=0.5, le=1.0)
    """Labels are kept from 1 - ``clamp`` to ``clamp``. None: .6 after reasoning, else no clamp."""
    batch: int = Field(default=256, ge=1)
    """Pairs that are asked about at once."""

    @model_validator(mode="after")
    def _shows_the_comparison(self) -> AIFeedback:
        if self.think and "{comparison}" not in self.think:
            raise ValueError("think does not contain {comparison}")
        return self

    @property
    def most(self) -> float:
        """The largest label."""
        return self.clamp if self.clamp is not None else (_AFTER_REASONING if self.think else 1.0)


class Label(NamedTuple):
    """What was read of one pair."""

    principle: str
    """Id; "" where no principle speaks to the pair."""
    probability: float | None
    """That the given ``chosen`` is the better one, before the clamp; None: not read in both orders."""
    sides: tuple[float | None, float | None]
    """1 for the given ``chosen``, -1, 0 for neither: in the plain order, and swapped."""


class AIFeedbackResult(Result):
    """The labelled pairs (artefact 'pairs.jsonl'), and how far they agree with the given order."""

    pairs: Preferences = Field(exclude=True, repr=False)
    """Pairs with a side, the better one as chosen, with ``chosen_probability`` and ``principle``."""
    labels: tuple[Label, ...] = Field(default=(), exclude=True, repr=False)
    """One a given pair, in order."""


@technique(version=2)
def ai_feedback(
    model: LM,
    pairs: Preferences,
    constitution: Constitution | None = None,
    config: AIFeedback = AIFeedback(),
    run: Run = Quiet(),
) -> AIFeedbackResult:
    """Label ``pairs`` by what ``model`` prefers under ``constitution``, or without one by ``unprincipled``.

    Raises:
        InputError: there are no pairs, or no principle speaks to any of them.
        ConfigError: a constitution is given, and ``compare`` shows no principle; or none, and a priority is
        wanted. CapabilityError: log-probs are wanted of a model that gives none.
    """
    if not pairs.rows:
        raise InputError("AI feedback needs at least one pair", hint="give pairs of replies to compare")
    rows = pairs.rows
    if constitution is None and config.choose == "priority":
        raise ConfigError("choose = 'priority' needs a constitution", hint="give one, or leave choose out")
    if constitution is not None and "{principle}" not in config.compare:
        raise ConfigError(
            "compare does not contain {principle}: labels would not depend on the constitution",
            hint="write {principle} where the model is to read it, or leave the constitution out",
        )
    if constitution and not any(constitution.for_category(row.category) for row in rows):
        raise InputError(
            f"no principle of '{constitution.name}' speaks to any pair: their categories are "
            + ", ".join(sorted({repr(row.category) for row in rows})[:8]),
            hint="give the pairs a column 'category', or a principle without a scope",
        )
    labels: list[Label] = []
    for at in range(0, len(rows), config.batch):
        labels += _labelled(model, rows[at : at + config.batch], constitution, config, run)
        run.progress(len(labels), len(rows))
    kept = [pair for row, one in zip(rows, labels, strict=True) if (pair := _pair(row, one, config.most))]
    run.artifact("pairs.jsonl").write_bytes(b"".join(canonical(pair) + b"\n" for pair in kept))
    silent = sum(not one.principle for one in labels) if constitution else 0
    metrics = _metrics(rows, labels, config.most)
    same = metrics["position_consistency_rate"].value
    return AIFeedbackResult(
        metrics=metrics,
        pairs=Preferences(rows=tuple(kept), source="ai_feedback"),
        labels=tuple(labels),
        caveats=(
            "labels are the opinion of one model: what it does not see wrong, no principle makes it see",
            "agreement with people's labels is no measure of harmlessness: both may be wrong together",
            *(
                [f"both orders name one answer on {same:.0%} of pairs only: see first_displayed_rate"]
                if same is not None and same < _CONSISTENT
                else []
            ),
            *([f"no principle speaks to {silent} of {len(rows)} pairs: they got no label"] if silent else []),
        ),
    )


def _labelled(
    model: LM, rows: Sequence[Pair], constitution: Constitution | None, config: AIFeedback, run: Run
) -> list[Label]:
    """The labels of some pairs."""
    if constitution is None:
        return _asked(model, rows, [_NONE] * len(rows), config, run)
    if config.choose == "sampled":
        drawn = [constitution.draw(row.category, row.id, run.seed) for row in rows]
        return _asked(model, rows, drawn, config, run)
    labels = [Label("", None, (None, None))] * len(rows)
    ranked = sorted(constitution.principles, key=lambda one: -one.priority)
    open_ = list(range(len(rows)))
    for principle in ranked:
        there = [at for at in open_ if principle.speaks_to(rows[at].category)]
        found = _asked(model, [rows[at] for at in there], [principle] * len(there), config, run)
        for at, label in zip(there, found, strict=True):
            labels[at] = label
            if label.sides[0] and label.sides[0] == label.sides[1]:
                open_.remove(at)
    return labels


def _asked(
    model: LM, rows: Sequence[Pair], principles: Sequence[Principle | None], config: AIFeedback, run: Run
) -> list[Label]:
    """One label a row, under its principle; none where there is no principle."""
    there = [at for at, one in enumerate(principles) if one is not None]
    chats = []
    for at in there:
        one, row = principles[at], rows[at]
        question, text = question_of(row.prompt), "" if one is None else one.text
        chats.append(comparison(config, Asked(question, row.chosen, row.rejected, text)))
        chats.append(comparison(config, Asked(question, row.rejected, row.chosen, text)))
    if config.think:
        chats = _thought(model, chats, config, run)
    read = readings(model, chats, config, run, run.seed)
    labels = [Label("", None, (None, None))] * len(rows)
    for number, at in enumerate(there):
        both = read[2 * number], read[2 * number + 1]
        sides = side(both[0], swapped=False), side(both[1], swapped=True)
        plain, swapped = preferred(both[0], swapped=False), preferred(both[1], swapped=True)
        likely = None if plain is None or swapped is None else (plain + swapped) / 2
        one = principles[at]
        labels[at] = Label("" if one is None else one.id, likely, sides)
    return labels


def _thought(model: LM, chats: Sequence[Chat], config: AIFeedback, run: Run) -> list[Chat]:
    """The same questions, after the model's reasoning about each."""
    asked = [filled(config.think, {"comparison": chat.last_user}) for chat in chats]
    run.spend(queries=len(asked))
    replies = model.generate(asked, config.thinking.model_copy(update={"seed": run.seed}))
    same_number(f"model '{model.identity.name}'", len(replies), len(asked))
    return [
        ask.then("assistant", reply.text).then("user", chat.last_user) if reply.text.strip() else chat
        for ask, reply, chat in zip(asked, replies, chats, strict=True)
    ]


def _pair(row: Pair, label: Label, most: float) -> Pair | None:
    """The row as labelled; None without a side."""
    if label.probability is None or label.probability == 0.5:
        return None
    likely = min(max(label.probability, 1 - most), most)
    given = label.probability > 0.5
    return row.model_copy(
        update={
            "chosen": row.chosen if given else row.rejected,
            "rejected": row.rejected if given else row.chosen,
            "chosen_probability": max(likely, 1 - likely),
            "principle": label.principle,
        }
    )


def _metrics(rows: Sequence[Pair], labels: Sequence[Label], most: float) -> dict[str, Estimate]:
    clusters = [digest(row.prompt) for row in rows]
    likely = [one.probability for one in labels]
    clamped = [None if p is None else min(max(p, 1 - most), most) for p in likely]
    agree = [None if p is None else 1.0 if p > 0.5 else 0.5 if p == 0.5 else 0.0 for p in likely]
    same = [None if None in one.sides else one.sides[0] == one.sides[1] for one in labels]
    shown_first = [
        bias for one in labels for bias in (_displayed(one.sides[0]), _displayed(one.sides[1], True))
    ]
    twice = [cluster for cluster in clusters for _ in range(2)]
    metrics = {
        "agreement": _share(agree, clusters, "higher", 0.5),
        "position_consistency_rate": rate(same, clusters=clusters, better="higher", unit="pair"),
        "first_displayed_rate": _first(shown_first, twice),
        "brier": mean(
            [None if p is None else (1 - p) ** 2 for p in clamped],
            clusters=clusters, better="lower", unit="pair", null_value=0.25, bounds=(0.0, 1.0),
        ),
        "labelled_share": rate(
            [p not in (None, 0.5) for p in likely], clusters=clusters, better="none", unit="pair"
        ),
    }  # fmt: skip
    for name in dict.fromkeys(one.principle for one in labels if one.principle):
        there = [at for at, one in enumerate(labels) if one.principle == name]
        own = [agree[at] for at in there]
        metrics[f"agreement/{name}"] = _share(own, [clusters[at] for at in there], "higher", 0.5)
    return metrics


def _displayed(named: float | None, swapped: bool = False) -> bool | None:
    """Whether the answer that was displayed first was named; None where neither was, or nothing was read."""
    return None if not named else (named > 0) is not swapped


def _first(shown: Sequence[bool | None], clusters: Sequence[str]) -> Estimate:
    named = [(one, cluster) for one, cluster in zip(shown, clusters, strict=True) if one is not None]
    if not named:
        return unknown("no reading names a side", n=len(shown), unit="reading")
    estimate = rate([one for one, _ in named], clusters=[c for _, c in named], better="none", unit="reading")
    return estimate.model_copy(update={"null_value": 0.5})


def _share(
    values: Sequence[float | None], clusters: Sequence[str], better: Literal["higher"], null: float
) -> Estimate:
    return mean(values, clusters=clusters, better=better, unit="pair", null_value=null, bounds=(0.0, 1.0))
