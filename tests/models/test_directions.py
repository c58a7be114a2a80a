"""Directions taken out of the stream, and added to it: arithmetic, families, with and without a cache."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from zoo import ZOO, build

from calibrant.core import CapabilityError, Chat, InputError, NumericalError, Sampling
from calibrant.models.anatomy import anatomy
from calibrant.models.directions import Direction, ablated, read_direction, steer, writes

FAMILIES = ("llama", "gemma2", "gpt_neox", "opt", "bloom", "olmo2", "gpt_bigcode", "mamba")
NO_STREAM = ("bert", "xlm", "xlnet")
CHAT = Chat.ask("where is the mill?")


def made(model, seed=0):
    width = model.module.config.hidden_size
    return torch.randn(width, generator=torch.Generator().manual_seed(seed)) * 3


def streams(model, chats=(CHAT,)):
    sites = [f"blocks.{i}.hook_resid_post" for i in range(len(anatomy(model.module).blocks))]
    return model.trace(model.encode(list(chats)), sites)


def check_nothing_is_left(family):
    """Behind every block the stream has no part along the direction, whatever the family adds there."""
    model = build(family)
    way = made(model)
    with torch.no_grad():
        plain = streams(model)
        with ablated(model, way):
            found = streams(model)
        after = streams(model)
    for site, stream in found.items():
        along = (stream @ way).abs().max() / way.norm()
        assert float(along) < 1e-4 * float(stream.norm(dim=-1).max()), site
        assert float((plain[site] @ way).abs().max()) > 1e-3
        assert torch.equal(plain[site], after[site])


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_along_the_direction(family):
    check_nothing_is_left(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in ZOO if name not in (*FAMILIES, *NO_STREAM)])
def test_nothing_is_left_in_any_family(family):
    try:
        check_nothing_is_left(family)
    except CapabilityError as error:  # refused by name
        assert "stream" in error.message or "batch" in error.message


def test_it_is_the_model_with_the_direction_taken_out_of_its_weights():
    """W <- W - r (r . W) of all that writes to the stream: another way to the same numbers, in float64."""
    model = build("llama", num_hidden_layers=3)
    model.module.double()
    way = made(model).double()
    unit = way / way.norm()
    twin = model.copy()
    with torch.no_grad():
        inner = twin.module.model
        inner.embed_tokens.weight -= torch.outer(inner.embed_tokens.weight @ unit, unit)
        for layer in inner.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight -= torch.outer(unit, unit @ projection.weight)
        batch = model.encode([CHAT])
        with ablated(model, way):
            found = model.forward(batch)
        assert torch.allclose(found, twin.forward(batch), atol=1e-10)
        assert not torch.allclose(found, model.forward(batch), atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "bloom"])
def test_edits_reach_every_pass_of_a_generation(family):
    """Holds against pyvene#193: which tokens are changed while generating?

    With a cache, token by token, as without one.
    """
    model = build(family)
    site = "blocks.1.hook_resid_pre"
    for block in (lambda: ablated(model, made(model)), lambda: steer(model, made(model), 2.0, site=site)):
        with block():
            reply = model.generate([CHAT], Sampling(max_tokens=6))[0]
        ids = model.prompt_ids(CHAT)
        for token in reply.ids:
            with torch.no_grad(), block():
                logits = model.module(torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert int(logits.argmax()) == token
            ids = [*ids, token]


def test_steering_adds_what_it_says_and_no_more():
    model, site = build("llama"), "blocks.1.hook_resid_pre"
    way = made(model)
    with torch.no_grad():
        plain = model.trace(model.encode([CHAT]), [site])[site]
        with steer(model, Direction(way, site), -0.5):
            found = model.trace(model.encode([CHAT]), [site])[site]
    assert torch.allclose(found, plain - 0.5 * way, atol=1e-5)


def test_one_direction_a_row():
    model = build("llama")
    ways = torch.stack([made(model, seed) for seed in (1, 2)])
    batch = model.encode([CHAT, CHAT])
    with torch.no_grad():
        with ablated(model, ways):
            both = model.forward(batch)
        for row, way in enumerate(ways):
            with ablated(model, way):
                assert torch.allclose(model.forward(batch)[row], both[row], atol=1e-4)


def test_half_precision_and_length_do_not_matter():
    model = build("llama")
    with torch.no_grad(), ablated(model, made(model)):
        one = model.forward(model.encode([CHAT]))
    with torch.no_grad(), ablated(model, made(model).double() * 1000):
        assert torch.allclose(one, model.forward(model.encode([CHAT])), atol=1e-4)
    model.module.to(torch.bfloat16)
    with torch.no_grad(), ablated(model, made(model)):
        assert torch.isfinite(model.forward(model.encode([CHAT]))).all()


def test_writes_are_the_entry_and_both_parts_of_each_block():
    assert writes(build("llama").module) == (
        "blocks.0.hook_resid_pre", "blocks.0.hook_attn_out", "blocks.0.hook_mlp_out",
        "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out",
    )  # fmt: skip
    assert writes(build("mamba").module)[1:] == ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


def test_what_is_no_direction_is_refused():
    model = build("llama")
    for wrong, error in (
        (torch.zeros(32), NumericalError), (torch.full((32,), torch.nan), NumericalError),
        (torch.ones(31), InputError), (torch.ones(2, 2, 32), InputError), (torch.ones(32).long(), InputError),
    ):  # fmt: skip
        with pytest.raises(error), ablated(model, wrong):
            pass
    with pytest.raises(InputError, match="no site"), steer(model, torch.ones(32)):
        pass
    with pytest.raises(InputError, match="one for each row"), ablated(model, torch.ones(3, 32)):
        model.generate([CHAT], Sampling(max_tokens=1))
    with pytest.raises(CapabilityError, match="no forward pass"), ablated(model, torch.ones(32)):
        pass
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in model.module.modules())


def test_written_and_read(tmp_path):
    way = Direction(torch.randn(32), "blocks.1.hook_resid_pre", "abc", -3)
    way.write(tmp_path / "direction.safetensors", tmp_path / "direction.json")
    found = read_direction(tmp_path)
    assert torch.equal(found.vector, way.vector)
    assert (found.site, found.model, found.position) == (way.site, "abc", -3)
    (tmp_path / "direction.json").write_text(json.dumps({"site": "x"}))
    with pytest.raises(InputError, match="holds no direction"):
        read_direction(tmp_path)
    with pytest.raises(InputError, match="holds no direction"):
        read_direction(tmp_path / "nowhere")
