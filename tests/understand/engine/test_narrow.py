"""The last MLP at the last position: which module it is, and that others are not disturbed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from calibrant.models.hooks import captured
from calibrant.understand._engine.narrow import last_mlp, last_position_only
from calibrant.understand._engine.skip import last_logits

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))

from zoo import ZOO, build

FOUND = {
    "llama": "model.layers.1.mlp", "gpt2": "transformer.h.1.mlp", "gpt_neox": "gpt_neox.layers.1.mlp",
    "gemma2": "model.layers.1.mlp", "mixtral": "model.layers.1.mlp", "falcon": "transformer.h.1.mlp",
}  # fmt: skip
IDS = torch.tensor([[5, 17, 60, 33, 9, 71], [9, 9, 80, 41, 3, 66]])


@pytest.mark.parametrize(("name", "path"), FOUND.items())
def test_the_mlp_is_found_by_what_it_does(name: str, path: str) -> None:
    assert last_mlp(build(name).module) == path


@pytest.mark.parametrize("name", [n if n in FOUND else pytest.param(n, marks=pytest.mark.slow) for n in ZOO])
def test_the_last_position_says_the_same(name: str) -> None:
    module = build(name).module
    with torch.no_grad():
        whole = last_logits(module, IDS, None)
        with last_position_only(module):
            alone = last_logits(module, IDS, None)
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5)


def test_a_module_that_mixes_positions_is_not_taken() -> None:
    """A gate that reads the token before: the last position alone would be wrong."""
    module = build("llama").module
    for block in module.model.layers:
        plain = block.mlp.forward
        block.mlp.forward = lambda hidden, plain=plain: plain(hidden + hidden.roll(1, 1))
    assert not last_mlp(module).endswith("mlp")


def test_a_module_of_several_blocks_is_not_taken() -> None:
    module = build("llama").module
    module.model.layers[0].mlp = module.model.layers[1].mlp
    assert not last_mlp(module)


def test_attention_is_not_taken_though_its_heads_are_still() -> None:
    """As in models whose weights were set by hand: it adds nothing where the probe looks."""
    module = build("llama", num_key_value_heads=4).module
    module.model.layers[0].mlp = module.model.layers[1].mlp
    with torch.no_grad():
        module.model.layers[1].self_attn.o_proj.weight.zero_()
    assert not last_mlp(module)


def test_hooks_on_it_see_all_positions_and_hooks_in_it_stop_it() -> None:
    module = build("llama").module
    seen: list[tuple[int, ...]] = []
    with torch.no_grad(), captured(module, ["model.layers.1.mlp"]) as kept, last_position_only(module):
        last_logits(module, IDS, None)
    assert kept["model.layers.1.mlp"].shape == (2, 6, 32)
    assert not kept["model.layers.1.mlp"][:, :-1].any() and kept["model.layers.1.mlp"][:, -1].all()
    handle = module.model.layers[1].mlp.up_proj.register_forward_hook(
        lambda _, __, out: seen.append(out.shape)
    )
    with torch.no_grad(), last_position_only(module):
        last_logits(module, IDS, None)
    handle.remove()
    assert [shape[1] for shape in seen] == [6]
    assert not [name for name, part in module.named_modules() if "forward" in vars(part)]
