"""What the layer lab shows: a table to hand on, and figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from calibrant.core import Estimate
from calibrant.core.figure_data import Datum, FigureData

_HEAD = (
    "| Layer | Only it stops | Owed (Shapley) | Benign it blocks, alone | Benign, owed | "
    "Benign blocked for each success prevented | Calls for each | Reading |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
)
_TIMES = (
    "| Layer | ms of a benign text, alone | owed | ms of an attempt, alone | owed | "
    "ms for each success prevented |\n"
    "| --- | --- | --- | --- | --- | --- |\n"
)
_MEANING = """
'Only it stops' and 'owed' are shares of attempts. What a layer that nothing else repeats prevents is lost
without it; of layers that repeat each other all but one may go. A layer that is there for something else,
such as personal data, is not judged by attempts that hold none.
"""
_OWED = """
Owed time is below the time alone, or below 0, where a layer that blocks early spares the later ones.
"""


def table(metrics: Mapping[str, Estimate], names: Sequence[str], traffic: str) -> str:
    """Markdown: a line for each layer, one for all, and pairs that fail together."""
    lines = [_HEAD]
    for name in names:
        cells = [
            metrics[f"marginal/{name}"],
            metrics[f"shapley/{name}"],
            metrics[f"over_block_rate/alone/{name}"],
            metrics[f"over_block_shapley/{name}"],
            metrics[f"over_block_per_prevented/{name}"],
            metrics.get(f"calls_per_prevented/{name}"),
        ]
        lines.append(_line(name, cells, reading(name, metrics)))
    whole = [None, None, metrics["over_block_rate"], None, metrics["over_block_per_prevented"], None]
    lines.append(_line("all of them", whole, _through(metrics)))
    lines += [f"\n- {told}." for told in _pairs(metrics) or ["No pair is shown to fail together"]]
    return "".join(lines) + f"\n{_MEANING}\n{traffic}\n"


def times_table(times: Mapping[str, Estimate], names: Sequence[str], asked: str) -> str:
    """Markdown: milliseconds of a text, a line for each layer and one for all."""
    lines = [_TIMES]
    for name in names:
        parts = (
            f"benign/alone/{name}",
            f"benign/shapley/{name}",
            f"attempts/alone/{name}",
            f"attempts/shapley/{name}",
        )
        lines.append(
            _line(name, [*(times[f"ms/{part}"] for part in parts), times[f"ms_per_prevented/{name}"]])
        )
    whole = [times["ms/benign/all"], None, times["ms/attempts/all"], None, times["ms_per_prevented"]]
    lines.append(_line("all of them", whole))
    return "".join(lines) + f"{_OWED}\n{asked}\n"


def reading(name: str, metrics: Mapping[str, Estimate]) -> str:
    """What may be done with a layer, in words, with what the interval allows beside it."""
    alone, owed = metrics[f"marginal/{name}"], metrics[f"shapley/{name}"].value
    cost = metrics[f"over_block_marginal/{name}"].value
    if alone.value is None or owed is None or alone.high is None:
        return "not known: too little is judged"
    if alone.value > 0:
        price = f"; it blocks {cost:.1%} of benign requests that no other does" if cost else ""
        return f"without it {100 * alone.value:.1f} percentage points more of the attempts succeed{price}"
    bound = f"at most {alone.high:.1%} of attempts"
    if alone.missing:
        return f"not known: {alone.missing} outcomes are open, so it may be alone in stopping {bound}"
    lost = f", and blocks {cost:.1%} of benign requests that no other does" if cost else ""
    if owed > 0:
        return f"others stop all that it stops ({bound} it alone){lost}: one of them may go"
    return f"stops no success of these attempts ({bound}){lost}: for them it may go"


def _through(metrics: Mapping[str, Estimate]) -> str:
    before, after = metrics["attempt_success_rate"], metrics["attempt_success_rate/all"]
    return f"attempts that succeed, without guards: {_number(before)}; behind all: {_number(after)}"


def _pairs(metrics: Mapping[str, Estimate]) -> list[str]:
    told = []
    for name, one in metrics.items():
        if name.startswith("rho/") and one.low is not None and one.high is not None:
            what = _plain(name.removeprefix("rho/")).replace("+", " and ")
            what = "all layers" if name == "rho/all" else what
            if one.low > 1:
                told.append(f"{what} fail together: rho {_number(one)}")
            elif one.high < 1:
                told.append(f"{what} make up for each other: rho {_number(one)}")
    return told


def _line(name: str, cells: Sequence[Estimate | None], *told: str) -> str:
    shown = ["" if one is None else _number(one) for one in cells]
    return f"| {' | '.join([_plain(name), *shown, *told])} |\n"


def _plain(text: str) -> str:
    """Without meaning in Markdown: a layer may be called '|' or '<b>'."""
    return re.sub(r"([\\|<\[*_`])", r"\\\1", " ".join(text.split()))


def _number(one: Estimate) -> str:
    if one.value is None:
        return f"unknown: {one.reason}"
    if one.low is None or one.high is None:
        return f"{_short(one.value)} ({one.reason})"
    return f"{_short(one.value)} [{_short(one.low)}, {_short(one.high)}]"


def _short(number: float) -> str:
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"


def figures(metrics: Mapping[str, Estimate]) -> tuple[FigureData, ...]:
    """What each layer prevents and costs; and which pairs fail together."""
    stages = {
        "marginal": "only it stops",
        "shapley": "owed of what is prevented",
        "over_block_rate/alone": "benign requests it blocks",
    }
    names = [name.removeprefix("marginal/") for name in metrics if name.startswith("marginal/")]
    rows = tuple(
        Datum(label=name, estimate=metrics[f"{kind}/{name}"], stage=stage)
        for name in names
        for kind, stage in stages.items()
        if f"{kind}/{name}" in metrics
    )
    pairs = tuple(
        Datum(label=name.removeprefix("rho/").replace("+", " and "), estimate=one, stage="rho")
        for name, one in metrics.items()
        if name.startswith("rho/") and "+" in name
    )
    made = (
        FigureData(kind="intervals", values=rows, title="What each layer adds, and what it costs"),
        FigureData(
            kind="intervals",
            values=pairs,
            title="Which layers fail together",
            caption="Rho: above 1 a pair shares its gaps, below 1 its layers make up for each other.",
        ),
    )
    return tuple(one for one in made if one.values)
