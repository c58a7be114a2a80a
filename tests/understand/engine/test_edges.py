"""Edges against a slow reference, written family by family: one run an edge, one reader changed by hand.

The reference is told by hand where queries, keys, values, norms and MLPs are; the engine finds them. In
float64 both must agree to 1e-8: scores as derivatives along an edge, exact effects at its end.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from calibrant.core import CapabilityError, NumericalError
from calibrant.understand._engine.edge_runs import masked, mean_wrote, wrote
from calibrant.understand._engine.edge_scores import edge_scores, midpoints
from calibrant.understand._engine.find_graph import graph_of
from calibrant.understand._engine.readers import LogitDifference

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))

from zoo import build

CLEAN = torch.tensor([[5, 17, 60, 33], [9, 9, 80, 41]])
CORRUPT = torch.tensor([[5, 44, 60, 33], [7, 9, 80, 12]])
READ = LogitDifference([11, 22], [44, 55])
HEADS, SIZE = 4, 8


def slow(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


class Told:
    """A family, told by hand."""

    def __init__(
        self, block, norm, maps, columns, out, mlp_norm, mlp, final, groups=HEADS, post=None, side=False
    ):
        self.block, self.norm, self.maps, self.columns, self.out = block, norm, maps, columns, out
        self.mlp_norm, self.mlp, self.final, self.groups, self.post, self.side = (
            mlp_norm, mlp, final, groups, post, side,
        )  # fmt: skip


def apart(kind, head):
    return slice(head * SIZE, (head + 1) * SIZE)


def joint(kind, head):
    at = "qkv".index(kind) * HEADS * SIZE + head * SIZE
    return slice(at, at + SIZE)


def woven(kind, head):
    at = (3 * head + "qkv".index(kind)) * SIZE
    return slice(at, at + SIZE)


def many_queries(kind, head):
    at = (head if kind == "q" else HEADS + "kv".index(kind)) * SIZE
    return slice(at, at + SIZE)


QKV = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"}
_LLAMA = ("model.layers.", "input_layernorm", QKV, apart, "self_attn.o_proj")
TOLD = {
    "gpt2": Told(
        "transformer.h.", "ln_1", dict.fromkeys("qkv", "attn.c_attn"), joint, "attn.c_proj", "ln_2", "mlp",
        "transformer.ln_f",
    ),
    "llama": Told(*_LLAMA, "post_attention_layernorm", "mlp", "model.norm", groups=2),
    "qwen3": Told(*_LLAMA, "post_attention_layernorm", "mlp", "model.norm", groups=2),
    "gemma2": Told(
        *_LLAMA, "pre_feedforward_layernorm", "post_feedforward_layernorm", "model.norm", groups=2,
        post="post_attention_layernorm",
    ),
    "gpt_neox": Told(
        "gpt_neox.layers.", "input_layernorm", dict.fromkeys("qkv", "attention.query_key_value"), woven,
        "attention.dense", "post_attention_layernorm", "mlp", "gpt_neox.final_layer_norm", side=True,
    ),
    "gptj": Told(
        "transformer.h.", "ln_1", {"q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj"}, apart,
        "attn.out_proj", "", "mlp", "transformer.ln_f", side=True,
    ),
    "falcon": Told(
        "transformer.h.", "input_layernorm", dict.fromkeys("qkv", "self_attention.query_key_value"),
        many_queries, "self_attention.dense", "", "mlp", "transformer.ln_f", groups=1, side=True,
    ),
}  # fmt: skip


class Reference:
    """One run an edge."""

    def __init__(self, name):
        self.lm, self.told = build(name), TOLD[name]
        self.lm.module.double()
        for child in self.lm.module.modules():
            if type(child).__name__.endswith("RMSNorm"):  # the family's own goes through float32
                in_doubles(child, name)
        self.terms = {other: self.writers(ids) for other, ids in (("clean", CLEAN), ("corrupt", CORRUPT))}

    def part(self, layer, path):
        return self.lm.module.get_submodule(f"{self.told.block}{layer}.{path}")

    def block(self, layer):
        return self.lm.module.get_submodule(f"{self.told.block}{layer}")

    def reading(self, ids):
        return READ(self.lm.module(ids).logits[:, -1][:, READ.columns], torch.arange(len(ids)))

    def writers(self, ids):
        """Name -> what it writes, (B, T, D)."""
        seen, handles = {}, []
        for layer in (0, 1):
            handles += [
                self.block(layer).register_forward_pre_hook(
                    lambda m, args, layer=layer: seen.update({("in", layer): args[0]})
                ),
                self.part(layer, self.told.out).register_forward_pre_hook(
                    lambda m, args, layer=layer: seen.update({("z", layer): args[0]})
                ),
                self.part(layer, self.told.mlp).register_forward_hook(
                    lambda m, args, out, layer=layer: seen.update({("m", layer): out.clone()})
                ),
            ]
        with torch.no_grad():
            self.lm.module(ids)
            for handle in handles:
                handle.remove()
            found = {"input": seen["in", 0]}
            for layer in (0, 1):
                out, z = self.part(layer, self.told.out), seen["z", layer]
                for head in range(HEADS):
                    alone = torch.zeros_like(z)
                    alone[..., apart("z", head)] = z[..., apart("z", head)]
                    term = out(alone) - out(torch.zeros_like(z))
                    if self.told.post:
                        norm = self.part(layer, self.told.post)
                        term = term * norm(out(z)) / out(z)  # an RMS norm scales: the same factor for all
                    found[f"a{layer}.h{head}"] = term
                found[f"m{layer}"] = seen["m", layer]
        return found

    def along(self, edge, ids, other, here, way):
        """The reading with one reader given ``way`` (a scalar) of the way to the other run's term."""
        writer, _, reader = edge.partition("->")
        step = way * (self.terms[other][writer] - self.terms[here][writer])
        handles, told = [], self.told
        if reader == "logits":
            final = self.lm.module.get_submodule(told.final)
            handles.append(final.register_forward_pre_hook(lambda m, args: (args[0] + step,)))
        elif reader[0] == "m":
            layer = int(reader[1:])
            if told.mlp_norm:
                norm = self.part(layer, told.mlp_norm)
                handles.append(norm.register_forward_pre_hook(lambda m, args: (args[0] + step,)))
            else:
                norm, stream = self.part(layer, told.norm), []
                handles.append(self.block(layer).register_forward_pre_hook(lambda m, a: stream.append(a[0])))
                mlp = self.part(layer, told.mlp)
                handles.append(mlp.register_forward_pre_hook(lambda m, a: (norm(stream[0] + step),)))
        else:
            layer, head, kind = int(reader[1]), int(reader[4]), reader[6]
            norm, stream = self.part(layer, told.norm), []
            handles.append(self.block(layer).register_forward_pre_hook(lambda m, a: stream.append(a[0])))
            chosen = told.columns(kind, head)

            def change(module, args, out):
                out = out.clone()
                out[..., chosen] = module.forward(norm(stream[0] + step))[..., chosen]
                return out

            handles.append(self.part(layer, told.maps[kind]).register_forward_hook(change))
        value = self.reading(ids)
        for handle in handles:
            handle.remove()
        return value

    def edges(self):
        """The names that there should be."""
        found, written = [], ["input"]
        for layer in (0, 1):
            heads = [f"a{layer}.h{head}" for head in range(HEADS)]
            found += [f"{w}->{head}<q>" for w in written for head in heads]
            found += [
                f"{w}->a{layer}.h{g}<{k}>" for w in written for g in range(self.told.groups) for k in "kv"
            ]
            found += [f"{w}->m{layer}" for w in [*written, *([] if self.told.side else heads)]]
            written += [*heads, f"m{layer}"]
        return found + [f"{w}->logits" for w in written]


def in_doubles(norm, name):
    gain = norm.weight + 1 if name.startswith("gemma") else norm.weight
    eps = next(float(value) for key, value in vars(norm).items() if "eps" in key)
    norm.forward = lambda x: gain * x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt()


@pytest.mark.parametrize("name", ["gpt2", "llama", *slow("gpt_neox", "qwen3", "gemma2", "gptj", "falcon")])
def test_scores_and_exact_effects_equal_one_run_an_edge(name):
    reference = Reference(name)
    graph = graph_of(reference.lm.module)
    assert sorted(graph.names) == sorted(reference.edges())
    scores = edge_scores(reference.lm, graph, CLEAN, CORRUPT, READ, (0.0, 1.0))
    each = torch.eye(len(graph.names), dtype=torch.bool)
    into_corrupt = masked(reference.lm, graph, CORRUPT, wrote(reference.lm, graph, CLEAN), each, READ)
    into_clean = masked(reference.lm, graph, CLEAN, wrote(reference.lm, graph, CORRUPT), each, READ)
    for at, edge in enumerate(graph.names):
        runs = ((CORRUPT, "clean", "corrupt", into_corrupt), (CLEAN, "corrupt", "clean", into_clean))
        for side, (ids, other, here, exact) in enumerate(runs):
            way = torch.zeros(len(ids), 1, 1, dtype=torch.float64, requires_grad=True)
            value = reference.along(edge, ids, other, here, way)
            slope = torch.autograd.grad(value.sum(), way)[0].flatten() * (1 if side == 0 else -1)
            assert (slope - scores.values[side, :, at]).abs().max() < 1e-8, edge
            if at % 3 == side:
                with torch.no_grad():
                    end = reference.along(edge, ids, other, here, 1.0)
                assert (end - exact[at]).abs().max() < 1e-8, edge


def test_gradients_along_the_line_add_up_to_the_whole_effect():
    """What leaves the input is the whole: its edges' scores sum to m(clean) - m(corrupt), off by O(1/K^2)."""
    lm = build("llama")
    graph = graph_of(lm.module)
    apart_by = []
    for steps in (8, 32):
        scores = edge_scores(lm, graph, CLEAN, CORRUPT, READ, midpoints(steps))
        of_input = [at for at, (writer, _) in enumerate(graph.edges) if writer == 0]
        total = scores.values.mean(0)[:, of_input].sum(1)
        apart_by.append(float((total - (scores.clean - scores.corrupt)).abs().max()))
    assert apart_by[1] < 0.02 and apart_by[1] < apart_by[0] / 4


@pytest.mark.parametrize(
    "name", ["gpt2", "falcon", *slow("gemma2", "bloom", "opt", "granite", "mixtral", "phi3")]
)
def test_all_edges_replaced_is_the_other_run_and_none_is_this_one(name):
    lm = build(name)
    graph = graph_of(lm.module)
    masks = torch.stack([torch.ones(len(graph.names)), torch.zeros(len(graph.names))]).bool()
    found = masked(lm, graph, CLEAN, wrote(lm, graph, CORRUPT), masks, READ)
    plain = [masked(lm, graph, ids, wrote(lm, graph, ids), masks[1:], READ)[0] for ids in (CORRUPT, CLEAN)]
    torch.testing.assert_close(found, torch.stack(plain), rtol=1e-5, atol=1e-5)
    mean = masked(lm, graph, CLEAN, mean_wrote(lm, graph, CORRUPT), masks[:1], READ)
    assert torch.isfinite(mean).all() and not torch.allclose(mean, found[:1])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("olmo2", "goes over all of them"),
        *[pytest.param(*case, marks=pytest.mark.slow) for case in [
            ("deepseek_v3", "no graph of edges"), ("mamba", "no graph of edges"), ("bert", "left-to-right"),
            ("openai-gpt", "no graph of edges"), ("gpt_oss", "cannot be told apart"),
        ]],
    ],
)  # fmt: skip
def test_a_family_without_such_edges_is_refused_by_name(name, why):
    with pytest.raises(CapabilityError, match=why):
        graph_of(build(name).module)


def test_half_precision_training_mode_and_numbers_that_are_none_are_refused():
    lm = build("llama")
    graph = graph_of(lm.module)
    lm.module.train()
    with pytest.raises(CapabilityError, match="training mode"):
        edge_scores(lm, graph, CLEAN, CORRUPT, READ, (0.0,))
    lm.module.eval()
    lm.module.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.inf
    with pytest.raises(NumericalError, match="NaN or infinite"):
        edge_scores(lm, graph, CLEAN, CORRUPT, READ, (0.0,))
    with pytest.raises(CapabilityError, match="float32"):
        graph_of(build("llama").module.to(torch.bfloat16))


def test_nothing_stays_on_the_model_and_others_hooks_take_part():
    lm = build("gpt2")
    graph = graph_of(lm.module)
    before = edge_scores(lm, graph, CLEAN, CORRUPT, READ, (0.0,)).values
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in lm.module.modules())
    with lm.module.transformer.h[0].mlp.register_forward_hook(lambda m, args, out: 0 * out):
        without = edge_scores(lm, graph, CLEAN, CORRUPT, READ, (0.0,)).values
    gone = [at for at, name in enumerate(graph.names) if name.startswith("m0->")]
    assert (without[..., gone] == 0).all() and before[..., gone].abs().max() > 0
    assert torch.equal(edge_scores(lm, graph, CLEAN, CORRUPT, READ, (0.0,)).values, before)


def test_chunks_of_pairs_give_the_same(monkeypatch):
    lm = build("llama")
    graph = graph_of(lm.module)
    each = torch.eye(len(graph.names), dtype=torch.bool)[::7]
    found = []
    for room in (2**28, 1):
        monkeypatch.setattr("calibrant.understand._engine.edge_scores._BYTES", room)
        scores = edge_scores(lm, graph, CLEAN, CORRUPT, READ, (0.5,)).values
        found.append((scores, masked(lm, graph, CORRUPT, wrote(lm, graph, CLEAN), each, READ)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_model_that_norms_nothing_behind_its_blocks_is_refused():
    """Its head is given the last position alone, so an edge into the logits would have no place."""
    module = build("opt", word_embed_proj_dim=32, _remove_final_layer_norm=True).module
    with pytest.raises(CapabilityError, match="given the last position alone"):
        graph_of(module)


def test_a_hook_of_others_that_breaks_the_sum_is_noticed():
    lm = build("gpt2")
    graph_of(lm.module)
    norm = lm.module.transformer.h[1].ln_1
    halved = norm.register_forward_hook(lambda m, args, out: out * 0.5)
    with halved, pytest.raises(CapabilityError, match="is not all that feels it"):
        graph_of(lm.module)
    graph_of(lm.module)
