"""``smoothed:FILE.toml#MODEL``: a model that answers perturbed copies and goes by their majority."""

from __future__ import annotations

from typing import Any

from calibrant.app.references import locate
from calibrant.app.references.opened import STAND_INS, Opened, identified, talks_only
from calibrant.app.references.scheme import MODELS, Checks, Opens, Reference, Scheme, too_deep
from calibrant.core import LM, ConfigError, Judge, OpenLM, ScoringLM, resolve
from calibrant.models.smoothed import Smoothed, Smoothing

_NESTED = 16


class SmoothingFile(Smoothing):
    """What the file holds: the settings of ``Smoothing``, and who votes."""

    judge: dict[str, Any] | str
    """Which judge, as ``{use = ..., config = {}, inputs = {}}``, or a reference; its 'yes' is a jailbreak."""


def taken_apart(reference: str) -> tuple[str, str]:
    """The file and the model. Raises ConfigError where one of them is missing."""
    if reference.count("smoothed:") > _NESTED:
        raise too_deep(reference)
    file, _, model = reference.partition(":")[2].partition("#")
    if not (file and model):
        raise ConfigError(
            f"'{reference}' is no smoothed model",
            hint="write smoothed:FILE.toml#MODEL: smoothed:smoothing.toml#./my-model",
        )
    return file, model


def check(reference: Reference, study: Checks) -> None:
    """The file, its judge and the model. Raises CapabilityError where log-probs or weights are wanted."""
    if reference.wanted in (ScoringLM, OpenLM):
        raise talks_only(reference.text, reference.wanted)
    file, model = taken_apart(reference.text)
    study.check(_settings(file, reference).judge, Judge, where=f"{file}: ")
    study.check(model, LM)


def open(reference: Reference, openers: Opens) -> Opened:
    """The model; its identity is of the settings, the judge and the model, neither of which is loaded yet."""
    if reference.wanted in (ScoringLM, OpenLM):
        raise talks_only(reference.text, reference.wanted)
    file, inner = taken_apart(reference.text)
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
