"""Corrections for many tests at once: adjusted p-values, to be held against the usual threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibrant.core import InputError, NumericalError
from calibrant.stats._sample import Floats


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: the chance of any false alarm stays below alpha.

    Valid under every dependence (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    Raises:
        NumericalError: a p-value is NaN. InputError: one lies outside [0, 1].
    """
    from statsmodels.stats.multitest import multipletests  # here: it loads pandas, which few commands need

    raw = _checked(p)
    return [float(x) for x in multipletests(raw, method="holm")[1]] if raw.size else []


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg adjusted p-values, in the order given: the false share of findings stays low.

    For independent or positively dependent tests (1995, JRSS B 57, 289-300).

    Raises:
        NumericalError: a p-value is NaN. InputError: one lies outside [0, 1].
    """
    from statsmodels.stats.multitest import fdrcorrection  # here: as above

    raw = _checked(p)
    return [float(x) for x in fdrcorrection(raw)[1]] if raw.size else []


def _checked(p: Sequence[float]) -> Floats:
    """The p-values as float64 (m,)."""
    raw = np.asarray(list(p), dtype=np.float64)
    if np.isnan(raw).any():
        raise NumericalError(
            f"p[{int(np.flatnonzero(np.isnan(raw))[0])}] is missing or NaN",
            hint="a test that could not be run has shown nothing: give it p = 1",
        )
    outside = np.flatnonzero((raw < 0) | (raw > 1))
    if outside.size:
        raise InputError(
            f"p[{outside[0]}] is {raw[outside[0]]}, outside [0, 1]",
            hint="give p-values, not test statistics or percentages",
        )
    return raw
