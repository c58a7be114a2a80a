"""``reminder:FILE.txt#MODEL``: a model, itself any reference, with the file's text around each request."""

from __future__ import annotations

from calibrant.app.references import locate
from calibrant.app.references.opened import STAND_INS, Opened, identified, talks_only
from calibrant.app.references.scheme import MODELS, Checks, Opens, Reference, Scheme, too_deep
from calibrant.core import LM, ConfigError, InputError, OpenLM, ScoringLM
from calibrant.ledger.layout import disk
from calibrant.models.reminded import Reminded
from calibrant.models.scripted import ScriptedModel

_NESTED = 16


def taken_apart(reference: str) -> tuple[str, str]:
    """The file and the model. Raises ConfigError where one of them is missing."""
    if reference.count("reminder:") > _NESTED:
        raise too_deep(reference)
    file, _, model = reference.partition(":")[2].partition("#")
    if not (file and model):
        raise ConfigError(
            f"'{reference}' is no model with a reminder",
            hint="write reminder:FILE.txt#MODEL: reminder:self_reminder.txt#./my-model",
        )
    return file, model


def check(reference: Reference, study: Checks) -> None:
    """The file and the model. Raises CapabilityError where log-probs or weights are wanted."""
    if reference.wanted in (ScoringLM, OpenLM):
        raise talks_only(reference.text, reference.wanted)
    file, model = taken_apart(reference.text)
    _text(file, reference)
    study.check(model, LM)


def open(reference: Reference, openers: Opens) -> Opened:
    """The model; its identity is of the text and the model, which is not loaded yet."""
    if reference.wanted in (ScoringLM, OpenLM):
        raise talks_only(reference.text, reference.wanted)
    file, inner = taken_apart(reference.text)
    text, model = _text(file, reference), openers.open(inner, LM)
    identity = Reminded(STAND_INS[LM](model), text).identity
    return identified(identity, lambda: Reminded(model.load(), text), reference.text, reference.wanted)


def _text(file: str, reference: Reference) -> str:
    """The text of the file. Raises InputError where there is none, or it is not UTF-8 or no reminder."""
    path = locate.file(file, reference.base)
    try:
        with disk("reading", path):
            text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})", hint="save it as UTF-8") from None
    try:
        Reminded(ScriptedModel([]), text)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from None
    return text


REMINDER = Scheme(MODELS, check, open)
