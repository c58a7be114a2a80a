"""Models with a circuit planted by hand: which heads do it is known by construction.

``induction``: at the second occurrence of a word, say the word that followed its first. In a GPT-2 of
transformers, nothing folded, two layers of six heads:

- head 1 of layer 0 attends to the token before and copies its word to a subspace of its own;
- head 2 of layer 1 looks there for the present word, and copies the word that it finds to the output;
- ``?twin=1`` plants that head twice (head 3), each at half strength: redundancy;
- head 0 of layer 1, a decoy, attends as the induction head does and writes nothing;
- the others are noise, and ``?removed=1`` takes what the circuit writes away: a null that attends the same.

Words, positions and outputs lie in random directions of the stream (``?seed=``), never along its axes, and
every vector has mean 0 and much the same norm, so that LayerNorm changes little.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from calibrant.core import Chat, Identity, InputError
from calibrant.data.rows import Contrast, Contrasts
from calibrant.models.open_model import OpenModel
from calibrant.testbed.checks import check_name, check_options, whole_option

WORDS, LENGTH = 24, 12
"""Words, and words of a prompt."""
HEADS, WIDTH = 6, 192
PREVIOUS, INDUCTION, TWIN, DECOY = (0, 1), (1, 2), (1, 3), (1, 0)
"""Layer and head."""
_SHARP = 60.0  # score between what is attended to and all else, in nats, about
_NOISE = 0.3  # size of what a noise head writes, beside vectors of size 1
_CORRUPT = ("earlier", "answer")


def truth(options: Mapping[str, str]) -> tuple[tuple[int, int], ...]:
    """The planted heads, (layer, head) each."""
    if options.get("removed") == "1":
        return ()
    return (PREVIOUS, INDUCTION, TWIN) if options.get("twin") == "1" else (PREVIOUS, INDUCTION)


def open_plant(name: str, options: Mapping[str, str]) -> OpenModel:
    """``testbed:plant/induction``; ``?seed=1`` draws others, ``?twin=1``, ``?removed=1``."""
    return OpenModel(
        _build(options), tokenizer([_word(i) for i in range(WORDS)]), identity=plant_identity(name, options)
    )


def plant_identity(name: str, options: Mapping[str, str]) -> Identity:
    """What it is called, before it is built.

    Raises:
        InputError: no such circuit or option.
    """
    check_name("plant", name, ("induction",), "circuit")
    check_options("plant", name, options, ("seed", "twin", "removed"))
    for key in ("twin", "removed"):
        if options.get(key, "0") not in ("0", "1"):
            raise InputError(
                f"{key}={options[key]} is neither 0 nor 1", hint=f"write ?{key}=1, or leave it out"
            )
    whole_option("seed", options, 0)
    return Identity(name=f"testbed:plant/{name}", parts={"plant": name, "version": "1", **options})


def open_contrasts(name: str, options: Mapping[str, str]) -> Contrasts:
    """``testbed:contrasts/induction``: words A B ... A, which B follows, and a corrupted version.

    ``?corrupt=earlier`` (the default) changes the first A, ``answer`` changes B; the foil is B's changed
    version, or another word of the prompt. ``?n=48``, ``?seed=0``.
    """
    check_name("contrasts", name, ("induction",), "task")
    check_options("contrasts", name, options, ("n", "seed", "corrupt"))
    how = options.get("corrupt", "earlier")
    if how not in _CORRUPT:
        raise InputError(f"corrupt={how} is no corruption", hint=f"one of: {', '.join(_CORRUPT)}")
    rng = random.Random(f"contrasts/{whole_option('seed', options, 0)}")
    made = []
    for number in range(whole_option("n", options, 48)):
        words = rng.sample(range(WORDS), LENGTH)
        at = rng.randrange(1, LENGTH - 3)
        words[-1] = words[at]
        spare = [word for word in range(WORDS) if word not in words]
        changed = list(words)
        changed[at if how == "earlier" else at + 1] = rng.choice(spare)
        others = [word for place, word in enumerate(words[:-1]) if place not in (at, at + 1)]
        foil = changed[at + 1] if how == "answer" else rng.choice(others)
        made.append(
            Contrast(
                id=f"induction/{how}/{number}",
                clean=Chat.ask(_text(words)),
                corrupt=Chat.ask(_text(changed)),
                answer=_word(words[at + 1]),
                foil=_word(foil),
            )
        )
    return Contrasts(rows=tuple(made), source=f"testbed:contrasts/{name}")


def _word(number: int) -> str:
    return f"w{number:02d}"


def _text(words: list[int]) -> str:
    return " ".join(map(_word, words))


def tokenizer(words: Sequence[str]) -> Any:
    """A token a word, and <end>."""
    vocabulary = {word: at for at, word in enumerate((*words, "<end>"))}
    inner = Tokenizer(models.WordLevel(vocabulary, "<end>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="<end>")  # type: ignore[no-untyped-call]


def _build(options: Mapping[str, str]) -> GPT2LMHeadModel:
    generator = torch.Generator().manual_seed(whole_option("seed", options, 0))
    config = GPT2Config(
        vocab_size=WORDS + 1, n_positions=LENGTH + 4, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_inner=8,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=WORDS,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    vectors = basis(3 * (WORDS + 1) + config.n_positions, generator)
    word, before, output = (vectors[i * (WORDS + 1) : (i + 1) * (WORDS + 1)] for i in range(3))
    position = vectors[3 * (WORDS + 1) :]
    size = WIDTH // HEADS
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.zero_()
        model.transformer.wte.weight.copy_(word)
        model.transformer.wpe.weight.copy_(position)
        model.lm_head.weight.copy_(output * 1.2)
        attentions = [block.attn for block in model.transformer.h]
        for layer in (0, 1):
            for head in range(HEADS):
                write(attentions[layer], head, *noise(size, generator))
        written = 0.0 if options.get("removed") == "1" else 1.0
        shift = torch.roll(torch.eye(config.n_positions), -1, 0)  # a query at i wants the key of i - 1
        sharp = math.sqrt(_SHARP * math.sqrt(size) / (WIDTH / 2))
        write(
            attentions[0], PREVIOUS[1], rows(shift @ position, size) * sharp, rows(position, size) * sharp,
            rows(word, size), rows(before, size) * written / math.sqrt(WIDTH / 2),
        )  # fmt: skip
        twins = (INDUCTION, TWIN) if options.get("twin") == "1" else (INDUCTION,)
        for place in (*twins, DECOY):
            strength = 0.0 if place == DECOY else written / len(twins)
            write(
                attentions[1], place[1], rows(word, size) * sharp * 1.2, rows(before, size) * sharp * 1.2,
                rows(word, size), rows(output, size) * strength / math.sqrt(WIDTH / 2),
            )  # fmt: skip
    return model


def basis(count: int, generator: torch.Generator) -> Tensor:
    """(count, WIDTH) orthonormal vectors of mean 0, in random directions."""
    draws = torch.randn(WIDTH, count, generator=generator, dtype=torch.float64)
    vectors: Tensor = torch.linalg.qr(draws - draws.mean(0)).Q.T.float()
    return vectors


def rows(vectors: Tensor, size: int) -> Tensor:
    """(size, WIDTH): a map from the stream to a head that has one coordinate a vector."""
    return torch.cat([vectors, torch.zeros(size - len(vectors), WIDTH)])


def noise(size: int, generator: torch.Generator) -> list[Tensor]:
    """Queries, keys, values and outputs of a head that means nothing, of mean 0 in the stream."""
    maps = [torch.randn(size, WIDTH, generator=generator) / math.sqrt(WIDTH) for _ in range(4)]
    maps[3] = (maps[3] - maps[3].mean(1, keepdim=True)) * _NOISE / math.sqrt(size)
    return maps


def write(attention: Any, head: int, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
    """Set a head's maps (size, WIDTH) in GPT-2's joint matrices."""
    size = WIDTH // HEADS
    here = slice(head * size, (head + 1) * size)
    for number, part in enumerate((query, key, value)):
        attention.c_attn.weight[:, number * WIDTH + head * size : number * WIDTH + (head + 1) * size] = part.T
    attention.c_proj.weight[here] = output
