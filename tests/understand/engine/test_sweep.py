"""The sweep against one full forward pass a cell, on many families; what it refuses; what it spares."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from calibrant.core import CapabilityError, InputError, NumericalError
from calibrant.models.open_model import OpenModel
from calibrant.models.sites import located, places
from calibrant.understand._engine import narrow
from calibrant.understand._engine.patches import Edit, Patch, first_block
from calibrant.understand._engine.plan import shared_start
from calibrant.understand._engine.readers import LogitDifference, LogProb
from calibrant.understand._engine.sweep import sweep

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))

from zoo import ZOO, build

RESUMED = (
    "llama", "qwen2", "qwen3", "gpt_neox", "gpt2", "gptj", "opt", "bloom", "falcon", "mpt", "gemma2",
    "gemma3_text", "mistral", "mixtral", "phi", "olmo2", "gpt_bigcode", "deepseek_v3", "granite",
)  # fmt: skip
"""Families that must run from the patch on; the others must be right, however they run."""
SLICE = ("llama", "gpt2", "gpt_neox", "falcon", "gemma2", "mamba")
PARALLEL = ("gpt_neox", "gptj", "falcon", "phi")
"""Attention and MLP side by side: no stream between them."""
REFUSED = ("bert", "xlm", "xlnet")
"""Encoders: what they say at a token changes with the tokens that follow."""
CLEAN = torch.tensor([[5, 17, 60, 33, 9, 71], [9, 9, 80, 41, 3, 66], [12, 50, 7, 52, 19, 24]])
CORRUPT = torch.tensor([[5, 18, 60, 33, 9, 71], [9, 44, 80, 41, 3, 66], [12, 50, 70, 52, 19, 24]])
READ = LogitDifference([11, 22, 33], [44, 55, 66])


def traced(lm: OpenModel, ids: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return lm.trace(lm._pad([row.tolist() for row in ids], [[] for _ in ids]), names)


def patches_of(lm: OpenModel) -> list[Patch]:
    """Every kind of site, at one position, at all, at two together, in two blocks together."""
    known = places(lm.module)
    last = "blocks.1.hook_resid_post"
    found: list[Patch] = [
        (Edit("blocks.0.hook_resid_pre", (2,)),),
        (Edit("blocks.1.hook_resid_pre", (-1,)),),
        (Edit("blocks.1.hook_resid_pre", (1, 3)),),
        (Edit(last, (-1,)),),
        (Edit("blocks.0.hook_resid_post", (4,)), Edit("blocks.1.hook_resid_pre", (2,))),
    ]
    for i in (0, 1):
        for site in (f"blocks.{i}.hook_attn_out", f"blocks.{i}.hook_mlp_out", f"blocks.{i}.hook_resid_mid"):
            if site in known:
                found += [(Edit(site, (3,)),), (Edit(site),)]
        if (z := f"blocks.{i}.attn.hook_z") in known:
            found += [(Edit(z, (5,), (2,)),), (Edit(z, None, (0, 3)),), (Edit(z, (1,)),)]
    return found


def one_by_one(
    lm: OpenModel, ids: torch.Tensor, sources: dict[str, torch.Tensor], patch: Patch, read: LogitDifference
) -> torch.Tensor:
    """The slow reference: a full forward pass an example, all logits made."""
    found = []
    for n, row in enumerate(ids):

        def change(edits: list[Edit], value: torch.Tensor, n: int = n) -> torch.Tensor:
            value = value.clone()
            for edit in edits:
                for position in range(ids.shape[1]) if edit.positions is None else edit.positions:
                    if edit.heads is None:
                        value[0, position] = sources[edit.site][n, position]
                    else:
                        for head in edit.heads:
                            value[0, position, head] = sources[edit.site][n, position, head]
            return value

        sites = {edit.site: [e for e in patch if e.site == edit.site] for edit in patch}
        changes = {site: lambda value, edits=edits: change(edits, value) for site, edits in sites.items()}
        with torch.no_grad(), lm.edit(changes):
            logits = lm.forward(lm._pad([row.tolist()], [[]]))[:, -1].float()
        columns = logits[:, read.columns] if read.columns is not None else logits
        found.append(read(columns, torch.tensor([n])))
    return torch.cat(found).double()


@pytest.mark.parametrize("name", [n if n in SLICE else pytest.param(n, marks=pytest.mark.slow) for n in ZOO])
def test_a_sweep_is_what_full_passes_give(name: str) -> None:
    lm = build(name)
    if name in REFUSED:
        with pytest.raises(CapabilityError, match="no left-to-right language model"):
            sweep(lm, CLEAN, {"hook_embed": torch.zeros(3, 6, 32)}, [(Edit("hook_embed"),)], READ)
        return
    patches = patches_of(lm)
    sources = traced(lm, CORRUPT, list({edit.site for patch in patches for edit in patch}))
    found = sweep(lm, CLEAN, sources, patches, READ)
    for patch, values in zip(patches, found.values, strict=True):
        expected = one_by_one(lm, CLEAN, sources, patch, READ)
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=2e-4, msg=f"{patch}, {found.how}")
    logits = torch.cat([lm.forward(lm._pad([row.tolist()], [[]]))[:, -1] for row in CLEAN])
    base = READ(logits[:, READ.columns].float(), torch.arange(3)).double()
    torch.testing.assert_close(found.base, base, rtol=1e-4, atol=2e-4)
    assert (found.values - found.base).abs().max() > 1e-2
    assert name not in RESUMED or found.how == "from the patch on"


def llama() -> OpenModel:
    return build("llama", num_hidden_layers=5)


@pytest.mark.parametrize(
    "name",
    ["llama", "gemma2", *(pytest.param(n, marks=pytest.mark.slow) for n in (*RESUMED, "mamba", "rwkv"))],
)
def test_a_base_run_may_have_embeddings_that_no_token_spells(name: str) -> None:
    """Noise on two positions; patches before, at and after them, and one at the embedding itself."""
    lm = build(name)
    patches: list[Patch] = [
        (Edit("blocks.0.hook_resid_post", (1,)),), (Edit("blocks.0.hook_resid_post", (2,)),),
        (Edit("blocks.1.hook_resid_post", (5,)),), (Edit("blocks.1.hook_resid_pre", (4,)),),
    ]  # fmt: skip
    sources = traced(lm, CLEAN, ["hook_embed", *(edit.site for patch in patches for edit in patch)])
    noisy = sources["hook_embed"].clone()
    noisy[:, 1:3] += torch.randn(noisy[:, 1:3].shape, generator=torch.Generator().manual_seed(0))
    found = sweep(lm, CLEAN, sources, [*patches, (Edit("hook_embed", (1, 2)),)], READ, embeddings=noisy)
    whole = (Edit("hook_embed"),)
    for patch, values in zip(patches, found.values, strict=False):
        expected = one_by_one(lm, CLEAN, sources | {"hook_embed": noisy}, whole + patch, READ)
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=2e-4, msg=f"{patch}, {found.how}")
    clean = one_by_one(lm, CLEAN, sources, whole, READ)
    torch.testing.assert_close(found.values[-1], clean, rtol=1e-4, atol=2e-4)
    assert (found.base - clean).abs().max() > 1e-2
    assert name not in RESUMED or found.how == "from the patch on"


def test_embeddings_of_other_prompts_are_refused() -> None:
    lm = build("llama")
    source = {"hook_embed": torch.zeros(3, 6, 32)}
    with pytest.raises(InputError, match="give a vector for each token"):
        sweep(lm, CLEAN, source, [(Edit("hook_embed"),)], READ, embeddings=torch.zeros(3, 5, 32))


def test_log_probs_are_read_off_all_logits() -> None:
    lm = llama()
    patch = (Edit("blocks.2.hook_attn_out", (3,)),)
    sources = traced(lm, CORRUPT, ["blocks.2.hook_attn_out"])
    found = sweep(lm, CLEAN, sources, [patch], LogProb([11, 22, 33]))
    expected = one_by_one(lm, CLEAN, sources, patch, LogProb([11, 22, 33]))
    torch.testing.assert_close(found.values[0], expected, rtol=1e-4, atol=1e-4)
    assert (found.base < 0).all()


def test_blocks_below_a_patch_and_positions_before_it_do_not_run() -> None:
    """Tokens through each MLP of 5: the base, a full check an example, and
    patches at block 3 there and above alone, in one pass from the first of their positions on."""
    lm, ran = llama(), [0] * 5
    site = "blocks.3.hook_resid_pre"
    sources = traced(lm, CORRUPT, [site])

    def count(i: int, output: torch.Tensor) -> None:
        ran[i] += output.shape[0] * output.shape[1]

    for i, block in enumerate(lm.module.model.layers):
        block.mlp.register_forward_hook(lambda _, __, output, i=i: count(i, output))
    narrow.last_mlp(lm.module)  # a probe runs the model, once
    ran[:] = [0] * 5
    sweep(lm, CLEAN, sources, [(Edit(site, (4,)),), (Edit(site, (5,)),)], READ)
    full, both = 2 * CLEAN.numel(), 6 * 2
    assert ran[:3] == [full] * 3 and ran[3:] == [full + both] * 2


def test_what_an_mlp_adds_begins_behind_its_block_and_the_last_runs_at_the_last_position() -> None:
    """Tokens through the first matrix of each MLP; a patch that changes nothing is not run."""
    lm, ran = llama(), [0] * 5
    site = "blocks.3.hook_mlp_out"
    sources = traced(lm, CORRUPT, [site])
    for i, block in enumerate(lm.module.model.layers):

        def counted(
            hidden: torch.Tensor, i: int = i, plain: object = block.mlp.up_proj.forward
        ) -> torch.Tensor:
            ran[i] += hidden.shape[0] * hidden.shape[1]
            return plain(hidden)  # type: ignore[operator]

        block.mlp.up_proj.forward = counted
    narrow.last_mlp(lm.module)  # a probe runs the model, once
    ran[:] = [0] * 5
    patches: list[Patch] = [(Edit(site, (4,)),), (Edit(site, (2,)),)]
    found = sweep(lm, CLEAN, sources, patches, READ, shared=torch.tensor([3, 5, 6]))
    full = CLEAN.numel() + CLEAN.shape[1]  # the base, and an example's check
    assert ran == [full] * 4 + [full + 1]  # the patch
    assert torch.equal(found.values[1], found.base)
    assert torch.equal(found.values[0, 1:], found.base[1:]) and found.values[0, 0] != found.base[0]


def counts_rows(lm: OpenModel) -> list[list[int]]:
    """Rows of each call of each block."""
    rows: list[list[int]] = [[] for _ in lm.module.model.layers]
    for block, seen in zip(lm.module.model.layers, rows, strict=True):
        block.register_forward_hook(lambda _, __, output, seen=seen: seen.append(len(output)))
    narrow.last_mlp(lm.module)  # a probe runs the model, once
    for seen in rows:
        seen.clear()
    return rows


def across(lm: OpenModel) -> tuple[list[Patch], torch.Tensor]:
    """The stream before blocks 0, 2 and 4, at two positions; what full passes give."""
    sites = [f"blocks.{i}.hook_resid_pre" for i in (0, 2, 4)]
    patches: list[Patch] = [(Edit(site, (p,)),) for p in (2, 3) for site in sites]
    sources = traced(lm, CORRUPT, sites)
    return patches, torch.stack([one_by_one(lm, CLEAN, sources, patch, READ) for patch in patches])


def test_patches_of_many_blocks_share_a_pass() -> None:
    """The base, the check (its first row apart), and one pass that rows enter at blocks 0, 2 and 4."""
    lm = llama()
    patches, expected = across(lm)
    sources, rows = traced(lm, CORRUPT, [edit.site for patch in patches for edit in patch]), counts_rows(lm)
    found = sweep(lm, CLEAN, sources, patches, READ)
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=2e-4)
    assert [sorted(seen) for seen in rows] == [[1, 3, 5, n] for n in (6, 6, 12, 12, 18)]


def test_blocks_that_look_at_ids_have_their_own() -> None:
    """A block that adds what the row's own ids say: passes begin at one block, with all ids."""
    lm, seen = llama(), []
    embed = lm.module.model.embed_tokens
    embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    lm.module.model.layers[3].register_forward_hook(
        lambda _, __, output: output + (seen[-1] % 7)[..., None].to(output) / 7
    )
    patches, expected = across(lm)
    sources, rows = traced(lm, CORRUPT, [edit.site for patch in patches for edit in patch]), counts_rows(lm)
    found = sweep(lm, CLEAN, sources, patches, READ)
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=2e-4)
    assert found.how == "from the patch on" and rows[-1].count(18) == 1 and rows[-1][-3:] == [6, 6, 6]


def shifted(hidden: torch.Tensor) -> torch.Tensor:
    """Each position with the one before: causal, and no position by itself."""
    return hidden + torch.nn.functional.pad(hidden, (0, 0, 1, 0))[:, :-1]


def mixing_mlps(lm: OpenModel) -> None:
    for block in lm.module.model.layers:
        block.mlp.forward = lambda hidden, plain=block.mlp.forward: plain(shifted(hidden))


def hooked_block(lm: OpenModel) -> None:
    lm.module.model.layers[0].register_forward_hook(lambda _, __, out: out * out.sigmoid())


def hooked_mlp(lm: OpenModel) -> None:
    lm.module.model.layers[2].mlp.register_forward_hook(lambda _, __, out: out - out[:, :1])


def mixing_norm(lm: OpenModel) -> None:
    lm.module.model.norm.register_forward_pre_hook(lambda _, args: (shifted(args[0]),))


def shared_mlp(lm: OpenModel) -> None:
    lm.module.model.layers[0].mlp = lm.module.model.layers[1].mlp


@pytest.mark.parametrize("odd", [mixing_mlps, hooked_block, hooked_mlp, mixing_norm, shared_mlp])
def test_what_an_mlp_adds_in_odd_models(odd) -> None:
    """Where the short ways do not hold they are not taken, also beside patches that begin at the very end."""
    lm = build("llama", num_hidden_layers=3)
    odd(lm)
    sites = [f"blocks.{i}.hook_mlp_out" for i in range(3) if f"blocks.{i}.hook_mlp_out" in places(lm.module)]
    assert sites
    patches: list[Patch] = [(Edit(site, (p,)),) for site in sites for p in (1, 3, -1)]
    sources = traced(lm, CORRUPT, sites)
    found = sweep(lm, CLEAN, sources, patches, READ)
    for patch, values in zip(patches, found.values, strict=True):
        expected = one_by_one(lm, CLEAN, sources, patch, READ)
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=2e-4, msg=f"{patch}, {found.how}")


def test_one_place_under_two_names_is_changed_once() -> None:
    lm = build("llama", num_hidden_layers=3)
    sites = ["blocks.0.hook_mlp_out", "model.layers.0.mlp"]
    patch = tuple(Edit(site, (3,)) for site in sites)
    sources = traced(lm, CORRUPT, sites)
    found = sweep(lm, CLEAN, sources, [patch], READ)
    torch.testing.assert_close(
        found.values[0], one_by_one(lm, CLEAN, sources, patch, READ), rtol=1e-4, atol=2e-4
    )


def test_a_first_sweep_runs_the_last_mlp_at_the_last_position() -> None:
    lm, seen = llama(), list[int]()
    site = "blocks.3.hook_resid_pre"
    sources = traced(lm, CORRUPT, [site])
    last = lm.module.model.layers[4].mlp.up_proj
    plain = last.forward
    last.forward = lambda hidden: (seen.append(hidden.shape[1]), plain(hidden))[1]
    sweep(lm, CLEAN, sources, [(Edit(site, (p,)),) for p in range(6)], READ)
    assert min(seen) == 1


def test_first_blocks() -> None:
    module = llama().module
    starts = {
        "hook_embed": 0, "blocks.0.hook_resid_pre": 0, "blocks.2.hook_resid_pre": 2,
        "blocks.2.attn.hook_z": 2, "blocks.2.hook_resid_post": 3, "model.layers.4.mlp": 4,
        "blocks.4.hook_resid_post": 5, "ln_final.hook_normalized": 5, "model.embed_tokens": 0, "model": 0,
    }  # fmt: skip
    found = located(module, starts)
    assert {site: first_block(module, place) for site, place in found.items()} == starts


def test_a_family_that_cannot_be_resumed_runs_in_full() -> None:
    """A second way past the blocks: the last norm reads what the first block gave, too."""
    lm = llama()
    kept: list[torch.Tensor] = []
    lm.module.model.layers[0].self_attn.register_forward_hook(lambda _, __, out: kept.append(out[0]))
    lm.module.model.norm.register_forward_pre_hook(lambda _, args: (args[0] + kept[-1],))
    sources = traced(lm, CORRUPT, ["blocks.2.hook_resid_pre"])
    patches = [(Edit("blocks.2.hook_resid_pre", (p,)),) for p in (1, 5)]
    found = sweep(lm, CLEAN, sources, patches, READ)
    assert found.how == "in full"
    for patch, values in zip(patches, found.values, strict=True):
        expected = one_by_one(lm, CLEAN, sources, patch, READ)
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)


def steered(lm: OpenModel, block: int) -> None:
    """All positions but the first, as they are counted in the pass."""
    lm.module.model.layers[block].register_forward_hook(
        lambda _, __, out: torch.cat([out[:, :1], out[:, 1:] + 0.5], 1)
    )


def marked(lm: OpenModel, block: int) -> None:
    """By the ids that the model is called with."""
    seen: list[torch.Tensor] = []

    def see(_: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        seen.append(kwargs["input_ids"] if "input_ids" in kwargs else args[0])

    lm.module.register_forward_pre_hook(see, with_kwargs=True)
    lm.module.model.layers[block].register_forward_hook(
        lambda _, __, out: out + (seen[-1][:, -out.shape[1] :, None] % 7).to(out) / 7
    )


def mixing(lm: OpenModel, block: int) -> None:
    """An MLP that also reads the position before, put in by hand."""
    mlp = lm.module.model.layers[block].mlp
    plain = mlp.forward
    mlp.forward = lambda hidden: plain(shifted(hidden))


def mixing_tail(lm: OpenModel, block: int) -> None:
    """The same of the last norm."""
    norm = lm.module.model.norm
    plain = norm.forward
    norm.forward = lambda hidden: plain(shifted(hidden))


_QUICK = ([("pre", "post")], [range(6)], (100, 4096))
_LONG = ([("pre",), ("post",)], [range(6), (0, 5), (3, 4, 5)], (24, 100, 512, 4096))


@pytest.mark.parametrize(
    "cases", [_QUICK, pytest.param(_LONG, marks=pytest.mark.slow)], ids=["quick", "long"]
)
@pytest.mark.parametrize("block", range(3))
@pytest.mark.parametrize("odd", [steered, marked, mixing, mixing_tail])
def test_what_goes_by_place_or_ids_is_seen_at_any_block(odd, block, cases, monkeypatch) -> None:
    """Patches of every block and position: those at the end alone would not show what an early block does.

    However many tokens a pass has room for: it decides which patches share one.
    """
    lm = build("llama", num_hidden_layers=3)
    odd(lm, block)
    for ends, span in product(*cases[:2]):
        sites = [f"blocks.{i}.hook_resid_{end}" for i in range(3) for end in ends]
        patches: list[Patch] = [(Edit(site, (p,)),) for site in sites for p in span]
        sources = traced(lm, CORRUPT, sites)
        expected = torch.stack([one_by_one(lm, CLEAN, sources, patch, READ) for patch in patches])
        for room in cases[2]:
            monkeypatch.setattr("calibrant.understand._engine.sweep._TOKENS", {"cpu": room})
            found = sweep(lm, CLEAN, sources, patches, READ)
            said = f"{ends}, {span}, {room} tokens a pass, {found.how}"
            torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=2e-4, msg=said)


def test_rows_that_disturb_each_other_run_alone() -> None:
    lm = llama()
    lm.module.model.layers[0].register_forward_hook(
        lambda _, __, out: out - out.mean(0, keepdim=True) * (len(out) > 1)
    )
    sources = {"blocks.2.hook_resid_pre": torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(0))}
    patch = (Edit("blocks.2.hook_resid_pre", (1,)),)
    found = sweep(lm, CLEAN, sources, [patch, (Edit("blocks.2.hook_resid_pre", (5,)),)], READ)
    assert found.how == "one row at a time"
    torch.testing.assert_close(
        found.values[0], one_by_one(lm, CLEAN, sources, patch, READ), rtol=1e-4, atol=1e-4
    )


def state(lm: OpenModel) -> tuple[int, list[str]]:
    modules = list(lm.module.modules())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
    return hooks, [name for name, m in lm.module.named_modules() if "forward" in vars(m)]


def test_nothing_is_left_behind_not_even_after_an_error() -> None:
    lm = llama()
    before, sources = state(lm), traced(lm, CORRUPT, ["blocks.2.hook_resid_pre"])
    patch = (Edit("blocks.2.hook_resid_pre", (1,)),)
    sweep(lm, CLEAN, sources, [patch], READ)
    assert state(lm) == before
    with pytest.raises(NumericalError, match="NaN or infinite"):
        sweep(
            lm,
            CLEAN,
            {"blocks.2.hook_resid_pre": sources["blocks.2.hook_resid_pre"] * torch.nan},
            [patch],
            READ,
        )

    def breaks(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(lm, CLEAN, sources, [patch], READ, breaks)
    assert state(lm) == before


SITE = "blocks.1.hook_resid_pre"


@pytest.mark.parametrize(
    ("patches", "shape", "error", "words"),
    [
        ([], (3, 6, 32), InputError, "nothing to patch"),
        ([()], (3, 6, 32), InputError, "nothing to patch"),
        ([(Edit(SITE, (6,)),)], (3, 6, 32), InputError, "no position 6"),
        ([(Edit(SITE, (-7,)),)], (3, 6, 32), InputError, "no position -7"),
        ([(Edit(SITE, (1,), (0,)),)], (3, 6, 32), InputError, "has no head 0"),
        ([(Edit("blocks.1.attn.hook_z", (1,), (4,)),)], (3, 6, 4, 8), InputError, "has heads 0 to 3"),
        ([(Edit(SITE, (1,)), Edit(SITE, (1,)))], (3, 6, 32), InputError, "same edit twice"),
        ([(Edit(SITE, (1,)),)], (3, 5, 32), InputError, "of 5 tokens, the run has 3 of 6"),
        ([(Edit("blocks.9.hook_resid_pre", (1,)),)], (3, 6, 32), CapabilityError, "no site"),
        ([(Edit("blocks.1.hook_mlp_out", (1,)),)], None, InputError, "no source"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(patches, shape, error, words) -> None:
    lm = llama()
    places(lm.module)  # probes run the model, once
    lm.module.model.layers[0].register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    site = patches[0][0].site if patches and patches[0] else SITE
    with pytest.raises(error, match=words):
        sweep(lm, CLEAN, {} if shape is None else {site: torch.zeros(shape)}, patches, READ)


@pytest.mark.parametrize(
    "name",
    ["gpt2", *(pytest.param(n, marks=pytest.mark.slow) for n in RESUMED if n not in (*PARALLEL, "gpt2"))],
)
def test_the_whole_stream_behind_attention_is_the_other_run(name: str) -> None:
    """Put in whole, resid_mid makes one run the other: the stream goes on beside the MLP, too."""
    lm = build(name)
    site = "blocks.1.hook_resid_mid"
    found = sweep(lm, CLEAN, traced(lm, CORRUPT, [site]), [(Edit(site),)], READ)
    other = sweep(lm, CORRUPT, traced(lm, CORRUPT, [site]), [(Edit(site),)], READ)
    torch.testing.assert_close(found.values[0], other.base, rtol=1e-4, atol=2e-4)
    assert (found.values[0] - found.base).abs().max() > 1e-3


def test_hooks_and_edits_of_others_count_once() -> None:
    """Holds against TransformerLens PR#1638: cleaning up removed the user's hooks.

    A model that is steered by somebody's hook is the model that is swept.
    """
    lm = llama()
    steer = torch.linspace(-2, 2, 32)
    for hooked in range(4):
        handle = lm.module.model.layers[hooked].register_forward_hook(lambda _, __, out: out + steer)
        site = f"blocks.{hooked + 1}.hook_resid_pre"
        sources = traced(lm, CORRUPT, [site])
        patches: list[Patch] = [(Edit(site, (1,)),), (Edit(site, (5,)),)]
        for found in (sweep(lm, CLEAN, sources, patches, READ),):
            for patch, values in zip(patches, found.values, strict=True):
                expected = one_by_one(lm, CLEAN, sources, patch, READ)
                torch.testing.assert_close(values, expected, rtol=1e-4, atol=2e-4)
        assert len(lm.module.model.layers[hooked]._forward_hooks) == 1
        handle.remove()


def test_forwards_of_others_are_used_and_put_back() -> None:
    """accelerate and others set ``forward`` on a module."""
    lm = llama()
    block, head = lm.module.model.layers[1], lm.module.lm_head
    plain, spoken = block.forward, head.forward
    block.forward = lambda *args, **kwargs: plain(*args, **kwargs) * 1.5
    head.forward = lambda hidden: spoken(hidden) * torch.linspace(0.5, 1.5, 100)
    sources = traced(lm, CORRUPT, ["blocks.3.hook_resid_pre"])
    patch = (Edit("blocks.3.hook_resid_pre", (2,)),)
    before = lm.module(CLEAN).logits
    found = sweep(lm, CLEAN, sources, [patch], READ)
    torch.testing.assert_close(
        found.values[0], one_by_one(lm, CLEAN, sources, patch, READ), rtol=1e-4, atol=2e-4
    )
    assert torch.equal(lm.module(CLEAN).logits, before)


def test_a_hook_on_the_unembedding_sees_all_logits() -> None:
    lm = llama()
    seen = []
    lm.module.lm_head.register_forward_hook(lambda _, __, out: seen.append(out.shape[-1]))
    sweep(lm, CLEAN, traced(lm, CORRUPT, [SITE]), [(Edit(SITE, (2,)),)], READ)
    assert set(seen) == {100}


def test_a_model_in_training_mode_is_refused() -> None:
    lm = llama()
    sources = traced(lm, CORRUPT, [SITE])
    lm.module.train()
    with pytest.raises(CapabilityError, match="in training mode"):
        sweep(lm, CLEAN, sources, [(Edit(SITE, (2,)),)], READ)


@pytest.mark.parametrize("name", ["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in RESUMED[1:])])
def test_patches_of_what_both_runs_share_change_nothing(name: str) -> None:
    """Left out or run, the readings are the same; patches of several positions are left out as a whole."""
    lm = build(name)
    sites = [site for i in (0, 1) for site in (f"blocks.{i}.hook_resid_pre", f"blocks.{i}.hook_mlp_out")]
    sites = [site for site in sites if site in places(lm.module)]
    patches: list[Patch] = [(Edit(site, (p,)),) for site in sites for p in range(6)]
    patches += [(Edit(site, (0, 3)),) for site in sites] + [(Edit(sites[0]),)]
    sources, shared = traced(lm, CORRUPT, sites), shared_start(CLEAN, CORRUPT)
    assert shared.tolist() == [1, 1, 2]
    less, all_ = (sweep(lm, CLEAN, sources, patches, READ, shared=given) for given in (shared, None))
    torch.testing.assert_close(less.values, all_.values, rtol=1e-4, atol=2e-4)
    assert torch.equal(less.values[0], less.base) and less.passes < all_.passes
    assert (less.values[len(sites) * 6 :] - less.base).abs().amax(0).min() > 1e-4


def test_where_nothing_changes_nothing_is_run() -> None:
    lm = llama()
    sources = traced(lm, CORRUPT, [SITE])
    found = sweep(lm, CLEAN, sources, [(Edit(SITE, (0,)),)], READ, shared=shared_start(CLEAN, CORRUPT))
    assert torch.equal(found.values[0], found.base) and found.passes == 0
    behind = "blocks.4.hook_resid_post"  # no other position sees it
    found = sweep(lm, CLEAN, traced(lm, CORRUPT, [behind]), [(Edit(behind, (3,)),)], READ)
    assert torch.equal(found.values[0], found.base) and found.passes == 0


@pytest.mark.parametrize("name", PARALLEL)
def test_a_parallel_block_has_no_stream_behind_attention(name: str) -> None:
    assert "blocks.1.hook_resid_mid" not in places(build(name).module)
