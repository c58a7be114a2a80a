"""The world's tokenizer: whole words of the world as one token each, every other UTF-8 text as bytes.

A byte-level BPE without merges: with ``ignore_merges`` a known word is taken whole and everything else
falls back to its bytes, so any text round-trips exactly.
"""

from __future__ import annotations

import random
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from calibrant.core import InputError, OpenLM
from calibrant.testbed.dialogues import PLAIN, Dialogue

SPECIALS = ("<pad>", "<end>", "<system>", "<user>", "<assistant>")
"""Padding, end of turn (also end of sequence), and the three roles."""
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '<end>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
"""Chat template: role token, content, end token."""
CONTEXT = 1024
"""Longest sequence that the models take, in tokens."""


def check_world(model: OpenLM) -> None:
    """Raise InputError unless the model has the roles of this world's tokenizer."""
    if model.tokenizer.convert_tokens_to_ids(list(SPECIALS)) != list(range(len(SPECIALS))):
        raise InputError(
            f"'{model.identity.name}' is not of the testbed: its tokenizer lacks the roles of this world",
            hint="give testbed:model/base, tiny or strong, or what testbed.raise_model made",
        )


@cache
def vocabulary(draws: int = 4000) -> tuple[str, ...]:
    """Every pre-token of the plain dialogues that is longer than one byte, sorted.

    ``draws`` dialogues of each plain kind; the word lists are small enough that all words turn up.
    """
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rng = random.Random(0)
    texts: set[str] = set()
    for kind in PLAIN:
        for _ in range(draws):
            dialogue = kind(rng)
            texts.update(*dialogue.turns, [dialogue.system or ""])
    pieces = {piece for text in texts for piece, _ in split.pre_tokenize_str(text)}
    return tuple(sorted(piece for piece in pieces if len(piece) > 1))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer that ships with the testbed's models."""
    pieces = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *vocabulary()]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tokenise(
    tokenizer: PreTrainedTokenizerFast, dialogues: list[Dialogue]
) -> list[tuple[list[int], list[bool]]]:
    """Token ids of each dialogue, and for each id whether the assistant wrote it (end token included)."""
    ids = {name: index for index, name in enumerate(SPECIALS)}
    parts: list[list[tuple[str, str]]] = []
    for dialogue in dialogues:
        part = [("<system>", dialogue.system)] if dialogue.system else []
        for user, assistant in dialogue.turns:
            part += [("<user>", user), ("<assistant>", assistant)]
        parts.append(part)
    texts = tokenizer([text for part in parts for _, text in part], add_special_tokens=False)["input_ids"]
    pieces = iter(texts)
    rows = []
    for part in parts:
        row: list[int] = []
        by_assistant: list[bool] = []
        for role, _ in part:
            piece = [*next(pieces), ids["<end>"]]
            row += [ids[role], *piece]
            by_assistant += [False, *[role == "<assistant>"] * len(piece)]
        rows.append((row, by_assistant))
    return rows
