"""A trained classifier of texts on disk: its folder.

    classifier/  classifier.json  classifier.safetensors

The card holds the digest of the weights, and ``digest``, that of the card itself: a folder that was cut short
or edited by hand is refused. That shows damage; it is no signature. The weights are float64 arrays: weight
(D,), bias (1,), and where features are standardised mean and std (D,). Never pickle.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from calibrant.core.digest import digest, digest_bytes, plain
from calibrant.core.errors import EvidenceError, InputError
from calibrant.core.written import parse_json
from calibrant.data.text_classifier import ClassifierCard, TextClassifier

CARD, WEIGHTS = "classifier.json", "classifier.safetensors"
_HINT = "defend.train_classifier writes one (record:JOB/classifier)"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError, SafetensorError)
_LONGEST = 2**20  # characters of a card


def write_classifier(made: TextClassifier, folder: Path) -> TextClassifier:
    """Write both files; the classifier with the digest of its weights in the card."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"weight": made.weight, "bias": np.array([made.bias])}
    if len(made.mean):
        arrays |= {"mean": made.mean, "std": made.std}
    content = save({name: np.ascontiguousarray(values, np.float64) for name, values in arrays.items()})
    card = made.card.model_copy(update={"weights": digest_bytes(content)})
    (folder / WEIGHTS).write_bytes(content)
    written = {**plain(card), "digest": digest(card)}
    (folder / CARD).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return made._replace(card=card)


def read_classifier(folder: Path) -> TextClassifier:
    """Read what ``write_classifier`` wrote.

    Raises:
        InputError: it is no such folder, or numbers that cannot be used stand in it.
        EvidenceError: a file is not the one that was written.
    """
    if not all((folder / name).is_file() for name in (CARD, WEIGHTS)):  # a pipe would never end
        raise InputError(f"'{folder}' holds no classifier of texts: no {CARD} and {WEIGHTS}", hint=_HINT)
    try:
        text, content = (folder / CARD).read_text(encoding="utf-8")[: _LONGEST + 1], b""
        written = parse_json(text) if len(text) <= _LONGEST else None
        if not isinstance(written, dict):
            raise TypeError(f"{CARD} is no JSON object of a card")
        said = written.pop("digest", "")
        card = ClassifierCard.model_validate(written)
        content = (folder / WEIGHTS).read_bytes()
    except _UNREADABLE as error:
        raise _unreadable(folder, error) from None
    if said != digest(card):
        raise EvidenceError(f"'{folder / CARD}' has changed since it was written", hint=_HINT)
    if card.weights != digest_bytes(content):
        raise EvidenceError(f"'{folder / WEIGHTS}' is not the file that {CARD} was written with", hint=_HINT)
    try:
        arrays = {name: values.astype(np.float64).ravel() for name, values in load(content).items()}
        (bias,) = arrays["bias"].tolist()
        none = np.zeros(0)
        made = TextClassifier(card, arrays.get("mean", none), arrays.get("std", none), arrays["weight"], bias)
    except _UNREADABLE as error:
        raise _unreadable(folder, error) from None
    _check(made, folder)
    return made


def _check(made: TextClassifier, folder: Path) -> None:
    width = made.card.buckets if made.card.features == "ngrams" else len(made.weight)
    spread = 0 if made.card.features == "ngrams" else width
    if not len(made.weight) == width > 0 or not len(made.mean) == len(made.std) == spread:
        raise InputError(f"'{folder}': the arrays differ in length", hint=_HINT)
    numbers = np.concatenate([made.weight, made.mean, made.std, [made.bias]])
    if not np.isfinite(numbers).all() or not math.isfinite(made.card.check) or (made.std <= 0).any():
        raise InputError(f"'{folder}': a weight is not finite, or a std is not above 0", hint=_HINT)


def _unreadable(folder: Path, error: BaseException) -> InputError:
    message = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"'{folder}' holds no classifier of texts: {message}", hint=_HINT)
