"""What a folder's identity covers: every file that is opened while its model loads, and nothing else."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from calibrant.core import CalibrantError, CapabilityError, InputError
from calibrant.models import open_model
from calibrant.models.folder import INDEX, WEIGHTS, folder_identity, model_files
from calibrant.models.open_model import OpenModel

Build = Callable[..., OpenModel]
SMALL = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
DENSE = {**SMALL, "intermediate_size": 32, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": 300, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "cohere": DENSE,
    "falcon": SMALL,
    "gemma2": {**DENSE, "head_dim": 8},
    "gpt2": {"vocab_size": 300, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "gpt_neo": {"vocab_size": 300, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
    | {"attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {**SMALL, "intermediate_size": 32},
    "gptj": {"vocab_size": 300, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4},
    "granite": DENSE,
    "mamba": {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "mistral": DENSE,
    "mixtral": {**DENSE, "num_local_experts": 2},
    "olmo2": DENSE,
    "opt": {**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 64},
    "phi": {**SMALL, "intermediate_size": 32},
    "qwen3": {**DENSE, "head_dim": 8},
    "stablelm": DENSE,
    "starcoder2": DENSE,
}
OTHERS = (
    *("README.md", "trainer_state.json", "training_args.bin", "pytorch_model.bin", "optimizer.safetensors"),
    *("adapter_model.safetensors", "preprocessor_config.json", "processor_config.json", "modeling_x.py"),
    *("custom_generate/generate.py", "sub/model.safetensors", "sub/config.json", "tokenizer.txt", "run.log"),
)


@contextmanager
def opened(*folders: Path) -> Iterator[set[str]]:
    """Collects the files directly in ``folders`` that are opened, by C and Rust code too (inotify)."""
    if sys.platform != "linux":
        pytest.skip("opens are recorded with Linux's inotify")
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK)
    watched = {libc.inotify_add_watch(handle, bytes(f), 0x20): f for f in folders}  # IN_OPEN
    found: set[str] = set()
    try:
        yield found
        data = b""
        while part := _read(handle):
            data += part
        while data:
            number, mask, _, length = struct.unpack_from("iIII", data)
            name = data[16 : 16 + length].rstrip(b"\0").decode()
            if name and not mask & 0x40000000:  # IN_ISDIR
                found.add(str(watched[number] / name))
            data = data[16 + length :]
    finally:
        os.close(handle)


def _read(handle: int) -> bytes:
    try:
        return os.read(handle, 2**16)
    except BlockingIOError:
        return b""


def _folder(tiny: Build, path: Path, family: str = "llama", **sizes: Any) -> Path:
    """A tiny model of a family, saved; the tokenizer is always the same."""
    if not sizes:
        tiny(family).save(path)
        return path
    config = AutoConfig.for_model(family, bos_token_id=0, eos_token_id=1, pad_token_id=1, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tiny().tokenizer.save_pretrained(path)
    return path


def _shard(folder: Path, name: str = "model-{}.safetensors") -> dict[str, str]:
    """Two shards with every tensor in both, the second of other numbers; returns the index's map."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    for number in (1, 2):
        path = folder / name.format(number)
        path.parent.mkdir(exist_ok=True)
        save_file({k: v * number for k, v in tensors.items()}, path, metadata={"format": "pt"})
    return _index(folder, dict.fromkeys(tensors, name.format(1)))


def _index(folder: Path, shards: dict[str, str]) -> dict[str, str]:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shards}))
    return shards


def _set(path: Path, **changes: Any) -> None:
    told = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**told, **changes}))


@pytest.mark.parametrize(
    "family",
    [f if f in ("gpt2", "mixtral") else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES],
)
def test_every_file_that_is_opened_is_in_the_digest(tiny: Build, tmp_path: Path, family: str) -> None:
    folder = _folder(tiny, tmp_path / "model", family, **FAMILIES[family])
    if family in ("mixtral", "opt"):
        _shard(folder)
    bare = folder_identity(folder)
    for name in OTHERS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    assert folder_identity(folder) == bare
    listed = {str(folder / name) for part in model_files(folder).values() for name in part}
    with opened(tmp_path, folder, folder / "sub", folder / "custom_generate") as found:
        model = OpenModel.from_folder(folder)
    assert found == listed
    assert model.identity.digest == bare.digest
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in listed:
        shutil.copy(name, alone)
    again = OpenModel.from_folder(alone)
    assert again.identity.digest == bare.digest
    weights, same = model.module.state_dict(), again.module.state_dict()
    assert weights.keys() == same.keys() and all(torch.equal(weights[k], same[k]) for k in weights)
    assert model.tokenizer("a cat").input_ids == again.tokenizer("a cat").input_ids


def test_any_change_of_a_listed_file_is_another_model(tiny: Build, tmp_path: Path) -> None:
    folder = _folder(tiny, tmp_path / "model")
    _shard(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    more = ["additional_chat_templates/tools.jinja", "tokenizer.4.0.0.json", "spiece.model", "merges.txt"]
    (folder / more[0]).parent.mkdir()
    for name in more:
        (folder / name).write_text("{}")
    before = folder_identity(folder)
    names = [name for part in model_files(folder).values() for name in part]
    assert {*more, INDEX, "model-1.safetensors", "tokenizer.json", "generation_config.json"} <= {*names}
    for name in names:
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept + b"\n")
        assert folder_identity(folder).digest != before.digest, name
        (folder / name).write_bytes(kept)
    assert folder_identity(folder) == before


def test_other_shards_are_another_model(tiny: Build, tmp_path: Path) -> None:
    folder = _folder(tiny, tmp_path / "model")
    shards = _shard(folder)
    one = OpenModel.from_folder(folder)
    _index(folder, dict.fromkeys(shards, "model-2.safetensors"))
    two = OpenModel.from_folder(folder)
    assert not torch.equal(one.module.lm_head.weight, two.module.lm_head.weight)
    assert one.identity.digest != two.identity.digest


@pytest.mark.parametrize("name", ["sub/{}.safetensors", "../{}.safetensors", "/{}.safetensors", "{}.bin"])
def test_shards_elsewhere_are_refused(tiny: Build, tmp_path: Path, name: str) -> None:
    folder = _folder(tiny, tmp_path / "model")
    name = name if not name.startswith("/") else f"{tmp_path}/{{}}.safetensors"
    _shard(folder, name)
    for call in (folder_identity, OpenModel.from_folder):
        with pytest.raises(InputError, match=r"is no \*.safetensors file in that folder"):
            call(folder)


def test_an_adapter_is_refused(tiny: Build, tmp_path: Path) -> None:
    folder = _folder(tiny, tmp_path / "model")
    _set(folder / "adapter_config.json", peft_type="LORA", lora_alpha=64, base_model_name_or_path="/x")
    for call in (folder_identity, OpenModel.from_folder):
        with pytest.raises(CapabilityError, match="holds an adapter"):
            call(folder)


def test_a_tokenizer_of_another_version_is_in_the_digest(tiny: Build, tmp_path: Path) -> None:
    folder = _folder(tiny, tmp_path / "model")
    plain = OpenModel.from_folder(folder)
    other = json.loads((folder / "tokenizer.json").read_text())
    other["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.4.0.0.json").write_text(json.dumps(other))
    _set(folder / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.json", "tokenizer.4.0.0.json"])
    before = folder_identity(folder)
    found = OpenModel.from_folder(folder)
    assert found.tokenizer("ABC").input_ids == plain.tokenizer("abc").input_ids
    (folder / "tokenizer.4.0.0.json").write_text(json.dumps(other, indent=1))
    assert folder_identity(folder).digest != before.digest
    for name in (f"{tmp_path}/tokenizer.4.0.0.json", "../tokenizer.4.0.0.json", 3):
        _set(folder / "tokenizer_config.json", fast_tokenizer_files=[name])
        with pytest.raises(InputError, match="no list of names of files in that folder"):
            OpenModel.from_folder(folder)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_tokenizer_cannot_name_files_elsewhere(tiny: Build, tmp_path: Path, file: str) -> None:
    folder, outside = _folder(tiny, tmp_path / "model"), tmp_path / "outside"
    plain = OpenModel.from_folder(folder)
    outside.mkdir()
    other = json.loads((folder / "tokenizer.json").read_text())
    (outside / "tokenizer.json").write_text(json.dumps({**other, "normalizer": {"type": "Lowercase"}}))
    (outside / "x.model").write_text("{}")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("added_tokens_decoder", None)  # so that the map of special tokens is read as well
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    here = str(outside / "tokenizer.json")
    elsewhere = {
        "tokenizer_file": here,
        "vocab_file": str(outside / "x.model"),
        "gguf_file": here,
        "vocab": here,
    }
    _set(folder / file, **elsewhere)
    with opened(outside) as found:
        model = OpenModel.from_folder(folder)
    assert not found
    assert model.tokenizer("ABC").input_ids == plain.tokenizer("ABC").input_ids


def test_a_link_counts_as_the_bytes_that_it_leads_to(tiny: Build, tmp_path: Path) -> None:
    """As the hub's cache has it: a snapshot of links to blobs."""
    blobs, snapshot = _folder(tiny, tmp_path / "blobs"), tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(blobs.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    before = OpenModel.from_folder(snapshot)
    assert before.identity.digest == folder_identity(shutil.copytree(snapshot, tmp_path / "copy")).digest
    link = snapshot / WEIGHTS
    tensors = {k: v * 2 for k, v in load_file(link).items()}
    save_file(tensors, link.resolve(), metadata={"format": "pt"})
    assert folder_identity(snapshot).digest != before.identity.digest


def test_the_name_of_the_folder_is_no_part_of_the_model(tiny: Build, tmp_path: Path) -> None:
    """transformers chooses the tokenizer's class by the name of some models; what is saved holds no path."""
    one, two = tmp_path / "a", tmp_path / "deepseek-ai" / "deepseek-coder-1"
    _folder(tiny, one)
    shutil.copytree(one, two)
    models = [OpenModel.from_folder(folder) for folder in (one, two)]
    assert models[0].identity.digest == models[1].identity.digest
    for model, folder in zip(models, (one, two), strict=True):
        assert model.module.config.name_or_path == model.tokenizer.name_or_path == str(folder)
        model.save(folder / "saved")
        assert not any(b"calibrant-" in file.read_bytes() for file in (folder / "saved").iterdir())
    assert folder_identity(one / "saved").digest == folder_identity(two / "saved").digest


def test_a_file_that_changes_meanwhile_is_noticed(
    tiny: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _folder(tiny, tmp_path / "model")
    load = open_model.load_folder

    def slow(*given: Any) -> Any:
        loaded = load(*given)
        _set(folder / "generation_config.json", temperature=0.5)
        return loaded

    monkeypatch.setattr(open_model, "load_folder", slow)
    with pytest.raises(InputError, match="was changed while the model was opened"):
        OpenModel.from_folder(folder)


def test_pipes_and_folders_in_place_of_files_are_not_read(tiny: Build, tmp_path: Path) -> None:
    folder = _folder(tiny, tmp_path / "model")
    before = folder_identity(folder)
    for name in ("extra.safetensors", "tokenizer.9.json", "spiece.model", INDEX):
        os.mkfifo(folder / name)
    (folder / "vocab.txt").mkdir()
    assert folder_identity(folder) == before == OpenModel.from_folder(folder, name="model").identity
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    with pytest.raises(CalibrantError, match="holds no weights"):
        OpenModel.from_folder(folder)
