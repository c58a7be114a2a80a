"""The rule of triangulation, fixed in advance: what evidence makes a claim supported.

A claim says that a set of cells carries the answer. It is

- *not testable* where the corruption does not make the answer less likely, on either table, or there are too
  few pairs or too few other sets to compare with;
- *supported* where three families of instruments or more are past their matched null (other sets of as many
  cells, drawn at random) and beyond chance, at a false discovery rate over families; patching is one of
  them, in both directions, and its intervals are above the floor; pairs held out say the same; every cell
  is shown to do its part by itself;
- *contradicted* where the set carries less than the floor in both directions for sure, or where patching or
  ablation is beyond chance on the other side. Attention and output weights, which are wrong more often, can
  support and not contradict;
- else *suggestive*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from calibrant.core import Estimate, Frozen, NumericalError
from calibrant.stats import mean
from calibrant.stats.max_statistic import least_p, max_sign_flip
from calibrant.stats.multiple import benjamini_hochberg
from calibrant.understand._contrasts import Encoded
from calibrant.understand._effects import Effects, Floats
from calibrant.understand._evidence import FAMILIES, Evidence

Finding = Literal["supported", "suggestive", "contradicted", "not testable"]
WAYS = FAMILIES["interventional"]
_VETO = (*WAYS, *FAMILIES["edit"])


class Rule(Frozen):
    """Thresholds, set before the first look."""

    floor: float = Field(default=0.5, gt=0)
    """Least share of the corruption's effect that the set must carry, by patching, in both directions."""
    part: float = Field(default=0.2, ge=0)
    """Least share that each cell must carry by itself, in one direction or the other."""
    level: float = Field(default=0.05, gt=0, lt=1)
    """False discovery rate over families, and level of every other test."""
    families: int = Field(default=3, ge=2, le=len(FAMILIES))
    """So many families must agree."""
    sets: int = Field(default=40, ge=19)
    """Other sets of as many cells that the claim is compared with."""


class Line(NamedTuple):
    """What one instrument says of the claim."""

    estimate: Estimate
    """Share of the corruption's effect, with its interval."""
    beyond_chance: float
    """p-value: the signs of pairs flipped."""
    beyond_others: float
    """p-value: rank among the other sets."""

    @property
    def share(self) -> float:
        """Of the corruption's effect."""
        return float(self.estimate.value or 0.0)


class Ruling(NamedTuple):
    """What the rule says, and why."""

    finding: Finding
    reasons: tuple[str, ...]
    """What stands between the claim and 'supported'; [] where nothing does."""
    lines: Mapping[str, Line]
    families: tuple[str, ...]
    """Families that speak for the claim."""


def ruled(evidence: Evidence, heldout: Evidence, names: Sequence[str], rule: Rule) -> Ruling:
    """Judge a claim on the cells called ``names``, on pairs where the corruption changes the answer.

    Args:
        evidence: row 0 is the set, then each of its cells, then the other sets.
        heldout: row 0 is the set, on other pairs.
        rule: thresholds.
    """
    size = len(names)
    others = evidence.effects["denoise"].shape[0] - 1 - size
    present = {family: [n for n in names if n in evidence.effects] for family, names in FAMILIES.items()}
    present = {family: names for family, names in present.items() if names}
    units = len(set(evidence.pairs.clusters)) if evidence.pairs.clusters else evidence.total.size
    if least_p(units) > rule.level:
        return untestable(f"{units} pairs, or clusters of them, are too few: no p-value can be small enough")
    if 1 / (1 + others) > rule.level:
        needed = math.ceil(1 / rule.level - 1e-9) - 1
        more = (
            "the model has no more, whatever 'sets' is: claim a number of cells of which it has more sets"
            if others < rule.sets
            else "raise 'sets'"
        )
        return untestable(
            f"{others} other sets of {size} cells are compared with, and {needed} are needed: {more}"
        )
    lines = {name: _line(evidence, name, size) for name in evidence.effects}
    chances = [
        max(max(lines[n].beyond_chance, lines[n].beyond_others) for n in names) for names in present.values()
    ]
    adjusted = dict(zip(present, benjamini_hochberg(chances), strict=True))
    speaking = tuple(
        family
        for family, names in present.items()
        if adjusted[family] <= rule.level and all(lines[n].share > 0 for n in names)
    )
    against = [n for n in _VETO if _against(lines[n], rule)]
    doubts = [f"{name} is beyond chance on the other side" for name in against]
    small = [way for way in WAYS if (lines[way].estimate.low or -math.inf) < rule.floor]
    if small:
        doubts.append(f"the set may carry less than {rule.floor:g} by {' and '.join(small)}")
    if len(speaking) < rule.families or "interventional" not in speaking:
        doubts.append(
            f"families past their null: {', '.join(speaking) or 'none'} "
            f"(needs {rule.families}, patching in both directions among them)"
        )
    doubts += [f"held-out pairs do not say so by {way}" for way in WAYS if not _repeats(heldout, way, rule)]
    doubts += [f"{names[at]} by itself {why}" for at, why in _idle(evidence, size, rule).items()]
    if against or all(_below(lines[way].estimate, rule.floor) for way in WAYS):
        return Ruling("contradicted", tuple(doubts), lines, speaking)
    return Ruling("suggestive" if doubts else "supported", tuple(doubts), lines, speaking)


def untestable(*reasons: str) -> Ruling:
    """The ruling where nothing can be said."""
    return Ruling("not testable", reasons, {}, ())


def _line(evidence: Evidence, name: str, size: int) -> Line:
    effects = evidence.effects[name]
    strength = np.abs(effects.mean(1))
    others = strength[1 + size :]
    rank = (1 + int((others >= strength[0]).sum())) / (1 + len(others))
    chance = float(max_sign_flip(effects[:1], clusters=evidence.pairs.clusters)[0])
    return Line(share_of(evidence, name, 0), chance, rank)


def share_of(evidence: Evidence, name: str, row: int) -> Estimate:
    """The share of a set with its interval, linearised."""
    effect, total = evidence.effects[name][row], evidence.total
    ratio = float(effect.mean() / total.mean())
    linear: Floats = ratio + (effect - ratio * total) / total.mean()
    return mean(linear.tolist(), clusters=evidence.pairs.clusters, better="none", unit="pair", null_value=0.0)


def _against(line: Line, rule: Rule) -> bool:
    """Beyond chance on the other side, corrected for the three instruments that may say so."""
    return line.beyond_chance <= rule.level / len(_VETO) and line.share < 0


def _below(estimate: Estimate, floor: float) -> bool:
    return estimate.high is not None and estimate.high < floor


def _repeats(heldout: Evidence, way: str, rule: Rule) -> bool:
    effects = heldout.effects[way][:1]
    chance = float(max_sign_flip(effects, clusters=heldout.pairs.clusters)[0])
    return chance <= rule.level and float(effects.mean() / heldout.total.mean()) >= rule.floor


def _idle(evidence: Evidence, size: int, rule: Rule) -> dict[int, str]:
    """Cells not shown to do something by themselves, and why; corrected for looking at all, both ways."""
    table = np.concatenate([evidence.effects[way][1 : 1 + size] for way in WAYS])
    chances = max_sign_flip(table, clusters=evidence.pairs.clusters).reshape(len(WAYS), size)
    shares = (table.mean(1) / evidence.total.mean()).reshape(len(WAYS), size)
    found = {}
    for at in range(size):
        if not ((chances[:, at] <= rule.level) & (shares[:, at] >= rule.part)).any():
            share, chance = shares[:, at].max(), chances[:, at].min()
            found[at] = f"is not shown to do its part ({share:.2g} of the effect, corrected p {chance:.2g})"
    return found


def idle_reason(total: Floats, pairs: Encoded) -> str:
    """Why nothing is testable on these pairs; "" where the corruption makes the answer less likely.

    Raises:
        NumericalError: a reading is NaN or infinite.
    """
    if not np.isfinite(total).all():
        raise NumericalError("the model gives NaN or infinite logits", hint="load it in float32")
    effects = Effects((), pairs, np.zeros((2, 0, total.size)), total, np.zeros_like(total))
    if effects.testable and total.mean() < 0:
        return (
            "the answer is likelier after the corrupted prompt: are answer and foil, or the prompts, swapped?"
        )
    return effects.idle.removeprefix("not testable: ")
