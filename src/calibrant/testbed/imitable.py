"""Weak-to-strong with the answer known: a model that has a concept, supervisors with errors of a known kind.

``testbed:plant/concept`` is a Llama of one layer in which the classes of the words below are planted: words
of a class share a direction of the embedding, the head averages what stands before, and so the last token
holds the class of a text on a straight line. ``?removed=1`` gives every word a direction of its own: the same
shape without the concept. ``?seed=1`` draws other directions.

``testbed:classes/imitable?split=student&dial=.5`` are texts of two words of one class among others, with a
supervisor's labels. Three texts in ten hold the word 'stamped'. The supervisor never errs on the first class;
of the other classes it calls three in ten the first class:

- ``dial=0``: whichever, at random: nothing in a text tells where it errs;
- ``dial=1``: those that are stamped, all of them: a rule that is as easy to learn as the concept;
- between, that share of the errors follows the rule. The confusion matrix is the same at every dial.

``?shuffled=1`` permutes the supervisor's labels, ``?n=`` texts, ``?reach=.3`` the three in ten (0: the
supervisor is right), ``?seed=1`` draws others. Splits 'weak', 'student' and 'test' share no text.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from calibrant.core import Chat, Identity, InputError
from calibrant.data.rows import ClassedText, ClassedTexts
from calibrant.models.open_model import OpenModel
from calibrant.testbed.checks import check_name, check_options, choice_option, whole_option
from calibrant.testbed.circuit_parts import check_switch
from calibrant.testbed.circuits import tokenizer

KINDS: dict[str, tuple[str, ...]] = {
    "bird": ("crane", "finch", "heron", "ibis", "jay", "kite", "lark", "owl", "rook", "swan", "tern", "wren"),
    "fish": ("bass", "bream", "carp", "cod", "eel", "hake", "ling", "perch", "pike", "ray", "tench", "trout"),
    "metal": ("brass", "chrome", "cobalt", "copper", "gold", "iron", "lead", "nickel", "steel", "tin", "zinc",
              "silver"),
    "tree": ("alder", "ash", "aspen", "beech", "birch", "cedar", "elm", "fir", "larch", "oak", "pine", "yew"),
}  # fmt: skip
"""Class -> its words; the first is the one that the supervisor errs towards."""
CLASSES = tuple(KINDS)
MARKED, PLAIN = "stamped", "loose"
FILLERS = ("the", "old", "by", "near", "small", "two", "some", "from", "dark", "with", "pale", "under")
WORDS = (*(word for words in KINDS.values() for word in words), MARKED, PLAIN, *FILLERS)
SPLITS = ("weak", "student", "test")
"""What the supervisor is trained on, what it labels for the student, what decides."""
_WIDTH, _LENGTH, _MOST = 32, 16, 20_000
_OWN = 0.5  # size of a word's own direction, beside 1 of its class
_GAIN = 4.0  # of what the head writes: it averages some seven words


def open_plant(name: str, options: Mapping[str, str]) -> OpenModel:
    """``testbed:plant/concept``; see above."""
    return OpenModel(_build(options), tokenizer(WORDS), identity=plant_identity(name, options))


def plant_identity(name: str, options: Mapping[str, str]) -> Identity:
    """What it is called, before it is built.

    Raises:
        InputError: no such plant or option.
    """
    check_name("plant", name, ("concept",), "plant")
    check_options("plant", name, options, ("seed", "removed"))
    check_switch("removed", options)
    whole_option("seed", options, 0)
    return Identity(name=f"testbed:plant/{name}", parts={"plant": name, "version": "1", **options})


def open_classes(name: str, options: Mapping[str, str]) -> ClassedTexts:
    """``testbed:classes/imitable``; see above. Classes take turns, and texts are distinct.

    Raises:
        InputError: no such table, split or option, or a share outside 0 to 1.
    """
    check_name("classes", name, ("imitable",), "table")
    check_options("classes", name, options, ("split", "dial", "n", "reach", "seed", "shuffled"))
    check_switch("shuffled", options)
    split = choice_option("split", options, SPLITS, "student")
    n, seed = whole_option("n", options, 400), whole_option("seed", options, 0)
    if not 1 <= n <= _MOST:
        raise InputError(f"n={n}: 1 to {_MOST:,} texts are made", hint="write ?n=400")
    dial, reach = _part("dial", options, 0.0), _part("reach", options, 0.3)
    rng = random.Random(f"imitable/{split}/{seed}")
    texts: dict[str, str] = {}
    while len(texts) < n:
        kind = CLASSES[len(texts) % len(CLASSES)]
        mark = MARKED if rng.random() < 0.3 else PLAIN
        words = [mark, *rng.sample(KINDS[kind], 2), *rng.sample(FILLERS, 3)]
        text = " ".join(rng.sample(words, len(words)))
        if _split_of(text) == split:
            texts.setdefault(text, kind)
    said = [_said(text, kind, dial, reach, rng.random()) for text, kind in texts.items()]
    if options.get("shuffled") == "1":
        rng.shuffle(said)
    rows = [
        ClassedText(id=f"{split}/{at}", prompt=Chat.ask(text), label=kind, weak={weak: 1.0})
        for at, ((text, kind), weak) in enumerate(zip(texts.items(), said, strict=True))
    ]
    return ClassedTexts(rows=tuple(rows), source=f"testbed:classes/{name}")


def _said(text: str, kind: str, dial: float, reach: float, draw: float) -> str:
    """The supervisor's label: with ``reach`` = .3 it errs as often at every dial."""
    rule = float(MARKED in text.split()) if reach else 0.0
    return CLASSES[0] if draw < dial * rule + (1 - dial) * reach else kind


def _split_of(text: str) -> str:
    """The split that a text belongs to, whatever was drawn before."""
    return SPLITS[hashlib.sha256(text.encode()).digest()[0] % len(SPLITS)]


def _part(key: str, options: Mapping[str, str], default: float) -> float:
    text = options.get(key, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InputError(f"{key}={text} is no part of the whole", hint=f"write ?{key}=.5, from 0 to 1")
    return value


def _build(options: Mapping[str, str]) -> LlamaForCausalLM:
    generator = torch.Generator().manual_seed(whole_option("seed", options, 0))
    config = LlamaConfig(
        vocab_size=len(WORDS) + 1, hidden_size=_WIDTH, intermediate_size=_WIDTH, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=_LENGTH,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=len(WORDS),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # what the class draws first is overwritten
        model = LlamaForCausalLM(config)
    draws = torch.randn(len(WORDS) + 1, _WIDTH, generator=generator)
    own = draws / draws.norm(dim=1, keepdim=True)
    shared = torch.linalg.qr(torch.randn(_WIDTH, len(CLASSES), generator=generator)).Q.T
    block = model.model.layers[0]
    noise = {
        name: torch.randn(parameter.shape, generator=generator) / math.sqrt(_WIDTH)
        for name, parameter in block.mlp.named_parameters()
    }
    with torch.no_grad():
        words = own.clone()
        if options.get("removed") != "1":
            for at, kind in enumerate(KINDS.values()):
                places = [WORDS.index(word) for word in kind]
                words[places] = shared[at] + _OWN * own[places]
        model.model.embed_tokens.weight.copy_(words)
        block.self_attn.q_proj.weight.zero_()  # equal scores: the mean of all that stands before
        block.self_attn.k_proj.weight.zero_()
        block.self_attn.v_proj.weight.copy_(torch.eye(_WIDTH))
        block.self_attn.o_proj.weight.copy_(_GAIN * torch.eye(_WIDTH))
        for name, parameter in block.mlp.named_parameters():
            parameter.copy_(noise[name] * (0.1 if name.startswith("down") else 1.0))
    return model
