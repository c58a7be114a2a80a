"""Causal tracing on planted facts: read where they were written, against one plain pass a cell."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrant.app.references.openers import Openers
from calibrant.core import (
    CapabilityError,
    Chat,
    ConfigError,
    InputError,
    NumericalError,
    OpenLM,
    Quiet,
    resolve,
)
from calibrant.data.readers import read
from calibrant.data.rows import Fact, Facts
from calibrant.ledger import Ledger
from calibrant.models.open_model import OpenModel
from calibrant.testbed.circuits import open_plant as open_circuit
from calibrant.testbed.facts import READOUT, RECALL, open_facts, open_plant
from calibrant.testbed.raise_model import build_module
from calibrant.testbed.tokens import build_tokenizer
from calibrant.understand._facts import ask
from calibrant.understand._trace_runs import Corruption, scale_of
from calibrant.understand.causal_trace import CausalTracing, causal_trace

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from zoo import build

FEW = CausalTracing(draws=3)


def run(config=FEW, options=None, n=16, made=None):
    return causal_trace(
        open_plant("facts", options or {}), open_facts("names", {"n": str(n)}), config, made or Quiet()
    )


def shares(result, unit="probability"):
    whole = result.metrics[f"total_effect/{unit}"].value
    return {
        key.partition("/")[2]: e.value / whole for key, e in result.metrics.items() if key.startswith(unit)
    }


@pytest.mark.parametrize("corruption", ["noise", "replace"])
@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_fact_is_at_the_last_name_until_it_is_read_out(corruption, seed):
    result = run(FEW.model_copy(update={"corruption": corruption}), {"seed": seed})
    places = {f"layer_{at}/{'subject_last' if at < READOUT[0] else 'last'}" for at in range(4)}
    for unit in ("probability", "logits"):
        found = shares(result, unit)
        assert all(found.pop(place) > 0.9 for place in places)
        assert max(map(abs, found.values())) < 0.1
        assert result.metrics[f"found/{unit}"].value == len(places)
    assert result.metrics["known"].value == 1


def test_the_mlp_that_recalls_is_found_and_noise_makes_it_look_weaker():
    """Noise also blurs the name that the last token looks for: half of the effect is left (2309.16042)."""
    whole, noisy = (
        run(CausalTracing(site="mlp_out", window=1, corruption=how, draws=3)) for how in ("replace", "noise")
    )
    place = f"layer_{RECALL}/subject_last"
    assert shares(whole)[place] > 0.95 and 0.3 < shares(noisy)[place] < 0.8
    for result in (whole, noisy):
        assert result.metrics["found/probability"].value == result.metrics["found/logits"].value == 1


def test_the_head_that_reads_out_is_found():
    result = run(CausalTracing(site="attn_out", window=1, draws=3))
    assert shares(result)[f"layer_{READOUT[0]}/last"] > 0.95
    assert result.metrics["found/probability"].value == 1


def test_a_window_holds_the_layers_around_its_own():
    """From width // 2 layers before it on; the MLP that recalls is layer 1's."""
    found = shares(run(CausalTracing(site="mlp_out", window=4, corruption="replace")))
    assert [found[f"layer_{at}/subject_last"] > 0.9 for at in range(4)] == [True, True, True, True]
    found = shares(run(CausalTracing(site="mlp_out", window=2, corruption="replace")))
    assert [found[f"layer_{at}/subject_last"] > 0.9 for at in range(4)] == [False, True, True, False]


FAMILIES = (
    "gpt2", "gpt_neox", "gemma2", "gemma3_text", "olmo2", "bloom", "opt", "mistral", "granite", "mamba",
)  # fmt: skip


def plain(lm, one, how, site, embeddings):
    """The slow reference: probability and logit difference, one pass a draw, all logits."""
    start, stop = one.subject
    found = []
    for draw in embeddings:

        def corrupt(value, draw=draw):
            value = value.clone()
            value[0, start:stop] += draw.to(value)
            return value

        changes = {"hook_embed": corrupt} if how.scale else {}
        ids = one.ids if how.scale else one.swapped
        with torch.no_grad(), lm.edit({**changes, **site}):
            logits = lm.forward(lm._pad([list(ids)], [[]]))[0, -1].double()
        found.append((logits.softmax(-1)[one.answer].item(), (logits[one.answer] - logits[one.foil]).item()))
    return np.mean(found, axis=0)


def facts_of(lm, lengths=(1, 2, 4)):
    """Facts with subjects of several lengths, as the zoo's tokenizer of letters reads them."""
    rows = [
        Fact(
            id=f"{n}{at}", prompt=Chat.ask(f"xy{'abcdefgh'[at : at + n]}zuv"), answer="k", foil="m",
            subject="abcdefgh"[at : at + n],
        )
        for n in lengths for at in range(3)
    ]  # fmt: skip
    return Facts(rows=tuple(rows))


@pytest.mark.parametrize(
    "name",
    ["llama", "falcon", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES)],
)
@pytest.mark.parametrize("corruption", ["noise", "replace"])
def test_every_cell_is_what_a_plain_pass_gives(name, corruption):
    lm = build(name)
    facts = facts_of(lm)
    rows = tuple(
        row.model_copy(update={"other": row.subject[::-1] if len(row.subject) > 1 else "q"}) for row in facts
    )
    facts = Facts(rows=rows)
    result = causal_trace(
        lm,
        facts,
        CausalTracing(corruption=corruption, draws=2, wrong="keep", level=0.5),
        made := Quiet(seed=3),
    )
    stored = json.loads((made.work / "artifacts" / "trace.json").read_text())
    asked = ask(lm, facts, None, swap=True, seed=3)
    how = Corruption(
        3.0 * scale_of(lm, asked) if corruption == "noise" else 0.0, 2 if corruption == "noise" else 1, 3
    )
    width = lm.trace(lm._pad([[5]], [[]]), ["hook_embed"])["hook_embed"].shape[-1]
    cells = {cell["cell"]: cell for cell in stored["cells"]}
    for number in (0, 4, 8):
        one = asked[number]
        noise = how.noise(one, width) if how.scale else [None]
        base = plain(lm, one, how, {}, noise)
        for layer in (0, 1):
            site = f"blocks.{layer}.hook_resid_post"
            with torch.no_grad():
                clean = lm.trace(lm._pad([list(one.ids)], [[]]), [site])[site]

            def put(value, clean=clean, at=one.subject[1] - 1):
                value = value.clone()
                value[0, at] = clean[0, at]
                return value

            change = plain(lm, one, how, {site: put}, noise) - base
            cell = cells[f"layer_{layer}/subject_last"]
            found = [cell[unit]["effects"][number] for unit in ("probability", "logits")]
            assert found == pytest.approx(change, abs=2e-4)
    assert "logits/layer_1/subject_middle" in result.metrics


def test_noise_is_scaled_to_the_embeddings_and_drawn_anew_for_each_fact(tmp_path):
    lm, facts = open_plant("facts", {}), open_facts("names", {"n": "8"})
    result = causal_trace(lm, facts, FEW, Quiet(seed=5, work=tmp_path))
    table = lm.module.transformer.wte.weight
    words = [row.subject.split() for row in facts]
    vectors = torch.cat([table[lm.tokenizer.convert_tokens_to_ids(pair)] for pair in words]).double()
    assert result.metrics["noise_std"].value == pytest.approx(3 * float(vectors.std(correction=0)), rel=1e-6)
    stored = json.loads((tmp_path / "artifacts" / "trace.json").read_text())
    seeds = {fact["noise_seed"] for fact in stored["facts"]}
    assert len(seeds) == 8
    asked = ask(lm, facts, None, swap=False, seed=5)
    how = Corruption(stored["noise_std"], stored["draws"], 5)
    assert {how.seed_of(one) for one in asked} == seeds
    noise = torch.stack([how.noise(one, 192) for one in asked])
    assert float(noise.std()) == pytest.approx(how.scale, rel=0.05) and not torch.equal(noise[0], noise[1])


def test_a_seed_repeats_and_another_differs():
    facts, lm = open_facts("names", {"n": "6"}), open_plant("facts", {})
    one, two, other = (causal_trace(lm, facts, FEW, Quiet(seed=seed)).metrics for seed in (1, 1, 2))
    assert one == two and one != other


def test_facts_that_the_model_gets_wrong_are_counted_and_left_out():
    facts = open_facts("names", {"n": "12"})
    rows = [row if at % 3 else row.model_copy(update={"answer": row.foil, "foil": row.answer}) for at, row in
            enumerate(facts)]  # fmt: skip
    lm = open_plant("facts", {})
    result = causal_trace(lm, Facts(rows=tuple(rows)), FEW, Quiet())
    assert result.metrics["known"].value == pytest.approx(8 / 12)
    (note,) = [c for c in result.caveats if c.startswith("4 of 12 facts left out")]
    said = f"(of '{rows[0].id}' {rows[0].foil!r}, where the answer begins {rows[0].answer!r})"
    assert note.endswith(f"the model's first choice is not the answer {said}")
    assert result.metrics["total_effect/probability"].n == 8
    kept = causal_trace(lm, Facts(rows=tuple(rows)), FEW.model_copy(update={"wrong": "keep"}), Quiet())
    assert kept.metrics["total_effect/probability"].n == 12
    assert any("although the model gets them wrong" in c for c in kept.caveats)


def test_a_model_that_knows_nothing_is_not_testable():
    result = causal_trace(build("llama"), facts_of(None), FEW, Quiet())
    assert result.metrics["known"].value == 0
    for name in ("total_effect/probability", "found/logits"):
        assert "not testable: 0 of 9 facts are left" in result.metrics[name].reason
    assert any("a leading blank of the answer counts" in c for c in result.caveats)


def test_an_effect_of_the_size_of_rounding_is_not_testable():
    """All answers are about as likely with the subject as without: there is nothing to bring back."""
    lm = open_plant("facts", {})
    lm.module.get_output_embeddings().weight.data *= 1e-5
    metrics = causal_trace(lm, open_facts("names", {"n": "16"}), FEW, Quiet()).metrics
    for unit in ("probability", "logits"):
        assert metrics[f"total_effect/{unit}"].low > 0 and metrics[f"total_effect/{unit}"].high < 1e-3
        assert "is smaller than 0.001" in metrics[f"found/{unit}"].reason
        assert metrics[f"{unit}/layer_0/subject_last"].value is None


def test_nothing_is_found_where_the_facts_were_taken_away():
    for seed in ("0", "1", "2"):
        result = run(CausalTracing(site="mlp_out", draws=3, wrong="keep"), {"removed": "1", "seed": seed})
        assert not result.metrics["found/probability"].value and not result.metrics["found/logits"].value


@pytest.mark.slow
def test_false_finds_are_rare_where_nothing_is_planted():
    """Attention's additions where no fact is; at most 5 % of sweeps may find a cell.

    The answer is drawn at random, so that what the noise heads carry helps it as often as it harms it. Were
    it 20 %, 8 or more of 60 would come up with 93 % power; at 5 % they do in 1 %.
    """
    hits = 0
    for seed in range(60):
        lm = open_plant("facts", {"removed": "1", "seed": str(seed)})
        config = CausalTracing(wrong="keep", corruption="replace", site="attn_out", window=1)
        facts = open_facts("names", {"n": "16", "seed": str(seed)})
        hits += bool(causal_trace(lm, facts, config, Quiet(seed=seed)).metrics["found/logits"].value)
    assert hits <= 7


def test_each_position_by_itself():
    facts = open_facts("names", {"n": "36"})
    words = [(row.prompt.last_user.split(), row.subject.split()[0]) for row in facts]
    length = [(len(prompt), prompt.index(first)) for prompt, first in words]
    common = max(set(length), key=length.count)
    same = Facts(rows=tuple(row for row, it in zip(facts, length, strict=True) if it == common))
    assert len(same) > 3
    config = FEW.model_copy(update={"positions": "each", "level": 0.5})
    metrics = causal_trace(open_plant("facts", {}), same, config, Quiet()).metrics
    assert metrics[f"probability/layer_0/position_{common[1] + 1}"].value > 0.8
    assert f"probability/layer_0/position_{common[1] - 1}" not in metrics
    with pytest.raises(InputError, match="set positions = 'roles'"):
        causal_trace(open_plant("facts", {}), facts, config, Quiet())


def test_facts_without_foils_have_probabilities_alone():
    rows = tuple(row.model_copy(update={"foil": ""}) for row in open_facts("names", {"n": "8"}))
    metrics = causal_trace(open_plant("facts", {}), Facts(rows=rows), FEW, Quiet()).metrics
    assert metrics["found/probability"].value == 4 and not any("logits" in key for key in metrics)


def test_clusters_are_drawn_whole():
    rows = [row.model_copy(update={"cluster": row.subject.split()[0]}) for row in open_facts("names", {})]
    metrics = causal_trace(open_plant("facts", {}), Facts(rows=tuple(rows)), FEW, Quiet()).metrics
    assert metrics["total_effect/probability"].clusters == 6 == metrics["probability/layer_0/last"].clusters


GOOD = Fact(id="a", prompt=Chat.ask("the ada ames is"), subject="ada ames", answer="amber", foil="coral")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"subject": "bo"}, "names 'bo' 0 times"),
        ({"prompt": Chat.ask("ada ada is"), "subject": "ada"}, "names 'ada' 2 times"),
        ({"subject": " "}, "the last user turn names"),
        ({"answer": "zebra"}, "reads '<end>'"),
        ({"foil": "amber"}, "the same token"),
        ({"foil": ""}, "1 of 2 facts have no foil"),
        ({"id": "b"}, "two facts are called"),
        ({"other": "bo"}, "'bo' does not take as many tokens as 'ada ames'"),
        ({"prompt": Chat.ask("ada ames " + "the " * 20)}, "the model's context holds 12"),
        ({"prompt": Chat.ask("the Kim Lee is"), "subject": "Kim Lee"}, "is not in what the tokenizer makes"),
    ],
)
def test_facts_that_cannot_be_traced_are_refused(changes, words):
    other = GOOD.model_copy(update={"id": "b", "prompt": Chat.ask("the bo birch is"), "subject": "bo birch"})
    config = CausalTracing(corruption="replace" if "other" in changes else "noise")
    with pytest.raises(InputError, match=re.escape(words)):
        causal_trace(
            open_plant("facts", {}), Facts(rows=(GOOD.model_copy(update=changes), other)), config, Quiet()
        )


def test_one_fact_is_refused_and_none():
    for rows in ((), (GOOD,)):
        with pytest.raises(InputError, match=f"needs two facts, got {len(rows)}"):
            causal_trace(open_plant("facts", {}), Facts(rows=rows), FEW, Quiet())


def test_a_window_of_states_is_refused():
    with pytest.raises(ConfigError, match="a window is for attn_out and mlp_out"):
        resolve(CausalTracing, {"window": 3})


def test_training_mode_is_refused():
    lm = open_plant("facts", {})
    lm.module.train()
    with pytest.raises(CapabilityError, match="training mode"):
        causal_trace(lm, open_facts("names", {"n": "4"}), FEW, Quiet())


def test_a_model_without_numbers_is_no_ignorant_one():
    lm = open_plant("facts", {})
    lm.module.transformer.h[1].mlp.c_proj.bias.data[0] = torch.nan
    with pytest.raises(NumericalError, match="are no numbers"):
        causal_trace(lm, open_facts("names", {"n": "4"}), FEW, Quiet())


def test_half_precision_and_nothing_left_behind():
    lm = open_plant("facts", {})
    lm.module.bfloat16()
    result = causal_trace(lm, open_facts("names", {"n": "8"}), FEW, Quiet())
    assert shares(result)["layer_1/subject_last"] > 0.9
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.module.modules())


def test_a_template_with_the_subjects_letters_is_no_subject(tiny_chat):
    rows = [
        Fact(id=s, prompt=Chat.ask(f"the {s} sings in the mill"), subject=s, answer="no")
        for s in ("assistant", "user", "rook")
    ]
    for one in ask(tiny_chat, Facts(rows=tuple(rows)), None, swap=False, seed=0):
        start, stop = one.subject
        assert tiny_chat.tokenizer.decode(list(one.ids[start:stop])).strip() == one.row.subject
        assert "sings" in tiny_chat.tokenizer.decode(list(one.ids[stop:]))


@pytest.fixture
def tiny_chat():
    tokenizer = build_tokenizer()
    return OpenModel.from_module(build_module("tiny", len(tokenizer), 0), tokenizer, "tiny")


def test_the_plant_and_its_facts_are_opened_by_name(tmp_path):
    openers = Openers(Ledger(tmp_path))
    assert len(openers.open("testbed:facts/names?n=5", Facts).load()) == 5
    assert openers.open("testbed:plant/facts?removed=1", OpenLM).identity.parts["removed"] == "1"
    for wrong in ("testbed:plant/fact", "testbed:plant/facts?twin=1", "testbed:facts/name"):
        with pytest.raises(InputError, match=r"no such plant|unknown option|no such table"):
            openers.open(wrong, Facts if "names" in wrong or "facts/name" in wrong else OpenLM)


def test_romes_own_columns_are_read():
    rows = [
        (1, {"known_id": 0, "subject": "ada ames", "prompt": "the {} is", "attribute": "amber"}),
        (2, {"subject": "bo birch", "prompt": "the bo birch is", "answer": "coral", "target_new": "denim"}),
        (3, {"subject": "cy", "prompt": "the bo birch is", "answer": "coral"}),
    ]
    facts = read(Facts, rows, "known.jsonl")
    assert facts.rows[0].prompt.last_user == "the ada ames is" and facts.rows[0].answer == " amber"
    assert (
        facts.rows[1].answer == "coral"
        and facts.rows[1].foil == " denim"
        and "no subject" in facts.lost[0].reason
    )


def test_another_plant_serves_as_a_null():
    """The induction plant does not know the words: its tokenizer says so."""
    with pytest.raises(InputError, match=r"reads '<end>'|is not in what"):
        causal_trace(open_circuit("induction", {}), open_facts("names", {"n": "4"}), FEW, Quiet())
