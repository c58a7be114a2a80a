"""``defended:FILE.toml#MODEL``: a model, itself any reference, behind a stack of guards."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from calibrant.app.references import behaviours
from calibrant.app.references.opened import STAND_INS, Opened, identified
from calibrant.app.references.scheme import MODELS, Checks, Opens, Reference, Scheme, too_deep
from calibrant.core import LM, ConfigError, Guard
from calibrant.defend.defended import StackSpec, defended_from

_STACKS = 16  # of guards, one behind the other


def taken_apart(reference: str) -> tuple[str, str]:
    """The references of the stack's file and of the model. Raises ConfigError where it names no model."""
    if reference.count("defended:") > _STACKS:
        raise too_deep(reference)
    file, _, inner = reference.partition(":")[2].partition("#")
    if not inner:
        raise ConfigError(
            f"'{reference}' names no model", hint="write defended:FILE.toml#MODEL, as in docs/defended.md"
        )
    return file, inner


def check(reference: Reference, study: Checks) -> None:
    """The model and the file; where that can be read now, each guard."""
    file, inner = taken_apart(reference.text)
    study.check(inner, LM)
    stack = study.check(file, StackSpec)
    for layer in stack.layer if stack is not None else ():
        study.check(layer.guard, Guard, where=f"{file}, layer '{layer.name}': ")


def open(reference: Reference, openers: Opens) -> Opened:
    """The system; its identity is of the model and the guards, none of which is loaded yet."""
    file, inner = taken_apart(reference.text)
    bare = openers.open(inner, LM)
    stack = openers.open(file, StackSpec).load().model_dump()

    def behind(lm: Any, *, named: bool) -> Any:
        return defended_from(lm, stack, partial(guard_of, openers=openers, named=named))

    identity = behind(STAND_INS[LM](bare), named=True).identity
    return identified(identity, lambda: behind(bare.load(), named=False), reference.text, reference.wanted)


def guard_of(written: Mapping[str, Any] | str, openers: Opens, *, named: bool) -> Any:
    """What a layer names: a table with its settings, or a reference."""
    if not isinstance(written, str):
        return behaviours.make(written, openers, named=named)
    opened = openers.open(written, Guard)
    return STAND_INS[Guard](opened) if named else opened.load()


DEFENDED = Scheme(MODELS, check, open)
