"""What is drawn and said of decomposition: figures, caveats, and why the root differs from the formula."""

from __future__ import annotations

import re
from collections.abc import Mapping

from calibrant.core import Estimate
from calibrant.core.figure_data import Datum, FigureData
from calibrant.oversee._decomposition_audits import Advice
from calibrant.oversee._decomposition_metrics import Sample

_BUDGET = re.compile(r"audited_accuracy/(?P<label>[a-z_]+)/at_(?P<at>\d+)")
_HEIGHT = re.compile(r"(?P<label>accuracy|formula)/height_(?P<at>\d+)")
_ERROR = re.compile(r"(?P<label>formula)/error_(?P<at>[\d.e+-]+)")
_BARS = {
    "accuracy/direct": "asked directly",
    "accuracy/decomposed": "in parts",
    "formula/root": "formula of independent errors",
}


def drawn(found: Mapping[str, Estimate]) -> tuple[FigureData, ...]:
    """Direct against in parts; accuracy by audits, by height and by error rate beside the formula's."""
    bars = tuple(Datum(label=label, estimate=found[name]) for name, label in _BARS.items() if name in found)
    figures = (
        FigureData(kind="intervals", values=bars, title="Accuracy of the task, asked directly and in parts"),
        FigureData(
            kind="lens",
            values=_curve(found, _BUDGET),
            title="Accuracy in parts, by audits and how they are spent",
            axis="audits of each task",
        ),
        FigureData(
            kind="lens",
            values=_curve(found, _HEIGHT),
            title="Accuracy of steps beside the formula of independent errors",
            axis="height above the leaves",
        ),
        FigureData(
            kind="lens",
            values=(*_curve(found, _ERROR), *_here(found)),
            title="What the formula gives at other error rates of a step",
            axis="error rate of a step",
        ),
    )
    return tuple(one for one in figures if one.values)


def _curve(found: Mapping[str, Estimate], pattern: re.Pattern[str]) -> tuple[Datum, ...]:
    places = [(match, one) for name, one in found.items() if (match := pattern.fullmatch(name))]
    return tuple(
        Datum(label=match["label"].replace("_", " "), estimate=one, at=float(match["at"]))
        for match, one in places
    )


def _here(found: Mapping[str, Estimate]) -> tuple[Datum, ...]:
    """What was measured, at the mean error rate."""
    error = found["own_error_rate"].value if "own_error_rate" in found else None
    return (
        () if error is None else (Datum(label="measured", estimate=found["accuracy/decomposed"], at=error),)
    )


def caveats(
    sample: Sample, found: Mapping[str, Estimate], advice: Mapping[int, tuple[Advice, str]]
) -> tuple[str, ...]:
    """What the figures do not show, and what is recommended."""
    told = [
        "the tree is given: whether a model would take a task apart so is not measured",
        "the formula takes one error rate a kind of step: tasks that differ in difficulty look like errors "
        "that come together",
        *_causes(found),
    ]
    silent = sum(flag is None for flags in sample.played for flag in flags.values())
    if silent:
        told.append(f"{silent} steps have no answer: what is above them is known only within bounds")
    told += [f"at a budget of {budget}: {policy}; {why}" for budget, (policy, why) in advice.items()]
    if advice:
        told.append("an audit costs one, whatever it reads, and is not told what other audits found")
    return tuple(told)


def _causes(found: Mapping[str, Estimate]) -> list[str]:
    """Why the root is better or worse than independent errors allow, where it is."""
    excess = found["excess/root"]
    if excess.low is None or excess.high is None or excess.low <= 0 <= excess.high:
        return []
    above = excess.low > 0
    joint, absorbed, disturbed = (
        found.get(name) for name in ("joint_error_excess", "absorbed_rate", "disturbed_rate")
    )
    causes = []
    if joint is not None and joint.low is not None and joint.low > 0:
        causes.append("errors come together in some tasks (joint_error_excess)")
    if joint is not None and joint.high is not None and joint.high < 0:
        causes.append("errors avoid each other (joint_error_excess)")
    if above and absorbed is not None and absorbed.value:
        causes.append(
            f"{absorbed.value:.0%} of steps with wrong parts are right all the same (absorbed_rate)"
        )
    if not above and disturbed is not None and disturbed.value:
        causes.append("wrong parts lead steps astray though enough are right (disturbed_rate)")
    way = "above" if above else "below"
    return [
        f"the root is {way} the formula of independent errors: {'; '.join(causes) or 'no cause is shown'}"
    ]
