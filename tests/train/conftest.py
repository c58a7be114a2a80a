"""A tiny Llama with random weights that speaks the testbed's words, and a preference that can be planted."""

from __future__ import annotations

import math
import random
import statistics
import sys
from pathlib import Path

import pytest
from scipy.stats import binom
from scipy.stats import t as student

from calibrant.core import Chat, Identity, Scores
from calibrant.data.rows import Example, Examples, Pair, Preferences
from calibrant.models.loading import module_identity
from calibrant.models.open_model import OpenModel
from calibrant.testbed.raise_model import build_module
from calibrant.testbed.tokens import build_tokenizer
from calibrant.testbed.words import CATEGORIES

sys.path.append(str(Path(__file__).parent))

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


class Nearly:
    """A reward that likes all alike, but for the last bits of float32: one score worked out in three ways."""

    identity = Identity(name="nearly", kind="reward", parts={"of": "rounding"})

    def score(self, chats, replies):
        return Scores(mean=tuple(0.1 * (1 + 6e-8 * (i % 3)) for i, _ in enumerate(replies)))


@pytest.fixture
def nearly():
    """A reward whose scores differ by rounding alone."""
    return Nearly()


@pytest.fixture
def null():
    """``null(shifts, effect)``: over seeds nothing moved, where a real cause moves by ``effect``.

    0 lies in the mean's 99.9 % interval (one false alarm in a thousand machines), and the mean is no third of
    the effect, so that a few seeds that scatter cannot hide one.
    """

    def holds(shifts, effect):
        mean, spread = statistics.mean(shifts), statistics.stdev(shifts) / math.sqrt(len(shifts))
        half = student.ppf(0.9995, len(shifts) - 1) * spread
        assert mean - half <= 0 <= mean + half, (mean, half)
        assert abs(mean) < effect / 3, (mean, effect)

    return holds


@pytest.fixture
def by_lot():
    """``by_lot(share, n, p=.5)``: n labels by lot were met no more often than chance does in 99.9 % of draws.

    Exact, whatever the model says, as long as it cannot know the labels.
    """

    def holds(share, n, p=0.5):
        low, high = binom.interval(0.999, n, p)
        assert low <= round(share * n) <= high, (share, low / n, high / n)

    return holds


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
