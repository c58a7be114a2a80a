"""Read curves from the JSON that records store.

``measure.overoptimization`` and ``measure.goodhart_watch``: rewards by proxy and by gold at distances from
the start, and Gao et al.'s forms fitted to the gold ones. The first has one distance an n of best-of-n
(``curve.json``), the second one a look at an RL run (``watch.json``).

``attack.campaign``: success of each attack against queries (``curves.json``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any

from calibrant.core.config import Frozen
from calibrant.core.estimate import Estimate


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


class Steps(Frozen):
    """Success of one attack within a budget: steps that hold from each cost to the next."""

    costs: tuple[float, ...]
    """Queries (T,), rising."""
    value: tuple[float, ...]
    """Share of goals reached (T,)."""
    low: tuple[float, ...]
    """Lower end (T,)."""
    high: tuple[float, ...]
    """Upper end at each cost (T,)."""
    after: tuple[float, ...] = ()
    """Upper end between it and the next (T,), where goals given up at it no longer count; () = as at it."""

    @property
    def upper(self) -> tuple[float, ...]:
        """Upper end (T,) that holds from each cost to the next."""
        return self.after or self.high

    def at(self, budget: float) -> Estimate:
        """Success within ``budget``, which lies between the first cost and the last."""
        place = bisect_right(self.costs, budget) - 1
        high = self.high if budget == self.costs[place] else self.upper
        return Estimate(
            value=self.value[place],
            low=self.low[place],
            high=high[place],
            method="kaplan-meier",
            better="lower",
        )


class Budget(Frozen):
    """Success against queries of one campaign."""

    attacks: dict[str, Steps]
    """Attack -> its curve, in the order in which they were tried; attacks that asked nothing have none."""


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
    fitted = table["fits"][form]
    fit = Fitted(
        **{name: fitted[name] for name in ("sqrt_kl", "value", "low", "high")}, peak=fitted["peak_sqrt_kl"]
    ) if fitted else None  # fmt: skip
    return Curve(sqrt_kl=tuple(distances), proxy=tuple(proxy), gold=tuple(gold), fit=fit)


def _ends(columns: Mapping[str, Any], n: int) -> list[Estimate]:
    """Estimates of columns 'value', 'low' and 'high'."""
    ends = zip(columns["value"], columns["low"], columns["high"], strict=True)
    return [Estimate(value=value, low=low, high=high, n=n) for value, low, high in ends]


def read_budget(table: Mapping[str, Any]) -> Budget:
    """The curves of a campaign."""
    return Budget(
        attacks={
            attack: Steps(**{name: tuple(column[name]) for name in Steps.model_fields if name in column})
            for attack, column in table.items()
            if column["costs"]
        }
    )


READERS: dict[str, Callable[[Mapping[str, Any]], Curve | Budget]] = {
    "curve.json": read_curve,
    "watch.json": read_curve,
    "curves.json": read_budget,
}
"""Name under which a record stores curves -> what reads them."""
