"""DPO in parts: how a batch is cut, where a run is killed, and which weights may move must not matter."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch
from kept import Log

from calibrant.core import Chat, Quiet
from calibrant.data.rows import Pair, Preferences
from calibrant.models import checkpoint
from calibrant.models.fit import Fit
from calibrant.models.lora import LoRA
from calibrant.models.open_model import OpenModel
from calibrant.train.dpo import DPO, dpo

FAST = DPO(batch_size=8, fit=Fit(lr=3e-3))


def uneven():
    """Prompts and replies of many lengths."""
    texts = ["how", "where is the barn?", "who", "how do i mend the old mill?", "what", "is it you?"]
    replies = ["ember", "no the barn", "", "say it is dusk", "well", "good morning to you"]
    rows = [
        Pair(id=text, prompt=Chat.ask(text), chosen=a, rejected=b)
        for text, a, b in zip(texts, replies, reversed(replies), strict=True)
    ]
    return Preferences(rows=tuple(rows), source="uneven")


def test_how_a_batch_is_cut_does_not_matter(model, tmp_path):
    runs = [Log(tmp_path / str(n)) for n in range(3)]
    for run, fitted in zip(
        runs, (Fit(lr=1e-3), Fit(lr=1e-3, micro_tokens=20), Fit(lr=1e-3, recompute=True)), strict=True
    ):
        dpo(model, uneven(), DPO(batch_size=6, epochs=4, fit=fitted), run)
    for whole, cut, again in zip(*(run.rows for run in runs), strict=True):
        for name in whole.keys() - {"rewards/accuracies"}:  # step 0: a margin of 0 with either sign of noise
            assert cut[name] == pytest.approx(whole[name], abs=1e-4), name
            assert again[name] == pytest.approx(whole[name], abs=1e-6), name


class Kill(Exception):  # noqa: N818
    """As a kill would, it leaves no time to tidy up."""


@pytest.mark.parametrize("at", [1, 4, 7])
def test_killed_at_any_step_it_ends_with_the_same_bits(at, model, pairs, weights, monkeypatch, tmp_path):
    config = DPO(batch_size=4, epochs=3, fit=Fit(lr=3e-3))
    whole = Log(tmp_path / "whole", seed=5)
    through = dpo(model, pairs(12), config, whole)
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)

    class Killed(Log):
        def log(self, step, **metrics):
            super().log(step, **metrics)
            if step == at:
                raise Kill

    first, second = Killed(tmp_path / "cut", seed=5), Log(tmp_path / "cut", seed=5)
    with pytest.raises(Kill):
        dpo(model, pairs(12), config, first)
    resumed = dpo(model, pairs(12), config, second)
    assert weights(resumed.model) == weights(through.model)
    assert resumed.metrics == through.metrics
    assert first.rows[:at] + second.rows == whole.rows
    logs = [(run.work / "artifacts" / "examples.parquet").read_bytes() for run in (whole, second)]
    assert logs[0] == logs[1]
    assert second.tokens == whole.tokens


def test_a_checkpoint_of_other_data_is_not_taken(model, pairs, weights, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    dpo(model, pairs(8), FAST, Quiet(work=tmp_path))
    other = dpo(model, pairs(8, start=8), FAST, Quiet(work=tmp_path)).model
    alone = dpo(model, pairs(8, start=8), FAST, Quiet(work=tmp_path / "alone")).model
    assert weights(other) == weights(alone)


def test_every_aggregate_can_be_audited(model, tmp_path):
    """The log of examples gives back each step's logged means."""
    run = Log(tmp_path)
    dpo(model, uneven(), DPO(batch_size=4, epochs=2, beta=0.5), run)
    table = pq.read_table(tmp_path / "artifacts" / "examples.parquet").to_pylist()
    assert len(table) == 12
    for step, row in enumerate(run.rows):
        mine = [r for r in table if r["step"] == step]
        margins = [
            0.5 * (r["chosen_logp"] - r["ref_chosen_logp"] - r["rejected_logp"] + r["ref_rejected_logp"])
            for r in mine
        ]
        assert row["rewards/margins"] == pytest.approx(sum(margins) / len(mine), abs=1e-5)
    assert {r["id"] for r in table} == {row.id for row in uneven()}


def test_adapters_alone_learn(model, pairs, weights, tmp_path):
    """With rank 4 the preference is learned; layers move by a matrix of rank 4 at most, the rest is still."""
    config = DPO(batch_size=8, epochs=6, lora=LoRA(r=4), fit=Fit(lr=1e-2))
    result = dpo(model, pairs(16), config, Quiet(work=tmp_path))
    assert result.metrics["train_accuracy"].value == 1.0
    before, after = (dict(lm.module.named_parameters()) for lm in (model, result.model))
    assert before.keys() == after.keys()
    for name, weight in after.items():
        moved = weight - before[name]
        if "proj" in name:
            assert 0 < torch.linalg.matrix_rank(moved, rtol=1e-4) <= 4, name
        else:
            assert not moved.any(), name
    assert OpenModel.from_folder(tmp_path / "artifacts" / "model").logprobs(
        [Chat.ask("how")], ["ember"]
    ) == result.model.logprobs([Chat.ask("how")], ["ember"])


WORKER = """
import json, sys
from pathlib import Path
from calibrant.core import Chat, Quiet
from calibrant.data.rows import Pair, Preferences
from calibrant.models.fit import Fit
from calibrant.models.open_model import OpenModel
from calibrant.models.parallel import world
from calibrant.train.dpo import DPO, dpo

class Log(Quiet):
    rows = []
    def log(self, step, **metrics):
        self.rows.append(metrics)

folder = Path(sys.argv[1])
pairs = [Pair(id=t, prompt=Chat.ask(t), chosen=a, rejected=b) for t, a, b in json.loads(sys.argv[2])]
place = world()
run = Log(seed=3, work=folder / f"work{place.rank}of{place.size}")
dpo(OpenModel.from_folder(folder / "model"), Preferences(rows=tuple(pairs)),
    DPO(batch_size=5, epochs=5, fit=Fit(lr=1e-3)), run)
if place.first:
    (folder / f"rows{place.size}.json").write_text(json.dumps(run.rows))
"""


@pytest.mark.slow
def test_two_processes_take_the_same_path_as_one(model, tmp_path):
    """``accelerate launch`` with two CPU processes (gloo): the losses of one process, to 1e-5."""
    model.save(tmp_path / "model")
    (tmp_path / "train.py").write_text(WORKER)
    rows = json.dumps([[r.prompt.last_user, r.chosen, r.rejected] for r in uneven()])
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0"]
    for command in ([], launch):
        done = subprocess.run(
            [sys.executable, *command, str(tmp_path / "train.py"), str(tmp_path), rows],
            env=alone, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (json.loads((tmp_path / f"rows{n}.json").read_text()) for n in (1, 2))
    assert len(one) == len(two) == 10
    for whole, parted in zip(one, two, strict=True):
        assert parted["loss"] == pytest.approx(whole["loss"], abs=1e-5)
        assert parted["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3)
    logged = pq.read_table(tmp_path / "work0of2" / "artifacts" / "examples.parquet")
    assert logged.num_rows == 30
    assert not (tmp_path / "work1of2" / "artifacts" / "examples.parquet").exists()
