"""Opens what the guard proxy serves: the layers of a stack file, and the model behind them."""

from __future__ import annotations

from functools import partial

from calibrant.app.references.defended import guard_of
from calibrant.app.references.openers import Openers
from calibrant.core import LM
from calibrant.defend.defended import Layer, StackSpec, layers_from


def opened_stack(file: str, openers: Openers) -> tuple[StackSpec, list[Layer]]:
    """The stack file, and its layers with their guards loaded.

    Raises:
        InputError, ConfigError: the file, or what it names, is not there or not right.
    """
    spec: StackSpec = openers.open(file, StackSpec).load()
    return spec, layers_from(spec, partial(guard_of, openers=openers, named=False))


def opened_model(reference: str, openers: Openers) -> LM:
    """The model that ``reference`` names, loaded."""
    model: LM = openers.open(reference, LM).load()
    return model
