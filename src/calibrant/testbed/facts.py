"""A model in which facts were planted by hand: at which token and layer each is read is known.

``facts``: after "... FIRST LAST FILLER ... is" say what the pair of names stands for. In a GPT-2 of
transformers, nothing folded, four layers of six heads:

- layer 0, head 1 attends to the token before and copies its name: the last name learns the first;
- layer 1, MLP: one neuron a fact fires where both names are, at the last name, and writes the answer there;
- layer 2, head 2: the final "is" attends to the last name and copies the answer to the output;
- the other heads are noise, the other MLPs write nothing, and layer 3 has no part in it.

So a clean state restored at the last name brings the fact back after layer 0 (the first name is there by
then) and layer 1, and at the last token from layer 2 on; what an MLP adds matters in layer 1 alone.
``?removed=1`` takes what the MLP writes away: a null that has the same shape and knows nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from calibrant.core import Chat, Identity, InputError
from calibrant.data.rows import Fact, Facts
from calibrant.models.open_model import OpenModel
from calibrant.testbed.checks import check_name, check_options, whole_option
from calibrant.testbed.circuit_weights import HEADS, WIDTH, basis, noise, rows, write
from calibrant.testbed.circuits import tokenizer

FIRSTS = ("ada", "bo", "cy", "dot", "eli", "flo")
LASTS = ("ames", "birch", "cole", "dunn", "east", "frost")
ANSWERS = ("amber", "beige", "coral", "denim", "ebony", "fawn", "grey", "hazel")
FILLERS = ("of", "the", "hat", "coat", "in", "town", "old", "new")
WORDS = (*FIRSTS, *LASTS, *ANSWERS, *FILLERS, "is")
LAYERS, LENGTH = 4, 12
PREVIOUS, RECALL, READOUT = (0, 1), 1, (2, 2)
"""Layer and head that copies the first name; layer of the MLP; layer and head that copies the answer."""
_SHARP = 60.0  # score between what is attended to and all else, in nats, about
_STEEP = 20.0  # of a neuron, between one name and both


def answers() -> dict[tuple[str, str], str]:
    """(first, last) -> the planted answer."""
    rng = random.Random("facts")
    return {names: rng.choice(ANSWERS) for names in product(FIRSTS, LASTS)}


def open_plant(name: str, options: Mapping[str, str]) -> OpenModel:
    """``testbed:plant/facts``; ``?seed=1`` draws other vectors, ``?removed=1`` takes the facts away."""
    return OpenModel(_build(options), tokenizer(WORDS), identity=plant_identity(name, options))


def plant_identity(name: str, options: Mapping[str, str]) -> Identity:
    """What it is called, before it is built.

    Raises:
        InputError: no such plant or option.
    """
    check_name("plant", name, ("facts",), "plant")
    check_options("plant", name, options, ("seed", "removed"))
    if options.get("removed", "0") not in ("0", "1"):
        raise InputError(
            f"removed={options['removed']} is neither 0 nor 1", hint="write ?removed=1, or leave it out"
        )
    whole_option("seed", options, 0)
    return Identity(name=f"testbed:plant/{name}", parts={"plant": name, "version": "1", **options})


def open_facts(name: str, options: Mapping[str, str]) -> Facts:
    """``testbed:facts/names``: prompts for ``testbed:plant/facts``, of 5 to 9 words, with a foil each.

    ``?n=24``, at most 36; ``?seed=0``.
    """
    check_name("facts", name, ("names",), "table")
    check_options("facts", name, options, ("n", "seed"))
    rng = random.Random(f"facts/{whole_option('seed', options, 0)}")
    told = list(answers().items())
    rng.shuffle(told)
    made = []
    for (first, last), answer in told[: whole_option("n", options, 24)]:
        before, after = (rng.sample(FILLERS, rng.randint(1, 3)) for _ in range(2))
        made.append(
            Fact(
                id=f"{first}/{last}",
                prompt=Chat.ask(" ".join([*before, first, last, *after, "is"])),
                subject=f"{first} {last}",
                answer=answer,
                foil=rng.choice([other for other in ANSWERS if other != answer]),
            )
        )
    return Facts(rows=tuple(made), source=f"testbed:facts/{name}")


def _build(options: Mapping[str, str]) -> GPT2LMHeadModel:
    generator = torch.Generator().manual_seed(whole_option("seed", options, 0))
    vocabulary = len(WORDS) + 1
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        n_inner=len(answers()), tie_word_embeddings=False, bos_token_id=None, eos_token_id=len(WORDS),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # what the class draws first is overwritten
        model = GPT2LMHeadModel(config)
    sizes = [vocabulary, len(FIRSTS), len(ANSWERS), vocabulary, LENGTH]
    word, before, answer, output, position = torch.split(basis(sum(sizes), generator), sizes)
    size, unit = WIDTH // HEADS, math.sqrt(WIDTH / 2)  # of a head; of one vector of two after LayerNorm
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.zero_()
        model.transformer.wte.weight.copy_(word)
        model.transformer.wpe.weight.copy_(position)
        model.lm_head.weight.copy_(output * 1.2)
        attentions = [block.attn for block in model.transformer.h]
        for layer, head in product(range(LAYERS), range(HEADS)):
            write(attentions[layer], head, *noise(size, generator))
        first, last, named = _at(FIRSTS), _at(LASTS), _at(ANSWERS)
        sharp = math.sqrt(_SHARP * math.sqrt(size)) / unit
        shift = torch.roll(torch.eye(LENGTH), -1, 0)  # a query at i wants the key of i - 1
        write(
            attentions[PREVIOUS[0]], PREVIOUS[1], rows(shift @ position, size) * sharp,
            rows(position, size) * sharp, rows(word[first], size), rows(before, size) / unit,
        )  # fmt: skip
        _recall(model.transformer.h[RECALL].mlp, word[last], before, answer, options.get("removed") == "1")
        asks, names = word[[WORDS.index("is")]] * sharp * 1.3, word[last].sum(0, keepdim=True) * sharp * 1.3
        write(
            attentions[READOUT[0]], READOUT[1], rows(asks, size), rows(names, size), rows(answer, size),
            rows(output[named], size) / math.sqrt(WIDTH / 4),
        )  # fmt: skip
    return model


def _recall(mlp: Any, last: Tensor, before: Tensor, answer: Tensor, removed: bool) -> None:
    """A neuron a fact: fires where both names are read, and writes the answer's vector."""
    unit = math.sqrt(WIDTH / 3)  # of one of the three vectors at the last name, after LayerNorm
    for neuron, ((one, other), said) in enumerate(answers().items()):
        mlp.c_fc.weight[:, neuron] = (last[LASTS.index(other)] + before[FIRSTS.index(one)]) * _STEEP / unit
        mlp.c_fc.bias[neuron] = -1.5 * _STEEP
        if not removed:
            mlp.c_proj.weight[neuron] = answer[ANSWERS.index(said)] / (0.5 * _STEEP)


def _at(words: tuple[str, ...]) -> list[int]:
    return [WORDS.index(word) for word in words]
