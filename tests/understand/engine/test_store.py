"""The store against a plain trace; its order; kills, damage, a full disk, another model."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import pytest
import torch

from calibrant.core import CapabilityError, Chat, InputError, NumericalError
from calibrant.models.open_model import OpenModel
from calibrant.testbed.tokens import build_tokenizer
from calibrant.understand._engine import harvest as engine
from calibrant.understand._engine.harvest import Texts, harvest, source_of
from calibrant.understand._engine.store import Store

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))
from zoo import build

SITES = ("blocks.0.hook_resid_post", "blocks.0.hook_mlp_out", "blocks.1.hook_resid_pre")


def texts_of(model, words=("a", "bc", "d!", "e f g"), count=12):
    chats = tuple(Chat.ask(" ".join(words[: 1 + i % 4]) + str(i)) for i in range(count))
    return Texts(chats, tuple(tuple(model.prompt_ids(chat)) for chat in chats), "data")


@pytest.fixture(scope="module")
def model():
    return build("llama")


def by_hand(model, texts, site, first=True):
    """One text at a time, whole passes."""
    rows, tokens = [], []
    for number, chat in enumerate(texts.chats):
        batch = model.encode([chat])
        with torch.inference_mode():
            value = model.trace(batch, [site])[site][0].flatten(1)
        for at, token in enumerate(batch.ids[0].tolist()):
            if token == model.tokenizer.bos_token_id or (first and at == 0):
                continue
            rows.append(value[at])
            tokens.append((number, at, token))
    return torch.stack(rows), tokens


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mamba", "bloom", "gpt_neox"])
def test_rows_are_those_of_a_plain_trace(family, tmp_path):
    model = build(family)
    texts = texts_of(model)
    sites = [site for site in SITES if site in model.sites()]
    store = harvest(model, texts, source_of(model, texts, sites, dtype="float32", shard=7), tmp_path)
    for site in sites:
        rows, tokens = by_hand(model, texts, site)
        index = torch.arange(len(store))
        keys = map(tuple, store.tokens(index).tolist())
        found = dict(zip(keys, store.rows(site, index), strict=True))
        assert set(found) == set(tokens)
        together = torch.stack([found[token] for token in tokens])
        torch.testing.assert_close(together, rows, rtol=0, atol=1e-4 * float(rows.abs().max()))
        header = store.header
        torch.testing.assert_close(header.mean(site), rows.double().mean(0), rtol=0, atol=1e-4)
        assert header.second(site) == pytest.approx(float(rows.double().square().sum(1).mean()), rel=1e-4)


def test_heads_are_laid_side_by_side_and_what_lies_behind_does_not_run(model, tmp_path):
    texts, ran = texts_of(model), []
    handle = model.module.model.layers[1].mlp.register_forward_hook(lambda *_: ran.append(1))
    source = source_of(model, texts, ["blocks.0.attn.hook_z"])
    harvest(model, texts, source, tmp_path / "first")  # probes of the model run it whole
    assert ran
    ran.clear()
    store = harvest(model, texts, source, tmp_path / "second")
    handle.remove()
    assert not ran
    assert store.header.facts["blocks.0.attn.hook_z"].d == 32
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


def test_order_is_permuted_and_repeats(model, tmp_path):
    """Holds against SAELens PR#612: shuffle=True did not shuffle."""
    texts = texts_of(model)
    store = harvest(model, texts, source_of(model, texts, SITES[:1], shard=5), tmp_path)
    first, again, next_epoch = store.order(3), store.order(3), store.order(3, epoch=1)
    assert sorted(first.tolist()) == list(range(len(store)))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.arange(len(store)))
    assert not torch.equal(first, next_epoch)
    assert (first[1:] - first[:-1] == 1).float().mean() < 0.2
    shuffled = store.rows(SITES[0], first)
    assert torch.equal(shuffled[torch.argsort(first)], store.rows(SITES[0], torch.arange(len(store))))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_rounded_once_and_summed_in_double(model, tmp_path, dtype):
    texts = texts_of(model)
    exact, half = (
        harvest(model, texts, source_of(model, texts, SITES[:1], dtype=kind, shard=9), tmp_path / kind)
        for kind in ("float32", dtype)
    )
    index = torch.arange(len(exact))
    rows = exact.rows(SITES[0], index).to(getattr(torch, dtype)).float()
    assert torch.equal(half.rows(SITES[0], index), rows)
    assert half.header.mean(SITES[0]).tolist() == pytest.approx(rows.double().mean(0).tolist(), abs=1e-12)
    assert sum(path.stat().st_size for path in (tmp_path / dtype / "site_0").iterdir()) == rows.numel() * 2


def test_a_killed_harvest_goes_on_at_its_token(model, tmp_path, monkeypatch):
    texts = texts_of(model)
    monkeypatch.setattr(engine, "_TOKENS", {"cpu": 40})
    source = source_of(model, texts, SITES, shard=11)
    whole = harvest(model, texts, source, tmp_path / "whole")
    passes, real = [], engine.at_sites

    def dying(*args):
        if len(passes) == 3:
            raise KeyboardInterrupt
        passes.append(1)
        return real(*args)

    monkeypatch.setattr(engine, "at_sites", dying)
    with pytest.raises(KeyboardInterrupt):
        harvest(model, texts, source, tmp_path / "cut")
    with pytest.raises(InputError, match="was not finished"):
        Store(tmp_path / "cut")
    passes.clear()
    monkeypatch.setattr(engine, "at_sites", lambda *a: passes.append(1) or real(*a))
    cut = harvest(model, texts, source, tmp_path / "cut")
    assert 0 < len(passes) < len(list(engine.batches(model, texts.ids)))
    assert cut.header == whole.header
    passes.clear()
    harvest(model, texts, source, tmp_path / "cut")
    assert not passes


def test_a_damaged_shard_is_named(model, tmp_path):
    texts = texts_of(model)
    source = source_of(model, texts, SITES[:1], shard=9)
    harvest(model, texts, source, tmp_path)
    header = json.loads((tmp_path / "header.json").read_text())
    path = tmp_path / "site_0" / "00001.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=r"shard 'site_0/00001\.bin'.*is damaged"):
        Store(tmp_path)
    with pytest.raises(InputError, match="damaged"):
        harvest(model, texts, source, tmp_path)
    Store(tmp_path, verify=False)
    path.write_bytes(whole[:-2])
    with pytest.raises(InputError, match="damaged"):
        Store(tmp_path, verify=False)
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        Store(tmp_path)
    (tmp_path / "header.json").write_text("{")
    with pytest.raises(InputError, match=r"header\.json' is damaged"):
        Store(tmp_path)
    for change in ({"rows": 10**12}, {"version": 2}, {"facts": {}}, {"shards": {}}, {"rows": -1}):
        (tmp_path / "header.json").write_text(json.dumps(header | change))
        with pytest.raises(InputError, match=r"add up|is of layout 2"):
            Store(tmp_path)
    header["shards"]["tokens"][0]["file"] = "../elsewhere"
    (tmp_path / "header.json").write_text(json.dumps(header))
    with pytest.raises(InputError, match="add up"):
        Store(tmp_path)


def test_another_source_is_refused_by_name(model, tmp_path):
    texts = texts_of(model)
    source = source_of(model, texts, SITES[:1])
    harvest(model, texts, source, tmp_path)
    other = build("llama", num_attention_heads=2)
    for changed, told in (
        (source_of(other, texts, SITES[:1]), "another model"),
        (source.model_copy(update={"tokenizer": "x"}), "another tokenizer"),
        (source.model_copy(update={"data": "x"}), "other texts"),
        (source_of(model, texts, SITES[1:2]), "hook_mlp_out"),
        (source_of(model, texts, SITES[:1], dtype="float32"), "float16, not float32"),
        (source_of(model, texts, SITES[:1], left_out="nothing"), "leaves out 'first'"),
    ):
        with pytest.raises(InputError, match=told):
            Store(tmp_path, changed)
        with pytest.raises(InputError, match=told):
            harvest(model, texts, changed, tmp_path)


def test_a_full_disk_is_said_and_resumed(model, tmp_path, monkeypatch):
    texts = texts_of(model)
    source = source_of(model, texts, SITES[:1], shard=9)
    real, calls = Path.open, []

    def full(self, mode="r", *args, **kwargs):
        if mode == "wb":
            calls.append(self)
            if len(calls) > 4:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, mode, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(InputError, match="disk full"):
        patch.setattr(Path, "open", full)
        harvest(model, texts, source, tmp_path / "full")
    resumed = harvest(model, texts, source, tmp_path / "full")
    assert resumed.header == harvest(model, texts, source, tmp_path / "empty").header


def test_a_bos_of_id_0_is_left_out_and_counted(tmp_path):
    """Holds against SAELens PR#724: a BOS of id 0 was taken for none; and #472, BOS in mid-text."""
    tokenizer = build_tokenizer()
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(0)
    assert tokenizer.bos_token_id == 0
    module = build("llama", vocab_size=len(tokenizer)).module
    model = OpenModel.from_module(module, tokenizer, "zero")
    chats = (Chat.ask("where is the barn"), Chat.ask("the mill"))
    ids = tuple(tuple(model.prompt_ids(chat)) for chat in chats)
    texts = Texts(chats, ids, "data")
    for policy, lost in (("nothing", 0), ("first", 2)):
        source = source_of(model, texts, SITES[:1], left_out=policy)
        store = harvest(model, texts, source, tmp_path / policy)
        assert len(store) == sum(map(len, ids)) - lost
    assert engine.keep(model, [5, 0, 6, 0], "bos") == [True, False, True, False]
    assert engine.keep(model, [5, 0, 6], "first") == [False, False, True]
    assert store.header.counts["first"] == 2
    assert store.header.counts["padding"] == abs(len(ids[0]) - len(ids[1]))


def test_what_cannot_be_harvested_is_refused_by_name(model, tmp_path):
    texts = texts_of(model)
    with pytest.raises(CapabilityError, match="did you mean"):
        source_of(model, texts, ["blocks.0.hook_resid_pos"])
    with pytest.raises(InputError, match="one twice"):
        source_of(model, texts, [SITES[0], SITES[0]])
    with pytest.raises(InputError, match="no texts"):
        source_of(model, Texts((), (), ""), SITES[:1])
    big = build("llama")
    big.module.model.embed_tokens.weight.data.mul_(1e6)
    source = source_of(big, texts, ["hook_embed"])
    with pytest.raises(NumericalError, match=r"too large for torch\.float16"):
        harvest(big, texts, source, tmp_path / "big")
    source = source_of(model, texts, SITES[:1])
    model.module.train()
    try:
        with pytest.raises(CapabilityError, match="training mode"):
            harvest(model, texts, source, tmp_path / "training")
    finally:
        model.module.eval()
    store = harvest(model, texts, source, tmp_path / "good")
    with pytest.raises(CapabilityError, match="not in the store"):
        store.rows(SITES[1], torch.tensor([0]))
    with pytest.raises(InputError, match="rows 0 to"):
        store.rows(SITES[0], torch.tensor([len(store)]))
    assert json.loads((tmp_path / "good" / "header.json").read_text())["complete"]
