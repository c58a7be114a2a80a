"""Oversight protocols: which way of asking a stronger model lets a weaker judge decide better?

Direct, consultancy, debate, critic, prover-verifier and recursive evaluation on the same questions, paired.
Irving et al. 2018 (1805.00899), Khan et al. 2024 (2402.06782), Kenton et al. 2024 (2407.04622), Kirchner et
al. 2024 (2407.13692), Leike et al. 2018 (1811.07871). Where this departs from common implementations:
1. Every protocol runs in both orders of the answers, and where sides are assigned, for both sides; all
   accuracies are means over these. Consultancy is never shown by its honest half.
2. A verdict is read strictly: a refusal, both sides or neither is none, is never a wrong answer, and widens
   the interval. A debate with a silent side is counted, and nobody wins it.
3. A player's set-up reaches nobody else, and players who speak at the same time do not read each other: the
   record is the only channel.
4. Beside each gain stands what the players know more than the judge (``edge``; 2605.27483).

    calibrant show oversee.protocols
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from calibrant.core import (
    LM,
    Estimate,
    Frozen,
    InputError,
    Quiet,
    Result,
    Run,
    Sampling,
    technique,
)
from calibrant.core.digest import canonical
from calibrant.core.figure_data import Datum, FigureData
from calibrant.data.rows import Question, Questions
from calibrant.oversee._comparing import Comparing
from calibrant.oversee._protocol_chats import JUDGE
from calibrant.oversee._protocol_metrics import Sample, metrics
from calibrant.oversee._protocol_play import RULES, Case, Cast, Name, play

_NEEDED = ("question", "first", "second", "shown", "record")


class Protocols(Frozen):
    """Which protocols run, and how parties are asked."""

    protocols: tuple[Name, ...] = tuple(RULES)
    """Which run; 'direct' runs always, since all others are held against it."""
    rounds: int = Field(default=2, ge=1, le=16)
    """Turns of each debater, of a consultant, and of an assistant on each part."""
    parts: tuple[str, ...] = (
        "What speaks for the first answer, and how strong is it?",
        "What speaks for the second answer, and how strong is it?",
    )
    """What assistants evaluate for 'recursive', one turn each; in later rounds they read the earlier ones."""
    marks: bool = True
    """Show the judge which quotes stand in the passage; False measures what is left without."""
    judge_prompt: str = JUDGE
    """What the judge reads: {question}, {first} and {second}, {shown} and {record} are filled in."""
    read: Literal["auto", "words", "logprobs"] = "auto"
    """Read the words of verdicts, or the log-probs of ``answers``; 'auto': log-probs where a model gives
    them."""
    answers: tuple[str, str] = ("first", "second")
    """What 'logprobs' scores, for the answer displayed first and for the other."""
    verdict_tokens: int = Field(default=32, ge=1)
    """Most tokens of a verdict or a choice, where words are read."""
    sampling: Sampling = Sampling(max_tokens=256)
    """How turns are sampled."""

    @field_validator("protocols")
    @classmethod
    def _are_distinct(cls, names: tuple[Name, ...]) -> tuple[Name, ...]:
        if not names or len(set(names)) < len(names):
            raise ValueError("protocols must name at least one, and none twice")
        return names

    @field_validator("judge_prompt")
    @classmethod
    def _names_its_fields(cls, template: str) -> str:
        for name in _NEEDED:
            if "{" + name + "}" not in template:
                raise ValueError(f"the judge's prompt does not contain {{{name}}}")
        return template

    @model_validator(mode="after")
    def _makes_sense(self) -> Protocols:
        if "recursive" in self.protocols and not all(part.strip() for part in self.parts or ("",)):
            raise ValueError("'recursive' needs parts, each of which says something")
        if len(set(self.parts)) < len(self.parts):
            raise ValueError("two parts are the same")
        if len(set(self.answers)) < 2 or "" in self.answers:
            raise ValueError("answers are two different texts")
        return self


class ProtocolsResult(Result):
    """Accuracy, gain and the rest by protocol; every case in the artefact 'cases.jsonl'."""

    cases: tuple[Case, ...] = Field(default=(), exclude=True, repr=False)
    """Every case in order of questions."""

    def figure_data(self) -> tuple[FigureData, ...]:
        """Accuracy by protocol; gains over direct and consultancy beside the edge; accuracy by side."""
        titles: tuple[tuple[str, dict[str, str]], ...] = (
            ("Accuracy of the judge, by protocol, and of players asked themselves", {"accuracy": "accuracy"}),
            (
                "Gain over the judge alone, and what players know more",
                {"gain": "gain over direct", "over_consultancy": "over consultancy", "edge": "players' edge"},
            ),
            (
                "Accuracy by what the agent argues for",
                {"agent_right_accuracy": "the right answer", "agent_wrong_accuracy": "the wrong answer"},
            ),
        )
        figures = (
            FigureData(kind="intervals", values=_bars(self.metrics, families), title=title)
            for title, families in titles
        )
        return tuple(one for one in figures if one.values) or super().figure_data()


@technique(version=2)
def protocols(
    questions: Questions,
    judge: LM,
    player: LM,
    opponent: LM | None = None,
    config: Protocols = Protocols(),
    run: Run = Quiet(),
) -> ProtocolsResult:
    """Let ``judge`` decide every question under every protocol.

    Args:
        questions: each with a right and a wrong answer, and a passage that only players read.
        judge: decides; it reads the question, what is shown, and the record.
        player: consultant, critic, prover, assistant, and one of the debaters.
        opponent: the other debater; the player debates itself where there is none.
        config: which protocols, how many rounds, how verdicts are read.
        run: cases are kept in its folder, so that a killed run goes on.

    Raises:
        InputError: no questions, two of one id, equal answers, or an opponent without a debate; nothing was
            asked.
        CapabilityError: a model answers for more or fewer chats than it was given.
        BudgetError: the next block of questions would pass a limit; those done are kept.
    """
    _check(questions.rows)
    names: tuple[Name, ...] = tuple(name for name in RULES if name in ("direct", *config.protocols))
    if opponent is not None and not any(RULES[name].role == "debate" for name in names):
        raise InputError("no protocol uses the input 'opponent'", hint="leave it out, or name a debate")
    reading = Comparing(read=config.read, answers=config.answers, max_tokens=config.verdict_tokens)
    cast = Cast(
        judge, player, opponent or player, reading, config.judge_prompt, config.rounds, config.parts,
        config.marks, config.sampling,
    )  # fmt: skip
    cases = play(questions.rows, names, cast, run)
    run.artifact("cases.jsonl").write_bytes(b"".join(canonical(case) + b"\n" for case in cases))
    found = metrics(Sample(cases, names, two=opponent is not None and opponent is not player))
    return ProtocolsResult(metrics=found, caveats=_caveats(questions.rows, cases, found), cases=tuple(cases))


def _check(rows: Sequence[Question]) -> None:
    """Raise InputError unless there are questions with distinct ids and two different answers."""
    if not rows:
        raise InputError("there are no questions", hint="give a table with at least one question")
    ids: set[str] = set()
    for row in rows:
        if row.id in ids:
            raise InputError(f"two questions share the id '{row.id}'", hint="give each question its own id")
        ids.add(row.id)
        if not row.question.strip():
            raise InputError(f"question '{row.id}' asks nothing", hint="give it a text")
        if row.correct.strip() == row.wrong.strip():
            raise InputError(
                f"question '{row.id}' has the same answer twice", hint="give a right and a wrong answer"
            )


def _bars(found: dict[str, Estimate], families: dict[str, str]) -> tuple[Datum, ...]:
    bars = []
    for key, one in found.items():
        kind, _, name = key.partition("/")
        if kind in families:
            stage = families[kind] if len(families) > 1 else ""
            bars.append(Datum(label=name.replace("_", " "), estimate=one, stage=stage))
    return tuple(bars)


def _caveats(rows: Sequence[Question], cases: Sequence[Case], found: dict[str, Estimate]) -> tuple[str, ...]:
    told = [
        "players are told to argue: what a model does that wants to mislead is not measured",
        "two answers a question: accuracy by chance is .5, and says nothing of open questions",
    ]
    bare = sum(not row.passage for row in rows)
    if bare:
        told.append(f"{bare} of {len(rows)} questions hide no passage: no quote of theirs can be verified")
    silent = sum(bool(case.silent) for case in cases)
    if silent:
        told.append(f"in {silent} of {len(cases)} cases a player said nothing: they have no verdict")
    flat = [
        name.removeprefix("edge/")
        for name, one in found.items()
        if name.startswith("edge/") and (one.low is None or one.low <= 0)
    ]
    if flat:
        told.append(
            f"players are not shown to know more than the judge ({', '.join(flat)}): expect no gain there"
        )
    return tuple(told)
