"""train.dpo against TRL's DPOTrainer: one pass over the pairs, the reference's log-probs included.

Llama of 6 layers, d = 256, 16,384 words, batches of 4 pairs, one thread. TRL runs in two ways:

- *default*: bfloat16 autocast, gradient checkpointing, the reference in memory and asked at every step; ours
  in bfloat16, too, and (in full) at its own default, float32;
- *best*: float32, no checkpointing, the reference's log-probs computed once beforehand; ours in float32.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from _race import finish, is_quick
from _train_peer import (
    FIT,
    LOOSE,
    TRL_BEST,
    TRL_DEFAULT,
    Course,
    Setting,
    chat,
    draw,
    pace,
    race_on,
    save_model,
)

from calibrant.models.fit import batches_of

BATCH = 4
OPTIONS = {"per_device_train_batch_size": BATCH, "beta": 0.1}
DEFAULT = TRL_DEFAULT | OPTIONS
BEST = TRL_BEST | OPTIONS | {"precompute_ref_log_probs": True}
CONFIG = {"batch_size": BATCH, "beta": 0.1, "fit": FIT}
HALF = CONFIG | {"fit": FIT | {"bf16": True}}


def course(model: Path, prompt: int, reply: int, steps: int) -> Course:
    """Pairs for ``steps`` steps."""
    rows = [
        {
            "id": str(number),
            "prompt": chat("user", drawn.prompt),
            "chosen": chat("assistant", drawn.replies[0]),
            "rejected": chat("assistant", drawn.replies[1]),
        }
        for number, drawn in enumerate(draw(BATCH * steps, prompt, reply, 2))
    ]
    order = [i for batch in batches_of(len(rows), BATCH, 1, 0) for i in batch]
    title = f"train.dpo, prompt {prompt}, replies <= {reply}"
    return Course(title, "dpo", model, rows, [rows[i] for i in order])


def main() -> None:
    """Race both shapes."""
    quick = is_quick(__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = save_model(folder / "model")
        steps = sum(pace(quick))
        short = [
            Setting("best (float32, cached reference)", BEST, CONFIG, target=2.5),
            Setting("default, ours in bfloat16, too", DEFAULT, HALF, target=3.0, tolerance=LOOSE),
            Setting("default, ours in float32", DEFAULT, CONFIG, target=3.0, tolerance=LOOSE),
        ]
        rows = race_on(course(model, 128, 64, steps), short[: 2 if quick else None], folder, quick)
        rows += race_on(course(model, 256, 32, steps), [short[0]._replace(target=4.0)], folder, quick)
    finish(rows)


if __name__ == "__main__":
    main()
