"""``system:FILE.txt#MODEL`` and ``reminder:FILE.txt#MODEL``: a model, any reference, with a file's text.

The text is its system prompt, or stands around each request.
"""

from __future__ import annotations

from collections.abc import Callable

from calibrant.app.references import locate
from calibrant.app.references.opened import STAND_INS, Opened, identified, talks_only
from calibrant.app.references.scheme import MODELS, Checks, Opens, Reference, Scheme, file_and_model
from calibrant.core import LM, InputError, OpenLM, ScoringLM
from calibrant.ledger.layout import disk
from calibrant.models.prompted import Prompted
from calibrant.models.reminded import Reminded
from calibrant.models.scripted import ScriptedModel


def _scheme(behind: Callable[[LM, str], LM], example: str) -> Scheme:
    """A scheme whose model is ``behind(model, text)``; that raises InputError where the text does not fit."""

    def text_and_model(reference: Reference) -> tuple[str, str]:
        if reference.wanted in (ScoringLM, OpenLM):
            raise talks_only(reference.text, reference.wanted)
        file, model = file_and_model(reference.text, example)
        path = locate.file(file, reference.base)
        try:
            with disk("reading", path):
                text = path.read_text(encoding="utf-8-sig")
            behind(ScriptedModel([]), text)
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 (byte {error.start})", hint="save it as UTF-8") from None
        except InputError as error:
            raise InputError(f"{path}: {error.message}", hint=error.hint) from None
        return text, model

    def check(reference: Reference, study: Checks) -> None:
        study.check(text_and_model(reference)[1], LM)

    def open(reference: Reference, openers: Opens) -> Opened:
        text, inner = text_and_model(reference)
        model = openers.open(inner, LM)
        identity = behind(STAND_INS[LM](model), text).identity
        return identified(identity, lambda: behind(model.load(), text), reference.text, reference.wanted)

    return Scheme(MODELS, check, open)


SYSTEM = _scheme(Prompted, "system:careful.txt#./my-model")
REMINDER = _scheme(Reminded, "reminder:self_reminder.txt#./my-model")
