"""train.reward against TRL's RewardTrainer, and ensembles against one model of ours.

Llama of 6 layers, d = 256, one thread. TRL runs at its best (float32, no checkpointing) and for pairs also at
its default (bfloat16 autocast, gradient checkpointing); ours each time alike. TRL knows pairs only, so four
ranked replies to a prompt are six pairs to it. Both sides start from the same head, and all losses agree.

Heads on one trunk and models trained apart are raced against one model of ours.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from _race import Row, finish, is_quick
from _train_peer import (
    FIT,
    LOOSE,
    TRL_BEST,
    TRL_DEFAULT,
    Course,
    Setting,
    Worker,
    chat,
    core,
    draw,
    in_turn,
    pace,
    race_on,
    save_model,
    table,
    versus,
)

from calibrant.models.classifier import Classifier
from calibrant.models.fit import batches_of
from calibrant.models.open_model import OpenModel

PAIRS, LISTS = 6, 2
"""Prompts in one step: of two replies, of four."""
HEADS, LIMIT = 5, 1.3
"""So many heads may cost so many times what one does."""
START = {"fit": FIT}


def ranked(prompt: int, reply: int, replies: int, count: int) -> list[list[dict[str, Any]]]:
    """For each of ``count`` prompts all pairs of its replies, the first reply being the best."""
    return [
        [
            {
                "id": f"{number}/{better}/{worse}",
                "prompt": chat("user", drawn.prompt),
                "chosen": chat("assistant", drawn.replies[better]),
                "rejected": chat("assistant", drawn.replies[worse]),
            }
            for better, worse in combinations(range(replies), 2)
        ]
        for number, drawn in enumerate(draw(count, prompt, reply, replies))
    ]


def course(model: Path, start: Path, replies: int, batch: int, steps: int) -> Course:
    """Ranked replies for ``steps`` steps."""
    lists = ranked(128, 64, replies, batch * steps)
    order = [i for some in batches_of(len(lists), batch, 1, 0) for i in some]
    return Course(
        title=f"train.reward, {replies} replies a prompt, prompt 128, replies <= 64",
        technique="reward",
        model=model,
        ours=[row for pairs in lists for row in pairs],
        theirs=[row for i in order for row in lists[i]],
        start=start,
    )


def several(model: Path, folder: Path, quick: bool) -> list[Row]:
    """Five heads on one trunk against one model, and five models trained apart against five heads."""
    warm, rounds = pace(quick)
    rows = [row for pairs in ranked(128, 64, 2, PAIRS * (warm + rounds)) for row in pairs]
    path = table(folder / "ensemble.jsonl", rows)
    shared = {"model": str(model), "rows": path, "warm": warm, "block": 1, "core": None if quick else core()}

    def worker(technique: str, config: Mapping[str, Any]) -> Worker:
        job = shared | {"technique": technique, "config": config}
        return Worker(Path(sys.executable), "_worker_ours.py", job, folder / technique)

    each = {"batch_size": PAIRS, **START}
    with (
        worker("reward", {**each, "heads": HEADS}) as heads,
        worker("reward", each) as one,
        worker("reward_ensemble", {"kind": "independent", "members": HEADS, "each": each}) as apart,
    ):
        workers = heads, one, apart
        told = in_turn([[worker.next()] for worker in workers], workers, rounds)
    title, steps = f"train.reward, {HEADS} heads on one trunk", warm + rounds
    return [
        versus(f"{title}, at most {LIMIT} times one model", told[0], told[1], steps, 1.0, LIMIT),
        # A step of an ensemble is a step of each of its members.
        versus(f"{title}, against {HEADS} models trained apart", told[0], told[2], steps, 0.0, HEADS),
    ]


def main() -> None:
    """Pairs (a quick race leaves TRL's default out), lists of four, ensembles."""
    quick = is_quick(__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, start = save_model(folder / "model"), folder / "start"
        Classifier.from_lm(OpenModel.from_folder(model), 1, 0).save(start)
        steps = sum(pace(quick))
        best = TRL_BEST | {"per_device_train_batch_size": PAIRS}
        default = TRL_DEFAULT | {"per_device_train_batch_size": PAIRS}
        ours = {"batch_size": PAIRS, **START}
        alike = {"batch_size": PAIRS, "fit": FIT | {"bf16": True, "recompute": True}}
        lists = {"batch_size": LISTS, "unit": "prompt", **START}
        pairs = [
            Setting("default, ours alike", default, alike, target=0, tolerance=LOOSE),
            Setting("best (float32)", best, ours, target=1.15),
        ]
        fours = Setting(
            "best (float32, six pairs)", best | {"per_device_train_batch_size": 6 * LISTS}, lists, 1.8
        )
        rows = race_on(course(model, start, 2, PAIRS, steps), pairs[1 if quick else 0 :], folder, quick)
        rows += race_on(course(model, start, 4, LISTS, steps), [fours], folder, quick)
        rows += several(model, folder, quick)
    finish(rows)


if __name__ == "__main__":
    main()
