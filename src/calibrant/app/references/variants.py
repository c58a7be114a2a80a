"""``plain:MODEL``, a model without its chat template; ``untrained:SEED/MODEL``, with weights drawn anew.

The first continues prompts as they stand; the second is a control: config, tokenizer and chat template of
the model, weights as its class draws them before training. MODEL is any reference to local weights.
"""

from __future__ import annotations

from calibrant.app import catalog
from calibrant.app.references.opened import STAND_INS, Opened, identified
from calibrant.app.references.scheme import MODELS, Checks, Opens, Reference, Scheme, too_deep
from calibrant.core import ConfigError, OpenLM
from calibrant.models.variant_identity import plain_identity, untrained_identity

_NESTED = 16


def _model(reference: Reference) -> str:
    """What follows 'plain:'. Raises ConfigError where nothing does."""
    if not reference.rest:
        raise ConfigError(f"'{reference.text}' names no model", hint="write plain:MODEL: plain:./my-model")
    return _shallow(reference, reference.rest)


def _seed_and_model(reference: Reference) -> tuple[int, str]:
    """What follows 'untrained:'. Raises ConfigError where seed or model is missing."""
    seed, _, model = reference.rest.partition("/")
    if not (seed.isascii() and seed.isdigit() and len(seed) < 10 and model):
        raise ConfigError(
            f"'{reference.text}' names no untrained model",
            hint="write untrained:SEED/MODEL with a whole number: untrained:0/./my-model",
        )
    return int(seed), _shallow(reference, model)


def _shallow(reference: Reference, model: str) -> str:
    if sum(reference.text.count(name) for name in ("plain:", "untrained:", "best_of:")) > _NESTED:
        raise too_deep(reference.text)
    return model


def _check_plain(reference: Reference, study: Checks) -> None:
    study.check(_model(reference), OpenLM)


def _open_plain(reference: Reference, openers: Opens) -> Opened:
    inner = openers.open(_model(reference), OpenLM)
    identity = plain_identity(STAND_INS[OpenLM](inner).identity)
    make = lambda: catalog.load("calibrant.models.variants:plain")(inner.load())  # noqa: E731
    return identified(identity, make, reference.text, reference.wanted)


def _check_untrained(reference: Reference, study: Checks) -> None:
    study.check(_seed_and_model(reference)[1], OpenLM)


def _open_untrained(reference: Reference, openers: Opens) -> Opened:
    seed, model = _seed_and_model(reference)
    inner = openers.open(model, OpenLM)
    identity = untrained_identity(STAND_INS[OpenLM](inner).identity, seed)
    make = lambda: catalog.load("calibrant.models.variants:untrained")(inner.load(), seed)  # noqa: E731
    return identified(identity, make, reference.text, reference.wanted)


PLAIN_MODEL = Scheme(MODELS, _check_plain, _open_plain)
UNTRAINED = Scheme(MODELS, _check_untrained, _open_untrained)
