"""Mistakes in what is given to the wing: each is named, with a remedy, before the model runs.

One table for all techniques; what is special to one of them stands in its own file, too.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from calibrant.core import CalibrantError, CapabilityError, Chat, ConfigError, InputError, Quiet, resolve
from calibrant.data.edge_graph import EdgeGraph, ScoredEdge
from calibrant.data.rows import Contrast, Contrasts, Fact, Facts, LabelledText, LabelledTexts, Prompt, Prompts
from calibrant.maths.sparse_coding import Shape, SparseCoder
from calibrant.models.batching import batching
from calibrant.models.open_model import TokenBatch
from calibrant.models.sites import places
from calibrant.testbed.circuits import open_contrasts, open_plant
from calibrant.understand._engine.find_graph import graph_of
from calibrant.understand._sae_files import open_coder, save_saelens
from calibrant.understand.attention import attention
from calibrant.understand.attribute import attribute
from calibrant.understand.causal_trace import causal_trace
from calibrant.understand.circuit import circuit
from calibrant.understand.edges import edges
from calibrant.understand.patch import Patching, patch
from calibrant.understand.probe import Probing, probe
from calibrant.understand.sae import SAE, sae
from calibrant.understand.triangulate import Claim, triangulate

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from zoo import build

HEADS = Patching(site="z", positions="all")
CLAIM = Claim(cells=("layer_1/head_2",))
PAIRS = open_contrasts("induction", {"n": "8"})
ON_PAIRS = {
    "patch": lambda lm, pairs: patch(lm, pairs, HEADS, Quiet()),
    "attribute": lambda lm, pairs: attribute(lm, pairs, run=Quiet()),
    "attention": lambda lm, pairs: attention(lm, pairs, run=Quiet()),
    "edges": lambda lm, pairs: edges(lm, pairs, run=Quiet()),
    "circuit": lambda lm, pairs: circuit(lm, pairs, graph(), run=Quiet()),
    "triangulate": lambda lm, pairs: triangulate(lm, pairs, PAIRS, config=CLAIM, run=Quiet()),
    "triangulate, held out": lambda lm, pairs: triangulate(lm, PAIRS, pairs, config=CLAIM, run=Quiet()),
}
"""Every technique that takes pairs."""


def graph(layers=2, heads=6, edge="a0.h1->a1.h2<k>"):
    scored = (ScoredEdge(name=edge, score=1.0, kept=True),)
    return EdgeGraph(layers=layers, heads=heads, key_value_heads=heads, edges=scored)


def pair(clean, corrupt, answer="w01", foil="w02"):
    name = f"{clean} {corrupt} {answer} {foil}"
    return Contrast(id=name, clean=Chat.ask(clean), corrupt=Chat.ask(corrupt), answer=answer, foil=foil)


@pytest.fixture(scope="module")
def plant():
    model = asked_once(open_plant("induction", {}))
    graph_of(model.module)
    return model


@pytest.fixture(scope="module")
def llama():
    return asked_once(build("llama"))


def asked_once(model):
    """What is found out about a model by running it, once a model, is found out."""
    places(model.module)
    batching(model.module)
    return model


def refused(model, call, error, words, passes=0):
    """``call`` raises ``error`` with ``words`` and a remedy, after at most ``passes`` passes."""
    seen = []
    handle = model.module.get_input_embeddings().register_forward_pre_hook(lambda *_: seen.append(1))
    try:
        with pytest.raises(error, match=words) as told:
            call()
    finally:
        handle.remove()
    assert len(seen) <= passes
    assert isinstance(told.value, CalibrantError)
    assert told.value.hint


GOOD = pair("w03 w04 w03", "w05 w04 w03")
BAD_PAIRS = {
    "one example": ([GOOD], "an interval needs two pairs, got 1"),
    "none": ([], "an interval needs two pairs, got 0"),
    "two lengths in a pair": (
        [GOOD, pair("w03 w04", "w05 w04 w03")],
        "the clean prompt has 2 tokens, the corrupted one 3",
    ),
    "two lengths of pairs": ([GOOD, pair("w03 w04", "w05 w04")], "prompts of 2 to 3 tokens"),
    "nothing is corrupted": ([GOOD, pair("w03 x w03", "w03 y w03")], "both prompts are the same tokens"),
    "beyond the vocabulary": (
        [GOOD, pair("w03 w04 w03", "w05 w04 w03", answer="zebra")],
        "the first token of 'zebra' reads '<end>'",
    ),
    "a lost blank": (
        [GOOD, pair("w03 w04 w03", "w05 w04 w03", foil=" w06")],
        "the first token of ' w06' reads 'w06'",
    ),
    "one token for both": ([GOOD, pair("w03 w04 w03", "w05 w04 w03", foil="w01")], "the same token, 'w01'"),
}


@pytest.mark.parametrize("mistake", BAD_PAIRS)
@pytest.mark.parametrize("technique", ON_PAIRS)
def test_pairs(technique, mistake, plant):
    rows, words = BAD_PAIRS[mistake]
    pairs = Contrasts(rows=tuple(rows))
    refused(plant, lambda: ON_PAIRS[technique](plant, pairs), InputError, re.escape(words))


FACT = Fact(id="a", prompt=Chat.ask("w03 w04"), subject="w03", answer="w01")
BAD_FACTS = {
    "one example": ([FACT], "an interval needs two facts, got 1"),
    "no subject": (
        [FACT, FACT.model_copy(update={"id": "b", "subject": "w09"})],
        "the last user turn names 'w09' 0 times",
    ),
    "beyond the vocabulary": (
        [FACT, FACT.model_copy(update={"id": "b", "answer": "zebra"})],
        "reads '<end>'",
    ),
    "a lost blank": ([FACT, FACT.model_copy(update={"id": "b", "answer": " w06"})], "reads 'w06'"),
}


@pytest.mark.parametrize("mistake", BAD_FACTS)
def test_facts(mistake, plant):
    rows, words = BAD_FACTS[mistake]
    refused(plant, lambda: causal_trace(plant, Facts(rows=tuple(rows)), run=Quiet()), InputError, words)


TEXTS = tuple(
    LabelledText(id=f"{at}", prompt=Chat.ask(f"{chr(97 + at)} stone {at}"), label=at % 2 == 0)
    for at in range(16)
)
BAD_TEXTS = {
    "none": ((), "0 of 0 texts are labelled yes"),
    "one example": (TEXTS[:1], "1 of 1 texts are labelled yes"),
    "one class": (tuple(row for row in TEXTS if row.label), "0 of 8 texts are labelled no"),
    "a constant template": (
        tuple(row.model_copy(update={"template": "t"}) for row in TEXTS),
        "all rows have the template 't'",
    ),
    "a constant task": (tuple(row.model_copy(update={"task": "t"}) for row in TEXTS), "the task 't'"),
    "a label a template": (
        tuple(row.model_copy(update={"template": str(row.label)}) for row in TEXTS),
        "no fold of groups holds both labels",
    ),
}


@pytest.mark.parametrize("mistake", BAD_TEXTS)
def test_texts_of_a_probe(mistake, llama):
    rows, words = BAD_TEXTS[mistake]
    refused(llama, lambda: probe(llama, LabelledTexts(rows=rows), Probing(), Quiet()), InputError, words)


def prompts(count=6):
    return Prompts(rows=tuple(Prompt(id=str(i), prompt=Chat.ask(f"{i} stone")) for i in range(count)))


SITES = {
    "trace, a typo": (
        lambda lm: lm.trace(lm.encode([Chat.ask("a")]), ["blocks.1.hook_residpost"]),
        "did you mean 'blocks.1.hook_resid_post'",
        0,
    ),
    "trace, a module path": (
        lambda lm: lm.trace(lm.encode([Chat.ask("a")]), ["model.layer.0.mlp"]),
        "did you mean 'model.layers.0.mlp'",
        0,
    ),
    "trace, beyond the last block": (
        lambda lm: lm.trace(lm.encode([Chat.ask("a")]), ["blocks.9.hook_mlp_out"]),
        "did you mean 'blocks",
        0,
    ),
    "sae": (
        lambda lm: sae(lm, prompts(), SAE(site="blocks.1.hook_resid_pst"), Quiet()),
        "did you mean 'blocks.1.hook_resid_p",
        0,
    ),
    "sae, target": (
        lambda lm: sae(lm, prompts(), SAE(target="blocks.1.hook_mlp_ot"), Quiet()),
        "did you mean 'blocks.1.hook_mlp_out'",
        0,
    ),
    "trace, never called": (
        lambda lm: lm.trace(lm.encode([Chat.ask("a")]), ["model.layers"]),
        "went through model.layers",
        1,
    ),
    "sae, never called": (
        lambda lm: sae(lm, prompts(), SAE(site="model.layers"), Quiet()),
        "went through model.layers",
        1,
    ),
}


@pytest.mark.parametrize("case", SITES)
def test_sites(case, llama):
    """That a module is never called shows in one pass, and not before."""
    call, words, passes = SITES[case]
    refused(llama, lambda: call(llama), CapabilityError, words, passes)


def test_a_hook_that_never_fires(llama):
    with (
        pytest.raises(CapabilityError, match="no forward pass went through"),
        llama.edit({"blocks.0.hook_mlp_out": torch.zeros_like}),
    ):
        pass


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (Patching, {"site": "resid_post"}, "site"),
        (Patching, {"sites": "z"}, r"did you mean 'site'"),
        (Probing, {"site": "hook_z"}, "site"),
        (SAE, {"variant": "top_k"}, "did you mean 'topk'|variant"),
    ],
)
def test_settings(kind, settings, words):
    with pytest.raises(ConfigError, match=words):
        resolve(kind, settings)


def test_a_claim_on_a_head_that_is_not_there(plant):
    claim = Claim(cells=("layer_1/head_9",))
    pairs, held = Contrasts(rows=PAIRS.rows[:4]), Contrasts(rows=PAIRS.rows[4:])
    refused(plant, lambda: triangulate(plant, pairs, held, config=claim, run=Quiet()), ConfigError,
            "no cell 'layer_1/head_9'")  # fmt: skip


@pytest.mark.parametrize("mask", [[[0, 1, 1], [1, 1, 1]], [[1, 1, 0], [0, 1, 1]], [[1, 0, 1], [1, 1, 1]]])
def test_padding_that_is_not_on_the_right(mask, llama):
    """On the left, on both sides, and in the middle of a text."""
    real = torch.tensor(mask, dtype=torch.bool)
    batch = TokenBatch(torch.full((2, 3), 7), real, torch.zeros_like(real))
    for call in (llama.forward, lambda one: llama.trace(one, ["blocks.0.hook_resid_post"])):
        refused(llama, lambda call=call: call(batch), InputError, "padded before or inside its text")


GRAPHS = {
    "blocks": (graph(layers=3), "the graph has 3 blocks"),
    "heads": (graph(heads=4), "the graph has 4 heads a block"),
    "an edge": (graph(edge="a0.h7->a1.h2<k>"), "no edge 'a0.h7->a1.h2<k>'"),
    "backwards": (graph(edge="m1->m0"), "no edge 'm1->m0'"),
}


@pytest.mark.parametrize("mistake", GRAPHS)
def test_a_graph_of_another_model(mistake, plant):
    """Which edges the model has is found out in two short passes."""
    given, words = GRAPHS[mistake]
    refused(plant, lambda: circuit(plant, PAIRS, given, run=Quiet()), InputError, re.escape(words), 2)


def configured(**change):
    def apply(folder):
        path = folder / "cfg.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return apply


def weighed(change):
    def apply(folder):
        weights = load_file(folder / "sae_weights.safetensors")
        change(weights)
        save_file(weights, folder / "sae_weights.safetensors")

    return apply


def cut(folder):
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


FILES = {
    "another width": (configured(d_in=7), "has shape .* cfg.json says"),
    "another count of features": (configured(d_sae=21), "has shape .* cfg.json says"),
    "the other layout": (
        weighed(lambda w: w.update(W_enc=w["W_enc"].T.contiguous())),
        "in the other layout|has shape",
    ),
    "truncated": (cut, "is damaged"),
    "NaN": (weighed(lambda w: w["W_dec"].fill_(torch.nan)), "'W_dec' in .* holds NaN"),
    "infinity": (weighed(lambda w: w["b_enc"].fill_(torch.inf)), "'b_enc' in .* holds NaN or infinity"),
    "a missing tensor": (weighed(lambda w: w.pop("b_dec")), "has no 'b_dec'"),
}


@pytest.mark.parametrize("mistake", FILES)
def test_a_sparse_coder_on_disk(mistake, tmp_path, monkeypatch):
    spoil, words = FILES[mistake]
    save_saelens(SparseCoder(Shape("jumprelu", 6, 6, 20)).eval(), tmp_path, {})
    spoil(tmp_path)
    monkeypatch.setattr(SparseCoder, "forward", lambda *_: pytest.fail("something is computed"))
    with pytest.raises(InputError, match=words) as told:
        open_coder(tmp_path)
    assert told.value.hint


def test_a_coder_of_another_models_width(tmp_path):
    save_saelens(SparseCoder(Shape("topk", 6, 6, 20, 3)).eval(), tmp_path, {})
    with pytest.raises(InputError, match=r"6"):
        open_coder(tmp_path).coder(torch.zeros(2, 32))
