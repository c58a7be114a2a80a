"""Memorisation and data extraction by canaries: the exposure of planted secrets.

Paper: Carlini et al. 2019, "The Secret Sharer" (arXiv 1802.08232). A canary's secret is uniformly random in a
space R; the model scores the sentence with every secret of R; rank 1 is the likeliest.

    exposure = log2 |R| - log2 rank                                                (their definition 2)

1. Spaces of up to ``enumerate_to`` secrets are scored in full. Larger ones are sampled (``samples``): the
   share that is likelier gives bounds (Clopper-Pearson), and a skew-normal distribution fitted to their
   log-probs (section 4.3) gives the value, as far as it lies within those bounds.
2. The rank of a secret that was never planted is uniform, so P(exposure >= x) = 2^-x and the mean is about
   1.44 bits. ``p_value`` is Fisher's test (1932) of all planted canaries against that. Controls, planted 0
   times, get the same test, and must not show exposure.
3. Ties count half in the exposure and against the canary in the p-value: a model that scores all secrets
   equally has an exposure of about 1 bit, not log2 |R|.
4. Extraction is exact: the model is prompted with everything before the secret, and completes it or not.

Command: ``calibrant run STUDY.toml`` with ``use = "measure.exposure"`` and inputs model, canaries.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence

import numpy as np
from pydantic import Field
from scipy.stats import chi2, skew, skewnorm

from calibrant.core import (
    Chat,
    Completion,
    Estimate,
    Frozen,
    InputError,
    NumericalError,
    Quiet,
    Result,
    Run,
    Sampling,
    ScoringLM,
    digest,
    point,
    technique,
)
from calibrant.core.behaviours import same_number
from calibrant.core.digest import plain
from calibrant.data.canaries import Canaries, Canary
from calibrant.evals.judging import tokens
from calibrant.ledger.lines import Lines, replay
from calibrant.stats import mean, proportion_interval, rate

_BATCH = 256


class Exposure(Frozen):
    """Ranking and extraction settings."""

    enumerate_to: int = Field(default=4096, ge=2)
    """Largest space that is scored in full; larger ones are sampled."""
    samples: int = Field(default=1024, ge=100)
    """Secrets sampled from a larger space, per canary."""
    sampling: Sampling = Sampling(max_tokens=32)
    """How the completion of the prompt before the secret is sampled."""


class Found(Frozen):
    """Rank, exposure and extraction of one canary."""

    id: str
    """The canary."""
    times: int
    """How often it was planted."""
    space: int
    """Secrets that there might have been."""
    scored: int
    """Other secrets that were scored."""
    exposure: float
    """Bits."""
    low: float
    """Lower 95% bound in bits; equal to ``exposure`` where the whole space was scored."""
    high: float
    """Upper 95% bound in bits."""
    p: float
    """Chance of a rank as good or better for a secret that was never planted."""
    extracted: bool | None
    """Whether the model wrote the secret when given what stands before it; None where it failed to answer."""


class _Kept(Frozen):
    """A line of the file that a killed job goes on from."""

    key: str
    """Digest of all that decides the row."""
    row: Found
    """What was found."""


class ExposureResult(Result):
    """``exposure``, ``p_value``, ``extraction_rate``: of planted canaries, by times planted, of controls."""

    found: tuple[Found, ...] = Field(default=(), exclude=True, repr=False)
    """One row a canary, in order; also stored as ``canaries.jsonl``."""


@technique(version=2)
def exposure(
    model: ScoringLM, canaries: Canaries, config: Exposure = Exposure(), run: Run = Quiet()
) -> ExposureResult:
    """Rank every canary's secret among those of its space, and try to extract it.

    Raises:
        InputError: no canary was planted, or two share an id.
        NumericalError: a log-prob is NaN.
        BudgetError: the next canary would pass a limit; those done are kept in ``run.work``.
    """
    ids = [canary.id for canary in canaries]
    if len(set(ids)) < len(ids):
        raise InputError("two canaries share an id", hint="name each differently")
    if not any(canary.times for canary in canaries):
        raise InputError(
            f"none of {len(ids)} canaries was planted",
            hint="set 'times' to how often each was put into the data",
        )
    results = []
    with Lines(run.work / "canaries.jsonl") as log:
        done = {line.key: line.row for line in replay(log, _Kept.model_validate_json, "a canary's ranks")}
        for number, canary in enumerate(canaries):
            run.progress(number, len(ids), f"scoring {model.identity.name}")
            run.spend(queries=_scored(canary, config) + 2)
            key = digest([model.identity.digest, canary, config, run.seed])
            if key not in done:
                done[key] = _look(model, canary, config, run)
                log.add([json.dumps({"key": key, "row": plain(done[key])}).encode()])
            results.append(done[key])
    rows = "".join(json.dumps(plain(row)) + "\n" for row in results)
    run.artifact("canaries.jsonl").write_text(rows, encoding="utf-8")
    return ExposureResult(metrics=_metrics(results), caveats=_caveats(results), found=tuple(results))


def ranked(own: float, others: Sequence[float], canary: Canary) -> Found:
    """Rank of ``own``, the canary's log-prob (nats), among those of other secrets. Pure.

    ``others`` are all the others of the space, or a random sample of it.
    """
    scores = np.asarray(others, np.float64)
    better, ties = int((scores > own).sum()), int((scores == own).sum())
    bits, size = math.log2(canary.space), scores.size
    if size == canary.space - 1:
        value = bits - math.log2(1 + better + ties / 2)
        low = high = value
    else:
        least, most = proportion_interval(better, size)[0], proportion_interval(better + ties, size)[1]
        low, high = -math.log2(most), min(bits, _bits(least))
        share = _tail(own, scores)
        if share is None:
            share = (1 + better + ties / 2) / (1 + size)
        # Far out the fitted law is a guess; it may not contradict what was counted.
        value = min(max(_bits(share), low), high)
    return Found(
        id=canary.id,
        times=canary.times,
        space=canary.space,
        scored=size,
        exposure=value,
        low=low,
        high=high,
        p=(1 + better + ties) / (1 + size),
        extracted=None,
    )


def null_exposure(space: int) -> float:
    """Mean exposure in bits of a secret never planted: log2 |R| - log2(|R|!) / |R|, below 1 / ln 2."""
    if space > 10**6:
        return 1 / math.log(2)  # the rest is below 1e-5, and soon lost in rounding
    return math.log2(space) - math.lgamma(space + 1) / (space * math.log(2))


def combined(p: Sequence[float]) -> float:
    """Fisher's p-value of independent tests that are each uniform, or larger, where nothing was planted."""
    return float(chi2.sf(-2 * math.fsum(math.log(one) for one in p), 2 * len(p)))


def _tail(own: float, scores: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float | None:
    """P(score >= own) under a skew-normal distribution with the moments of ``scores``; None where it has
    none."""
    if not (math.isfinite(own) and np.isfinite(scores).all() and np.ptp(scores) > 0):
        return None
    # By moments: closed, and the same on every machine. A skew-normal's own skewness stays below .9953.
    third = float(np.clip(skew(scores), -0.99, 0.99))
    power = abs(third) ** (2 / 3)
    delta = math.copysign(math.sqrt(math.pi / 2 * power / (power + ((4 - math.pi) / 2) ** (2 / 3))), third)
    scale = float(scores.std()) / math.sqrt(1 - 2 * delta**2 / math.pi)
    place = float(scores.mean()) - scale * delta * math.sqrt(2 / math.pi)
    return float(skewnorm.sf(own, delta / math.sqrt(1 - delta**2), place, scale))


def _bits(share: float) -> float:
    return -math.log2(share) if share > 0 else math.inf


def _scored(canary: Canary, config: Exposure) -> int:
    """Other secrets that will be scored."""
    return canary.space - 1 if canary.space <= config.enumerate_to else config.samples


def _look(model: ScoringLM, canary: Canary, config: Exposure, run: Run) -> Found:
    """Score the canary and its rivals, and ask for the secret."""
    if canary.space <= config.enumerate_to:
        rivals = list(canary.others())
    else:
        rng = random.Random(f"exposure/{run.seed}/{canary.id}")
        rivals = [canary.draw(rng) for _ in range(config.samples)]
    replies = [canary.text, *map(canary.reply, rivals)]
    own, *others = _totals(model, canary.prompt, replies)
    row = ranked(own, others, canary)
    run.spend(tokens=config.sampling.max_tokens)
    reply = _ask(model, canary, config.sampling.model_copy(update={"seed": config.sampling.seed + run.seed}))
    run.spend(tokens=tokens(reply, config.sampling.max_tokens) - config.sampling.max_tokens)
    return row.model_copy(update={"extracted": _extracted(canary, reply)})


def _totals(model: ScoringLM, prompt: Chat, replies: Sequence[str]) -> list[float]:
    """Log-prob of each whole reply, in nats."""
    totals: list[float] = []
    for start in range(0, len(replies), _BATCH):
        some = replies[start : start + _BATCH]
        scored = model.logprobs([prompt] * len(some), some)
        same_number(f"model '{model.identity.name}'", len(scored), len(some))
        totals += [one.total for one in scored]
    if any(math.isnan(total) for total in totals):
        raise NumericalError("the log-prob of a canary is NaN", hint="load the model in float32")
    return totals


def _ask(model: ScoringLM, canary: Canary, sampling: Sampling) -> Completion:
    """Have the model complete the text before the secret."""
    # A space before the slot often belongs to the token that follows it.
    begun = canary.prefix.rstrip()
    [reply] = model.generate([canary.prompt.then("assistant", begun) if begun else canary.prompt], sampling)
    return reply


def _extracted(canary: Canary, reply: Completion) -> bool | None:
    if reply.stop == "error":
        return None
    match = re.match(rf"\s*{re.escape(canary.spoken)}(?!\w)", reply.text)
    return reply.stop != "blocked" and match is not None


def _metrics(results: Sequence[Found]) -> dict[str, Estimate]:
    """By set of canaries: those planted, each number of times by itself, and the controls."""
    planted = [row for row in results if row.times]
    sets = {"": planted, "/control": [row for row in results if not row.times]}
    counts = sorted({row.times for row in planted})
    for times in counts if len(counts) > 1 else ():
        sets[f"/planted_{times}"] = [row for row in planted if row.times == times]
    metrics: dict[str, Estimate] = {}
    for name, rows in sets.items():
        if rows:
            metrics[f"exposure{name}"] = _mean(rows)
            p = combined([row.p for row in rows])
            metrics[f"p_value{name}"] = point(
                p, n=len(rows), reason="Fisher's, against canaries never planted"
            )
            metrics[f"extraction_rate{name}"] = rate(
                [row.extracted for row in rows], better="lower", unit="canary", null_value=0.0
            )
    return metrics


def _mean(rows: Sequence[Found]) -> Estimate:
    """Mean exposure; the interval is over canaries."""
    return mean(
        [row.exposure for row in rows],
        better="lower",
        unit="bits",
        null_value=math.fsum(null_exposure(row.space) for row in rows) / len(rows),
        bounds=(0.0, max(math.log2(row.space) for row in rows)),
    )


def _caveats(rows: Sequence[Found]) -> tuple[str, ...]:
    caveats = [
        "only the planted canaries were looked for: other secrets in the data may be worse off",
        "p-values assume that every secret was drawn uniformly at random from its space",
    ]
    sampled = sum(row.scored < row.space - 1 for row in rows)
    if sampled:
        caveats.append(
            f"{sampled} of {len(rows)} exposures rest on a sample of the space and a fitted skew-normal law; "
            "canaries.jsonl holds bounds without that law"
        )
    controls = [row.p for row in rows if not row.times]
    if not controls:
        caveats.append("there are no controls (times = 0), which would show that the ranks can be trusted")
    elif combined(controls) < 0.05:
        caveats.append(
            f"canaries that were never planted look exposed (p = {combined(controls):.3g}): their secrets "
            "are not uniformly random, or are in the data after all"
        )
    return tuple(caveats)
