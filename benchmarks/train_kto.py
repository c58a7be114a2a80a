"""train.kto against TRL's KTOTrainer: one pass over the replies, the reference's log-probs included.

Llama of 6 layers, d = 256, 16,384 words, batches of 6 replies, one thread. TRL by default runs in bfloat16
(ours then, too) with gradient checkpointing and asks the reference at every step; at its best it runs in
float32 (ours, too) without checkpointing, and the reference's log-probs are computed once. Here, both sides
lend each reply to the next row of its batch, so that their losses can be compared.
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

BATCH = 6
OPTIONS = {"per_device_train_batch_size": BATCH, "beta": 0.1}
DEFAULT = TRL_DEFAULT | OPTIONS
BEST = TRL_BEST | OPTIONS | {"precompute_ref_log_probs": True}
CONFIG = {"batch_size": BATCH, "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "fit": FIT}
HALF = CONFIG | {"fit": FIT | {"bf16": True}}


def course(model: Path, prompt: int, reply: int, steps: int) -> Course:
    """Labelled replies for ``steps`` steps, thumbs up and down in turn."""
    rows = [
        {
            "id": str(number),
            "prompt": chat("user", drawn.prompt),
            "completion": chat("assistant", drawn.replies[0]),
            "label": number % 2 == 0,
        }
        for number, drawn in enumerate(draw(BATCH * steps, prompt, reply, 1))
    ]
    order = [i for batch in batches_of(len(rows), BATCH, 1, 0) for i in batch]
    title = f"train.kto, prompt {prompt}, replies <= {reply}"
    return Course(title, "kto", model, rows, [rows[i] for i in order])


def main() -> None:
    """Race TRL at its default and at its best."""
    quick = is_quick(__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = save_model(folder / "model")
        settings = [
            Setting("default, ours in bfloat16, too", DEFAULT, HALF, target=2.0, tolerance=LOOSE),
            Setting("best (float32, cached reference)", BEST, CONFIG, target=2.0),
        ]
        rows = race_on(course(model, 128, 64, sum(pace(quick))), settings, folder, quick)
    finish(rows)


if __name__ == "__main__":
    main()
