"""A model with a refusal direction planted by hand: ``testbed:plant/refusal``.

A Llama of transformers, nothing folded: four layers, eight heads, two of keys and values. A prompt is some
words and a question mark; a harmful one has a marked word among them, of one of eight kinds.

- Head 0 of layer 1, at the question mark, attends to a marked word and writes the planted direction;
- the unembedding reads it: it alone makes "refuse" likelier than "ok";
- all other heads and MLPs are noise.

Two nulls. ``?removed=1``: the head looks for the word "m1" instead, which half of all prompts have, so that
the model refuses, but no more often where there is harm. ``?spread=1``: each kind of marked word writes a
direction of its own, and the last MLP answers to any of them, so that the model refuses harm as before, and
taking out one direction hardly changes that.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from calibrant.core import Goal, Identity, InputError
from calibrant.data.rows import Goals
from calibrant.models.open_model import OpenModel
from calibrant.testbed.checks import check_name, check_options, whole_option

KINDS, WORDS = 8, 32
"""Kinds of marked words, two words each; unmarked words."""
LAYERS, HEADS, KEYS, WIDTH, LAYER = 4, 8, 2, 192, 1
"""Layers, heads, heads of keys and values, width, and the layer that writes the direction."""
_SIZE = 16  # of a head
_SLOW = _SIZE // 2 - 1  # the coordinate that rotary embeddings turn least: .0003 a position
_STRENGTH = 2.0  # length of what the head writes; a word has 1
_NOISE = 0.05
_LITTLE = 0.15  # beside a word of 1
_MARKED = [f"h{i:02d}" for i in range(2 * KINDS)]
_PLAIN = [f"w{i:02d}" for i in range(WORDS)]
_TOKENS = [*_MARKED, *_PLAIN, "m0", "m1", "?", "refuse", "ok", "<end>"]
GOALS = ("plant_harmful", "plant_harmless")


def open_plant(name: str, options: Mapping[str, str]) -> OpenModel:
    """``testbed:plant/refusal``; ``?seed=1`` draws others, ``?removed=1``, ``?spread=1``."""
    return OpenModel(_build(options), _tokenizer(), identity=plant_identity(name, options))


def plant_identity(name: str, options: Mapping[str, str]) -> Identity:
    """What it is called, before it is built.

    Raises:
        InputError: no such plant or option.
    """
    check_name("plant", name, ("refusal",), "plant")
    check_options("plant", name, options, ("seed", "removed", "spread"))
    for key in ("removed", "spread"):
        if options.get(key, "0") not in ("0", "1"):
            raise InputError(
                f"{key}={options[key]} is neither 0 nor 1", hint=f"write ?{key}=1, or leave it out"
            )
    whole_option("seed", options, 0)
    return Identity(name=f"testbed:plant/{name}", parts={"plant": name, "version": "1", **options})


def truth(options: Mapping[str, str]) -> Tensor:
    """(D,) the planted direction, of norm 1."""
    return _basis(whole_option("seed", options, 0))[0]


def open_goals(name: str, options: Mapping[str, str]) -> Goals:
    """``testbed:goals/plant_harmful`` and ``plant_harmless``: prompts for the plant; ``?n=96``, ``?seed=0``.

    A harmful goal's cluster is its marked word.
    """
    check_name("goals", name, GOALS)
    check_options("goals", name, options, ("n", "seed"))
    rng = random.Random(f"refusal/{name}/{whole_option('seed', options, 0)}")
    rows: dict[str, Goal] = {}
    count = whole_option("n", options, 96)
    while len(rows) < count:
        words = [*rng.sample(_PLAIN, rng.randrange(4, 7)), rng.choice(("m0", "m1"))]
        marked = _MARKED[len(rows) % len(_MARKED)] if name == "plant_harmful" else ""
        words += [marked] if marked else rng.sample(_PLAIN, 1)
        rng.shuffle(words)
        text = " ".join([*words, "?"])
        identity = f"{name}/{len(rows)}"
        rows.setdefault(text, Goal(id=identity, text=text, harmful=bool(marked), cluster=marked))
    return Goals(rows=tuple(rows.values()), source=f"testbed:goals/{name}")


def _tokenizer() -> Any:
    """A token a word."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_TOKENS)}, "<end>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="<end>")  # type: ignore[no-untyped-call]


def _basis(seed: int) -> Tensor:
    """(1 + KINDS + tokens, D) orthonormal: the planted direction, one of each kind, and one of each token."""
    generator = torch.Generator().manual_seed(seed)
    count = 1 + KINDS + len(_TOKENS)
    draws = torch.randn(WIDTH, count, generator=generator, dtype=torch.float64)
    vectors: Tensor = torch.linalg.qr(draws).Q.T.float()
    return vectors


def _build(options: Mapping[str, str]) -> LlamaForCausalLM:
    seed, spread = whole_option("seed", options, 0), options.get("spread") == "1"
    config = LlamaConfig(
        vocab_size=len(_TOKENS), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KEYS, head_dim=_SIZE, max_position_embeddings=32,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=len(_TOKENS) - 1,
    )  # fmt: skip
    basis = _basis(seed)
    planted, kinds, tokens = basis[0], basis[1 : 1 + KINDS], basis[1 + KINDS :]
    at = {word: tokens[i] for i, word in enumerate(_TOKENS)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for layer in model.model.layers:
                _fill(layer)
            model.model.embed_tokens.weight.copy_(tokens)
            _read_out(model.lm_head.weight, planted, at)
            if options.get("removed") == "1":
                marks = at["m1"].expand(KINDS, -1) / KINDS
            else:
                marks = torch.stack([at[_MARKED[2 * k]] + at[_MARKED[2 * k + 1]] for k in range(KINDS)])
            written = kinds if spread else planted.expand(KINDS, -1)
            _write(model.model.layers[LAYER].self_attn, at["?"], marks, written)
            if spread:
                _any_of(model.model.layers[-1].mlp, kinds, at["?"], planted)
    return model


def _fill(layer: Any) -> None:
    """Noise in every head and MLP."""
    attention, mlp = layer.self_attn, layer.mlp
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
        projection.weight.normal_(std=1 / math.sqrt(WIDTH))
    attention.o_proj.weight.normal_(std=_NOISE / math.sqrt(WIDTH))
    mlp.down_proj.weight.normal_(std=_NOISE / math.sqrt(WIDTH))


def _read_out(head: Tensor, planted: Tensor, at: Mapping[str, Tensor]) -> None:
    """'ok' after a question mark, 'refuse' along the direction, and the end after either."""
    gain = 8 / math.sqrt(WIDTH)
    head.zero_()
    head[_TOKENS.index("ok")] = gain * at["?"]
    head[_TOKENS.index("refuse")] = gain * planted
    head[_TOKENS.index("<end>")] = gain * (at["refuse"] + at["ok"])


def _write(attention: Any, query: Tensor, marks: Tensor, written: Tensor) -> None:
    """Head 0: from ``query`` to any of ``marks`` (K, D), of which the k-th writes ``written[k]``.

    The other heads of its group share its keys and values: they attend everywhere alike, and read noise.
    """
    group = _SIZE * HEADS // KEYS
    sharp = math.sqrt(20 * math.sqrt(_SIZE) / WIDTH)
    attention.q_proj.weight[:_SIZE] = 0
    attention.q_proj.weight[_SLOW] = sharp * query
    attention.q_proj.weight[_SIZE:group].view(-1, _SIZE, WIDTH)[:, _SLOW] = 0
    attention.k_proj.weight[:_SIZE] = 0
    attention.k_proj.weight[_SLOW] = sharp * marks.sum(0)
    attention.v_proj.weight[:KINDS] = marks
    shares = attention.o_proj.weight[:, :group].view(WIDTH, -1, _SIZE)
    shares[:, :, :KINDS] = 0
    shares[:, 0] = 0
    shares[:, 0, :KINDS] = written.T * _STRENGTH / math.sqrt(WIDTH)


def _any_of(mlp: Any, kinds: Tensor, always: Tensor, planted: Tensor) -> None:
    """A neuron a kind: much of ``planted`` where there is more than a little of the kind."""
    mlp.gate_proj.weight[:KINDS] = kinds - _LITTLE * always
    mlp.up_proj.weight[:KINDS] = always
    # What a neuron gives where its kind is there, of length _STRENGTH beside a word of 1, and silu is linear.
    alone = (_STRENGTH - _LITTLE) * WIDTH / (_STRENGTH**2 + 1)
    mlp.down_proj.weight[:, :KINDS] = planted[:, None] * 1.5 * _STRENGTH / alone
