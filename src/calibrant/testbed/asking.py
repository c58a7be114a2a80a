"""Ask a model of this world about its facts, and count: what every planted behaviour is held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from calibrant.core import LM, Chat, Estimate, Run, Sampling, unknown
from calibrant.stats import rate
from calibrant.testbed.caving import Fact, told

_CHUNK = 64


def replies_of(
    model: LM, facts: Sequence[Fact], ask: Callable[[Fact], Chat], sampling: Sampling, run: Run
) -> list[str]:
    """The statement that the model makes of each fact; "" where it makes none."""
    said: list[str] = []
    for start in range(0, len(facts), _CHUNK):
        chunk = facts[start : start + _CHUNK]
        run.spend(queries=len(chunk))
        replies = model.generate([ask(fact) for fact in chunk], sampling)
        said += [told(fact, reply.text) for fact, reply in zip(chunk, replies, strict=True)]
        run.progress(len(said), len(facts), "asking")
    return said


def share_of(facts: Sequence[Fact], hits: Sequence[bool], *, better: str, asked: int = 0) -> Estimate:
    """Share of hits, by creature; unknown where none of the ``asked`` facts is known."""
    if not facts:
        return unknown("it knows nothing of what was asked", n=asked, unit="fact")
    clusters = [fact.creature for fact in facts]
    return rate(hits, clusters=clusters, better="higher" if better == "higher" else "none", unit="fact")
