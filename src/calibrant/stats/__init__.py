"""Confidence intervals, paired tests, multiple-testing and judge-error corrections, worst-case bounds."""

from calibrant.stats.at_k import beta_binomial, success_at_k
from calibrant.stats.bootstrap import mean
from calibrant.stats.compare import compare_by, sign_flip
from calibrant.stats.mean_so_far import mean_so_far
from calibrant.stats.multiple import benjamini_hochberg, holm
from calibrant.stats.paired import difference, difference_so_far, mcnemar
from calibrant.stats.power_law import power_law
from calibrant.stats.proportion import proportion_interval, rate, rate_so_far
from calibrant.stats.rogan_gladen import corrected_mixture, corrected_rate
from calibrant.stats.survival import success_curve
from calibrant.stats.two_phase import two_phase

__all__ = [
    "benjamini_hochberg",
    "beta_binomial",
    "compare_by",
    "corrected_mixture",
    "corrected_rate",
    "difference",
    "difference_so_far",
    "holm",
    "mcnemar",
    "mean",
    "mean_so_far",
    "power_law",
    "proportion_interval",
    "rate",
    "rate_so_far",
    "sign_flip",
    "success_at_k",
    "success_curve",
    "two_phase",
]
