"""run_with_cache, run_with_hooks and capture: the model's own numbers, and nothing left behind."""

from __future__ import annotations

import pytest
import torch

from calibrant.core import CapabilityError, Chat, InputError, Sampling
from calibrant.models.trace import capture, run_with_cache, run_with_hooks

IDS = torch.tensor([[5, 17, 60, 33], [9, 9, 80, 41]])


def hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_a_cache_holds_what_was_asked_for_and_the_logits_are_the_models(lm):
    before = hooks(lm.module)
    logits, cache = run_with_cache(lm, IDS, lambda name: name.endswith("resid_post"))
    assert torch.equal(logits, lm.module(IDS).logits)
    assert list(cache) == [f"blocks.{i}.hook_resid_post" for i in range(3)] and len(cache) == 3
    assert cache["resid_post", 2] is cache["resid_post", -1] is cache["blocks.2.hook_resid_post"]
    assert torch.allclose(lm.unembed(cache["resid_post", 2]), logits, atol=1e-5)
    assert "blocks.2.hook_resid_post" in cache and "hook_embed" not in cache
    assert cache.bytes == 3 * 2 * 4 * 32 * 4
    assert hooks(lm.module) == before


def test_every_name_is_kept_where_no_filter_is_given(lm):
    _, cache = run_with_cache(lm, IDS)
    assert set(cache) == {name for name in lm.sites() if "hook_" in name}
    assert cache["z", 0].shape[:3] == (2, 4, 4)


def test_a_batch_of_many_lengths_is_taken_as_encoded(tiny):
    lm = tiny()
    batch = lm.encode([Chat.ask("The cat sat on"), Chat.ask("a")])
    logits, cache = run_with_cache(lm, batch, "blocks.1.hook_mlp_out")
    assert torch.equal(logits, lm.forward(batch)) and list(cache) == ["blocks.1.hook_mlp_out"]


def test_hooks_change_the_run_in_order_and_are_told_where_they_stand(lm):
    told = []

    def double(act, hook):
        told.append((hook.name, hook.layer))
        return act * 2

    def shift(act, hook):
        act += 1  # in place, and None returned

    site = "blocks.1.hook_mlp_out"
    changed = run_with_hooks(lm, IDS, [(site, double), (site, shift)])
    with lm.edit({site: lambda act: act * 2 + 1}):
        assert torch.equal(changed, lm.module(IDS).logits)
    assert told == [(site, 1)]
    assert not torch.allclose(changed, lm.module(IDS).logits)


def test_capture_sees_what_a_generation_ran(tiny):
    lm = tiny()
    with capture(lm, ["blocks.1.hook_resid_post"]) as acts:
        lm.generate([Chat.ask("The cat")], Sampling(max_tokens=2))
    assert acts["blocks.1.hook_resid_post"].shape[-1] == 32


def test_gradients_reach_the_cache(tiny):
    lm = tiny()
    lm.module.get_input_embeddings().weight.requires_grad_(True)
    logits, cache = run_with_cache(lm, IDS, ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"])
    gradients = torch.autograd.grad(logits[:, -1].sum(), list(cache.values()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda lm: run_with_cache(lm, IDS[None]), InputError, r"shape \(1, 2, 4\)"),
        (lambda lm: run_with_cache(lm, IDS.float()), InputError, "float32"),
        (lambda lm: run_with_cache(lm, IDS, "blocks.9.hook_resid_post"), CapabilityError, "is no site"),
        (lambda lm: run_with_cache(lm, IDS, lambda name: False), CapabilityError, "keeps no site"),
        (
            lambda lm: run_with_cache(lm, IDS, "hook_embed")[1]["resid_post", 0],
            CapabilityError,
            "was not kept",
        ),
        (lambda lm: run_with_hooks(lm, IDS, [("nowhere", lambda a, hook: a)]), CapabilityError, "is no site"),
        (lambda lm: run_with_cache(lm, 5), InputError, "a value of type int is no chat"),
        (lambda lm: run_with_cache(lm, [None]), InputError, "a NoneType is no list of chats"),
        (lambda lm: run_with_cache(lm, []), InputError, "there are no prompts"),
        (lambda lm: run_with_cache(lm, [[3], []]), InputError, "a list is no list of chats"),
        (lambda lm: lm.trace([9999], "hook_embed"), InputError, "not in the vocabulary"),
        (lambda lm: lm.encode([["a"]]), InputError, "a list is no list of chats"),
        (lambda lm: lm.generate("hello"), InputError, r"a str is no list of chats\n  -> .*Chat.ask"),
        (lambda lm: lm.generate(["hello"]), InputError, "a str is no list of chats"),
        (lambda lm: lm.logprobs(Chat.ask("hello"), ["x"]), InputError, "one chat is no list of chats"),
        (lambda lm: lm.edit([("hook_embed", abs)]).__enter__(), InputError, "an edit is a dict of functions"),
        (lambda lm: lm.edit({"hook_embed": 0}).__enter__(), InputError, "an edit is a dict of functions"),
        (lambda lm: run_with_cache(lm, IDS > 9), InputError, "torch.bool"),
        (lambda lm: run_with_cache(lm, IDS[:0]), InputError, r"shape \(0, 4\)"),
        (lambda lm: run_with_cache(lm, IDS + 10_000), InputError, "not in the vocabulary"),
        (lambda lm: run_with_cache(lm, IDS.repeat(1, 20)), InputError, "80 tokens, but the context holds 64"),
        (lambda lm: run_with_cache(lm, IDS, [None]), InputError, "no name of a site"),
        (lambda lm: run_with_cache(lm, IDS, "hook_embed")[1][3], CapabilityError, "'3' was not kept"),
        (lambda lm: run_with_hooks(lm, IDS, {"hook_embed": abs}), InputError, "is no hook"),
        (
            lambda lm: run_with_hooks(lm, IDS, [("hook_embed", lambda a, hook: a[:1])]),
            InputError,
            "must return a tensor of shape",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(tiny, call, error, words):
    with pytest.raises(error, match=words):
        call(tiny())


def test_hooks_may_stand_at_many_sites_and_be_called_as_transformerlens_does(tiny):
    lm, told = tiny(), []

    def note(act, *, hook):
        told.append(hook.name)

    run_with_hooks(lm, IDS, [(lambda name: name.endswith("mlp_out"), note)])
    assert told == [f"blocks.{i}.hook_mlp_out" for i in range(3)]
    assert ("mlp_out", 0) not in run_with_cache(lm, IDS, "hook_embed")[1]


@pytest.mark.parametrize("given", ["text", "chat", "texts", "chats", "ids", "rows", "tensor"])
def test_what_a_user_holds_is_read_as_the_batch_would_be(tiny, given):
    lm = tiny()
    one, two = Chat.ask("The cat sat on"), Chat.ask("a")
    ids = [lm.prompt_ids(chat) for chat in (one, two)]
    prompts = {
        "text": "The cat sat on", "chat": one, "texts": ["The cat sat on", "a"], "chats": (one, "a"),
        "ids": ids[0], "rows": ids, "tensor": torch.tensor(ids[0]),
    }[given]  # fmt: skip
    batch = lm.encode([one, two] if given in ("texts", "chats", "rows") else [one])
    logits = lm.forward(batch)
    site = "blocks.1.hook_resid_post"
    state = lm.trace(batch, [site])[site]
    assert torch.equal(lm.forward(prompts)[batch.mask], logits[batch.mask])
    assert torch.equal(lm.trace(prompts, site)[site][batch.mask], state[batch.mask])
    again, cache = lm.run_with_cache(prompts, [site])
    assert torch.equal(again[batch.mask], logits[batch.mask]) and list(cache) == [site]
    changed = lm.run_with_hooks(prompts, [(site, lambda act, hook: act * 2)])
    assert not torch.allclose(changed[batch.mask], logits[batch.mask])
    with lm.capture(site) as acts:
        lm.forward(prompts)
    assert torch.equal(acts[site][batch.mask], state[batch.mask])
