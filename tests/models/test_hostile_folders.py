"""Folders made to harm: each ends in an error of ours, and in little work."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.nn.modules.module import register_module_parameter_registration_hook

from calibrant.core import CalibrantError, Chat, InputError
from calibrant.data.judge_folder import CARD as JUDGE
from calibrant.data.judge_folder import WEIGHTS as JUDGE_WEIGHTS
from calibrant.data.judge_folder import read_head, write_head
from calibrant.data.judge_head import JudgeHead
from calibrant.models.classifier import Classifier
from calibrant.models.folder import INDEX, WEIGHTS
from calibrant.models.open_model import OpenModel
from calibrant.models.reward_model import open_reward

CONFIG, TOKENIZER, SETTINGS = "config.json", "tokenizer.json", "tokenizer_config.json"
Change = Callable[[Path], None]


def put(name: str, content: str | bytes) -> Change:
    """Write a file."""

    def change(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)

    return change


def told(name: str, **changes: Any) -> Change:
    """Set keys of a JSON object."""

    def change(folder: Path) -> None:
        found = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps({**found, **changes}))

    return change


def config(**changes: Any) -> Change:
    return told(CONFIG, **changes)


def without(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def renamed(name: str, other: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).rename(folder / other)

    return change


def longer(name: str, more: int) -> Change:
    """The same file with bytes added, or cut off."""

    def change(folder: Path) -> None:
        os.truncate(folder / name, (folder / name).stat().st_size + more)

    return change


def header(entries: Any, data: int = 0) -> Change:
    """A safetensors file with this header and so many bytes of data."""
    text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    return put(WEIGHTS, len(text).to_bytes(8, "little") + text + b"\0" * data)


def instead(name: str, make: Callable[[Path], Any]) -> Change:
    """Another kind of thing in place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


def index(shards: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "a.safetensors")
        (folder / INDEX).write_text(shards if isinstance(shards, str) else json.dumps(shards))

    return change


def piece(**changes: Any) -> Change:
    """Change parts of tokenizer.json."""
    return told(TOKENIZER, **changes)


def vocabulary(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        found = json.loads((folder / TOKENIZER).read_text())
        found["model"].update(changes)
        (folder / TOKENIZER).write_text(json.dumps(found))

    return change


F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
DEEP = "[" * 100_000
HOSTILE: dict[str, Change] = {
    "config: nothing": put(CONFIG, ""),
    "config: bytes": put(CONFIG, b"\xff\xfe\x00"),
    "config: a list": put(CONFIG, "[]"),
    "config: null": put(CONFIG, "null"),
    "config: deep": put(CONFIG, DEEP),
    "config: deep objects": put(CONFIG, '{"a":' * 5000 + "1" + "}" * 5000),
    "config: an endless number": put(CONFIG, '{"hidden_size": ' + "9" * 5000 + "}"),
    "config: no model_type": put(CONFIG, '{"hidden_size": 4}'),
    "config: unknown model_type": config(model_type="no-such-model"),
    "config: model_type as a list": config(model_type=["llama"]),
    "config: model_type as a number": config(model_type=7),
    "config: another family": config(model_type="gpt2"),
    "config: an encoder": config(model_type="bert", architectures=["BertModel"]),
    "config: code of its own": config(
        model_type="mine", auto_map={"AutoConfig": "x.C", "AutoModelForCausalLM": "x.M"}
    ),
    "config: auto_map as a number": config(auto_map=3, model_type="mine"),
    "config: ten million layers": config(num_hidden_layers=10**7),
    "config: fifty thousand layers": config(num_hidden_layers=50_000),
    "config: layers as a float": config(num_hidden_layers=2.5),
    "config: layers as a text": config(num_hidden_layers="many"),
    "config: layers as a list": config(num_hidden_layers=[3]),
    "config: layers below zero": config(num_hidden_layers=-1),
    "config: a billion labels": config(num_labels=10**9),
    "config: a huge vocabulary": config(vocab_size=10**12),
    "config: a larger vocabulary": config(vocab_size=10**8),
    "config: an endless vocabulary": config(vocab_size=10**40),
    "config: a negative vocabulary": config(vocab_size=-5),
    "config: vocabulary as a text": config(vocab_size="300"),
    "config: a huge width": config(hidden_size=2**40),
    "config: no width": config(hidden_size=0),
    "config: width NaN": config(hidden_size=float("nan")),
    "config: width infinite": config(hidden_size=float("inf")),
    "config: width null": config(hidden_size=None),
    "config: width true": config(hidden_size=True),
    "config: a huge middle": config(intermediate_size=10**14),
    "config: no heads": config(num_attention_heads=0),
    "config: many heads": config(num_attention_heads=10**9),
    "config: heads that do not divide": config(num_attention_heads=5, head_dim=None),
    "config: a huge head": config(head_dim=10**10),
    "config: an unknown activation": config(hidden_act="os.system"),
    "config: activation as a list": config(hidden_act=["silu"]),
    "config: rope as a text": config(rope_parameters="x"),
    "config: an unknown rope": config(rope_parameters={"rope_type": "x", "rope_theta": 1}),
    "config: rope of nothing": config(rope_scaling={"rope_type": "yarn"}),
    "config: attention from the hub": config(attn_implementation="org/kernels"),
    "config: attention from the hub, by another name": config(_attn_implementation="org/kernels:fn"),
    "config: attention from the hub, in a table": config(attn_implementation={"": "org/kernels@main"}),
    "config: attention that is paged": config(attn_implementation="paged|org/kernels"),
    "config: attention not installed": config(attn_implementation="flash_attention_3"),
    "config: experts from the hub": config(experts_implementation="org/kernels"),
    "config: quantised by what is not there": config(quantization_config={"quant_method": "gptq", "bits": 4}),
    "config: quantised by nothing": config(quantization_config={}),
    "config: quantised as a text": config(quantization_config="int4"),
    "config: weights elsewhere": config(transformers_weights="../other.safetensors"),
    "config: weights of another name": config(transformers_weights="other.safetensors"),
    "config: a folder": instead(CONFIG, Path.mkdir),
    "config: a pipe": instead(CONFIG, os.mkfifo),
    "config: links in a circle": instead(CONFIG, lambda path: path.symlink_to(path.name)),
    "config: a link to nowhere": instead(CONFIG, lambda path: path.symlink_to("/no/such/file")),
    "generation: a list": put("generation_config.json", "[1]"),
    "generation: end tokens as a text": told("generation_config.json", eos_token_id="x"),
    "generation: end tokens as tables": told("generation_config.json", eos_token_id=[{"a": 1}]),
    "generation: end tokens as fractions": told("generation_config.json", eos_token_id=1.5),
    "weights: nothing": put(WEIGHTS, b""),
    "weights: seven bytes": put(WEIGHTS, b"1234567"),
    "weights: text": put(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"),
    "weights: cut off": longer(WEIGHTS, -100),
    "weights: too long": longer(WEIGHTS, 1),
    "weights: an endless header": put(WEIGHTS, b"\xff" * 8 + b"{}"),
    "weights: a header of 4 GB": put(WEIGHTS, (2**32).to_bytes(8, "little") + b"{}"),
    "weights: no JSON": header(b"\xff\xff"),
    "weights: a deep header": header(DEEP.encode()),
    "weights: a list": header([]),
    "weights: a tensor as a text": header({"a": "b"}),
    "weights: offsets as a text": header({"a": {**F32, "data_offsets": "01"}}, 16),
    "weights: offsets of three": header({"a": {**F32, "data_offsets": [0, 8, 16]}}, 16),
    "weights: offsets backwards": header({"a": {**F32, "data_offsets": [16, 0]}}, 16),
    "weights: offsets beyond the end": header({"a": {**F32, "data_offsets": [0, 2**60]}}, 16),
    "weights: one place for many": header({str(i): F32 for i in range(100)}, 16),
    "weights: a huge shape": header({"a": {**F32, "shape": [2**60]}}, 16),
    "weights: a negative shape": header({"a": {**F32, "shape": [-4]}}, 16),
    "weights: an unknown type": header({"a": {**F32, "dtype": "F1024"}}, 16),
    "weights: of another model": header({"a": F32}, 16),
    "weights: none": header({}),
    "weights: a folder": instead(WEIGHTS, Path.mkdir),
    "weights: a pipe": instead(WEIGHTS, os.mkfifo),
    "weights: links in a circle": instead(WEIGHTS, lambda path: path.symlink_to(path.name)),
    "weights: a pickle": renamed(WEIGHTS, "pytorch_model.bin"),
    "index: a list": index([]),
    "index: no map": index({"metadata": {}}),
    "index: an empty map": index({"metadata": {}, "weight_map": {}}),
    "index: a map of numbers": index({"metadata": {}, "weight_map": {"a": 1}}),
    "index: a map of lists": index({"metadata": {}, "weight_map": {"a": ["a.safetensors"]}}),
    "index: metadata as a text": index({"metadata": "x", "weight_map": {"a": "a.safetensors"}}),
    "index: no metadata": index({"weight_map": {"a": "a.safetensors"}}),
    "index: a shard elsewhere": index({"metadata": {}, "weight_map": {"a": "../a.safetensors"}}),
    "index: a shard that is absolute": index({"metadata": {}, "weight_map": {"a": "/dev/zero"}}),
    "index: a shard that is not there": index({"metadata": {}, "weight_map": {"a": "b.safetensors"}}),
    "index: a shard with a zero": index({"metadata": {}, "weight_map": {"a": "a\0.safetensors"}}),
    "index: deep": index(DEEP),
    "tokenizer: nothing": put(TOKENIZER, ""),
    "tokenizer: bytes": put(TOKENIZER, bytes(range(128, 256))),
    "tokenizer: a list": put(TOKENIZER, "[]"),
    "tokenizer: empty": put(TOKENIZER, "{}"),
    "tokenizer: deep": put(TOKENIZER, DEEP),
    "tokenizer: no model": piece(model=None),
    "tokenizer: an unknown model": piece(model={"type": "x"}),
    "tokenizer: merges of what is not there": vocabulary(merges=[["qq", "zz"]]),
    "tokenizer: merges as numbers": vocabulary(merges=[1, 2]),
    "tokenizer: words as a list": vocabulary(vocab=["a"]),
    "tokenizer: ids below zero": vocabulary(vocab={"a": -1}),
    "tokenizer: ids as texts": vocabulary(vocab={"a": "b"}),
    "tokenizer: added tokens as a text": piece(added_tokens="x"),
    "tokenizer: a bad pattern": piece(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated"}
    ),
    "tokenizer: texts that double": piece(normalizer={"type": "Sequence", "normalizers": [DOUBLE] * 40}),
    "tokenizer: texts that double when spelt": piece(decoder={"type": "Sequence", "decoders": [DOUBLE] * 40}),
    "tokenizer: long beginnings": piece(
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x" * 999}] * 99}
    ),
    "tokenizer: a processor of twenty thousand pieces": piece(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 20_000,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {},
        }
    ),
    "tokenizer: a panic": piece(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}),
    "tokenizer: an endless word": vocabulary(vocab={"a" * 20_000: 0}, merges=[]),
    "added: an id beyond all": told("added_tokens.json", x=10**9),
    "added: an id below zero": told("added_tokens.json", x=-3),
    "settings: an added id beyond all": told(SETTINGS, added_tokens_decoder={"1000000000": {"content": "x"}}),
    "config: a part from elsewhere": config(backbone="org/model", use_pretrained_backbone=True),
    "config: a checkpoint of a part": config(vision_config={"model_args": {"checkpoint_path": "/x.pth"}}),
    "tokenizer: a folder": instead(TOKENIZER, Path.mkdir),
    "tokenizer: a pipe": instead(TOKENIZER, os.mkfifo),
    "settings: a list": put(SETTINGS, "[]"),
    "settings: deep": put(SETTINGS, DEEP),
    "settings: a class as a number": told(SETTINGS, tokenizer_class=5),
    "settings: auto_map as a number": told(SETTINGS, auto_map=5),
    "settings: added tokens as a list": told(SETTINGS, added_tokens_decoder=[1]),
    "settings: added tokens as a number": told(SETTINGS, added_tokens_decoder=5),
    "settings: added tokens of no number": told(SETTINGS, added_tokens_decoder={"x": {"content": "a"}}),
    "settings: an end token as a number": told(SETTINGS, eos_token=5),
    "settings: an end token as a list": told(SETTINGS, eos_token=["</s>"]),
    "settings: no end token": told(SETTINGS, eos_token=None),
    "settings: versions as a text": told(SETTINGS, fast_tokenizer_files="tokenizer.1.json"),
    "settings: a template as a number": told(SETTINGS, chat_template=5),
    "settings: a template as a list": told(SETTINGS, chat_template=[1, 2]),
    "settings: templates without a default": told(SETTINGS, chat_template=[{"name": "a", "template": "b"}]),
    "template: bytes": put("chat_template.jinja", b"\xff\xfe"),
    "template: no syntax": put("chat_template.jinja", "{% if %}"),
    "template: endless": put("chat_template.jinja", "{% for a in range(99999) %}" * 2 + "{% endfor %}" * 2),
    "template: a huge text": put("chat_template.jinja", "{{ 'a' * 10**10 }}"),
    "template: lipsum": put("chat_template.jinja", "{{ lipsum(10**6) }}"),
    "adapter": told("adapter_config.json", base_model_name_or_path="org/model"),
    "tokenizer: none": without(TOKENIZER),
}


@pytest.fixture(scope="module")
def good(tiny: Callable[..., OpenModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "model"
    tiny().save(folder)
    return folder


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_ends_in_an_error_of_ours(good: Path, tmp_path: Path, name: str) -> None:
    """Work is counted: few parameters are ever registered, so nothing huge was being built."""
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    HOSTILE[name](folder)
    built = 0

    def count(*_: Any) -> None:
        nonlocal built
        built += 1

    handle = register_module_parameter_registration_hook(count)
    try:
        with pytest.raises(CalibrantError) as caught:
            OpenModel.from_folder(folder)
    finally:
        handle.remove()
    assert caught.value.hint and len(caught.value.message) < 1500
    assert built < 2500


def test_lengths_and_token_ids_are_no_counts(good: Path, tmp_path: Path) -> None:
    """Context lengths and vocabularies go beyond what any count of layers or labels does."""
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    config(block_size=131_072, image_block_token_id=151_645, label_token_ids=[151_643])(folder)
    assert OpenModel.from_folder(folder)


ODD: tuple[Any, ...] = (None, True, -7, 65_536, 10**9, 1e300, float("nan"), "x", [], [1], {}, {"a": 1})


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_no_setting_of_a_config_breaks_anything_but_its_folder(
    tiny: Callable[..., OpenModel], tmp_path: Path, family: str
) -> None:
    """Every setting in turn is all that it should not be: the model opens, or an error of ours says why."""
    tiny(family).save(tmp_path)
    honest = json.loads((tmp_path / CONFIG).read_text())
    opened = refused = 0
    for key in [*honest, "num_labels", "attn_implementation", "quantization_config", "rope_scaling"]:
        for value in ODD:
            (tmp_path / CONFIG).write_text(json.dumps({**honest, key: value}))
            try:
                OpenModel.from_folder(tmp_path)
                opened += 1
            except CalibrantError as error:
                assert error.hint
                refused += 1
    assert opened > 50 and refused > 50


def test_a_pattern_that_tries_for_ever_costs_one_error(good: Path, tmp_path: Path) -> None:
    """The tokenizer's library gives up with a panic of Rust, which is no Exception."""
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    piece(normalizer={"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""})(folder)
    model = OpenModel.from_folder(folder)
    assert model.prompt_ids(Chat.ask("a cat"))
    with pytest.raises(InputError, match="the tokenizer gives up on a text"):
        model.prompt_ids(Chat.ask("x" * 40))


REWARD = "reward.json"


def ensemble_of_itself(folder: Path) -> None:
    told(REWARD, kind="independent", members=1)(folder)
    (folder / "member0").symlink_to(folder)


BAD_REWARDS: dict[str, Change] = {
    "card: nothing": put(REWARD, ""),
    "card: bytes": put(REWARD, b"\xff\xfe"),
    "card: a list": put(REWARD, "[]"),
    "card: deep": put(REWARD, DEEP),
    "card: no members": told(REWARD, kind="single", members=0),
    "card: a billion members": told(REWARD, kind="independent", members=10**9),
    "card: members that are not there": told(REWARD, kind="independent", members=2),
    "card: itself for a member": ensemble_of_itself,
    "card: a mean NaN": told(REWARD, kind="single", members=1, normaliser={"mean": [float("nan")]}),
    "card: a std of 0": told(REWARD, kind="single", members=1, normaliser={"std": [0]}),
    "card: too many means": told(
        REWARD, kind="single", members=1, normaliser={"mean": [0, 0], "std": [1, 1]}
    ),
    "card: another end token": told(REWARD, kind="single", members=1, end_id=7),
    "config: a list": put(CONFIG, "[]"),
    "config: a billion labels": config(num_labels=10**9),
    "config: labels as a list": config(id2label=["a", "b"]),
    "config: labels of no number": config(id2label={"a": "b"}),
    "config: classes": config(id2label={"0": "a", "1": "b"}, problem_type=None),
    "config: end tokens as a text": config(eos_token_id="x"),
    "weights: without a head": config(architectures=["LlamaForCausalLM"]),
}


@pytest.fixture(scope="module")
def good_reward(tiny: Callable[..., OpenModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "reward"
    Classifier.from_lm(tiny()).save(folder)
    return folder


@pytest.mark.parametrize("name", BAD_REWARDS)
def test_a_hostile_reward_ends_in_an_error_of_ours(good_reward: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "reward"
    shutil.copytree(good_reward, folder)
    BAD_REWARDS[name](folder)
    with pytest.raises(CalibrantError) as caught:
        open_reward(folder)
    assert caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        instead(JUDGE, os.mkfifo),
        instead(JUDGE_WEIGHTS, os.mkfifo),
        instead(JUDGE, Path.mkdir),
        put(JUDGE, DEEP),
        put(JUDGE, "[]"),
        put(JUDGE, b"\xff"),
        told(JUDGE, threshold=float("nan")),
        told(JUDGE, pool="all"),
        put(JUDGE_WEIGHTS, b""),
        put(JUDGE_WEIGHTS, b"\xff" * 8),
    ],
    ids=lambda _: "",
)
def test_a_hostile_judge_ends_in_an_error_of_ours(tmp_path: Path, change: Change) -> None:
    head = JudgeHead(
        question="harmful",
        model="m",
        site="s",
        pool="mean",
        threshold=0.5,
        mean=(0,),
        std=(1,),
        weight=(1,),
        bias=0,
    )
    write_head(head, tmp_path)
    assert read_head(tmp_path) == head
    change(tmp_path)
    with pytest.raises(InputError):
        read_head(tmp_path)
