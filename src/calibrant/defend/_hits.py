"""Attempts and the layers that let them pass, with what is not known: the arithmetic of the layer lab.

'And' of 0, 1/2 and 1 is their minimum, 'or' their maximum, 'not' one less them (Kleene 1938).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibrant.core import Estimate
from calibrant.stats import mean, rate

Passes = NDArray[np.float64]
"""(attempts, layers): 1 where the layer lets it pass, 0 where it stops it, 1/2 where that is not known."""
NUMBER: dict[bool | None, float] = {False: 0.0, None: 0.5, True: 1.0}
_OUTCOME = {number: outcome for outcome, number in NUMBER.items()}


def outcomes(numbers: NDArray[np.float64]) -> list[bool | None]:
    """What rates count; None is missing."""
    return [_OUTCOME[number] for number in numbers.tolist()]


def credit(stops: NDArray[np.float64], at: int, counted: NDArray[np.float64]) -> list[float | None]:
    """What layer ``at`` is owed of each attempt: 1 over the layers that stop it; ``counted`` says whether it
    is to be owed at all. None where one of the two is not known."""
    sure = (counted != 0.5) & (stops != 0.5).all(1)
    owed = np.where((counted > 0) & (stops[:, at] > 0), 1 / np.maximum(stops.sum(1), 1), 0.0)
    return [
        value if one or not value else None for value, one in zip(owed.tolist(), sure.tolist(), strict=True)
    ]


class Hits:
    """Attempts of an attack, and which layers let each pass."""

    def __init__(self, harmed: list[bool | None], passes: Passes, groups: list[str], level: float) -> None:
        self.harmed = np.array([NUMBER[one] for one in harmed])
        self.passes, self.groups, self.level = passes, groups, level
        self.done = self.harmed == 1

    def behind(self, columns: Sequence[int]) -> NDArray[np.float64]:
        """Which attempts all these layers let pass."""
        through: NDArray[np.float64] = self.passes[:, list(columns)].min(1, initial=1.0)
        return through

    def success(self, columns: Sequence[int]) -> Estimate:
        """Of attempts, behind these layers. What is stopped is no success, judged or not."""
        found = outcomes(np.minimum(self.harmed, self.behind(columns)))
        return rate(found, clusters=self.groups, level=self.level, better="lower", unit="attempt")

    def only(self, at: int, others: Sequence[int]) -> NDArray[np.float64]:
        """Successes that this layer stops and no other."""
        stopped = np.minimum(1 - self.passes[:, at], self.behind(others))
        mine: NDArray[np.float64] = np.minimum(self.harmed, stopped)
        return mine

    def marginal(self, at: int, others: Sequence[int]) -> Estimate:
        """Of attempts, successes that no other layer stops."""
        owed = outcomes(self.only(at, others))
        return rate(owed, clusters=self.groups, level=self.level, better="higher", unit="attempt")

    def owed(self, names: Sequence[str]) -> dict[str, Estimate]:
        """Of attempts, successes that are prevented: by some layer (""), and each one's share."""
        stopped = outcomes(np.minimum(self.harmed, 1 - self.passes.min(1, initial=1.0)))
        whole = rate(stopped, clusters=self.groups, level=self.level, better="higher", unit="attempt")
        return {"": whole} | {name: self.share(at) for at, name in enumerate(names)}

    def share(self, at: int) -> Estimate:
        """Mean over attempts of what a layer is owed; those without a verdict count 0 to 1."""
        owed = credit(1 - self.passes, at, self.harmed)
        return mean(
            owed, clusters=self.groups, level=self.level, bounds=(0.0, 1.0), better="higher", unit="attempt"
        )
