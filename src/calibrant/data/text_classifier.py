"""A trained classifier of texts: how it reads a text, and a logistic regression. On disk: see
``classifier_folder.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from calibrant.core.config import Frozen
from calibrant.core.digest import digest
from calibrant.data.judge_head import Alarm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Features = Literal["ngrams", "model", "encoder"]
Over = Literal["prompt", "reply", "exchange"]


class Reading(Frozen):
    """How a chat becomes the texts that are scored; the highest score of them is the chat's."""

    over: Over
    """What is read: the conversation, the reply alone, or the conversation with the reply so far."""
    chunk: int = Field(ge=20)
    """Most characters of a text that is scored; a longer one is read in overlapping chunks."""
    overlap: int = Field(ge=0)
    """Characters that two neighbouring chunks share."""
    views: tuple[str, ...] = ()
    """Codecs that each text is also decoded with."""
    every: int = Field(default=20, ge=1)
    """Of an exchange: the words between two prefixes of a reply that it is trained on."""


class ClassifierCard(Frozen):
    """All of a classifier but its weights."""

    question: str
    """What 'yes' answers."""
    features: Features
    """What a text is turned into."""
    reader: str = ""
    """Digest of the model or encoder whose vectors it reads; "" where it reads n-grams."""
    site: str = ""
    """Of a model: where its states are read."""
    pool: Literal["mean", "last"] = "mean"
    """Of a model: over the tokens of a text, their mean, or the last one."""
    buckets: int = Field(default=0, ge=0)
    """Of n-grams: how many buckets they are hashed into."""
    reading: Reading
    """How a chat is read."""
    threshold: float = Field(gt=0, lt=1)
    """Probability from which on the answer is 'yes'."""
    alarm: Alarm
    """The rate of false alarms that the threshold was chosen for, and the rates on held-out texts."""
    l2: float = Field(gt=0)
    """The penalty, chosen by cross-validation."""
    labels: str
    """Digest of the labelled texts."""
    n: int = Field(ge=1)
    """How many."""
    check: float
    """Log-odds of ``CHECK``: a guard that reads something else there is not the one that was trained."""
    weights: str = ""
    """SHA-256 of the file of weights."""


CHECK = "the quick brown fox"


class TextClassifier(NamedTuple):
    """A card and the weights: log-odds = bias + weight . (x - mean) / std."""

    card: ClassifierCard
    mean: Floats
    """(D,); () for n-grams, which are not standardised."""
    std: Floats
    """(D,) above 0; () for n-grams."""
    weight: Floats
    """(D,)."""
    bias: float

    @property
    def digest(self) -> str:
        """Digest of the card, which holds that of the weights."""
        return digest(self.card)
