"""Floor 1: intervals, paired tests, corrections for many tests, worst-case bounds."""

from calibrant.stats.bootstrap import mean
from calibrant.stats.multiple import benjamini_hochberg, holm
from calibrant.stats.paired import difference, mcnemar
from calibrant.stats.proportion import proportion_interval, rate

__all__ = ["benjamini_hochberg", "difference", "holm", "mcnemar", "mean", "proportion_interval", "rate"]
