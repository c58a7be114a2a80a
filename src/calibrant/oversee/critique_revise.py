"""Critique and revise: the steps of constitutional AI that make data for SFT and pairs (2212.08073, section
3).

Where this departs from common recipes:
1. A revision becomes 'chosen', and a demonstration, only if the model itself, asked in both orders, prefers
   it to the first answer; a revision is not assumed to be an improvement.
2. Harm is judged after every round on the same goals, and the difference is paired; so are evasiveness and
   helpfulness, where judges for them are given: a model that refuses everything does no harm either.
3. The principle of each goal and round is drawn by the run's seed, and stands beside what came of it.

    calibrant show oversee.critique_revise
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, ValidationInfo, field_validator

from calibrant.core import (
    LM,
    Chat,
    Completion,
    ConfigError,
    Estimate,
    Frozen,
    InputError,
    Judge,
    Quiet,
    Result,
    Run,
    Sampling,
    technique,
    unknown,
)
from calibrant.core.behaviours import Goal
from calibrant.core.digest import canonical
from calibrant.data.constitution import Constitution, Principle
from calibrant.data.rows import Example, Examples, Goals, Pair, Preferences
from calibrant.oversee._comparing import filled, said
from calibrant.stats import difference, rate
from calibrant.stats._sample import Better

_MISSING = Completion(text="", stop="error", error="an answer or a critique before it never came")
_NO_CATEGORY = Goal.model_fields["category"].default

_FIELDS = {
    "critique": ("question", "answer"),
    "revise": ("question", "answer"),
    "compare": ("question", "first", "second"),
}


class CritiqueRevise(Frozen):
    """The three prompts, and sampling."""

    critique: str = "Critique the answer below: {principle}\n\nQuestion: {question}\n\nAnswer: {answer}"
    """Asks for a critique; {question} and {answer} are filled in, and {principle} where it stands."""
    unprincipled: str = "is it harmful, false or unhelpful?"
    """What stands for {principle} without a constitution, or where none of its principles speaks to a
    goal."""
    revise: str = (
        "Rewrite the answer so that the critique no longer applies.\n\nQuestion: {question}\n\n"
        "Answer: {answer}\n\nCritique: {critique}"
    )
    """Asks for a revision; {critique} and {principle} may be filled in too."""
    compare: str = (
        "Which answer is better? Say 'first' or 'second'.\n\nQuestion: {question}\n\nFirst: {first}\n\n"
        "Second: {second}"
    )
    """Asks which is better; {first} and {second} are filled in."""
    rounds: int = Field(default=1, ge=1, le=16)
    """How often the answer is criticised and revised."""
    unchanged: bool = True
    """Also take answers that were left as they were as demonstrations: without the benign ones among them a
    model learns to refuse. What the critic does not see wrong is among them, too."""
    sampling: Sampling = Sampling()
    """How every reply is sampled."""

    @field_validator("critique", "revise", "compare")
    @classmethod
    def _names_its_fields(cls, template: str, info: ValidationInfo) -> str:
        for name in _FIELDS[str(info.field_name)]:
            if "{" + name + "}" not in template:
                raise ValueError(f"the template does not contain {{{name}}}")
        return template


class CritiqueReviseResult(Result):
    """Harm before and after; pairs and revisions that the model prefers ('pairs.jsonl',
    'revisions.jsonl')."""

    pairs: Preferences = Field(exclude=True)
    """Last revision over first answer, where the two differ and both orders agree on the revision."""
    revisions: Examples = Field(default=Examples(rows=()), exclude=True)
    """The same revisions as demonstrations for SFT, and answers that were left as they were."""


@technique(version=4)
def critique_revise(
    model: LM,
    goals: Goals,
    judge: Judge,
    constitution: Constitution | None = None,
    evasive: Judge | None = None,
    helpful: Judge | None = None,
    config: CritiqueRevise = CritiqueRevise(),
    run: Run = Quiet(),
) -> CritiqueReviseResult:
    """Answer; then ``rounds`` times critique and revise; then compare with the first answer.

    ``judge`` says whether harm happened; ``evasive`` whether a reply refuses, on all goals; ``helpful``
    whether it helps, on the goals that are not harmful.

    Raises:
        InputError: there are no goals. ConfigError: a constitution is given, and ``critique`` shows no
        principle.
    """
    if constitution is not None and "{principle}" not in config.critique:
        raise ConfigError(
            "critique does not contain {principle}: the constitution would change nothing",
            hint="write {principle} where the model is to read it",
        )
    if not goals.rows:
        raise InputError("critique and revise needs at least one goal", hint="give goals with a text")
    rows = goals.rows
    chats = [Chat.ask(goal.text) for goal in rows]
    asks = _Asks(model, config, run)
    answers = [asks(chats)]
    drawn: list[list[Principle | None]] = []
    for number in range(1, config.rounds + 1):
        drawn.append([_drawn(constitution, goal, number, run.seed) for goal in rows])
        answers.append(_round(asks, rows, answers[-1], drawn[-1]))
    first, revised = answers[0], answers[-1]
    changed = [_changed(old, new) for old, new in zip(first, revised, strict=True)]
    prefers = _prefers(asks, rows, first, revised, drawn[-1])
    # An error keeps a pair unknown; where nothing changed there is nothing to prefer.
    preferred = [better if differs else differs for differs, better in zip(changed, prefers, strict=True)]
    harms = [_judged(judge, rows, chats, replies) for replies in answers]
    before, after = harms[0], harms[-1]
    pairs = _pairs(rows, first, revised, preferred, drawn[-1])
    keep = [
        better or (config.unchanged and differs is False)
        for differs, better in zip(changed, preferred, strict=True)
    ]
    shown = [
        Example(id=goal.id, prompt=Chat.ask(goal.text), completion=new.text)
        for goal, new, kept in zip(rows, revised, keep, strict=True)
        if kept
    ]
    run.artifact("pairs.jsonl").write_bytes(b"".join(canonical(pair) + b"\n" for pair in pairs))
    run.artifact("revisions.jsonl").write_bytes(b"".join(canonical(one) + b"\n" for one in shown))
    clusters = [goal.cluster or goal.id for goal in rows]
    silent = sum(one is None for one in drawn[-1]) if constitution else 0
    return CritiqueReviseResult(
        metrics={
            "harm_after": rate(after, clusters=clusters, better="lower", unit="goal"),
            "harm_before": rate(before, clusters=clusters, better="lower", unit="goal"),
            "harm_change": difference(before, after, clusters=clusters, better="lower", unit="goal"),
            "revised_share": rate(changed, clusters=clusters, better="none", unit="goal"),
            "pairs_kept": rate(preferred, clusters=clusters, better="none", unit="goal"),
            **(_by_round("harm", harms, clusters, "lower") if config.rounds > 1 else {}),
            **_beside("evasive", evasive, list(rows), chats, answers, "lower"),
            **_beside("helpful", helpful, [g for g in rows if not g.harmful], chats, answers, "higher", rows),
        },
        pairs=Preferences(rows=tuple(pairs), source="critique_revise"),
        revisions=Examples(rows=tuple(shown), source="critique_revise"),
        caveats=(
            *([] if constitution else ["one fixed question each: no constitution was sampled"]),
            *([f"no principle speaks to {silent} of {len(rows)} goals"] if silent else []),
            "the model is its own critic: what it cannot see wrong in its answer stays",
        ),
    )


class _Asks:
    """Asks the model a batch at a time, and says how far it is."""

    def __init__(self, model: LM, config: CritiqueRevise, run: Run) -> None:
        self.config = config
        self._model, self._run = model, run
        self._stage, self._stages = 0, 3 + 2 * config.rounds

    def __call__(self, chats: Sequence[Chat]) -> list[Completion]:
        self._run.spend(queries=len(chats))
        replies = self._model.generate(
            chats, self.config.sampling.model_copy(update={"seed": self._run.seed})
        )
        self._stage += 1
        self._run.progress(self._stage, self._stages)
        return replies

    def text(self, principle: Principle | None) -> str:
        """What is shown of a principle, or in its place."""
        return self.config.unprincipled if principle is None else principle.text


def _drawn(constitution: Constitution | None, goal: Goal, number: int, seed: int) -> Principle | None:
    return None if constitution is None else constitution.draw(goal.category, f"{goal.id}/{number}", seed)


def _round(
    asks: _Asks, goals: Sequence[Goal], answers: Sequence[Completion], drawn: Sequence[Principle | None]
) -> list[Completion]:
    """Criticise every answer, and revise it."""
    parts = [
        {"question": goal.text, "answer": reply.text, "principle": asks.text(principle)}
        for goal, reply, principle in zip(goals, answers, drawn, strict=True)
    ]
    critiques = asks([filled(asks.config.critique, one) for one in parts])
    parts = [{**one, "critique": reply.text} for one, reply in zip(parts, critiques, strict=True)]
    revised = asks([filled(asks.config.revise, one) for one in parts])
    failed = [
        next((one for one in both if _lost(one)), None) for both in zip(answers, critiques, strict=True)
    ]
    # What was made of an answer or a critique that never came is no revision.
    return [new if lost is None else _MISSING for new, lost in zip(revised, failed, strict=True)]


def _lost(reply: Completion) -> bool:
    return reply.stop == "error" or not reply.text


def _changed(old: Completion, new: Completion) -> bool | None:
    """Whether the revision is another text; None when either failed or is empty."""
    failed = "error" in (old.stop, new.stop) or not (old.text and new.text)
    return None if failed else old.text != new.text


def _prefers(
    asks: _Asks,
    goals: Sequence[Goal],
    first: Sequence[Completion],
    revised: Sequence[Completion],
    drawn: Sequence[Principle | None],
) -> list[bool | None]:
    """True where the model prefers the revision in both orders; None where it contradicts itself."""
    answers: list[list[bool | None]] = []
    for swapped in (False, True):
        sides = [(b, a) if swapped else (a, b) for a, b in zip(first, revised, strict=True)]
        chats = [
            filled(
                asks.config.compare,
                {"question": g.text, "first": one.text, "second": two.text, "principle": asks.text(p)},
            )
            for g, (one, two), p in zip(goals, sides, drawn, strict=True)
        ]
        word = "first" if swapped else "second"
        answers.append([_says(reply, word) for reply in asks(chats)])
    return [a if a == b else None for a, b in zip(*answers, strict=True)]


def _says(reply: Completion, word: str) -> bool | None:
    """Whether the verdict is ``word`` and not the other side; None where it is neither, or none."""
    side = said(reply)
    return side == word if side in ("first", "second") else None


def _judged(
    judge: Judge, goals: Sequence[Goal], chats: Sequence[Chat], replies: Sequence[Completion]
) -> list[bool | None]:
    verdicts = judge.judge(goals, chats, replies)
    return [
        None if v.answer == "unknown" or reply is _MISSING else v.answer == "yes"
        for v, reply in zip(verdicts, replies, strict=True)
    ]


def _pairs(
    goals: Sequence[Goal],
    first: Sequence[Completion],
    revised: Sequence[Completion],
    preferred: Sequence[bool | None],
    drawn: Sequence[Principle | None],
) -> list[Pair]:
    return [
        Pair(
            id=goal.id,
            prompt=Chat.ask(goal.text),
            chosen=new.text,
            rejected=old.text,
            category="" if goal.category == _NO_CATEGORY else goal.category,
            principle="" if principle is None else principle.id,
        )
        for goal, old, new, keep, principle in zip(goals, first, revised, preferred, drawn, strict=True)
        if keep
    ]


def _by_round(
    name: str, judged: Sequence[Sequence[bool | None]], clusters: Sequence[str], better: Better
) -> dict[str, Estimate]:
    """The rate after every round, round 0 the first answers, and its paired change against those."""
    metrics = {}
    for number, answers in enumerate(judged):
        metrics[f"{name}/round_{number}"] = rate(answers, clusters=clusters, better=better, unit="goal")
        if number:
            metrics[f"{name}_change/round_{number}"] = difference(
                judged[0], answers, clusters=clusters, better=better, unit="goal"
            )
    return metrics


def _beside(
    name: str,
    judge: Judge | None,
    goals: Sequence[Goal],
    chats: Sequence[Chat],
    answers: Sequence[Sequence[Completion]],
    better: Better,
    every: Sequence[Goal] | None = None,
) -> dict[str, Estimate]:
    """What another judge says of every round, on ``goals``, which are all or some of ``every``."""
    if judge is None:
        return {}
    if not goals:
        return {f"{name}/round_0": unknown("every goal is harmful: give benign ones, too", n=len(chats))}
    there = [at for at, goal in enumerate(every or goals) if goal in goals]
    judged = [
        _judged(judge, goals, [chats[at] for at in there], [replies[at] for at in there])
        for replies in answers
    ]
    return _by_round(name, judged, [goal.cluster or goal.id for goal in goals], better)
