"""Rates of traffic that may drift: what counts as one unit of each, and its value, in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibrant.data.audits import FAILED, AuditLine

UNREACHED = ("refused", "client_left")
"""Outcomes without an answer of the system's own: a bad request, and a client that left."""


class Series(NamedTuple):
    """One rate over the lines on which it has a unit."""

    lines: NDArray[np.intp]
    """(n,) places among the lines, rising."""
    values: NDArray[np.float64]
    """(n,) 0 or 1."""


def watched(lines: Sequence[AuditLine], layers: Sequence[str]) -> dict[str, Series]:
    """Each rate that these lines have, by name; one without a single unit is left out.

    Of requests: 'released_rate', 'blocked_rate' with its sides, 'failed_rate'. Of requests on which a
    layer was asked: 'block_rate/LAYER' (it said no), 'unread_rate/LAYER' (unknown, or it failed). Of
    attempts with a judge: 'judged_rate' (it said yes), 'unjudged_rate' (unknown).
    """
    whole = [place for place, line in enumerate(lines) if line.outcome not in UNREACHED]
    sides = any(line.at is not None for line in lines)  # an attempt does not say on which side it was blocked
    found = {
        "released_rate": _of(whole, [lines[place].released for place in whole]),
        "blocked_rate": _of(whole, [lines[place].outcome.startswith("blocked") for place in whole]),
        "failed_rate": _of(whole, [lines[place].outcome in ("error", "unanswered") for place in whole]),
    }
    for side in ("input", "output") if sides else ():
        found[f"blocked_{side}_rate"] = _of(
            whole, [lines[place].outcome == f"blocked_{side}" for place in whole]
        )
    for layer in layers:
        asked = [place for place, line in enumerate(lines) if line.said.get(layer)]
        said = [lines[place].said[layer] for place in asked]
        found[f"block_rate/{layer}"] = _of(asked, ["no" in one for one in said])
        found[f"unread_rate/{layer}"] = _of(asked, ["unknown" in one or FAILED in one for one in said])
    judged = [place for place, line in enumerate(lines) if line.judged is not None]
    known = [place for place in judged if lines[place].judged != "unknown"]
    found["judged_rate"] = _of(known, [lines[place].judged == "yes" for place in known])
    found["unjudged_rate"] = _of(judged, [lines[place].judged == "unknown" for place in judged])
    return {name: one for name, one in found.items() if one.lines.size}


def _of(places: Sequence[int], values: Sequence[bool]) -> Series:
    return Series(np.array(places, np.intp), np.array(values, np.float64))
