"""What GCG is raced on: Llamas with random weights, and a byte-level BPE trained on made-up words.

Random weights have no reply that they favour, so that a search goes on for as long as it is let; parity and
pace do not depend on what a model knows.

    .venv/bin/python benchmarks/_gcg_peer.py FOLDER 11M        # write one
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

VOCABULARY = 16_384
SHAPES: dict[str, dict[str, Any]] = {
    "2M": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 172, "num_attention_heads": 4},
    "11M": {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 688, "num_attention_heads": 4},
    "41M": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1376, "num_attention_heads": 8},
}
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIALS = ("<pad>", "<begin>", "<end>", "<user>", "<assistant>", "<system>")


def save_model(folder: Path, shape: str) -> Path:
    """A Llama of ``SHAPES[shape]`` with its tokenizer in ``folder``."""
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        **SHAPES[shape],
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = LlamaForCausalLM(config)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with VOCABULARY tokens."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(_lines(), trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<begin>",
        eos_token="<end>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def text(tokenizer: Any, tokens: int, seed: int) -> str:
    """Made-up words that take ``tokens`` tokens behind another word."""
    rng, chosen = random.Random(seed), list(_words())
    found = ""
    while len(tokenizer(found, add_special_tokens=False)["input_ids"]) < tokens:
        found += " " + rng.choice(chosen)
    ids = tokenizer(found, add_special_tokens=False)["input_ids"][:tokens]
    return str(tokenizer.decode(ids))


def _words() -> list[str]:
    """20,000 words of two to four syllables."""
    rng = random.Random(0)
    syllables = [c + v for c in "bdfghklmnprstvz" for v in "aeiou"]
    return ["".join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(20_000)]


def _lines() -> Iterator[str]:
    """Lines of them, the first words more often than the last."""
    rng, words = random.Random(1), _words()
    weights = [1 / (place + 10) for place in range(len(words))]
    for _ in range(6_000):
        line = " ".join(rng.choices(words, weights, k=12))
        yield line.capitalize() + rng.choice((".", "!", "?", ", 1", ": 23", " (4)"))


if __name__ == "__main__":
    save_model(Path(sys.argv[1]), sys.argv[2])
