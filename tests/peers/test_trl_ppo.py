"""PPO against TRL 1.12, the last that had it: our rounds replayed by its trainer, number by number.

Our side is put in TRL's ways: the score one place behind the reply, the variance divided by n - 1, one
learning rate, no clip of the gradient (its PPO has none), the critic's loss at .1. Given to TRL are the
replies, their scores and the order of the minibatches, since each side draws those by a generator of its own.
Not compared are its approximate KL, ratio and entropy: they are means over the padding, too.
"""

from __future__ import annotations

import json

import pytest

from calibrant.app.references.locate import WEIGHTS
from calibrant.models.classifier import Classifier
from calibrant.models.open_model import OpenModel
from calibrant.testbed.serve import open_pairs

pytestmark = pytest.mark.peers

STEPS, PROMPTS, REPLY = 6, 8, 16
OURS = {
    "steps": STEPS,
    "batch_size": PROMPTS,
    "max_tokens": REPLY,
    "temperature": 0.7,
    "epochs": 3,
    "minibatches": 2,
    "score_at": "after",
    "value_weight": 0.1,
    "critic": "reward",
    "kl": {"coef": 0.05},
    "fit": {"lr": 1e-4, "schedule": "constant", "warmup": 0.0, "beta2": 0.999, "eps": 1e-8, "clip": 1e9},
}
THEIRS = {
    "per_device_train_batch_size": PROMPTS,
    "gradient_accumulation_steps": 1,
    "num_mini_batches": 2,
    "num_ppo_epochs": 3,
    "total_episodes": STEPS * PROMPTS,
    "response_length": REPLY,
    "stop_token": "eos",
    "kl_coef": 0.05,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "disable_tqdm": True,
}
CASES = {
    "defaults": ({}, {}),
    "k3, discount, whitened rewards, penalty": (
        {
            "gamma": 0.97,
            "lam": 0.9,
            "kl": {"coef": 0.2, "estimator": "k3"},
            "shaping": {"whiten": True, "missing_end": 1.0},
            "minibatches": 1,
        },
        {
            "gamma": 0.97,
            "lam": 0.9,
            "kl_coef": 0.2,
            "kl_estimator": "k3",
            "whiten_rewards": True,
            "missing_eos_penalty": 1.0,
            "num_mini_batches": 1,
        },
    ),
    "narrow clips": ({"clip": 0.02, "value_clip": 0.01}, {"cliprange": 0.02, "cliprange_value": 0.01}),
}
LOGGED = (
    "loss/policy_avg",
    "loss/value_avg",
    "policy/clipfrac_avg",
    "val/clipfrac_avg",
    "objective/kl",
    "objective/entropy",
    "objective/non_score_reward",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The testbed's tiny model, whose replies are of many lengths, a reward model on its trunk, prompts."""
    place, model = tmp_path_factory.mktemp("ppo"), OpenModel.from_folder(WEIGHTS / "tiny")
    model.save(place / "model")
    Classifier.from_lm(model, 1, 0).save(place / "reward")
    chats = [row.prompt for row in open_pairs("safety", {}).rows[: STEPS * PROMPTS]]
    rows = [{"prompt": [{"role": "user", "content": chat.last_user}]} for chat in chats]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return place


@pytest.fixture
def both(folders, ask, peer, tmp_path):
    """What both sides tell at the end: ours runs first and leaves what TRL replays."""
    peer("trl_ppo")

    def run(ours, theirs):
        job = {
            "technique": "ppo",
            "model": str(folders / "model"),
            "reward": str(folders / "reward"),
            "critic": str(folders / "reward"),
            "rows": str(folders / "rows.jsonl"),
            "replay": str(tmp_path / "replay.npz"),
            "rounds": STEPS,
            "warm": 0,
            "block": 0,
            "config": OURS | ours,
            "options": THEIRS | theirs,
        }
        path = tmp_path / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        told = [
            ask("", "benchmarks/_worker_ours.py", path),
            ask("trl_ppo", "benchmarks/_worker_trl_ppo.py", path),
        ]
        return [json.loads(text.splitlines()[-1]) for text in told]

    return run


@pytest.mark.parametrize(("ours", "theirs"), CASES.values(), ids=CASES)
def test_rounds_replayed(ours, theirs, both):
    mine, other = both(ours, theirs)
    rows = list(zip(mine["history"], other["history"], strict=True))
    assert {row["ended"] for row in mine["history"]} != {0.0}
    for one, two in zip(mine["advantages"], other["advantages"], strict=True):
        for kind, a, b in zip(("as they come", "whitened"), one, two, strict=True):
            assert a == pytest.approx(b, abs=1e-4), kind
    for name in LOGGED:
        if name == "objective/kl" and "kl_estimator" in theirs:
            continue  # TRL shows the estimator that it penalises, here it is always k1
        limit = 1e-5 if name.startswith("loss/") else 5e-5
        found, wanted = ([row[side][name] for row in rows] for side in (0, 1))
        assert found == pytest.approx(wanted, rel=1e-4, abs=limit), name
