"""The logit lens against plain hooks on three families; a planted early answer, and a null where none is."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM as Causal
from transformers import Gemma2Config, GPT2Config, LlamaConfig

from calibrant.core import CapabilityError, Chat, InputError, Quiet
from calibrant.data.rows import Item, Items
from calibrant.models.loading import module_identity
from calibrant.models.open_model import OpenModel
from calibrant.testbed.tokens import build_tokenizer
from calibrant.understand.lens import Lens, lens, read

LAYERS = 3
QUIET = Quiet()


@pytest.fixture(scope="module")
def build():
    """``build(family)``: random weights, large, so that the likeliest token is likeliest by far."""
    tokenizer = build_tokenizer()
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.25, "pad_token_id": 0,
        "bos_token_id": None, "eos_token_id": 1, "tie_word_embeddings": False,
    }  # fmt: skip
    capped = {"final_logit_softcapping": 3.0, "head_dim": 8, "sliding_window": 6, "num_key_value_heads": 2}
    configs = {
        "llama": LlamaConfig(**shape, num_key_value_heads=2),
        "gpt2": GPT2Config(**shape, n_inner=48),
        "gemma2": Gemma2Config(**shape, **capped),
    }

    def make(family):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            module = Causal.from_config(configs[family])
        return OpenModel.from_module(module, tokenizer, family)

    return make


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def model(request, build):
    return build(request.param)


def items(n):
    """Questions and answers of many lengths."""
    asked = ["where", "how do i mend the mill?", "who is it", "is the barn blue", "what"]
    answers = ["no", "the barn", "say it is dusk", "ember"]
    rows = [
        Item(id=str(i), chat=Chat.ask(f"{asked[i % 5]} {i % 19}"), answer=answers[i % 4]) for i in range(n)
    ]
    return Items(rows=tuple(rows))


def anatomy(model):
    """Blocks and last norm by the family's own names."""
    module = model.module
    if model.identity.name == "gpt2":
        return module.transformer.h, module.transformer.ln_f
    return module.model.layers, module.model.norm


def by_hand(model, item):
    """Per layer: agreement, KL and probability of the answer; one row alone, torch hooks, Python floats."""
    blocks, norm = anatomy(model)
    streams = []

    def keep(module, args, output):
        streams.append(output if isinstance(output, torch.Tensor) else output[0])

    handles = [block.register_forward_hook(keep) for block in blocks]
    prompt = model.prompt_ids(item.chat)
    ids = [*prompt, *model.reply_ids(item.answer), model.chat_tokens.end_id]
    with torch.no_grad():
        final = model.module(torch.tensor([ids])).logits[0].double().log_softmax(-1).tolist()
        heads = [model.module.lm_head(norm(stream))[0].double() for stream in streams]
    for handle in handles:
        handle.remove()
    cap = getattr(model.module.config, "final_logit_softcapping", None)
    found = []
    for head in heads:
        here = (head if cap is None else cap * torch.tanh(head / cap)).log_softmax(-1).tolist()
        places = range(len(prompt) - 1, len(ids) - 1)
        agree = [final[t].index(max(final[t])) == here[t].index(max(here[t])) for t in places]
        kl = [sum(math.exp(p) * (p - q) for p, q in zip(final[t], here[t], strict=True)) for t in places]
        probability = [math.exp(here[t][ids[t + 1]]) for t in places]
        found.append([sum(xs) / len(places) for xs in (agree, kl, probability)])
    return found


def test_equals_plain_hooks(model):
    """Item by item, padded beside others, to 1e-5; then the means over all items."""
    table = items(5)
    sites = [f"blocks.{i}.hook_resid_post" for i in range(LAYERS)]
    ours, metrics = read(model, table.rows, sites), lens(model, table, Lens(batch=2), QUIET).metrics
    slow = [by_hand(model, item) for item in table]
    for layer in range(LAYERS):
        for k, name in enumerate(("top1_agreement", "kl_to_final", "answer_probability")):
            expected = [row[layer][k] for row in slow]
            assert ours[f"{name}/layer_{layer}"] == pytest.approx(expected, abs=1e-5)
            assert metrics[f"{name}/layer_{layer}"].value == pytest.approx(sum(expected) / 5, abs=1e-5)
    assert metrics["kl_to_final/layer_0"].value > 0.1
    assert len(metrics) == 3 * LAYERS


def test_the_last_layer_is_the_model_itself(model):
    metrics = lens(model, items(12), run=QUIET).metrics
    assert metrics[f"top1_agreement/layer_{LAYERS - 1}"].value == 1.0
    assert metrics[f"kl_to_final/layer_{LAYERS - 1}"].value == pytest.approx(0.0, abs=1e-6)


def scale_last_block(model, factor):
    """Multiply all that the last block adds to the stream."""
    twin = model.copy()
    twin.module.requires_grad_(False)
    block = anatomy(twin)[0][-1]
    for name, parameter in block.named_parameters():
        if any(part in name for part in ("o_proj", "down_proj", "c_proj")):
            parameter.mul_(factor)
    return OpenModel.from_module(twin.module, twin.tokenizer, model.identity.name)


def test_planted_a_last_block_that_adds_nothing(model):
    """Then the answer stands one layer earlier, exactly; with the block in place it does not."""
    early = f"layer_{LAYERS - 2}"
    planted = lens(scale_last_block(model, 0.0), items(12), run=QUIET).metrics
    assert planted[f"top1_agreement/{early}"].value == 1.0
    assert planted[f"kl_to_final/{early}"].value == pytest.approx(0.0, abs=1e-6)
    before = lens(model, items(12), run=QUIET).metrics
    assert before[f"top1_agreement/{early}"].high < 1.0
    assert before[f"kl_to_final/{early}"].low > 0.01


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_null_a_last_block_that_overwrites_everything(build, family):
    """Random weights, and nothing of the early stream is left at the end: the first layer agrees with the
    final one no more than with the final choices of other items.
    """
    model, table = scale_last_block(build(family), 1000.0), items(95)
    found = lens(model, table, run=QUIET).metrics["top1_agreement/layer_0"]
    batch = model.encode([row.chat for row in table], [row.answer for row in table])
    stream = model.trace(batch, ["blocks.0.hook_resid_post"])["blocks.0.hook_resid_post"]
    scored = batch.reply[:, 1:]
    first = model.unembed(stream).argmax(-1)[:, :-1][scored]
    final = model.forward(batch).argmax(-1)[:, :-1][scored]
    shuffled = [float((first == final.roll(shift)).float().mean()) for shift in range(20, 120)]
    assert found.value == pytest.approx(sum(shuffled) / len(shuffled), abs=0.02)
    assert found.value < 0.05
    chance = lens(model, table, run=QUIET).metrics["answer_probability/layer_0"]
    assert chance.value < 0.05


def test_the_limit_spreads_evenly(build):
    model, table = build("llama"), items(10)
    some = Items(rows=tuple(table.rows[i] for i in (0, 3, 6)))
    assert lens(model, table, Lens(limit=3), QUIET).metrics == lens(model, some, run=QUIET).metrics
    assert lens(model, table, Lens(limit=None), QUIET).metrics["kl_to_final/layer_0"].n == 10
    assert lens(model, table, Lens(limit=99), QUIET).metrics["kl_to_final/layer_0"].n == 10


def test_batches_do_not_matter(build):
    """Holds against TransformerLens#1609: padding moved positions, and the loss."""
    model = build("gemma2")
    whole, single = (lens(model, items(9), Lens(batch=size), QUIET).metrics for size in (32, 1))
    for name, estimate in whole.items():
        assert estimate.value == pytest.approx(single[name].value, abs=1e-5)


def test_nothing_is_left_behind(build):
    """No hook, no gradient, no changed weight, also after a row that does not fit."""
    model = build("gpt2")

    def state():
        hooks = [
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
            for m in model.module.modules()
        ]
        grads = [p.grad for p in model.module.parameters()]
        return sum(hooks), grads, module_identity(model.module, model.tokenizer, "").digest

    before = state()
    lens(model, items(4), run=QUIET)
    assert state() == before
    long = Item(id="long", chat=Chat.ask("how " * 90), answer="no")
    with pytest.raises(InputError, match="context"):
        lens(model, Items(rows=(*items(2).rows, long)), run=QUIET)
    assert state() == before
    assert before[0] == 0


def test_queries_are_charged_before_they_are_asked(build):
    asked = []

    class Stop(Quiet):
        def spend(self, *, tokens=0, queries=0, flops=0.0):
            asked.append(queries)
            if len(asked) == 2:
                raise InterruptedError

    model = build("llama")
    with pytest.raises(InterruptedError):
        lens(model, items(9), Lens(batch=4), Stop())
    assert asked == [4, 4]


def test_no_items(build):
    with pytest.raises(InputError, match="at least one item"):
        lens(build("llama"), Items(rows=()))


def test_directions_units_and_caveats(build):
    result = lens(build("llama"), items(6), run=QUIET)
    better = {name.partition("/")[0]: estimate.better for name, estimate in result.metrics.items()}
    assert better == {"top1_agreement": "higher", "kl_to_final": "lower", "answer_probability": "higher"}
    assert {estimate.unit for estimate in result.metrics.values()} == {"item"}
    assert any("correlational" in caveat for caveat in result.caveats)


def test_a_model_without_blocks_is_refused(build, monkeypatch):
    model = build("llama")
    monkeypatch.setattr(OpenModel, "sites", lambda self: ("lm_head",))
    with pytest.raises(CapabilityError, match="its blocks were not found"):
        lens(model, items(2), run=QUIET)


def test_a_reading_that_is_not_the_models_own_is_refused(build, monkeypatch):
    model = build("llama")
    plain = model.unembed(torch.ones(32))
    monkeypatch.setattr(OpenModel, "unembed", lambda self, hidden: 2 * self.module.lm_head(hidden))
    assert not torch.allclose(model.unembed(torch.ones(32)), plain)
    with pytest.raises(CapabilityError, match="the last layer's reading is not what it says"):
        lens(model, items(2), run=QUIET)


def test_an_item_without_a_number_hides_no_other(build, monkeypatch):
    def unembed(self, hidden):
        logits = 2 * self.module.lm_head(hidden)
        logits[0] = float("nan")
        return logits

    model = build("llama")
    model.unembed(torch.ones(32))
    monkeypatch.setattr(OpenModel, "unembed", unembed)
    with pytest.raises(CapabilityError, match="the last layer's reading is not what it says"):
        lens(model, items(2), run=QUIET)
