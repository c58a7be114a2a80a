"""Made-up answers of simulated annotators, alone, with advice and as experts, on items of known truth.

``testbed:labels/truth``, ``alone``, ``assisted`` and ``expert``, with the same options, are about the same
items and the same people. An annotator who is assisted answers as alone, but for a share ``follows`` of the
items, in which the advice is taken.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from calibrant.core import InputError
from calibrant.data.answers import SIMULATED
from calibrant.data.human_labels import HumanLabel, HumanLabels
from calibrant.testbed.checks import check_name, check_options, whole_option

_NAMES = ("truth", "alone", "assisted", "expert")
_SHARES = {"alone": ".6", "advice": ".85", "follows": ".6", "again": "0", "expert": ".95"}
_MOST, _PEOPLE = 5000, 100


def open_labels(name: str, options: Mapping[str, str]) -> HumanLabels:
    """``testbed:labels/assisted?n=150&annotators=6&alone=.6&advice=.85&follows=.6&again=0&expert=.95&seed=1``.

    ``alone``, ``advice``, ``expert``: how often each is right. ``again``: how often somebody who does not
    follow answers otherwise the second time.

    Raises:
        InputError: no such answers or option, no share, or no or too many items or annotators.
    """
    check_name("labels", name, _NAMES, "answers")
    check_options("labels", name, options, ("n", "annotators", "seed", *_SHARES))
    n, people, seed = (whole_option(k, options, d) for k, d in (("n", 150), ("annotators", 6), ("seed", 0)))
    if not 1 <= n <= _MOST or not 1 <= people <= _PEOPLE:
        raise InputError(
            f"n={n}, annotators={people}: 1 to {_MOST} items and 1 to {_PEOPLE} annotators are made",
            hint="write ?n=150&annotators=6",
        )
    shares = {key: _share(key, options, default) for key, default in _SHARES.items()}
    made = _People(shares, seed)
    raters = [f"{SIMULATED}{k}" for k in range(people)]
    if name == "truth":
        raters = ["key"]
    elif name == "expert":
        raters = [f"{SIMULATED}expert{k}" for k in range(2)]
    rows = tuple(getattr(made, name)(rater, f"i{at}") for rater in raters for at in range(n))
    return HumanLabels(rows=rows, source=f"testbed:labels/{name}")


def _share(key: str, options: Mapping[str, str], default: str) -> float:
    text = options.get(key, default)
    if not re.fullmatch(r"0|1|0?\.\d+|1\.0*|0\.", text):
        raise InputError(f"{key}={text} is no share", hint=f"write ?{key}=.5")
    return float(text)


class _People:
    """Who answers what; every lot is drawn by its own name."""

    def __init__(self, shares: Mapping[str, float], seed: int) -> None:
        self._shares, self._seed = shares, seed

    def _lot(self, *names: str) -> float:
        return random.Random("/".join(("sandwich", str(self._seed), *names))).random()

    def _right(self, item: str) -> bool:
        return self._lot("truth", item) < 0.5

    def _answer(self, who: str, rater: str, item: str) -> bool:
        return (self._lot(who, rater, item) < self._shares[who]) == self._right(item)

    def truth(self, rater: str, item: str) -> HumanLabel:
        """The truth."""
        return HumanLabel(id=item, human=self._right(item), rater=rater)

    def alone(self, rater: str, item: str) -> HumanLabel:
        """Without help."""
        return HumanLabel(id=item, human=self._answer("alone", rater, item), rater=rater, condition="alone")

    def expert(self, rater: str, item: str) -> HumanLabel:
        """By one who knows."""
        return HumanLabel(id=item, human=self._answer("expert", rater, item), rater=rater, condition="expert")

    def assisted(self, rater: str, item: str) -> HumanLabel:
        """As alone, or as advised."""
        advice = self._answer("advice", "", item)
        own = self._answer("alone", rater, item)
        if self._lot("follows", rater, item) < self._shares["follows"]:
            own = advice
        elif self._lot("again", rater, item) < self._shares["again"]:
            own = not own
        said = "yes" if advice else "no"
        return HumanLabel(id=item, human=own, rater=rater, condition="assisted", advice=said)
