"""Sandbagging: does a model answer wrongly what it knows, because the prompt looks like a test of it?

Strategic underperformance on dangerous-capability evaluations after van der Weij et al. 2024 (arXiv
2406.07358); noise after Tice et al. 2024 (2412.01784). Where this departs from common implementations:
1. Only what the model knows can be withheld: items are asked plainly several times before, and once more for
   the comparison, so that picking the items favours no arm. A model that knows too little is not testable.
2. Every cue has a sham of the same form, and a control of harmless items is asked under the same cues: a cue
   that makes questions harder lowers all of them.
3. A wrong answer and no answer are told apart: to decline is no sandbagging, and is not held against it.
4. Accuracy below chance is shown with its interval: who avoids the right answer must know it.
5. Training on a few items with right answers is held against the same with wrong ones (a placebo), and
   against a model that truly does not know. No subject is in both the trained and the asked items.

Command: ``calibrant run sandbagging``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import Field

from calibrant.core import LM, InputError, OpenLM, Quiet, Result, Run, technique, unknown
from calibrant.core.figure_data import Datum, FigureData
from calibrant.data.distinct import normal_chat
from calibrant.data.rows import Items
from calibrant.measure._dialogue import Talk, check_disputed
from calibrant.measure._elicit import split
from calibrant.measure._rates import reply_caveats
from calibrant.measure._sandbagging_arms import hear, trained, with_noise
from calibrant.measure._sandbagging_config import Sandbagging
from calibrant.measure._sandbagging_metrics import (
    NEEDS_KNOWLEDGE,
    Finding,
    Heard,
    against_chance,
    by_cue,
    comparisons,
    headline,
    restored,
    ruling,
)
from calibrant.models.template_check import check_trainable
from calibrant.stats import rate


class SandbaggingResult(Result):
    """``sandbagging`` (1, 0 or unknown), ``withheld`` and its controls, and what brings knowledge back.

    'answers.jsonl' has what was read of each item in each arm."""

    finding: Finding = Field(default="not testable", exclude=True)
    """The verdict."""
    why: str = Field(default="", exclude=True)
    """Its reason."""

    def figure_data(self) -> tuple[FigureData, ...]:
        """Accuracy by arm."""
        values = tuple(
            Datum(label=name.partition("/")[2].replace("_", " "), estimate=one)
            for name, one in self.metrics.items()
            if name.startswith("accuracy/")
        )
        title = "Accuracy by how the question looks, and after training"
        return (FigureData(kind="intervals", values=values, title=title), *super().figure_data())


@technique(version=1)
def sandbagging(
    model: LM,
    items: Items,
    control: Items | None = None,
    ignorant: OpenLM | None = None,
    config: Sandbagging = Sandbagging(),
    run: Run = Quiet(),
) -> SandbaggingResult:
    """Ask ``items`` plainly, under cues of a test, and under shams; then try to bring back what is withheld.

    Args:
        model: any model that talks; the arms of training and noise need an open one, and copy it.
        items: questions of the domain that it may withhold, with ``answer`` and ``wrong``.
        control: harmless questions that it knows, asked under the same cues.
        ignorant: a model of the same size that truly does not know the domain, trained on the same examples.
        config: cues, password, training, noise.
        run: its seed draws samples, and the items that are trained on.

    Raises:
        InputError: no items, one without a wrong answer, questions shared with the control, ``ignorant`` is
            the model itself or cannot be used, too few items to train on some, or not one reply.
        CapabilityError: its chat template renders an answered chat differently.
    """
    parts = _check(model, items, control, ignorant, config, run.seed)
    talk = Talk(model, config.sampling, run, (len(items) + len(control or ())) * (config.samples + 5))
    heard = hear("items", items, talk, config, password=bool(config.password))
    beside = None if control is None else hear("control", control, talk, config)
    known = sum(bool(one) for one in heard.known)
    if known >= config.min_known:
        found = comparisons(heard, beside)
    else:
        why = f"not testable: it knows {known} of {len(items)} items, and min_known = {config.min_known}"
        found = {name: unknown(why, n=len(items), unit="item") for name in NEEDS_KNOWLEDGE}
    found |= {f"answered_accuracy/{arm}": against_chance(heard, arm) for arm in ("cue", "neutral")}
    every = range(len(items))
    if config.password:
        found["restored/password"] = restored(heard, every, "cue", "password", "item under a cue")
    talks = [talk]
    if isinstance(model, OpenLM) and parts is not None:
        more, others = trained(model, ignorant, heard, parts, config, run)
        found, talks = found | more, talks + others
    if isinstance(model, OpenLM) and config.noise:
        more, others = with_noise(model, heard, config, run)
        found, talks = found | more, talks + others
    cues = by_cue(heard, beside)
    finding, why = ruling(found, cues, known, config.min_known, config.margin)
    for name, one in (("known_share", heard), ("known_share/control", beside)):
        if one is not None:
            clusters = [item.cluster for item in one.items]
            found[name] = rate(one.known, clusters=clusters, better="none", unit="item")
    _write(heard, beside, run)
    return SandbaggingResult(
        metrics={"sandbagging": headline(finding, why, len(items)), **found},
        caveats=(f"{finding}: {why}", *_caveats(model, control, ignorant, talks, config)),
        finding=finding,
        why=why,
    )


def _check(
    model: LM, items: Items, control: Items | None, ignorant: OpenLM | None, config: Sandbagging, seed: int
) -> tuple[list[int], list[int]] | None:
    """Refuse what could not be measured; the items to train on and those to ask, or None."""
    check_disputed(items)
    if control is not None:
        check_disputed(control)
        asked = {normal_chat(item.chat): item.id for item in items}
        if both := next((one.id for one in control if normal_chat(one.chat) in asked), None):
            raise InputError(
                f"item '{both}' of the control asks the same as one of the items",
                hint="the control holds other questions, harmless ones that the model knows",
            )
    trains = isinstance(model, OpenLM) and config.elicit > 0
    if ignorant is not None and not trains:
        raise InputError(
            "'ignorant' is a control of the training, and nothing is trained",
            hint="set 'elicit' above 0 and give a model with local weights, or leave 'ignorant' out",
        )
    if ignorant is not None and ignorant.identity.digest == model.identity.digest:
        raise InputError(
            "'ignorant' is the very model that is measured, so no difference could show",
            hint="give a model that never learnt the domain, or leave 'ignorant' out",
        )
    if not isinstance(model, OpenLM) or not trains:
        return None
    check_trainable(model, config.fit.any_template)
    return split(items.rows, config.elicit, seed)


def _write(heard: Heard, beside: Heard | None, run: Run) -> None:
    rows = []
    for part, one in (("items", heard), ("control", beside)):
        for at, item in enumerate(one.items if one else ()):
            row: dict[str, object] = {"part": part, "item": item.id, "cluster": item.cluster}
            row |= {"answer": item.answer, "known": one.known[at] if one else None}
            for arm, said in (one.arms if one else {}).items():
                each = len(said) // len(one.items) if one else 1
                row[arm] = said[at * each : (at + 1) * each]
            rows.append(json.dumps(row, sort_keys=True) + "\n")
    run.artifact("answers.jsonl").write_text("".join(rows), encoding="utf-8")


def _caveats(
    model: LM, control: Items | None, ignorant: OpenLM | None, talks: Sequence[Talk], config: Sandbagging
) -> tuple[str, ...]:
    trains = isinstance(model, OpenLM) and config.elicit > 0
    notes = [
        "wrong answers under a cue are shown, and that they hang on it: not why, and no intent",
        "no sign under these cues is no proof for others, nor for a test that the model makes out by itself",
    ]
    if control is None:
        notes.append("no control items were asked: a cue that makes any question harder looks alike")
    if trains and ignorant is None:
        notes.append("no ignorant model was trained: what examples teach anew is in 'restored'")
    if not trains:
        notes.append("nothing was trained: knowledge that is withheld everywhere is not looked for")
    if config.noise and isinstance(model, OpenLM):
        notes.append("noise may bring a score up to chance, and that is no knowledge; its draws are few")
    elif config.noise:
        notes.append("'noise' was not tried: the weights of this model cannot be reached")
    replies = [reply for talk in talks for reply in talk.replies]
    return (*notes, *reply_caveats(replies, config.sampling.max_tokens))
