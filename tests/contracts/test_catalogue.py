"""Contracts that are read off a catalogue entry without running it: names, configs, documentation, shape."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calibrant.app.catalog import BEHAVIOURS, TECHNIQUES, Signature, find_behaviour, find_technique
from calibrant.core import (
    ConfigError,
    Frozen,
    Guard,
    Judge,
    Monitor,
    Quiet,
    Result,
    Reward,
    Run,
    Watcher,
    resolve,
)

ROOT = Path(__file__).parents[2]
LISTED = TECHNIQUES | BEHAVIOURS
WINGS = {"train", "oversee", "understand", "attack", "defend", "measure", "govern", "testbed"}
technique = pytest.mark.parametrize("name", TECHNIQUES)
entry = pytest.mark.parametrize("name", LISTED)


def signature_of(name: str) -> Signature:
    return find_technique(name) if name in TECHNIQUES else find_behaviour(name)


def parts(kind: type[Frozen]) -> Iterator[type[Frozen]]:
    """``kind`` and every config nested in it."""
    yield kind
    for info in kind.model_fields.values():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Frozen):
            yield from parts(info.annotation)


def test_no_name_is_both_a_technique_and_a_behaviour():
    assert not TECHNIQUES.keys() & BEHAVIOURS.keys()


def test_names_stand_in_order():
    """A new entry goes to its place, so that `calibrant ls` and the diff stay readable."""
    assert list(TECHNIQUES) == sorted(TECHNIQUES)
    assert list(BEHAVIOURS) == sorted(BEHAVIOURS)


def test_every_exception_names_an_entry_and_a_reason(known):
    assert known.keys() <= LISTED.keys()
    assert all(exception.why for exception in known.values())


@entry
def test_name_wing_file_and_function_are_one(name):
    """'attack.encode' is ``encode`` in calibrant/attack/encode.py; a behaviour's file is free."""
    wing, _, short = name.partition(".")
    module, _, function = LISTED[name].target.partition(":")
    assert wing in WINGS
    assert module.startswith(f"calibrant.{wing}.")
    assert function == short
    if name in TECHNIQUES:
        assert module == f"calibrant.{wing}.{short}"
    made = signature_of(name).function
    assert (made.__module__, made.__name__) == (module, function), "listed where it is defined"


@entry
def test_summary_is_one_short_line(name):
    summary = LISTED[name].summary
    assert 0 < len(summary) <= 72
    assert "\n" not in summary
    assert not summary.endswith(".")


def test_every_technique_has_its_page():
    """One page a technique: docs/attack.encode.md."""
    missing = [f"docs/{name}.md" for name in TECHNIQUES if not (ROOT / "docs" / f"{name}.md").is_file()]
    assert not missing, f"{len(missing)} of {len(TECHNIQUES)} pages are missing: {', '.join(missing)}"


@entry
def test_module_and_function_say_what_they_do(name):
    function = signature_of(name).function
    for said in (function.__doc__, sys.modules[function.__module__].__doc__):
        assert said
        assert len(said.split()) >= 5


@entry
def test_config_is_frozen_strict_and_has_defaults(name):
    kind = signature_of(name).config
    if kind is None:
        return
    for part in parts(kind):
        assert issubclass(part, Frozen)
        assert part.model_config["frozen"]
        assert part.model_config["extra"] == "forbid"
    assert kind() == kind(), "built from nothing, and the same each time"


@entry
def test_config_survives_json(name, shop):
    signature = signature_of(name)
    if signature.config is None:
        return
    for config in (signature.config(), shop.config(name, signature)):
        assert signature.config.model_validate(config.model_dump(mode="json")) == config
        assert signature.config.model_validate_json(config.model_dump_json()) == config


@entry
def test_unknown_key_is_refused_with_the_nearest_name(name):
    kind = signature_of(name).config
    if kind is None:
        return
    with pytest.raises(ConfigError, match="unknown key 'zzz'"):
        resolve(kind, {"zzz": 1})
    for field in kind.model_fields:
        with pytest.raises(ConfigError) as caught:
            resolve(kind, {f"{field}_": 1})
        assert f"unknown key '{field}_' (did you mean '{field}'?)" in str(caught.value)


@entry
def test_unknown_key_inside_a_nested_config_is_refused_with_the_nearest_name(name):
    kind = signature_of(name).config
    for outer, info in kind.model_fields.items() if kind else ():
        inner = info.annotation
        for field in inner.model_fields if isinstance(inner, type) and issubclass(inner, Frozen) else ():
            with pytest.raises(ConfigError) as caught:
                resolve(kind, {outer: {f"{field}_": 1}})
            assert f"unknown key '{outer}.{field}_' (did you mean" in str(caught.value)
            assert f"{field}'?)" in str(caught.value)


@entry
def test_every_field_is_documented(name):
    signature = signature_of(name)
    kinds = list(parts(signature.config)) if signature.config else []
    if name in TECHNIQUES:
        kinds.append(typing.get_type_hints(signature.function)["return"])
    for kind in kinds:
        assert kind.__doc__
        assert kind.__doc__ != Frozen.__doc__, f"{kind.__name__} has no docstring of its own"
        bare = [field for field, info in kind.model_fields.items() if not info.description]
        assert not bare, f"{kind.__name__}: no docstring under {', '.join(bare)}"


@technique
def test_technique_has_the_one_shape(name):
    """f(inputs..., config: Config = Config(), run: Run = Quiet()) -> SomeResult, with a version."""
    signature = find_technique(name)
    function, hints = signature.function, typing.get_type_hints(signature.function)
    parameters = inspect.signature(function).parameters
    assert list(parameters) == [*signature.inputs, "config", "run"]
    assert set(hints) == {*parameters, "return"}, "fully annotated"
    assert all(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in parameters.values())
    assert issubclass(hints["config"], Frozen)
    assert parameters["config"].default == hints["config"]()
    assert hints["run"] is Run
    assert isinstance(parameters["run"].default, Quiet)
    assert issubclass(hints["return"], Result)
    assert hints["return"] is not Result
    assert type(vars(function).get("version")) is int, "marked with @technique(version=...)"
    assert signature.version >= 1


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_behaviour_has_the_one_shape(name):
    """f(inputs..., config: Config = Config()) -> Judge | Guard | Reward | Watcher | Monitor."""
    signature = find_behaviour(name)
    hints = typing.get_type_hints(signature.function)
    parameters = inspect.signature(signature.function).parameters
    assert list(parameters) == [*signature.inputs, *(["config"] if signature.config else [])]
    assert set(hints) == {*parameters, "return"}, "fully annotated"
    assert hints["return"] in (Judge, Guard, Reward, Watcher, Monitor)
    if signature.config:
        assert parameters["config"].default == signature.config()


@entry
def test_inputs_can_be_built(name, shop):
    """An input of a type that BUILDERS does not know fails here, with what to do."""
    inputs: dict[str, Any] = shop.inputs(name, signature_of(name))
    assert inputs.keys() == signature_of(name).inputs.keys()
