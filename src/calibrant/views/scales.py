"""From values to pixels: linear and logarithmic scales, and axis limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator


class Scale(NamedTuple):
    """Values ``low``..``high`` onto pixels ``start``..``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    """Equal factors, not equal differences, are equally far apart; ``low`` is positive then."""

    def __call__(self, value: float) -> float:
        """The pixel; on a logarithmic scale nothing lies left of its start."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside: at most six, on a logarithmic scale 1, 2 and 5 times powers of ten."""
        if self.log:
            return rounds(self.low, self.high)
        values = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        return [float(v) for v in values if self.low - slack <= v <= self.high + slack]


def rounds(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, 50, ... from ``low`` to ``high``; powers of ten alone past three decades."""
    if high < max(low, 1):
        return []
    steps = (1.0,) if high > 1000 * max(low, 1) else (1.0, 2.0, 5.0)
    values = (step * 10.0**power for power in range(math.floor(math.log10(high)) + 1) for step in steps)
    return [value for value in values if low <= value <= high]


def extent(values: Sequence[float], *, whole: bool = True) -> tuple[float, float]:
    """Ends of an axis: 0 to 1 for shares (``whole``), else a little more than the data, from 0 if it fits."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if low >= 0 and high <= 1 and (whole or high > 0.5):
        return 0.0, 1.0
    pad = 0.06 * (high - low) or 0.5
    return (0.0 if low >= 0 else low - pad), high + pad
