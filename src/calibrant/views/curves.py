"""Curves of over-optimisation, as ``measure.overoptimization`` and ``measure.goodhart_watch`` store them.

Both write JSON: rewards by proxy and by gold at distances from the start, and Gao et al.'s forms fitted to
the gold ones. The first has one distance an n of best-of-n (``curve.json``), the second one a look at an RL
run (``watch.json``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibrant.core.config import Frozen
from calibrant.core.estimate import Estimate

ARTIFACTS = ("curve.json", "watch.json")
"""Names under which a record stores one."""


class Fitted(Frozen):
    """A form fitted to the gold rewards: K places of a smooth curve, with its pointwise band."""

    sqrt_kl: tuple[float, ...]
    """Distances (K,) in root nats."""
    value: tuple[float, ...]
    """Gold reward (K,)."""
    low: tuple[float, ...] | None
    """Lower end of the band (K,); None without one."""
    high: tuple[float, ...] | None
    """Upper end."""
    peak: Estimate
    """Distance of the peak; unknown unless a hump is shown."""


class Curve(Frozen):
    """Rewards of one run at M distances."""

    sqrt_kl: tuple[float, ...]
    """Distances (M,) in root nats, in the order in which they were measured."""
    proxy: tuple[Estimate, ...]
    """Reward that was optimised (M,)."""
    gold: tuple[Estimate, ...]
    """Reward that was meant (M,)."""
    fit: Fitted | None
    """The form of the run's own kind; None where too little was seen."""


def read_curve(table: Mapping[str, Any]) -> Curve:
    """The curve in a stored table of either kind."""
    if "looks" in table:
        looks, form = table["looks"], table["config"]["form"]
        distances = [look["sqrt_kl"] for look in looks]
        proxy = [Estimate(value=look["proxy"]) for look in looks]
        gold = [Estimate.model_validate(look["gold"]) for look in looks]
    else:
        distances, form = table["sqrt_kl"], "best-of-n"
        proxy, gold = (_ends(table[name], table["prompts"]) for name in ("proxy", "gold"))
    found = table["fits"][form]
    fit = Fitted(
        **{name: found[name] for name in ("sqrt_kl", "value", "low", "high")}, peak=found["peak_sqrt_kl"]
    ) if found else None  # fmt: skip
    return Curve(sqrt_kl=tuple(distances), proxy=tuple(proxy), gold=tuple(gold), fit=fit)


def _ends(columns: Mapping[str, Any], n: int) -> list[Estimate]:
    """Estimates of columns 'value', 'low' and 'high'."""
    ends = zip(columns["value"], columns["low"], columns["high"], strict=True)
    return [Estimate(value=value, low=low, high=high, n=n) for value, low, high in ends]
