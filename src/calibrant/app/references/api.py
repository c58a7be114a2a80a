"""``api:URL#MODEL``: a model behind an endpoint of the OpenAI chat protocol."""

from __future__ import annotations

import os
from typing import Any

from calibrant.app import catalog
from calibrant.app.references.opened import Opened, identified, talks_only
from calibrant.app.references.scheme import MODELS, Reference, found_by
from calibrant.core import ConfigError, InputError, OpenLM, ScoringLM


def served(reference: Reference) -> tuple[Any, str]:
    """The model, and the variable that lacks its key ("": none is lacking); sends nothing.

    Raises:
        ConfigError: no model is named. InputError: no URL that can be asked. CapabilityError: log-probs or
            weights are wanted.
    """
    url, _, name = reference.rest.rpartition("#")
    if not url:
        raise ConfigError(f"'{reference.text}' names no model", hint="write api:http://HOST:PORT/v1#MODEL")
    if reference.wanted in (ScoringLM, OpenLM):
        raise talks_only(reference.text, reference.wanted)
    # Read from the environment at each call; it enters no config and no record, and goes to its host alone.
    variable = catalog.load("calibrant.models.keys:key_variable")(url)
    key = variable if variable in os.environ else None
    config = catalog.load("calibrant.models.api:ApiConfig")(api_key_env=key)
    return catalog.load("calibrant.models.api:ApiModel").open(url, name, config), "" if key else variable


def answering(reference: Reference, found: tuple[Any, str]) -> Opened:
    """The model; loading it asks the endpoint once whether it is there."""
    model, missing = found

    def load() -> Any:
        try:
            model.check()
        except InputError as error:
            if missing:
                remedy = f"a key for this address goes into ${missing}"
                error.hint = f"{error.hint}; {remedy}" if error.hint else remedy
            raise
        return model

    return identified(model.identity, load, reference.text, reference.wanted)


API = found_by(served, answering, MODELS)
