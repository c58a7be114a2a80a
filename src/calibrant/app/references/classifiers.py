"""``record:JOB/classifier`` as a guard: the classifier, and the model or encoder that it was trained on."""

from __future__ import annotations

from typing import Any

from calibrant.app import catalog
from calibrant.app.references import behaviours
from calibrant.app.references.opened import STAND_INS, Opened, from_bytes
from calibrant.app.references.probes import reader_of
from calibrant.app.references.scheme import Opens, Reference
from calibrant.core import Entry, Guard, OpenLM
from calibrant.core.record import Artifact
from calibrant.data.text_classifier import TextClassifier
from calibrant.models.sentence import SentenceEncoder

_CARD = "classifier.json"
_READERS: dict[str, Any] = {"model": OpenLM, "encoder": SentenceEncoder}
"""Features of a classifier that something else reads -> what that is."""


def is_one(reference: Reference, artifact: Artifact) -> bool:
    """Whether a guard is wanted of a stored classifier."""
    return reference.wanted is Guard and _CARD in (artifact.files or {})


def open(reference: Reference, entry: Entry, artifact: Artifact, openers: Opens) -> Opened:
    """The guard; what it reads with is not loaded yet.

    Raises:
        InputError, EvidenceError: the folder is damaged.
        CapabilityError: what it was trained on cannot be opened here, or is another one now.
    """
    path = openers.ledger.open(artifact)
    classifier: TextClassifier = from_bytes(
        path, lambda: catalog.load("calibrant.data.classifier_folder:read_classifier")(path), reference.text
    ).load()
    maker, role = catalog.load("calibrant.defend.classifier_guard:classifier_guard"), classifier.card.features
    if role not in _READERS:
        return behaviours.described(maker(classifier), lambda: maker(classifier), reference)
    inputs = f"{{classifier = ..., {role} = ...}}"
    hint = f"name it: guard = {{use = 'defend.classifier_guard', inputs = {inputs}}}"
    reader = reader_of(reference, entry, classifier.card.reader, openers, role, _READERS[role], hint)
    return behaviours.described(
        maker(classifier, **{role: STAND_INS[_READERS[role]](reader)}),
        lambda: maker(classifier, **{role: reader.load()}),
        reference,
    )
