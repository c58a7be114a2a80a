"""Harvest: turn confirmed successes of an attack (hits) into preference pairs for adversarial training.

Source: adversarial training by preference pairs; rapid response (Peng et al. 2024, arXiv 2411.07494) for
learning from few examples of each strategy.

1. Only hits count: by the judge, or by a person where one has labelled the attempt. With ``confirmed``, a
   replay of the hits, only those that succeeded again.
2. Near-duplicates (same goal, overlapping word runs) count as one hit: a thousand copies teach one thing.
3. In a pair ``refusal`` is chosen and the harmful reply rejected. With ``retain``, benign requests in the
   same disguises that were answered, further pairs prefer the answer to the refusal: else a model learns to
   refuse the disguise, not the harm.
4. Pairs are named after their attempts, so that trained weights can be traced to each hit.

Command: ``calibrant run STUDY.toml`` with ``use = "attack.harvest"`` and input attempts.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from pydantic import Field

from calibrant.attack.replay import hit
from calibrant.core import Attempt, Chat, Frozen, InputError, Quiet, Result, Run, point, technique
from calibrant.core.digest import canonical
from calibrant.data.near import jaccard, shingles
from calibrant.data.rows import Attempts, Pair, Preferences


class Harvest(Frozen):
    """How hits become pairs."""

    refusal: str = "I can't help with that."
    """The reply that is preferred to a harmful one, in the model's own words for refusing."""
    alike: float = Field(default=0.9, gt=0, le=1)
    """Two hits on one goal are near-duplicates when their word runs overlap this much (Jaccard); 1: only
    copies."""
    per_goal: int = Field(default=8, ge=1)
    """Most pairs from one goal."""
    retain_ratio: float = Field(default=1.0, ge=0)
    """Most pairs from ``retain``, for each pair from a hit."""


_MANY = 10**9


class HarvestResult(Result):
    """Counts of hits and pairs."""

    pairs: Preferences = Field(exclude=True, repr=False)
    """Also the artefact ``pairs.jsonl``."""


@technique(version=1)
def harvest(
    attempts: Attempts,
    confirmed: Attempts | None = None,
    earlier: Attempts | None = None,
    retain: Attempts | None = None,
    config: Harvest = Harvest(),
    run: Run = Quiet(),
) -> HarvestResult:
    """Make pairs of hits, and of hits of ``earlier`` rounds, which a model would otherwise forget.

    Artefacts: ``pairs.jsonl``; ``hits.jsonl``, the new hits; ``learnt.jsonl``, all hits behind the pairs.

    Raises:
        InputError: there is no hit.
    """
    hits = [attempt for attempt in attempts if hit(attempt)]
    hit_count = len(hits)
    if confirmed is not None:
        again = {attempt.parent for attempt in confirmed if hit(attempt)}
        hits = [attempt for attempt in hits if attempt.id in again]
    unique_hits = unique(hits, config)
    if not hits:
        raise InputError(
            f"none of {len(attempts)} attempts is a confirmed hit ({hit_count} before they were confirmed)",
            hint="there is nothing to learn from: attack harder, or stop here",
        )
    learnt = unique([*unique_hits, *(earlier or ())], Harvest(**config.model_dump() | {"per_goal": _MANY}))
    pairs = [_pair(attempt, "hit", config.refusal) for attempt in learnt]
    answered = unique([a for a in retain or () if hit(a)], config)
    random.Random(f"harvest/{run.seed}").shuffle(answered)
    retained = answered[: int(config.retain_ratio * len(pairs))]
    pairs += [_pair(attempt, "retain", config.refusal) for attempt in retained]
    random.Random(f"harvest/order/{run.seed}").shuffle(pairs)
    _write(run, "pairs.jsonl", pairs)
    _write(run, "hits.jsonl", unique_hits)
    _write(run, "learnt.jsonl", learnt)
    return HarvestResult(
        metrics={
            "hits": point(hit_count, unit="attempts", n=len(attempts)),
            "hits_confirmed": point(len(hits), unit="attempts", n=hit_count),
            "hits_unique": point(len(unique_hits), unit="attempts", n=len(hits)),
            "pairs_retained": point(len(retained), unit="pairs", n=len(answered)),
            "pairs": point(len(pairs), unit="pairs"),
        },
        caveats=(
            "pairs teach what these attacks found: whether other attacks still get through is measured apart",
        ),
        pairs=Preferences(rows=tuple(pairs), source="harvest"),
    )


def unique(hits: Iterable[Attempt], config: Harvest) -> list[Attempt]:
    """Hits without near-duplicates, at most ``per_goal`` a goal, in order."""
    by_goal: dict[str, list[tuple[Attempt, frozenset[str]]]] = {}
    for attempt in hits:
        words = shingles("\n".join(message.content for message in attempt.chat.messages))
        goal = by_goal.setdefault(attempt.goal_id, [])
        copies = any(old.chat == attempt.chat for old, _ in goal)
        duplicate = config.alike < 1 and any(jaccard(words, other) >= config.alike for _, other in goal)
        if len(goal) < config.per_goal and not copies and not duplicate:
            goal.append((attempt, words))
    return [attempt for goal in by_goal.values() for attempt, _ in goal]


def _pair(attempt: Attempt, kind: str, refusal: str) -> Pair:
    chat, reply = attempt.chat, attempt.completion.text
    if chat.messages[-1].role == "assistant":  # prefill: what was put into its mouth belongs to the reply
        reply = chat.messages[-1].content + reply
        chat = Chat(messages=chat.messages[:-1])
    good, bad = (refusal, reply) if kind == "hit" else (reply, refusal)
    return Pair(id=f"{kind}/{attempt.id}", prompt=chat, chosen=good, rejected=bad)


def _write(run: Run, name: str, rows: Iterable[Frozen]) -> None:
    run.artifact(name).write_bytes(b"".join(canonical(row) + b"\n" for row in rows))
