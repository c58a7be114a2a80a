"""Sites, traces and edits on every family: two names, one place; exact arithmetic; nothing left behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from calibrant.core import CapabilityError, Chat, InputError, Sampling
from calibrant.models.hooks import unembed
from calibrant.models.open_model import OpenModel

CHATS = [Chat.ask("The cat sat on"), Chat.ask("a"), Chat.ask("One two three four")]
PATHS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}
Build = Callable[..., OpenModel]


def _hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def _layer(lm: OpenModel, i: int) -> str:
    return f"{PATHS.get(lm.identity.name, 'model.layers')}.{i}"


def test_residual_stream_is_what_transformers_shows(lm: OpenModel) -> None:
    """hidden_states[i] enters block i; the last one is what the unembedding reads."""
    batch = lm.encode(CHATS)
    shown = lm.module(batch.ids, attention_mask=batch.mask.long(), output_hidden_states=True).hidden_states
    names = [f"blocks.{i}.hook_resid_pre" for i in range(3)]
    found = lm.trace(batch, [*names, "ln_final.hook_normalized"])
    for name, expected in zip([*names, "ln_final.hook_normalized"], shown, strict=True):
        assert torch.equal(found[name], expected)


def test_each_block_adds_what_its_sites_say(lm: OpenModel) -> None:
    """resid_post = resid_pre + attn_out + mlp_out, for parallel blocks and extra norms as well."""
    parts = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    found = lm.trace(lm.encode(CHATS), [f"blocks.{i}.hook_{part}" for i in range(3) for part in parts])
    for i in range(3):
        before, attention, mlp, after = (found[f"blocks.{i}.hook_{part}"] for part in parts)
        assert torch.allclose(before + attention + mlp, after, atol=1e-5)
        assert attention.abs().max() > 1e-3 and mlp.abs().max() > 1e-3
        if i < 2:
            assert torch.equal(after, found[f"blocks.{i + 1}.hook_resid_pre"])


def test_both_kinds_of_name_mean_the_same_place(lm: OpenModel) -> None:
    batch = lm.encode(CHATS)
    pair = ("blocks.1.hook_resid_post", _layer(lm, 1))
    found = lm.trace(batch, pair)
    assert torch.equal(found[pair[0]], found[pair[1]])
    assert torch.equal(
        lm.trace(batch, ["hook_embed"])["hook_embed"], lm.module.get_input_embeddings()(batch.ids)
    )


def test_tuples_are_normalised(lm: OpenModel) -> None:
    """Attention modules return tuples; the trace is (B, T, D) all the same, never the first example."""
    attention = {"gpt2": "attn", "gpt_neox": "attention"}.get(lm.identity.name, "self_attn")
    site, batch = f"{_layer(lm, 0)}.{attention}", lm.encode(CHATS)
    assert lm.trace(batch, [site])[site].shape == (*batch.ids.shape, 32)
    with lm.edit({site: torch.zeros_like}):
        silenced = lm.trace(batch, [site, "blocks.0.hook_resid_post"])
    assert not silenced[site].any()


def test_every_listed_site_can_be_traced(lm: OpenModel) -> None:
    batch, before = lm.encode(CHATS), _hooks(lm.module)  # transformers leaves hooks of its own
    found = lm.trace(batch, lm.sites())
    assert set(found) == set(lm.sites()) and "blocks.2.hook_mlp_out" in found
    head = next(n for n, m in lm.module.named_modules() if m is lm.module.get_output_embeddings())
    assert found[head].shape == (*batch.ids.shape, 300)
    assert _hooks(lm.module) == before


def test_unembed_gives_the_models_own_logits(lm: OpenModel) -> None:
    batch = lm.encode(CHATS)
    last = lm.trace(batch, ["blocks.2.hook_resid_post"])["blocks.2.hook_resid_post"]
    assert torch.allclose(lm.unembed(last), lm.forward(batch), atol=1e-5)
    if lm.identity.name == "gemma2":
        assert lm.unembed(100 * last).abs().max() <= 3.0  # the soft cap


def test_an_edit_reaches_the_logits(lm: OpenModel) -> None:
    """Adding v after the last block must give exactly unembed(residual + v)."""
    batch, site = lm.encode(CHATS), "blocks.2.hook_resid_post"
    shift = torch.linspace(-1, 1, 32)
    with lm.edit({site: lambda x: x + shift}):
        changed = lm.forward(batch)
    expected = lm.unembed(lm.trace(batch, [site])[site] + shift)
    assert torch.allclose(changed, expected, atol=1e-5)
    assert not torch.allclose(changed, lm.forward(batch), atol=1e-2)


def test_patching_an_early_site_moves_the_whole_run(lm: OpenModel) -> None:
    """With another prompt's residual put in before block 0, the logits are the other prompt's."""
    site = "blocks.0.hook_resid_pre"
    one, other = lm.encode([Chat.ask("abcd")]), lm.encode([Chat.ask("dcbx")])
    assert one.ids.shape == other.ids.shape and not torch.equal(one.ids, other.ids)
    donor = lm.trace(other, [site])[site]
    with lm.edit({site: lambda x: donor}):
        assert torch.allclose(lm.forward(one), lm.forward(other), atol=1e-5)


def test_edits_nest_and_a_trace_sees_them(tiny: Build) -> None:
    lm, site = tiny(), "blocks.1.hook_mlp_out"
    batch = lm.encode(CHATS)
    plain = lm.trace(batch, [site])[site]
    with lm.edit({site: lambda x: x + 1}), lm.edit({site: lambda x: x * 2}):
        assert torch.allclose(lm.trace(batch, [site])[site], (plain + 1) * 2)
    assert torch.equal(lm.trace(batch, [site])[site], plain)


def test_edits_work_while_generating(tiny: Build) -> None:
    """A steering vector that favours one token by far makes every reply repeat it."""
    lm = tiny()
    favourite = lm.tokenizer("cat", add_special_tokens=False)["input_ids"][0]
    push = 1e3 * lm.module.get_output_embeddings().weight[favourite]
    with lm.edit({"ln_final.hook_normalized": lambda x: x + push}):
        found = lm.generate(CHATS, Sampling(max_tokens=4))
    assert all(c.ids == (favourite,) * 4 for c in found)
    assert _hooks(lm.module) == 0


def test_hooks_go_after_an_exception(tiny: Build) -> None:
    lm, batch = tiny(), tiny().encode(CHATS)
    before = lm.forward(batch)
    with pytest.raises(ZeroDivisionError), lm.edit({"blocks.0.hook_resid_post": torch.zeros_like}):
        raise ZeroDivisionError
    with (
        pytest.raises(CapabilityError),
        lm.edit({"blocks.0.hook_resid_post": torch.zeros_like, "nowhere": abs}),
    ):
        pass
    assert _hooks(lm.module) == 0
    assert torch.equal(lm.forward(batch), before)


def test_a_hook_that_never_fires_is_an_error(tiny: Build) -> None:
    """Holds against TransformerLens#1688: gated hooks never fired, and nobody was told."""
    lm = tiny()
    with (
        pytest.raises(CapabilityError, match=r"no forward pass went through blocks.0.hook_embed|hook_embed"),
        lm.edit({"hook_embed": lambda x: x}),
    ):
        pass
    with pytest.raises(CapabilityError, match=r"went through model.layers"):
        lm.trace(lm.encode(CHATS), ["model.layers"])  # a list of modules is never called itself


def test_unknown_sites_name_the_nearest(tiny: Build) -> None:
    lm = tiny()
    with pytest.raises(CapabilityError, match=r"did you mean 'blocks.2.hook_resid_post'"):
        lm.trace(lm.encode(CHATS), ["blocks.2.hook_residpost"])
    with pytest.raises(CapabilityError, match=r"did you mean 'model.layers.0.mlp'"):
        lm.trace(lm.encode(CHATS), ["model.layer.0.mlp"])
    with pytest.raises(CapabilityError, match="no site"):
        lm.trace(lm.encode(CHATS), [""])


@pytest.mark.parametrize("wrong", [lambda x: x[0], lambda x: None])
def test_an_edit_must_return_the_whole_tensor(tiny: Build, wrong: Callable[..., object]) -> None:
    lm = tiny()
    with pytest.raises(InputError, match="must return a tensor of shape"), lm.edit({"hook_embed": wrong}):
        lm.forward(lm.encode(CHATS))
    assert _hooks(lm.module) == 0


def test_gradients_flow_through_a_trace(tiny: Build) -> None:
    """d(loss)/d(activation) by autograd equals a finite difference along one direction."""
    lm = tiny("gpt2").copy()  # the RMS norms of the others compute in float32
    lm.module.double()
    batch, site = lm.encode(CHATS), "blocks.1.hook_resid_post"
    direction = torch.linspace(-1, 1, 32, dtype=torch.float64)

    def loss(step: float) -> torch.Tensor:
        with lm.edit({site: lambda x: x + step * direction}):
            return lm.forward(batch).logsumexp(-1).sum()

    kept: list[torch.Tensor] = []
    with lm.edit({site: lambda x: kept.append(x) or x}):
        (slope,) = torch.autograd.grad(lm.forward(batch).logsumexp(-1).sum(), kept)
    with torch.no_grad():
        numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert float((slope * direction).sum()) == pytest.approx(float(numeric), rel=1e-6)
    traced = lm.trace(batch, [site])[site]
    assert traced.requires_grad


def test_no_lens_where_logits_are_made_otherwise(tiny: Build) -> None:
    """A factor that the config names is followed where the model uses it, and any other way is refused."""
    lm = tiny()
    plain = lm.unembed(torch.ones(32))
    for change, follows in ((lambda x: x, 1.0), (lambda x: x / 8, 1 / 8), (lambda x: x * x, None)):
        module = tiny().module
        module.config.logits_scaling, made = 8.0, module.forward

        def forward(*args, made=made, change=change, **kwargs):
            out = made(*args, **kwargs)
            out.logits = change(out.logits)
            return out

        module.forward = forward
        if follows is None:
            with pytest.raises(CapabilityError, match="its own logits"):
                unembed(module, torch.ones(32))
        else:
            assert torch.allclose(unembed(module, torch.ones(32)), plain * follows, atol=1e-6)


def test_an_edit_between_attention_and_mlp_moves_the_stream_whatever_else_is_edited(tiny: Build) -> None:
    """The sum is changed as it is when attention adds, also where an inner edit changes the block's input."""
    lm = tiny()
    batch = lm.encode(CHATS)
    middle, before, after = (f"blocks.1.hook_resid_{part}" for part in ("mid", "pre", "post"))
    with lm.edit({middle: torch.zeros_like, "blocks.1.hook_mlp_out": torch.zeros_like}):
        assert lm.trace(batch, [after])[after].abs().max() < 1e-5
        with lm.edit({before: lambda x: x + 3}):
            assert lm.trace(batch, [after])[after].abs().max() < 1e-5
    seen = []
    with lm.edit({middle: lambda x: seen.append(x) or x}), lm.edit({before: lambda x: x + 3}):
        found = lm.trace(batch, [before, "blocks.1.hook_attn_out"])
    torch.testing.assert_close(seen[0], found[before] + found["blocks.1.hook_attn_out"])
