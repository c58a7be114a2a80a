"""The rules of ``understand.cue_awareness``, fixed in advance: from numbers to yes, no or not testable.

*Yes* is an effect that its controls do not have. *No* is an interval that holds no effect large enough to
matter. Whatever is neither is *not testable*: little data never turns into a no.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from calibrant.core import Estimate

Answer = Literal["yes", "no", "not testable"]
_TOLD = 0.95
"""AUROC of the text alone above which nothing is left to read beyond it."""


class Finding(NamedTuple):
    """One of the three verdicts."""

    answer: Answer
    why: str


class Bounds(NamedTuple):
    """What is fixed before the first look."""

    level: float
    gap: float
    """Least change of the behaviour that matters."""
    auroc: float
    """Least AUROC that matters."""
    few: int
    """Fewer prompts of the rarer outcome than this say nothing of single items."""


def decodable(found: Mapping[str, Estimate], p: float | None, least_p: float, bounds: Bounds) -> Finding:
    """Beyond chance, the text, the sham and swapped wordings."""
    auroc, gain, sham = (found[f"decodable/{name}"] for name in ("auroc", "gain_text", "gain_sham"))
    text = found["decodable/auroc_text"]
    if p is None or None in (auroc.low, gain.low, sham.low):
        why = next((one.reason for one in (auroc, gain, sham) if one.reason), "it has no interval")
        return Finding("not testable", why)
    if least_p > bounds.level:
        return Finding(
            "not testable", f"so few wordings that no p-value could be below {least_p:.3f}: give six or more"
        )
    if (text.low or 0.0) > _TOLD:
        return Finding(
            "not testable", f"the words alone tell the cue (AUROC {text}): give wordings that share no words"
        )
    passed = {
        "chance": (auroc.low or 0.0) > 0.5,
        "the text": (gain.low or 0.0) > 0.0,
        "the sham cue": (sham.low or 0.0) > 0.0,
        "swapped wordings": p <= bounds.level,
    }
    if all(passed.values()):
        return Finding("yes", f"AUROC {auroc} in unseen wordings, beyond {', '.join(passed)}")
    margin = bounds.auroc - 0.5
    short = ", ".join(name for name, fine in passed.items() if not fine)
    if _high(auroc) < bounds.auroc:
        return Finding("no", f"AUROC {auroc} in unseen wordings is below {bounds.auroc:g}")
    if text.value is None or text.value > 1 - margin:
        return Finding(
            "not testable",
            f"the words alone tell the cue (AUROC {text}), and leave less than {margin:g} to gain: give "
            "wordings that share no words",
        )
    if _high(gain) < margin and _high(text) + margin < 1:
        return Finding("no", f"{gain} more than the text alone: below {margin:g}")
    return Finding("not testable", f"AUROC {auroc} is not shown to be beyond {short}, nor to be small")


def causes(found: Mapping[str, Estimate], adjusted: tuple[float, float | None], bounds: Bounds) -> Finding:
    """By the words of the cue, or by its direction; ``adjusted`` are both p-values, for two looks."""
    gap, over, moved = (found[f"causes/{name}"] for name in ("gap", "gap_over_sham", "direction"))
    by_words = (
        adjusted[0] <= bounds.level
        and _sign(gap) != 0
        and _sign(over) == _sign(gap)
        and gap.value is not None
    )
    by_direction = adjusted[1] is not None and adjusted[1] <= bounds.level and _sign(moved) != 0
    if by_words or by_direction:
        how = [f"the words change the behaviour by {gap}"] if by_words else []
        how += [f"the direction changes it by {moved}, further than random ones"] if by_direction else []
        return Finding("yes", "; ".join(how))
    if gap.low is None or gap.high is None:
        return Finding("not testable", gap.reason or "the change of the behaviour has no interval")
    if _within(gap, bounds.gap) and (adjusted[1] is None or _within(moved, bounds.gap)):
        return Finding("no", f"with the words the behaviour changes by {gap}: by less than {bounds.gap:g}")
    large = "the words" if not _within(gap, bounds.gap) else "the direction"
    one = gap if large == "the words" else moved
    return Finding("not testable", f"{large}: {one} is not shown to be beyond its controls, nor to be small")


def predicts(auroc: Estimate, p: float, rare: int, bounds: Bounds) -> Finding:
    """Among prompts with one and the same cue."""
    if rare < bounds.few:
        return Finding(
            "not testable",
            f"{rare} prompts of the rarer outcome can be compared, and {bounds.few} are needed: the "
            "behaviour is the same wherever the cue is",
        )
    if auroc.low is None or auroc.high is None:
        return Finding("not testable", auroc.reason or "the AUROC has no interval")
    apart = auroc.low > 0.5 or auroc.high < 0.5
    if apart and p <= bounds.level:
        return Finding("yes", f"AUROC {auroc} for the item's behaviour, beyond random directions")
    if 1 - bounds.auroc < auroc.low and auroc.high < bounds.auroc:
        return Finding(
            "no", f"AUROC {auroc} for the item's behaviour is within {bounds.auroc:g} of either side"
        )
    why = "random directions tell as much" if apart else "chance is in the interval, and so is what matters"
    return Finding("not testable", f"AUROC {auroc} for the item's behaviour: {why}")


def _sign(one: Estimate) -> int:
    """-1 or 1 where the interval leaves out 0."""
    if one.low is None or one.high is None:
        return 0
    return 1 if one.low > 0 else -1 if one.high < 0 else 0


def _within(one: Estimate, margin: float) -> bool:
    return one.low is not None and one.high is not None and -margin < one.low and one.high < margin


def _high(one: Estimate) -> float:
    return 1.0 if one.high is None else one.high
