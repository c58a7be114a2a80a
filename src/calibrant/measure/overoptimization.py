"""Reward over-optimisation by best-of-n: how far does the gold reward follow an optimised proxy reward?

Paper: Gao, Schulman & Hilton 2022, "Scaling Laws for Reward Model Overoptimization" (arXiv 2210.10760). N
replies are sampled per prompt; for n = 1, 2, 4, ... up to N they give the expected proxy and gold reward of
the proxy's best of n. Nothing is trained.

1. Both curves come from the unbiased estimator over all N replies (``stats/best_of_n.py``), not from fresh
   samples for each n; ties in the proxy are averaged.
2. Distances are the square root of the analytic KL of best-of-n, ln n - (n-1)/n: exact where replies cannot
   repeat, an upper bound where they can.
3. Both of the paper's forms are fitted, bootstrapping whole prompts. No peak is reported without a fall.
4. A prompt with one missing reply or score is missing as a whole, and counted.

For RL runs see ``measure.goodhart_watch``.

    calibrant run STUDY.toml    with use = "measure.overoptimization" and inputs model, prompts, proxy, gold
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from calibrant.core import LM, Estimate, Frozen, Quiet, Result, Reward, Run, Sampling, technique
from calibrant.core.estimate import point, unknown
from calibrant.data.parquet import write_columns
from calibrant.data.rows import Prompts
from calibrant.measure._draws import Drawn, distinct, draw
from calibrant.stats import mean
from calibrant.stats.best_of_n import best_of_n_kl, expected, powers_of_two
from calibrant.stats.gao import Form, GaoFit, fit_curves

Floats = NDArray[np.float64]


class Overoptimization(Frozen):
    """How the curves are measured."""

    samples: int = Field(default=64, ge=4)
    """Replies sampled for each prompt, N; the curves end at the largest power of two that is at most N."""
    sampling: Sampling = Sampling(temperature=1.0)
    """How replies are sampled."""
    form: Form = "best-of-n"
    """The form from which slope, peak and loss are read; both are fitted and stored."""

    @field_validator("sampling")
    @classmethod
    def _draws(cls, sampling: Sampling) -> Sampling:
        if sampling.temperature == 0:
            raise ValueError("at temperature 0 all replies to a prompt are one reply; use 1.0")
        return sampling


class OveroptimizationResult(Result):
    """Rewards at n = 1 and at the largest n, gains, slope and peak; the fits by form."""

    fits: dict[str, GaoFit] = Field(default_factory=dict, exclude=True, repr=False)
    """Form -> its fit to the gold curve; also in ``curve.json``."""


class _Curves(NamedTuple):
    """Expected rewards of the best of n, for P prompts and M values of n."""

    ns: list[int]
    sqrt_kl: list[float]
    proxy: Floats
    """(P, M)"""
    gold: Floats
    """(P, M)"""
    spread: tuple[float, float]
    """Standard deviation of all drawn replies' proxy and gold scores."""


@technique(version=2)
def overoptimization(
    model: LM,
    prompts: Prompts,
    proxy: Reward,
    gold: Reward,
    config: Overoptimization = Overoptimization(),
    run: Run = Quiet(),
) -> OveroptimizationResult:
    """Sample from ``model``, choose by ``proxy``, and score the choice by ``gold``.

    Raises:
        InputError: no prompts, shared ids, or not one prompt with all its replies and scores.
        BudgetError: a limit was reached; the samples are kept and not paid for again.
    """
    rows = distinct(prompts)
    drawn = draw(model, rows, (proxy, gold), config.samples, config.sampling, run)
    curves = _curves([row for row in drawn if not row.error], config.samples)
    forms: tuple[Form, ...] = ("best-of-n", "rl")
    fits = {form: fit_curves(curves.sqrt_kl, curves.gold, form, seed=run.seed) for form in forms}
    _store(run, drawn, curves, fits)
    repeats = len(prompts) - len(rows)
    return OveroptimizationResult(
        fits=fits,
        metrics=_metrics(curves, fits[config.form], len(drawn) - len(curves.gold)),
        caveats=(
            "best-of-n only: a policy trained on the proxy moves further, and may game it in other ways",
            "slope, peak and loss assume the paper's form; compare gold_last_doubling, which assumes none",
            "sqrt(KL) is the analytic value, too large where the model repeats its replies",
            *([f"{repeats} prompts repeat an earlier one and were not asked again"] if repeats else []),
        ),
    )


def _curves(rows: Sequence[Drawn], samples: int) -> _Curves:
    ns = powers_of_two(samples)
    proxy = np.array([row.proxy for row in rows], dtype=np.float64)
    gold = np.array([row.gold for row in rows], dtype=np.float64)
    return _Curves(
        ns,
        [math.sqrt(best_of_n_kl(n)) for n in ns],
        expected(proxy, proxy, ns),
        expected(proxy, gold, ns),
        (float(proxy.std()), float(gold.std())),
    )


def _metrics(curves: _Curves, fit: GaoFit, missing: int) -> dict[str, Estimate]:
    """All numbers of the page; ``missing`` prompts count in every one."""
    proxy, gold, (proxy_sd, gold_sd) = curves.proxy, curves.gold, curves.spread
    metrics = {
        "gold_at_n": _mean(gold[:, -1], missing),
        "gold_at_1": _mean(gold[:, 0], missing),
        "gold_gain": _mean(gold[:, -1] - gold[:, 0], missing, null_value=0.0),
        "gold_last_doubling": _mean(gold[:, -1] - gold[:, -2], missing, null_value=0.0),
        "proxy_at_n": _mean(proxy[:, -1], missing),
        "proxy_at_1": _mean(proxy[:, 0], missing),
    }
    if proxy_sd > 0 and gold_sd > 0:
        ahead = (proxy[:, -1] - proxy[:, 0]) / proxy_sd - (gold[:, -1] - gold[:, 0]) / gold_sd
        metrics["gap_at_n"] = _mean(ahead, missing, better="lower", null_value=0.0)
    else:
        flat = "proxy" if proxy_sd == 0 else "gold"
        metrics["gap_at_n"] = unknown(f"the {flat} gives every reply the same score", n=len(gold) + missing)
    estimates = {
        "gold_slope_end": fit.slope,
        "peak_sqrt_kl": fit.peak_sqrt_kl,
        "peak_gold_gain": fit.peak_gain,
        "gold_loss_from_peak": fit.loss_from_peak,
    }
    for name, estimate in estimates.items():
        lost = missing if estimate.value is not None else len(gold) + missing
        metrics[name] = estimate.model_copy(update={"n": len(gold) + missing, "missing": lost})
    metrics["fit_r2"] = (
        unknown("the gold curve is flat")
        if fit.r2 is None
        else point(fit.r2, unit="share of the curve's variance", n=len(curves.ns))
    )
    return metrics


def _mean(values: Floats, missing: int, better: Any = "higher", null_value: float | None = None) -> Estimate:
    """Mean over prompts, the missing ones counted; with few prompts an end may stay open, then both do."""
    scores = [*values.tolist(), *[None] * missing]
    value = mean(scores, better=better, unit="prompt", null_value=null_value)
    return (
        value if None not in (value.low, value.high) else value.model_copy(update={"low": None, "high": None})
    )


def _store(run: Run, drawn: Sequence[Drawn], curves: _Curves, fits: dict[Form, GaoFit]) -> None:
    """Write ``curve.json``, all that a figure needs, and ``samples.parquet``, a row a reply."""

    def ends(table: Floats) -> dict[str, list[float | None]]:
        estimates = [_mean(column, 0) for column in table.T]
        return {name: [getattr(e, name) for e in estimates] for name in ("value", "low", "high")}

    curve = {
        "n": curves.ns,
        "sqrt_kl": curves.sqrt_kl,
        "proxy": ends(curves.proxy),
        "gold": ends(curves.gold),
        "standard_deviation": dict(zip(("proxy", "gold"), curves.spread, strict=True)),
        "prompts": len(curves.gold),
        "samples": len(drawn[0].replies),
        "fits": {form: fit.model_dump(mode="json") for form, fit in fits.items()},
    }
    text = json.dumps(curve, indent=1, allow_nan=False) + "\n"
    run.artifact("curve.json").write_text(text, encoding="utf-8")
    cells = [(row, i) for row in drawn for i in range(len(row.replies))]
    write_columns(
        run.artifact("samples.parquet"),
        {
            "id": [row.id for row, _ in cells],
            "sample": [i for _, i in cells],
            "reply": [row.replies[i] for row, i in cells],
            "proxy": [row.proxy[i] for row, i in cells],
            "gold": [row.gold[i] for row, i in cells],
            "std": [None if row.std is None else row.std[i] for row, i in cells],
        },
    )
