"""What turns texts into rows of numbers for a classifier: hashed n-grams, a model's states, an encoder.

Each text by itself, so no row depends on what stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from calibrant.core import CapabilityError, Chat, InputError, OpenLM
from calibrant.data.text_classifier import ClassifierCard, Features, TextClassifier
from calibrant.models.pooled import Pool, features
from calibrant.models.sentence import SentenceEncoder
from calibrant.text.decodings import Shape, shown
from calibrant.text.ngrams import hashed


class Vectors(Protocol):
    """Rows of numbers for texts."""

    @property
    def digest(self) -> str:
        """Of the model or encoder that reads; "" for n-grams."""
        ...

    def fits(self, text: str) -> bool:
        """Whether it reads a text of that length at once."""
        ...

    def rows(self, texts: Sequence[str]) -> Any:
        """(N, D) float64, dense or sparse.

        Raises:
            InputError: a text that the reader refuses.
            NumericalError: a number is not finite.
        """
        ...


class NgramVectors(NamedTuple):
    """Hashed n-grams of the text as a block list reads it: case, marks and look-alikes folded."""

    buckets: int
    digest: str = ""

    def fits(self, text: str) -> bool:
        """Any length."""
        return True

    def rows(self, texts: Sequence[str]) -> Any:
        """Sparse (N, buckets)."""
        return hashed([_folded(text) for text in texts], self.buckets)


def _folded(text: str) -> str:
    """Words that are written a letter at a time stand behind the text, put together."""
    shape = Shape.of(shown(text))
    return " ".join((shape.resolved[0], *shape.spelled))


class ModelVectors(NamedTuple):
    """States of a local model that reads each text as a user's turn."""

    model: OpenLM
    site: str
    pool: Pool

    @property
    def digest(self) -> str:
        """Of the model."""
        return self.model.identity.digest

    def fits(self, text: str) -> bool:
        """Whether the turn fits the context."""
        most = self.model.max_length
        return most is None or len(self.model.prompt_ids(Chat.ask(text))) <= most

    def rows(self, texts: Sequence[str]) -> Any:
        """Dense (N, D)."""
        found = [features(self.model, [Chat.ask(text)], None, self.site, self.pool)[0] for text in texts]
        if any(row is None for row in found):
            raise InputError("a text does not fit the model's context", hint="lower 'chunk'")
        return np.array(found, np.float64)


class EncoderVectors(NamedTuple):
    """Vectors of a sentence encoder."""

    encoder: SentenceEncoder

    @property
    def digest(self) -> str:
        """Of the encoder."""
        return self.encoder.identity.digest

    def fits(self, text: str) -> bool:
        """Whether the text fits the encoder."""
        return self.encoder.size(text) <= self.encoder.most

    def rows(self, texts: Sequence[str]) -> Any:
        """Dense (N, D)."""
        return self.encoder.vectors(texts)


def vectors_of(
    kind: Features,
    model: OpenLM | None,
    encoder: SentenceEncoder | None,
    site: str,
    pool: Pool,
    buckets: int,
) -> Vectors:
    """What reads texts.

    Raises:
        InputError: the model or encoder that ``kind`` needs is not given.
    """
    if kind == "ngrams":
        return NgramVectors(buckets)
    if kind == "model":
        if model is None:
            raise InputError("features = 'model' needs a model", hint="inputs = { model = 'hf:...' }")
        return ModelVectors(model, site, pool)
    if encoder is None:
        raise InputError(
            "features = 'encoder' needs a sentence encoder", hint="inputs = { encoder = 'FOLDER' }"
        )
    return EncoderVectors(encoder)


def reader_of(card: ClassifierCard, model: OpenLM | None, encoder: SentenceEncoder | None) -> Vectors:
    """What a stored classifier reads with.

    Raises:
        InputError: it needs a model or encoder, and none is given.
        CapabilityError: it was trained on another one, by digest.
    """
    made = vectors_of(card.features, model, encoder, card.site, card.pool, card.buckets)
    if made.digest != card.reader:
        raise CapabilityError(
            f"the classifier reads the vectors of another {card.features} ({card.reader[:12]}, not "
            f"{made.digest[:12]})",
            hint="give the one that it was trained on, or train it again on this one",
        )
    return made


def log_odds(classifier: TextClassifier, rows: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(N,) of rows (N, D), each from that row alone.

    Raises:
        InputError: rows of another width than the classifier's.
    """
    if rows.shape[1] != len(classifier.weight):
        raise InputError(
            f"vectors of {rows.shape[1]} numbers for a classifier of {len(classifier.weight)}",
            hint="give the model or encoder that it was trained on",
        )
    weight, shift = classifier.weight, 0.0
    if len(classifier.mean):
        weight = weight / classifier.std
        shift = float(classifier.mean @ weight)
    # Row by row: a product of matrices sums in an order that depends on how many rows there are.
    found = [float((rows[i : i + 1] @ weight)[0]) - shift + classifier.bias for i in range(rows.shape[0])]
    return np.array(found, np.float64)
