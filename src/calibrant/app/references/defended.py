"""``defended:FILE.toml#MODEL``: a model, itself any reference, behind a stack of guards.

``defended:FILE.toml?layers=a,b#MODEL`` leaves the other layers of the file out.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote

from calibrant.app.references import behaviours
from calibrant.app.references.opened import STAND_INS, Opened, identified
from calibrant.app.references.scheme import MODELS, Checks, Opens, Reference, Scheme, file_and_model
from calibrant.core import LM, ConfigError, Guard
from calibrant.defend.defended import StackSpec, defended_from


def taken_apart(reference: str) -> tuple[str, tuple[str, ...] | None, str]:
    """The references of the stack's file and of the model, and between them the layers that are named.

    Raises:
        ConfigError: it names no model, or something else than layers.
    """
    file, inner = file_and_model(reference, "defended:own_guards.toml#./my-model")
    file, asked, query = file.partition("?")
    if not asked:
        return file, None, inner
    key, _, names = query.partition("=")
    if not file or key != "layers" or not names:
        raise ConfigError(
            f"'{reference}': '{query}' names no layers",
            hint="write defended:FILE.toml?layers=words,policy#MODEL, commas within a name as %2C",
        )
    return file, tuple(unquote(name) for name in names.split(",")), inner


def check(reference: Reference, study: Checks) -> None:
    """The model and the file; where that can be read now, each guard."""
    file, names, inner = taken_apart(reference.text)
    study.check(inner, LM)
    stack = study.check(file, StackSpec)
    if stack is not None and names is not None:
        stack = stack.only(names)
    for layer in stack.layer if stack is not None else ():
        study.check(layer.guard, Guard, where=f"{file}, layer '{layer.name}': ")


def open(reference: Reference, openers: Opens) -> Opened:
    """The system; its identity is of the model and the guards, none of which is loaded yet."""
    file, names, inner = taken_apart(reference.text)
    bare = openers.open(inner, LM)
    stack = openers.open(file, StackSpec).load()
    spec = (stack if names is None else stack.only(names)).model_dump()

    def behind(lm: Any, *, named: bool) -> Any:
        return defended_from(lm, spec, partial(guard_of, openers=openers, named=named))

    identity = behind(STAND_INS[LM](bare), named=True).identity
    return identified(identity, lambda: behind(bare.load(), named=False), reference.text, reference.wanted)


def guard_of(written: Mapping[str, Any] | str, openers: Opens, *, named: bool) -> Any:
    """What a layer names: a table with its settings, or a reference."""
    if not isinstance(written, str):
        return behaviours.make(written, openers, named=named)
    opened = openers.open(written, Guard)
    return STAND_INS[Guard](opened) if named else opened.load()


DEFENDED = Scheme(MODELS, check, open)
