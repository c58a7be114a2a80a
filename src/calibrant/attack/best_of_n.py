"""Best-of-N jailbreaking: resample random augmentations of a request until one succeeds.

Paper: Hughes et al. 2024, "Best-of-N Jailbreaking" (arXiv 2412.03556): shuffled letters, random capitals and
noise, temperature 1, until one try succeeds; -log ASR@N falls with N as a power law.

1. The augmentations are converters with a fresh seed each; the paper's three, at its rates, by default.
2. With ``stop = false`` every goal gets all tries, and ASR@k has an unbiased estimate for k = 1, 2, 4, ...
   and a forecast for ``forecast`` (see ``calibrant.stats.power_law``), or a caveat that it follows no power
   law.
3. Tries are sent in waves; a success stops the attack after its wave.

Command: ``calibrant run STUDY.toml`` with ``use = "attack.best_of_n"`` and inputs target, goals, judge.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from pydantic import Field, field_validator

from calibrant.attack.engine.episodes import Participants
from calibrant.attack.engine.metrics import clusters_of
from calibrant.attack.engine.protocol import AskTarget, Attack, Episode, Tools
from calibrant.attack.engine.run import AttackResult, run_attack
from calibrant.core import LM, Attempt, Chat, Estimate, Frozen, Goal, Judge, Quiet, Run, Sampling, technique
from calibrant.data.rows import Goals
from calibrant.stats.at_k import success_at_k
from calibrant.stats.best_of_n import powers_of_two
from calibrant.stats.power_law import power_law
from calibrant.text.converters import CONVERTERS, SEED, converter


class BestOfN(Frozen):
    """Number of tries, augmentations, and forecasts."""

    tries: int = Field(default=32, ge=1)
    """N, tries per goal; the paper uses up to 10,000."""
    wave: int = Field(default=8, ge=1)
    """Tries that are sent together."""
    augment: tuple[str, ...] = ("mixed", "random_case", "noise")
    """Seeded random converters, applied in this order."""
    stop: bool = True
    """Leave a goal once it is reached; must be false for ASR@k and its forecast."""
    forecast: tuple[int, ...] = (100, 1000)
    """Values of N for which ASR@N is forecast where ``stop`` is false."""
    sampling: Sampling = Sampling(temperature=1.0)
    """How the target's replies are sampled."""

    @field_validator("augment")
    @classmethod
    def _seeded(cls, augment: tuple[str, ...]) -> tuple[str, ...]:
        usable = [name for name, known in CONVERTERS.items() if known.keys == SEED]
        for name in augment:
            if name not in usable:
                raise ValueError(f"'{name}' draws nothing by a seed; those that do: {', '.join(usable)}")
        return augment

    @field_validator("forecast")
    @classmethod
    def _ahead(cls, forecast: tuple[int, ...]) -> tuple[int, ...]:
        if any(n < 1 for n in forecast):
            raise ValueError("a forecast needs at least one try")
        return forecast


@technique(version=4)
def best_of_n(
    target: LM, goals: Goals, judge: Judge, config: BestOfN = BestOfN(), run: Run = Quiet()
) -> AttackResult:
    """Send every goal up to ``tries`` times, with fresh random augmentations each time.

    Raises:
        InputError: goals over which a rate would mean nothing, or a target that answers nothing but errors.
    """
    result = run_attack(ATTACK, config, goals, Participants(target, judge, config.sampling), run)
    if config.stop:
        return result
    metrics, poor = at_k(goals, result.stored or (), config)
    notes = (f"no forecast by the power law: {poor}",) if poor else (_LAW,)
    return result.model_copy(
        update={"metrics": result.metrics | metrics, "caveats": (*result.caveats, *notes)},
    )


def at_k(goals: Goals, attempts: Iterable[Attempt], config: BestOfN) -> tuple[dict[str, Estimate], str]:
    """``success_at/K``, ``success_at/N/forecast``, ``power_law/b``; and why there is no forecast, or ""."""
    counts = {goal.id: [0, 0, 0] for goal in goals}
    for attempt in attempts:
        row = counts[attempt.goal_id]
        row[0] += attempt.outcome == "success"
        row[1] += 1
        row[2] += attempt.outcome == "undetermined"
    rows = [(hits, tries, lost) for hits, tries, lost in counts.values()]
    clusters, ks = list(clusters_of(goals).values()), powers_of_two(config.tries)
    measured = success_at_k(rows, ks, clusters=clusters)
    law = power_law(rows, config.forecast, clusters=clusters)
    metrics = {f"success_at/{k}": estimate for k, estimate in zip(ks, measured, strict=True)}
    for n, estimate in zip(config.forecast, law.forecasts, strict=True):
        metrics[f"success_at/{n}/forecast"] = estimate
    return metrics | {"power_law/b": law.b}, law.poor


def _episode(goals: Sequence[Goal], config: BestOfN, tools: Tools) -> Episode:
    goal = goals[0]
    for first in range(0, config.tries, config.wave):
        numbers = range(first, min(first + config.wave, config.tries))
        responses = yield [
            AskTarget(goal, Chat.ask(_mangled(goal.text, config.augment, tools.rng)), draw=number)
            for number in numbers
        ]
        if config.stop and any(answer.outcome == "success" for answer in responses):
            return


def _mangled(text: str, augment: Sequence[str], rng: random.Random) -> str:
    if not augment:
        return text
    return converter("+".join(f"{name}({rng.randrange(10**12)})" for name in augment)).encode(text)


_LAW = "a forecast assumes that the power law holds beyond the measured tries, which no test on them can show"

ATTACK = Attack("attack.best_of_n", "search", BestOfN, _episode, queries=lambda config: config.tries)
