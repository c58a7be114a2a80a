"""The model and the chats that the model benchmarks race on: a random Llama of about a million parameters."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from calibrant.core import Chat
from calibrant.models.open_model import OpenModel
from calibrant.testbed.tokens import SPECIALS, build_tokenizer

STOPS = 24
"""How many words beside the end token end a reply: random weights would hardly ever say the end token."""


def tiny_model() -> OpenModel:
    """Random weights, float32, large enough that the likeliest token is likeliest by far."""
    tokenizer = build_tokenizer()
    shape: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 352}
    config = LlamaConfig(
        **shape,
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.25,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=SPECIALS.index("<end>"),
        pad_token_id=SPECIALS.index("<pad>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = LlamaForCausalLM(config)
    module.generation_config.eos_token_id = [config.eos_token_id, *range(300, 300 + STOPS)]
    return OpenModel.from_module(module, tokenizer, "tiny")


def chats(model: OpenModel, count: int) -> list[Chat]:
    """Requests of 4 to 160 words of the tokenizer's vocabulary, short ones more often, in random order."""
    return [Chat.ask(text) for text in _texts(model, count, 4, 160, seed=1)]


def replies(model: OpenModel, count: int) -> list[str]:
    """Replies of 2 to 80 words."""
    return _texts(model, count, 2, 80, seed=2)


def _texts(model: OpenModel, count: int, least: int, most: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = range(len(SPECIALS) + 256, len(model.tokenizer))
    lengths = [round(least * (most / least) ** rng.random()) for _ in range(count)]
    return [model.tokenizer.decode(rng.choices(words, k=length)) for length in lengths]
