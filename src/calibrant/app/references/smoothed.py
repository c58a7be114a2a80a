"""``smoothed:FILE.toml#MODEL``: a model that answers perturbed copies and goes by their majority."""

from __future__ import annotations

from typing import Any

from calibrant.app.references import locate
from calibrant.app.references.opened import STAND_INS, Opened, identified, talks_only
from calibrant.app.references.scheme import MODELS, Checks, Opens, Reference, Scheme, file_and_model
from calibrant.core import LM, Judge, OpenLM, ScoringLM, resolve
from calibrant.models.smoothed import Smoothed, Smoothing

_EXAMPLE = "smoothed:smoothing.toml#./my-model"


class SmoothingFile(Smoothing):
    """What the file holds: the settings of ``Smoothing``, and who votes."""

    judge: dict[str, Any] | str
    """Which judge, as ``{use = ..., config = {}, inputs = {}}``, or a reference; its 'yes' is a jailbreak."""


def check(reference: Reference, study: Checks) -> None:
    """The file, its judge and the model. Raises CapabilityError where log-probs or weights are wanted."""
    if reference.wanted in (ScoringLM, OpenLM):
        raise talks_only(reference.text, reference.wanted)
    file, model = file_and_model(reference.text, _EXAMPLE)
    study.check(_settings(file, reference).judge, Judge, where=f"{file}: ")
    study.check(model, LM)


def open(reference: Reference, openers: Opens) -> Opened:
    """The model; its identity is of the settings, the judge and the model, neither of which is loaded yet."""
    if reference.wanted in (ScoringLM, OpenLM):
        raise talks_only(reference.text, reference.wanted)
    file, inner = file_and_model(reference.text, _EXAMPLE)
    settings = _settings(file, reference)
    config = Smoothing.model_validate(settings.model_dump(exclude={"judge"}))
    judge, model = openers.open(settings.judge, Judge), openers.open(inner, LM)
    identity = Smoothed(STAND_INS[LM](model), STAND_INS[Judge](judge), config).identity
    return identified(
        identity, lambda: Smoothed(model.load(), judge.load(), config), reference.text, reference.wanted
    )


def _settings(file: str, reference: Reference) -> SmoothingFile:
    """What the file says. Raises InputError where there is none, ConfigError where it is no such file."""
    return resolve(SmoothingFile, locate.toml(locate.file(file, reference.base)), where=file)


SMOOTHED = Scheme(MODELS, check, open)
