"""train.ppo against the last PPO that TRL had (1.12): whole rounds of drawing, scoring and learning.

Llama of 6 layers, d = 256, 16,384 words, float32 (TRL's PPO pays no heed to bf16 or checkpointing), one
thread, four epochs a round. Policy, reference, reward model and critic have the same shape.

Equality first: TRL replays our first rounds (replies, scores, order of minibatches), and its losses must be
ours. After them each side draws its own replies, of the same lengths but for the few that end early.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from _race import Row, finish, is_quick
from _train_peer import (
    FIT,
    TOLERANCE,
    Worker,
    agree,
    chat,
    core,
    draw,
    in_turn,
    peer_python,
    peer_version,
    save_model,
    table,
    versus,
)

REPLIES = 8
"""Replies in one round."""
WARM, ROUNDS = 2, 8
RATE = 1e-4


class Shape(NamedTuple):
    """Of one race."""

    prompt: int
    """Tokens of each prompt."""
    reply: int
    """Most tokens of a reply."""
    samples: int
    """Replies to one prompt; to TRL they are rows of their own."""
    target: float
    """Ratio to reach; 0 where there is none."""


def ours(shape: Shape, rounds: int) -> dict[str, Any]:
    """Our config: compatible with TRL's choices, which are the score's place, no clip, one rate."""
    return {
        "steps": rounds,
        "batch_size": REPLIES // shape.samples,
        "samples": shape.samples,
        "max_tokens": shape.reply,
        "temperature": 0.7,
        "score_at": "after",
        "value_weight": 0.1,
        "critic": "reward",
        "kl": {"coef": 0.05},
        "fit": FIT | {"lr": RATE, "clip": 1e9, "eps": 1e-8},
    }


def trls(shape: Shape, rounds: int) -> dict[str, Any]:
    """TRL's options; all others are its defaults."""
    return {
        "per_device_train_batch_size": REPLIES,
        "gradient_accumulation_steps": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "total_episodes": REPLIES * rounds,
        "response_length": shape.reply,
        "stop_token": "eos",
        "disable_tqdm": True,
    }


def race(shape: Shape, folder: Path, quick: bool) -> Row:
    """Replay, then race."""
    warm, rounds = (1, 1) if quick else (WARM, ROUNDS)
    title = f"train.ppo, prompt {shape.prompt}, {shape.samples} replies <= {shape.reply}, against TRL 1.12"
    asked = draw(REPLIES // shape.samples * (warm + rounds), shape.prompt, 2, 0)
    rows = [{"prompt": chat("user", drawn.prompt)} for drawn in asked]
    shared = {
        "technique": "ppo",
        "model": str(folder / "model"),
        "reward": str(folder / "reward"),
        "critic": str(folder / "reward"),
        "replay": str(folder / "replay.npz"),
        "rounds": warm,
        "warm": warm,
        "block": 1,
        "core": None if quick else core(),
    }
    mine = shared | {"rows": table(folder / "ours.jsonl", rows), "config": ours(shape, warm + rounds)}
    every = [row for row in rows for _ in range(shape.samples)]
    theirs = shared | {"rows": table(folder / "theirs.jsonl", every), "options": trls(shape, warm + rounds)}
    with Worker(Path(sys.executable), "_worker_ours.py", mine, folder / "ours") as one:
        first = one.next()
        with Worker(peer_python("trl_ppo"), "_worker_trl_ppo.py", theirs, folder / "theirs") as two:
            second = two.next()
            agree(title, first, second, TOLERANCE)
            told = in_turn(([first], [second]), (one, two), rounds)
    row = versus(title, told[0], told[1], warm + rounds, shape.target)
    return row._replace(versions=row.versions | {"trl": peer_version("trl_ppo")})


def main() -> None:
    """Several replies to a long prompt; in full also one reply to a short prompt, of TRL's default length."""
    quick = is_quick(__doc__)
    shapes = [Shape(256, 32, 4, 3.0), Shape(64, 53, 1, 0.0)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_model(folder / "model")
        save_model(folder / "reward", reward=True)
        rows = [race(shape, folder, quick) for shape in shapes[: 1 if quick else None]]
    finish(rows)


if __name__ == "__main__":
    main()
