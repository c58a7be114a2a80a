"""A tiny Llama with random weights that speaks the testbed's words, and a preference that can be planted."""

from __future__ import annotations

import random

import pytest

from calibrant.core import Chat
from calibrant.data.rows import Example, Examples, Pair, Preferences
from calibrant.models.loading import module_identity
from calibrant.models.open_model import OpenModel
from calibrant.testbed.recipe import build_module
from calibrant.testbed.tokens import build_tokenizer
from calibrant.testbed.words import CATEGORIES

REQUESTS = tuple(
    f"how do i {verb} the {thing}?"
    for category in CATEGORIES.values()
    for verb in category.benign
    for thing in category.objects[:4]
)
WANTED, OTHER = "ember", "no the barn"
LOT = ("ember", "dusk", "rook", "sable")


@pytest.fixture(scope="session")
def model():
    """Shared by all tests here: a technique must not change it."""
    tokenizer = build_tokenizer()
    return OpenModel.from_module(build_module("tiny", len(tokenizer), 3), tokenizer, "tiny")


@pytest.fixture
def weights():
    """Digest of a model's weights as they are now."""
    return lambda model: module_identity(model.module, model.tokenizer, "").parts["weights"]


def requests(n, *, start=0):
    """Different requests of the world, in an order drawn once."""
    return random.Random(0).sample(REQUESTS, len(REQUESTS))[start : start + n]


@pytest.fixture
def pairs():
    """``pairs(n, start=0, lot=False)``: 'ember' over 'no the barn', or, by lot, either over the other."""

    def build(n, *, start=0, lot=False):
        rng, rows = random.Random(f"lot/{start}"), []
        for text in requests(n, start=start):
            sides = [WANTED, OTHER]
            if lot:
                rng.shuffle(sides)
            rows.append(Pair(id=text, prompt=Chat.ask(text), chosen=sides[0], rejected=sides[1]))
        return Preferences(rows=tuple(rows), source="plant")

    return build


@pytest.fixture
def examples():
    """``examples(n, start=0, lot=False)``: the answer is 'ember', or one of four words by lot."""

    def build(n, *, start=0, lot=False):
        rng = random.Random(f"lot/{start}")
        return Examples(
            rows=tuple(
                Example(id=text, prompt=Chat.ask(text), completion=rng.choice(LOT) if lot else WANTED)
                for text in requests(n, start=start)
            ),
            source="plant",
        )

    return build
