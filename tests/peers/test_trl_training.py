"""Whole trainings against TRL 1.16: the same weights, rows, order and optimiser, float32, loss by loss.

What is levelled, since it is meant to differ: TRL shuffles by a generator of its own (it is given our order),
cuts long rows (none is long), tokenises prompt and reply as one string (this tokenizer has no merges), and
trains in bfloat16 with gradient checkpointing unless told otherwise.
"""

from __future__ import annotations

import json
import random

import pytest
from safetensors.torch import load_file

from calibrant.core import Chat, Quiet
from calibrant.data.rows import Labelled, LabelledReplies, Pair, Preferences
from calibrant.models.classifier import Classifier
from calibrant.models.fit import Fit, batches_of
from calibrant.models.open_model import OpenModel
from calibrant.testbed.dialogues import PLAIN
from calibrant.testbed.raise_model import build_module
from calibrant.testbed.tokens import build_tokenizer
from calibrant.train import kto as kto_module
from calibrant.train.dpo import DPO, dpo
from calibrant.train.kto import KTO, kto
from calibrant.train.reward import RewardConfig, reward

pytestmark = pytest.mark.peers

ROWS, BATCH, EPOCHS = 64, 8, 3
FIT = Fit(lr=1e-3, schedule="constant", warmup=0.0, beta2=0.999)
OPTIONS = {
    "learning_rate": 1e-3,
    "per_device_train_batch_size": BATCH,
    "train_sampling_strategy": "sequential",
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "disable_tqdm": True,
}
LOGGED = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "grad_norm",
)


class Log(Quiet):
    """Keeps what was logged."""

    def __init__(self, work):
        super().__init__(seed=0, work=work)
        self.rows = []

    def log(self, step, **metrics):
        self.rows.append(metrics)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny Llama in a folder that both sides open."""
    tokenizer = build_tokenizer()
    folder = tmp_path_factory.mktemp("model")
    build_module("tiny", len(tokenizer), 3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return OpenModel.from_folder(folder), folder


def turns(n):
    """Requests and replies of the world, ``n`` of each, of many lengths."""
    rng, found = random.Random(0), []
    while len(found) < n:
        dialogue = rng.choice(PLAIN)(rng)
        if len(dialogue.turns) == 1 and not dialogue.system:
            found.append(dialogue.turns[0])
    return found


def pairs():
    """One request's own reply over another's."""
    table = turns(ROWS)
    rows = [
        Pair(id=str(i), prompt=Chat.ask(asked), chosen=said, rejected=table[i - 7][1])
        for i, (asked, said) in enumerate(table)
        if said != table[i - 7][1]
    ]
    return Preferences(rows=tuple(rows[:56]), source="plain")


def thumbs():
    """A request's own reply up, another's down, by lot."""
    table, rng = turns(ROWS), random.Random(1)
    rows = []
    for i, (asked, said) in enumerate(table[:56]):
        up = rng.random() < 0.6
        completion = said if up else table[i - 7][1]
        rows.append(Labelled(id=str(i), prompt=Chat.ask(asked), completion=completion, label=up))
    return LabelledReplies(rows=tuple(rows), source="plain")


def chat(role, content):
    return [{"role": role, "content": content}]


def conversations(table, **more):
    """Pairs in TRL's form."""
    return [
        {
            "prompt": chat("user", row.prompt.messages[0].content),
            "chosen": chat("assistant", row.chosen),
            "rejected": chat("assistant", row.rejected),
            **more,
        }
        for row in table
    ]


def ordered(rows, folder):
    """The rows as TRL wants them, in the order in which we train."""
    table = [rows[i] for batch in batches_of(len(rows), BATCH, EPOCHS, 0) for i in batch]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return str(path)


def gap(ours, theirs):
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def weights_apart(tuned, folder):
    """Share of the weights that differ by more than 2e-5 (a fiftieth of one step) after training.

    Not the largest difference: Adam takes a full step on a gradient of rounding's size, up or down by chance.
    """
    theirs = load_file(folder / "model.safetensors")
    mine = {name: value for name, value in tuned.module.state_dict().items() if name in theirs}
    assert len(mine) == len(theirs)
    beyond = sum(int(((mine[name] - theirs[name]).abs() > 2e-5).sum()) for name in theirs)
    return beyond / sum(value.numel() for value in theirs.values())


def agree(run, told, names, limit=1e-5):
    """Every loss within ``limit``, every logged number that both have within 1e-4 of its size, or 5e-5."""
    losses = [row["loss"] for row in run.rows]
    assert len(losses) >= 20
    assert abs(losses[-1] - losses[0]) > 100 * limit  # something was learned that could differ
    assert gap(losses, told["losses"]) <= limit
    for name in names:
        mine, theirs = ([row[name] for row in rows] for rows in (run.rows, told["history"]))
        assert mine == pytest.approx(theirs, rel=1e-4, abs=5e-5), name


DPO_CASES = {
    "sigmoid": ({"loss": "sigmoid", "beta": 0.1}, {"loss_type": ["sigmoid"], "beta": 0.1}),
    "sigmoid, reference cached": (
        {"loss": "sigmoid", "beta": 0.1},
        {"loss_type": ["sigmoid"], "beta": 0.1, "precompute_ref_log_probs": True},
    ),
    "ipo": ({"loss": "ipo", "beta": 0.2}, {"loss_type": ["ipo"], "beta": 0.2}),
    "apo_zero": ({"loss": "apo_zero", "beta": 0.1}, {"loss_type": ["apo_zero"], "beta": 0.1}),
    "robust": (
        {"loss": "robust", "beta": 0.1, "label_smoothing": 0.1},
        {"loss_type": ["robust"], "beta": 0.1, "label_smoothing": 0.1},
    ),
}


@pytest.mark.parametrize(("ours", "theirs"), DPO_CASES.values(), ids=DPO_CASES)
def test_dpo(ours, theirs, model, train, tmp_path):
    lm, folder = model
    table, run = pairs(), Log(tmp_path / "ours")
    tuned = dpo(lm, table, DPO(**ours, batch_size=BATCH, epochs=EPOCHS, fit=FIT), run).model
    job = {"technique": "dpo", "model": str(folder), "rows": ordered(conversations(table), tmp_path)}
    told = train({**job, "options": OPTIONS | theirs, "save": str(tmp_path / "theirs")}, tmp_path)
    agree(run, told, LOGGED)
    assert weights_apart(tuned, tmp_path / "theirs") <= 1e-4


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("cached", [False, True], ids=["reference asked", "reference cached"])
def test_kto(loss, cached, model, train, tmp_path, monkeypatch):
    """Levelled, too: TRL lends each reply to the next row, for all epochs; the weights are 1.3 and 0.8."""
    lm, folder = model
    monkeypatch.setattr(kto_module, "mismatch", lambda prompts, *_: [i - 1 for i in range(len(prompts))])
    table, run = thumbs(), Log(tmp_path / "ours")
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.8}
    config = KTO(loss=loss, beta=0.1, **weights, batch_size=BATCH, epochs=EPOCHS, fit=FIT)
    tuned = kto(lm, table, config, run).model
    rows = [
        {
            "prompt": chat("user", row.prompt.messages[0].content),
            "completion": chat("assistant", row.completion),
            "label": row.label,
        }
        for row in table
    ]
    job = {"technique": "kto", "model": str(folder), "rows": ordered(rows, tmp_path)}
    options = OPTIONS | weights | {"loss_type": loss, "beta": 0.1, "precompute_ref_log_probs": cached}
    told = train({**job, "options": options, "save": str(tmp_path / "theirs")}, tmp_path)
    agree(run, told, [name for name in LOGGED if name in run.rows[0]] + ["kl"])
    assert weights_apart(tuned, tmp_path / "theirs") <= 1e-4


@pytest.mark.parametrize("shaped", [False, True], ids=["plain", "margin and centring"])
def test_reward(shaped, model, train, tmp_path):
    """Levelled, too: TRL is given our first head."""
    lm, _ = model
    table, run = pairs(), Log(tmp_path / "ours")
    mine = {"margin": 0.5, "centring": 0.01} if shaped else {}
    theirs = {"center_rewards_coefficient": 0.01} if shaped else {}
    Classifier.from_lm(lm, 1, 0).save(tmp_path / "start")
    config = RewardConfig(**mine, batch_size=BATCH, epochs=EPOCHS, fit=FIT)
    made = reward(lm, table, config=config, run=run).reward
    rows = conversations(table, margin=0.5) if shaped else conversations(table)
    job = {"technique": "reward", "model": str(tmp_path / "start"), "rows": ordered(rows, tmp_path)}
    told = train({**job, "options": OPTIONS | theirs, "save": str(tmp_path / "theirs")}, tmp_path)
    agree(run, told, ["margin", "mean_reward", "grad_norm"])
    assert weights_apart(made.classifier, tmp_path / "theirs") <= 1e-4
