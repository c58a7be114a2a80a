"""``{use = "measure.string_judge", config = {...}, inputs = {...}}``: a judge, guard, reward, monitor, ..."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, get_type_hints

from calibrant.app import catalog
from calibrant.app.references.opened import STAND_INS, Opened
from calibrant.app.references.plug_ins import plug_in
from calibrant.app.references.scheme import BEHAVIOURS, Checks, Opens, Reference, Scheme
from calibrant.core import CapabilityError, ConfigError, Guard, Judge, Monitor, Reward, resolve
from calibrant.core.errors import nearest

_KEYS = ("use", "config", "inputs")


class Recipe(NamedTuple):
    """All that is needed to make a behaviour, once its inputs are opened."""

    factory: Callable[..., Any]
    inputs: dict[str, tuple[Any, Any]]
    """Parameter name -> reference and what is wanted."""
    config: dict[str, Any]
    """{"config": the resolved config}, or {} where the factory takes none."""
    module: str
    """Module that holds the factory, where that is code from elsewhere; "" for Calibrant's own."""


def check(reference: Reference, study: Checks) -> None:
    """The table, and the references among its inputs.

    Raises:
        ConfigError: see ``recipe``. CapabilityError: Calibrant's own, and of another kind than wanted.
    """
    plan = recipe(reference.written, allow_python=study.allow_python)
    for inner, wanted in plan.inputs.values():
        study.check(inner, wanted)
    gives = get_type_hints(plan.factory).get("return")
    if not plan.module and gives in BEHAVIOURS and gives is not reference.wanted:
        raise _of_another_kind(reference)


def open(reference: Reference, openers: Opens) -> Opened:
    """The behaviour; the models that it asks are not loaded yet."""
    behaviour = make(reference.written, openers, named=True)
    return described(fitting(behaviour, reference), partial(make, reference.written, openers), reference)


def make(table: Any, openers: Opens, *, named: bool = False) -> Any:
    """Make a behaviour; ``named``: only its identity is needed, so the models that it asks are not loaded."""
    plan = recipe(table, allow_python=openers.allow_python)
    inputs: dict[str, Any] = {}
    for name, (reference, wanted) in plan.inputs.items():
        opened = openers.open(reference, wanted)
        stand_in = STAND_INS.get(wanted) if named else None
        inputs[name] = stand_in(opened) if stand_in else opened.load()
    behaviour = plan.factory(**inputs, **plan.config)
    return plug_in(behaviour, plan.module) if plan.module else behaviour


def fitting(behaviour: Any, reference: Reference) -> Any:
    """``behaviour``, where it is what is wanted. Raises CapabilityError where not."""
    scores = isinstance(behaviour, Monitor) and reference.wanted is Reward  # both have a method 'score'
    if scores or not isinstance(behaviour, reference.wanted):
        raise _of_another_kind(reference)
    return behaviour


def _of_another_kind(reference: Reference) -> CapabilityError:
    return CapabilityError(
        f"{reference.written!r} is no {reference.wanted.__name__}",
        hint="`calibrant ls` lists behaviours and what they are",
    )


def described(behaviour: Any, load: Callable[[], Any], reference: Reference) -> Opened:
    """What a record says of a behaviour, of which ``behaviour`` has the name and ``load`` makes the whole."""
    identity = behaviour.identity
    parts = dict(identity.parts)
    if isinstance(behaviour, Judge):
        parts["calibration"] = behaviour.calibration
        parts["question"] = str(getattr(behaviour, "question", ""))
        parts |= getattr(behaviour, "shown", {})
    if isinstance(behaviour, Guard) and (sides := getattr(behaviour, "sides", ())):
        parts["sides"] = " ".join(sides)
    kind = str(reference.wanted.__name__).lower()  # what it serves as here, whatever it calls itself
    return Opened(identity.digest, kind, load, name=identity.name, parts=parts, identity=identity)


def recipe(table: Any, *, allow_python: bool = False) -> Recipe:
    """Read a behaviour's table; nothing is opened or made.

    Raises:
        ConfigError: lists every unknown key, input and wrong value; the nearest names are given.
    """
    if not isinstance(table, Mapping) or "use" not in table:
        raise ConfigError(
            f"a behaviour is a table {{use = ..., config = ...}}, got {table!r}",
            hint="for example {use = 'measure.string_judge'}; `calibrant ls` lists behaviours",
        )
    use, given, config = str(table["use"]), table.get("inputs", {}), table.get("config", {})
    where, signature = f"behaviour '{use}'", _factory(use, allow_python)
    if not isinstance(given, Mapping) or not isinstance(config, Mapping):
        raise ConfigError(f"{where}: inputs and config are tables")
    takes = signature.inputs
    problems = [f"{where}: unknown key '{key}'{nearest(key, _KEYS)}" for key in table if key not in _KEYS]
    problems += [f"{where} needs the input '{n}'" for n, p in takes.items() if p.required and n not in given]
    problems += [f"{where} has no input '{n}'{nearest(n, takes)}" for n in given if n not in takes]
    resolved = {}
    try:
        if signature.config is not None:
            resolved = {"config": resolve(signature.config, config, where=where)}
        elif config:
            problems.append(f"{where} takes no config, got '{min(config)}'")
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems, hint=f"`calibrant show {use}` lists inputs and config")
    inputs = {name: (reference, takes[name].wanted) for name, reference in given.items()}
    return Recipe(signature.function, inputs, resolved, _elsewhere(use))


def _elsewhere(use: str) -> str:
    """Module of a factory that is not Calibrant's own, or ""."""
    if use in catalog.BEHAVIOURS:
        return ""
    target = use.removeprefix("python:") if use.startswith("python:") else catalog.behaviours()[use].target
    return target.partition(":")[0]


def _factory(use: str, allow_python: bool) -> catalog.Signature:
    if not use.startswith("python:"):
        return catalog.find_behaviour(use)
    if not allow_python:
        raise ConfigError(
            f"'{use}' runs code from outside the catalogue",
            hint="read that code, then run again with --allow-python",
        )
    return catalog.signature_of(catalog.load(use.removeprefix("python:")))


BEHAVIOUR = Scheme(BEHAVIOURS, check, open)
