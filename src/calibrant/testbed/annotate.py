"""Simulated raters with known noise and bias: preference data with ground truth.

1. The model answers each prompt several times; all pairs of different answers are compared.
2. Raters see the two sides in a random, recorded order. Each follows the gold reward, or one of three biases,
   and then errs with a known probability; equal gold is a tie.
3. Votes carry rater names that begin with 'simulated:', so that no reader mixes them with people's.

    calibrant show testbed.annotate
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from pydantic import Field, model_validator

from calibrant.core import (
    LM,
    Estimate,
    Frozen,
    InputError,
    NumericalError,
    Quiet,
    Result,
    Reward,
    Run,
    Sampling,
    technique,
    unknown,
)
from calibrant.core.digest import canonical
from calibrant.data.answers import SIMULATED, answer_line, header
from calibrant.data.rows import Labelled, Pair, Preferences, Prompts
from calibrant.data.votes import (
    Choice,
    Side,
    Vote,
    Votes,
    comparison_line,
    pair_line,
    pairs_from,
)
from calibrant.stats import rate

AGREEING = ("you are right", "you're right", "i agree", "that is right", "that's right", "good point")
"""How a sycophantic reply begins."""
SOURCE = "testbed.annotate"


class Annotator(Frozen):
    """A simulated rater. The three biases are probabilities, with a sum of at most 1."""

    noise: float = Field(default=0.0, ge=0, le=1)
    """Probability that the final choice is flipped. A tie stays a tie."""
    position_bias: float = Field(default=0.0, ge=0, le=1)
    """Probability of choosing the side shown first."""
    length_bias: float = Field(default=0.0, ge=0, le=1)
    """Probability of choosing the longer reply; of equal lengths, the better one."""
    sycophancy: float = Field(default=0.0, ge=0, le=1)
    """Probability of choosing the reply that begins by agreeing with the user; if not exactly one does, the
    better."""
    seed: int = 0
    """Distinguishes raters with the same settings, together with their place in the list."""

    @model_validator(mode="after")
    def _shares(self) -> Annotator:
        if self.position_bias + self.length_bias + self.sycophancy > 1:
            raise ValueError("position_bias, length_bias and sycophancy must not exceed 1 together")
        return self

    def choose(self, replies: tuple[str, str], gold: tuple[float, float], rng: random.Random) -> Choice:
        """Compare the side shown first with the second; ``gold``: their true scores, higher is better."""
        choice = self._habit(replies, gold, rng.random())
        wrong = rng.random() < self.noise
        if choice == "same" or not wrong:
            return choice
        return "second" if choice == "first" else "first"

    def _habit(self, replies: tuple[str, str], gold: tuple[float, float], draw: float) -> Choice:
        if draw < self.position_bias:
            return "first"
        draw -= self.position_bias
        if draw < self.length_bias:
            return _greater(len(replies[0]), len(replies[1])) or _greater(*gold) or "same"
        draw -= self.length_bias
        if draw < self.sycophancy:
            return _greater(*(_agrees(reply) for reply in replies)) or _greater(*gold) or "same"
        return _greater(*gold) or "same"


class Annotate(Frozen):
    """Sampling of the replies, and the raters."""

    samples: int = Field(default=2, ge=2)
    """Replies sampled for each prompt; each two that differ are one comparison."""
    sampling: Sampling = Sampling(max_tokens=48, temperature=1.0)
    """How they are sampled; the run's seed replaces its own."""
    raters: tuple[Annotator, ...] = Field(default=(Annotator(noise=0.1),) * 3, min_length=1)
    """The raters; each votes on every comparison."""
    thumbs_down: float = Field(default=1.0, ge=0, le=1)
    """Random share of the worse replies that 'thumbs.jsonl' keeps; the better ones are all in it."""


class AnnotateResult(Result):
    """Votes and agreed pairs, also as artefacts, with the accuracy of both."""

    votes: Votes = Field(exclude=True)
    """Every vote; also the artefact 'votes.jsonl'."""
    pairs: Preferences = Field(exclude=True)
    """What the raters' consensus prefers; also the artefact 'pairs.jsonl'."""


class _Compared(NamedTuple):
    """One comparison: sides a and b as a pair, its prompt's id, and the true score of each side."""

    row: Pair
    prompt: str
    gold: tuple[float, float]


@technique(version=2)
def annotate(
    model: LM, prompts: Prompts, gold: Reward, config: Annotate = Annotate(), run: Run = Quiet()
) -> AnnotateResult:
    """Let simulated raters compare replies of ``model`` to ``prompts``; ``gold`` is the ground truth.

    Artefacts: 'comparisons.jsonl' (prompt, a, b; `calibrant annotate` opens it), 'votes.jsonl',
    'pairs.jsonl' (prompt, chosen, rejected), 'thumbs.jsonl' (prompt, completion, label).

    Raises:
        InputError: there are no prompts, or no prompt got two different answers.
        NumericalError: the gold reward is NaN or infinite.
    """
    comparisons = _draw(model, prompts, config, run)
    rows = [(prompt, pair) for prompt, pair in comparisons if pair is not None]
    if not rows:
        raise InputError(
            f"none of {len(prompts)} prompts got two different answers",
            hint="raise sampling.temperature or sampling.max_tokens, or take more samples",
        )
    compared = _scored(rows, gold)
    table = Preferences(rows=tuple(one.row for one in compared), source=SOURCE)
    votes = Votes(rows=tuple(_votes(compared, config, run.seed)), source=SOURCE, data=table.digest)
    pairs = Preferences(rows=tuple(pairs_from(table, votes)), source=SOURCE)
    run.artifact("comparisons.jsonl").write_bytes(b"".join(map(comparison_line, table.rows)))
    lines = [header(Vote, table.digest, SOURCE), *map(answer_line, votes.rows)]
    run.artifact("votes.jsonl").write_bytes(b"".join(lines))
    run.artifact("pairs.jsonl").write_bytes(b"".join(map(pair_line, pairs.rows)))
    run.artifact("thumbs.jsonl").write_bytes(_thumbs(pairs, config.thumbs_down, run.seed))
    compared_share = rate(
        [pair is not None for _, pair in comparisons],
        clusters=[prompt for prompt, _ in comparisons],
        better="none",
        unit="comparison",
    )
    return AnnotateResult(
        metrics={**_truth(compared, votes, pairs), "compared_share": compared_share},
        votes=votes,
        pairs=pairs,
        caveats=(
            "simulated raters have only the faults that they were given: people have others",
            "agreement with the gold reward is known here because the gold reward is the truth",
        ),
    )


def _draw(model: LM, prompts: Prompts, config: Annotate, run: Run) -> list[tuple[str, Pair | None]]:
    """Prompt id with each two of its answers, or with None where they cannot be compared."""
    if not prompts.rows:
        raise InputError(f"{prompts.source or 'the input'}: there are no prompts", hint="give at least one")
    k = config.samples
    chats = [row.prompt for row in prompts for _ in range(k)]
    run.spend(queries=len(chats))
    answers = model.generate(chats, config.sampling.model_copy(update={"seed": run.seed}))
    comparisons: list[tuple[str, Pair | None]] = []
    for at, row in enumerate(prompts):
        own = answers[at * k : (at + 1) * k]
        for i, j in combinations(range(k), 2):
            a, b = own[i], own[j]
            usable = all(one.stop != "error" and one.text.strip() for one in (a, b))
            differ = a.text.strip() != b.text.strip()
            pair = Pair(id=f"{row.id}/{i}-{j}", prompt=row.prompt, chosen=a.text, rejected=b.text)
            comparisons.append((row.id, pair if usable and differ else None))
    return comparisons


def _scored(rows: Sequence[tuple[str, Pair]], gold: Reward) -> list[_Compared]:
    """Each comparison with its true scores."""
    chats = [pair.prompt for _, pair in rows]
    replies = [pair.chosen for _, pair in rows] + [pair.rejected for _, pair in rows]
    scores = gold.score(chats + chats, replies).mean
    if len(scores) != len(replies):
        raise InputError(
            f"the gold reward gave {len(scores)} scores for {len(replies)} replies",
            hint="a reward returns one score for each reply, in order",
        )
    bad = next((at for at, score in enumerate(scores) if not math.isfinite(score)), None)
    if bad is not None:
        raise NumericalError(
            f"the gold reward of a reply to '{rows[bad % len(rows)][0]}' is {scores[bad]}",
            hint="the truth must be a number for every reply",
        )
    sides = zip(scores[: len(rows)], scores[len(rows) :], strict=True)
    return [_Compared(pair, prompt, both) for (prompt, pair), both in zip(rows, sides, strict=True)]


def _votes(compared: Sequence[_Compared], config: Annotate, seed: int) -> list[Vote]:
    """Every rater's vote on every comparison, rater by rater; lots depend on names, never on order."""
    votes = []
    for place, rater in enumerate(config.raters):
        for row, _, gold in compared:
            rng = random.Random(f"{seed}/{rater.seed}/{place}/{row.id}")
            first: Side = rng.choice(("a", "b"))
            replies, scores = (row.chosen, row.rejected), gold
            if first == "b":
                replies, scores = replies[::-1], scores[::-1]
            choice = rater.choose(replies, scores, rng)
            votes.append(Vote(item=row.id, rater=f"{SIMULATED}{place}", first=first, choice=choice))
    return votes


def _thumbs(pairs: Preferences, down: float, seed: int) -> bytes:
    """The replies of all pairs, each with a thumb up or down; of the latter a random share ``down``."""
    rng = random.Random(f"thumbs/{seed}")
    lines = []
    for pair in pairs:
        for label, reply in ((True, pair.chosen), (False, pair.rejected)):
            if label or rng.random() < down:
                row = Labelled(id=f"{pair.id}/{label}", prompt=pair.prompt, completion=reply, label=label)
                lines.append(canonical(row) + b"\n")
    return b"".join(lines)


def _truth(compared: Sequence[_Compared], votes: Votes, pairs: Preferences) -> dict[str, Estimate]:
    """How far votes and pairs are what the gold reward prefers, where it prefers one side."""
    best = {one.row.id: _greater(*one.gold) for one in compared}
    prompt = {one.row.id: one.prompt for one in compared}
    side = {"first": "a", "second": "b", None: None}
    right = [(vote.item, vote.winner == side[best[vote.item]]) for vote in votes if best[vote.item]]
    better = {
        one.row.id: one.row.chosen if best[one.row.id] == "first" else one.row.rejected for one in compared
    }
    right_pairs = [(pair.id, pair.chosen == better[pair.id]) for pair in pairs if best[pair.id]]
    placed = [(vote.item, vote.choice == "first") for vote in votes if vote.winner != "tie"]

    def share(hits: list[tuple[str, bool]], unit: str, null: float | None = 0.5) -> Estimate:
        if not hits:
            return unknown("the gold reward or the raters prefer no side", n=len(compared), unit="comparison")
        clusters = [prompt[item] for item, _ in hits]
        return rate([hit for _, hit in hits], clusters=clusters, better="none", unit=unit, null_value=null)

    return {
        "votes_true": share(right, "vote"),
        "pairs_true": share(right_pairs, "pair"),
        "first_chosen": share(placed, "vote"),
        "gold_ties": share([(item, which is None) for item, which in best.items()], "comparison", None),
    }


def _greater(first: float, second: float) -> Choice | None:
    """Which of two is greater; None when they are equal."""
    if first == second:
        return None
    return "first" if first > second else "second"


def _agrees(reply: str) -> bool:
    return reply.strip().lower().startswith(AGREEING)
