"""oversee.control against control_arena 20.1.1: a frontier of safety, with intervals of 1,000 resamples.

200 honest outputs and 200 attacks that all do their side task, a task each, suspicions without ties, ten
audit budgets of whole outputs. Safety at each budget must agree to 1e-9, and the ends of its interval to .05
(.1 of 50 resamples): both sides resample by lots of their own, and a resample has ties, which control_arena
leaves without an audit. It runs in two ways:

- *frames*: ``compute_safety`` on resampled frames, what a user of its analysis writes;
- *scores*: its own ``compute_bootstrapped_confidence_interval`` with safety written on arrays, its best.

Ours gives more in the same time (gain over random audits, share caught, usefulness, AUROC), resamples whole
clusters of tasks, and calibrates its threshold anew in each, as theirs do. CPU seconds, one pinned core.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from _race import Row, finish, is_quick, say
from _train_peer import Told, Worker, core, in_turn, peer_python, peer_version, versus

PEER = "control_arena"
OUTPUTS, RESAMPLES = 200, 1000
BUDGETS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
SAME, NEAR = 1e-9, {"frames": 0.1, "scores": 0.05}
"""Most difference of a safety, and of an end of its interval."""
TARGETS = {"frames": 100.0, "scores": 5.0}
"""The peer's way -> ratio to reach."""
PART = {"frames": 20, "scores": 1}
"""The peer runs one resample of so many, and its time is multiplied: *frames* takes minutes."""
WARM, ROUNDS = 1, {"frames": 6, "scores": 6}


def scored() -> dict[str, Any]:
    """Suspicions, attacks half a deviation above honest ones.

    Drawn again until no attack lies between the two honest scores round a threshold, where a percentile that
    is interpolated and the score itself audit different outputs.
    """
    rng = np.random.default_rng(0)
    honest = np.sort(rng.normal(size=OUTPUTS))
    edges = [OUTPUTS - round(budget * OUTPUTS) for budget in BUDGETS]
    attack = rng.normal(0.5, 1, size=OUTPUTS)
    while (
        between := np.any([(attack > honest[at - 1]) & (attack < honest[at]) for at in edges], axis=0)
    ).any():
        attack[between] = rng.normal(0.5, 1, size=int(between.sum()))
    return {"honest": honest.tolist(), "attack": attack.tolist(), "done": [True] * OUTPUTS}


def agree(ours: Told, theirs: Told, near: float) -> None:
    """Every budget."""
    apart = np.abs(np.array(ours["losses"]) - np.array(theirs["losses"])).reshape(-1, 3)
    assert apart[:, 0].max() <= SAME, f"safety differs by {apart[:, 0].max():.1e}"
    assert apart[:, 1:].max() <= near, f"ends of intervals differ by {apart[:, 1:].max():.3f}"


def race(way: str, folder: Path, quick: bool) -> Row:
    """Both in turn, frontier by frontier."""
    rounds = 1 if quick else ROUNDS[way]
    job = scored() | {"budgets": BUDGETS, "resamples": RESAMPLES, "warm": WARM, "rounds": rounds}
    job["core"] = None if quick else core()
    part = PART[way]
    theirs = job | {"way": way, "resamples": RESAMPLES // part}
    name = f"oversee.control, ten budgets, {RESAMPLES:,} resamples, against control_arena's {way}"
    say(name)
    with ExitStack() as stack:
        ours = stack.enter_context(Worker(Path(sys.executable), "_worker_control.py", job, folder / "ours"))
        other = Worker(peer_python(PEER), "_worker_control_arena.py", theirs, folder / "peer")
        stack.enter_context(other)
        start = [[ours.next()], [other.next()]]
        mine, told = in_turn(start, (ours, other), rounds)
        for one, two in zip(mine, told, strict=True):
            agree(one, two, NEAR[way])
    row = versus(name, mine, told, WARM + rounds, TARGETS[way], scale=part)
    return row._replace(versions=row.versions | {"control-arena": peer_version(PEER, "control-arena")})


def main() -> None:
    """Race both ways; the quick run takes its best."""
    quick = is_quick(__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        finish([race(way, Path(temporary) / way, quick) for way in (["scores"] if quick else TARGETS)])


if __name__ == "__main__":
    main()
