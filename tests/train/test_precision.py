"""Half precision: policy and reference round alike, adapters keep small steps, and what is lost is said.

Tiny models only: a CPU without bfloat16 units runs these, too, only slower.
"""

from __future__ import annotations

import math

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import BaseModel

from calibrant.app import catalog
from calibrant.core import Chat, Identity, Quiet, Scores
from calibrant.data.rows import Labelled, LabelledReplies, Pair, Preferences, Prompt, Prompts
from calibrant.models import precision
from calibrant.models.fit import Fit, adamw
from calibrant.models.lora import LoRA, adapted
from calibrant.models.open_model import OpenModel
from calibrant.train._settings import KL
from calibrant.train.dpo import DPO, dpo
from calibrant.train.grpo import GRPO, grpo
from calibrant.train.kto import KTO, kto
from calibrant.train.rloo import RLOO, rloo

ASKED = ("how", "where is the barn?", "who", "how do i mend the old mill?")
SAID = ("ember", "no the barn", "say it is dusk", "good morning to you")
HALF = Fit(lr=1e-3, bf16=True)


class Log(Quiet):
    """Keeps what was logged, and the notes beside the progress."""

    def __init__(self, work):
        super().__init__(work=work)
        self.rows, self.notes = [], []

    def log(self, step, **metrics):
        self.rows.append(metrics)

    def progress(self, done, total, note=""):
        self.notes.append((done, note))


class Letters:
    """A reward that differs from reply to reply."""

    identity = Identity(name="letters", kind="reward", parts={"of": "letters"})

    def score(self, chats, replies):
        return Scores(mean=tuple(len(reply) / 9 for reply in replies))


def pairs():
    rows = [Pair(id=a, prompt=Chat.ask(a), chosen=SAID[i], rejected=SAID[i - 1]) for i, a in enumerate(ASKED)]
    return Preferences(rows=tuple(rows))


def prompts():
    return Prompts(rows=tuple(Prompt(id=text, prompt=Chat.ask(text)) for text in ASKED))


def halved(model):
    """The same model with weights of 16 bits."""
    module = model.copy().module.to(torch.bfloat16)
    return OpenModel.from_module(module, model.tokenizer, "half")


def test_dpo_starts_at_ln_2(model, tmp_path):
    """The reference is read as the policy is, and a reference in float32 on disk is not taken for it."""
    run = Log(tmp_path)
    dpo(model, pairs(), DPO(batch_size=4), Quiet(work=tmp_path))  # the cache holds float32 now
    dpo(model, pairs(), DPO(batch_size=4, beta=10.0, fit=HALF), run)
    assert run.rows[0]["loss"] == pytest.approx(math.log(2), abs=2e-3)
    assert run.rows[0]["rewards/margins"] == pytest.approx(0.0, abs=2e-3)


@pytest.mark.parametrize("most", [None, 60], ids=["whole", "cut"])
def test_kto_starts_at_z0_of_0(model, tmp_path, most):
    """Also where a batch is cut, so that borrowed replies are read in a pass of their own."""
    rows = [
        Labelled(id=a, prompt=Chat.ask(a), completion=SAID[i], label=i % 2 == 0) for i, a in enumerate(ASKED)
    ]
    run, half = Log(tmp_path), HALF.model_copy(update={"micro_tokens": most})
    kto(model, LabelledReplies(rows=tuple(rows)), KTO(batch_size=4, beta=10.0, fit=half), run)
    for name in ("kl", "rewards/chosen", "rewards/rejected"):
        assert run.rows[0][name] == pytest.approx(0.0, abs=2e-3)
    borrowed = pq.read_table(run.artifact("examples.parquet"))["mismatched_ratio"].to_pylist()
    assert borrowed == pytest.approx([0.0] * 4, abs=2e-3)  # z0 is cut off below 0


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_nothing_is_clipped_before_the_first_step(model, tmp_path, weights):
    """pi_old is read as the policy learns; with a clip this narrow, the rounding of the draw would show."""
    start = model if weights == "float32" else halved(model)
    fit = Fit(lr=1e-3, bf16=weights == "float32")
    shape = {"steps": 1, "batch_size": 4, "samples": 4, "max_tokens": 6, "clip": 1e-3, "fit": fit}
    one, two = Log(tmp_path / "a"), Log(tmp_path / "b")
    grpo(start, prompts(), Letters(), config=GRPO(**shape), run=one)
    rloo(start, prompts(), Letters(), config=RLOO(**shape, kl=KL(coef=0.1)), run=two)
    assert one.rows[0]["clip_ratio/region_mean"] == two.rows[0]["clip_ratio/region_mean"] == 0
    assert one.rows[0]["kl"] == two.rows[0]["kl"] == 0


def test_adapters_learn_in_float32_beside_half_weights(model, tmp_path):
    """A step of 1e-6 would be lost in bfloat16 adapters; here it moves every weight that learns."""
    start = adapted(halved(model).copy(), LoRA(r=2), 0)
    learning = [p for name, p in start.module.named_parameters() if "lora_" in name]
    assert {p.dtype for p in learning} == {torch.float32}
    before = [p.detach().clone() for p in learning]
    for p in learning:
        p.grad = torch.ones_like(p)
    adamw(start.module, Fit(lr=1e-6)).step()
    assert all((p != old).all() for p, old in zip(learning, before, strict=True))
    config = DPO(batch_size=4, lora=LoRA(r=2), fit=Fit(lr=1e-3))
    result = dpo(halved(model), pairs(), config, Quiet(work=tmp_path))
    assert {p.dtype for p in result.model.module.parameters()} == {torch.bfloat16}


def test_what_half_weights_lose_is_said(model, tmp_path):
    """At a rate of 1e-6 hardly a weight of 16 bits moves; at 1e-2 most do."""
    said = []
    for number, lr in enumerate((1e-6, 1e-2)):
        result = dpo(
            halved(model), pairs(), DPO(batch_size=4, fit=Fit(lr=lr)), Quiet(work=tmp_path / str(number))
        )
        (caveat,) = [caveat for caveat in result.caveats if "the weights are bfloat16" in caveat]
        said.append(float(caveat.split("; ")[1].split("%")[0]))
    assert said[0] < 5 < 50 < said[1]
    whole = dpo(model, pairs(), DPO(batch_size=4), Quiet(work=tmp_path / "whole"))
    assert not any("bfloat16" in caveat for caveat in whole.caveats)


def test_a_cpu_without_bfloat16_units_is_said_before_the_first_step(model, monkeypatch, tmp_path):
    shape = {"steps": 1, "batch_size": 2, "samples": 2, "max_tokens": 2}
    examples = pairs()
    for units in (False, True):
        monkeypatch.setattr(precision, "bf16_units", lambda units=units: units)
        one, two = Log(tmp_path / f"a{units}"), Log(tmp_path / f"b{units}")
        results = [
            dpo(model, examples, DPO(fit=HALF), one),
            grpo(model, prompts(), Letters(), config=GRPO(**shape, fit=HALF), run=two),
        ]
        for run, result in zip((one, two), results, strict=True):
            assert (run.notes[0][0] == 0 and "80 times slower" in run.notes[0][1]) != units
            assert any("80 times slower" in caveat for caveat in result.caveats) != units


def fits(config):
    """Every ``Fit`` in a config, at any depth."""
    found = [config] if isinstance(config, Fit) else []
    if isinstance(config, BaseModel):
        found += [fit for name in type(config).model_fields for fit in fits(getattr(config, name))]
    return found


def test_no_technique_takes_half_precision_unasked():
    configs = [
        catalog.find_technique(name).config()
        for name in catalog.TECHNIQUES
        if catalog.find_technique(name).config
    ]
    found = [fit for config in configs for fit in fits(config)]
    assert len(found) > 8
    assert not any(fit.bf16 for fit in found)
