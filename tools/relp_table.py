"""RelP less AtP on deep planted models: how much nearer to exact patching.

    .venv/bin/python tools/relp_table.py              seven draws of each: minutes
    .venv/bin/python tools/relp_table.py --draws 4

Every cell of a site is patched exactly. Agreement is Spearman's and Pearson's correlation, over cells, of
the estimated and the exact mean effect, at both ends. The table shows that of RelP (``pattern = "slope"``)
less that of AtP: its mean over draws, with a 95 % interval. Where the interval holds 0 it says 'no gain';
where all cells are alike, as MLPs that write nothing are, 'unknown'.

The models are ``testbed:plant/induction?negative=1`` (three blocks) and ``name_mover?backup=1`` (four). A
draw is other weights and other pairs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import pearsonr, spearmanr

from calibrant.core import Estimate, OpenLM, Quiet
from calibrant.data.rows import Contrasts
from calibrant.stats import mean
from calibrant.testbed import circuits, name_mover
from calibrant.understand._cells import HEADS, Cells, Site, cells_of
from calibrant.understand._contrasts import encode
from calibrant.understand._effects import WAYS, Floats, both_ways, effects_of
from calibrant.understand._slopes import Method, estimated

SITES: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out", "z", "k")
MEASURES = tuple(f"{name}, {way}" for name in ("Spearman", "Pearson") for way in WAYS)
PAIRS = 24
"""A draw."""
DEEP = ("induction?negative=1", "name_mover?backup=1")
"""Planted models of three blocks and of four."""


class Draw(NamedTuple):
    """A model, and the pairs that ask for what it does."""

    model: OpenLM
    contrasts: Contrasts


def agreement(guess: Floats, exact: Floats) -> dict[str, float]:
    """Measure -> correlation over cells; NaN where one side is the same for all.

    Args:
        guess, exact: (2, C) mean effects, denoising and noising.
    """
    found = {}
    for name, measure in (("Spearman", spearmanr), ("Pearson", pearsonr)):
        for side, way in enumerate(WAYS):
            varies = min(np.ptp(guess[side]), np.ptp(exact[side])) > 0
            found[f"{name}, {way}"] = float(measure(guess[side], exact[side])[0]) if varies else float("nan")
    return found


def gains(draw: Draw, site: Site) -> dict[str, float] | None:
    """Measure -> RelP's agreement less AtP's; None where the corruption does not change the answer."""
    pairs = encode(draw.model, draw.contrasts)
    where = Cells(site=site, positions="all" if site in HEADS else "each")
    cells = cells_of(draw.model, where, pairs.clean.shape[1])
    swept = both_ways(draw.model, pairs, [(cell.edit,) for cell in cells], Quiet())
    exact = effects_of(cells, pairs, *swept)
    if not exact.testable:
        return None
    methods: tuple[Method, Method] = ("relp", "atp")
    relp, atp = (
        agreement(
            estimated(draw.model, pairs, cells, site, method, False, Quiet()).values.mean(2),
            exact.values.mean(2),
        )
        for method in methods
    )
    return {measure: relp[measure] - atp[measure] for measure in MEASURES}


def said(values: Sequence[float]) -> str:
    """A cell of the table: gain, loss or no gain, with the mean over draws and its interval."""
    seen = [value for value in values if np.isfinite(value)]
    if len(seen) < 2:
        return f"unknown: {len(seen)} draws"
    one: Estimate = mean(seen, better="higher", unit="draw", bounds=(-2.0, 2.0))
    if one.low is None or one.high is None:
        return f"unknown: {one.reason}"
    shown = f"{one.value:+.2f} [{one.low:.2f}, {one.high:.2f}]"
    if one.low <= 0 <= one.high:
        return f"no gain: {shown}"
    return shown if one.low > 0 else f"a loss: {shown}"


def table(title: str, draws: Sequence[Draw]) -> Iterator[str]:
    """Lines of Markdown, each as soon as it is known."""
    yield f"\n{title}, {len(draws)} draws\n"
    yield f"| Site | {' | '.join(MEASURES)} | draws |"
    yield f"| {' | '.join('---' for _ in range(len(MEASURES) + 2))} |"
    for site in SITES:
        found = [one for draw in draws if (one := gains(draw, site)) is not None]
        cells = [said([one[measure] for one in found]) for measure in MEASURES]
        yield f"| `{site}` | {' | '.join(cells)} | {len(found)} |"


def planted(name: str, draws: int) -> list[Draw]:
    """One of ``DEEP``, drawn anew each time."""
    task, _, option = name.partition("?")
    module = {"induction": circuits, "name_mover": name_mover}[task]
    key, _, value = option.partition("=")
    return [
        Draw(
            module.open_plant(task, {key: value, "seed": str(seed)}),
            module.open_contrasts(task, {"n": str(PAIRS), "seed": str(seed)}),
        )
        for seed in range(draws)
    ]


def told(lines: Iterator[str]) -> None:
    """Print lines, each as soon as it is known."""
    for line in lines:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="RelP less AtP, agreement with exact patching")
    parser.add_argument("--draws", type=int, default=7, help="models of each kind; 2 or more")
    asked = parser.parse_args(arguments)
    if asked.draws < 2:
        parser.error("an interval needs two draws")
    for name in DEEP:
        told(table(f"testbed:plant/{name}", planted(name, asked.draws)))


if __name__ == "__main__":
    main(sys.argv[1:])
