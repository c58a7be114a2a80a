"""Learn a block list: phrases of successful attacks that occur in no benign request become a guard.

Source: the block list after an incident, as in practice; rapid response (Peng et al. 2024, arXiv
2411.07494) compares such patches with better ones.

1. A phrase is one to three words of what the user wrote, in hits on at least ``least`` goals and in no benign
   request. Phrases are chosen greedily by the number of uncovered hits.
2. The result is the artefact ``stack.toml``: a stack of one pattern guard on the input side, used as
   ``defended:record:JOB/stack.toml#MODEL``.
3. Hits that no phrase distinguishes from benign requests stay uncovered, and are counted.

Command: ``calibrant run STUDY.toml`` with ``use = "defend.learn_rules"`` and inputs hits, benign.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from pydantic import Field

from calibrant.core import Attempt, Frozen, InputError, Quiet, Result, Run, point, technique
from calibrant.data.rows import Attempts
from calibrant.text.decodings import fold

_WORDS = re.compile(r"\S+")


class LearnRules(Frozen):
    """Which phrases become rules."""

    longest: int = Field(default=3, ge=1)
    """Most words of a phrase."""
    least: int = Field(default=2, ge=1)
    """Least number of goals on which a phrase must occur in a hit: one alone may be chance."""
    rules: int = Field(default=100, ge=1)
    """Most phrases."""
    refusal: str = "I can't help with that."
    """What a blocked user reads."""


class LearnRulesResult(Result):
    """``rules``; ``covered``: share of hits that a rule blocks."""

    phrases: tuple[str, ...] = Field(default=(), exclude=True, repr=False)
    """The rules; also in the artefact ``stack.toml``."""


@technique(version=2)
def learn_rules(
    hits: Attempts, benign: Attempts, config: LearnRules = LearnRules(), run: Run = Quiet()
) -> LearnRulesResult:
    """Make a stack of the phrases that distinguish hits from benign requests.

    Raises:
        InputError: no phrase distinguishes any hit from the benign requests.
    """
    # Only what a reader of the request sees: a goal's own words come and go with the goal.
    clean = set().union(*(_phrases(attempt, config.longest) for attempt in benign))
    where: dict[str, set[int]] = {}
    goals: dict[str, set[str]] = {}
    for place, attempt in enumerate(hits):
        for phrase in _phrases(attempt, config.longest) - clean:
            where.setdefault(phrase, set()).add(place)
            goals.setdefault(phrase, set()).add(attempt.goal_id)
    usable = {phrase: places for phrase, places in where.items() if len(goals[phrase]) >= config.least}
    phrases = _cover(usable, config.rules)
    if not phrases:
        raise InputError(
            f"no phrase on {config.least} goals tells {len(hits)} hits from {len(benign)} benign requests",
            hint="patch the weights instead, or ask for less with 'least'",
        )
    covered = set().union(*(usable[phrase] for phrase in phrases))
    run.artifact("stack.toml").write_text(_stack(phrases, config.refusal), encoding="utf-8")
    return LearnRulesResult(
        metrics={
            "rules": point(len(phrases), unit="phrases"),
            "covered": point(len(covered) / len(hits), unit="hits", n=len(hits)),
        },
        caveats=(
            "rules name words of attacks that were seen: other words for the same thing pass",
            f"that no benign request holds a rule was looked at on {len(benign)} requests only",
        ),
        phrases=tuple(phrases),
    )


def _phrases(attempt: Attempt, longest: int) -> set[str]:
    """Runs of one to ``longest`` words in what the user wrote, as a guard reads them."""
    phrases: set[str] = set()
    for message in attempt.chat.messages:
        if message.role == "user":
            words = [word.strip(".,:;!?\"'()") for word in _WORDS.findall(fold(message.content))]
            words = [word for word in words if word]
            for size in range(1, longest + 1):
                phrases |= {" ".join(words[at : at + size]) for at in range(len(words) - size + 1)}
    return phrases


def _cover(places: dict[str, set[int]], most: int) -> list[str]:
    """Greedy set cover: phrases that cover the most hits still open; shorter first among equals."""
    phrases: list[str] = []
    covered: set[int] = set()
    while len(phrases) < most:
        best = max(places, key=lambda p: (len(places[p] - covered), -len(p), p), default=None)
        if best is None or not places[best] - covered:
            break
        phrases.append(best)
        covered |= places[best]
    return phrases


def _stack(phrases: Iterable[str], refusal: str) -> str:
    """A stack file; JSON strings are TOML strings."""
    words = "".join(f"  {json.dumps(phrase, ensure_ascii=False)},\n" for phrase in phrases)
    return (
        f"refusal = {json.dumps(refusal, ensure_ascii=False)}\n\n"
        '[[layer]]\nname = "learnt"\nside = "input"\n\n'
        '[layer.guard]\nuse = "defend.pattern_guard"\n\n'
        f"[layer.guard.config]\nviews = []\nwords = [\n{words}]\n"
    )
