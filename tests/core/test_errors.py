"""Errors say what went wrong and what to do; names are matched only when they are close."""

from __future__ import annotations

import pytest

from calibrant.core import (
    BudgetError,
    CalibrantError,
    CapabilityError,
    ConfigError,
    EvidenceError,
    InputError,
    NumericalError,
)
from calibrant.core.errors import nearest

LEAVES = [BudgetError, CapabilityError, ConfigError, EvidenceError, InputError, NumericalError]


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf(leaf):
    error = leaf("it broke", hint="mend it")
    assert isinstance(error, CalibrantError)
    assert (error.message, error.hint) == ("it broke", "mend it")
    assert str(error) == "it broke\n  -> mend it"
    assert str(leaf("it broke")) == "it broke"


def test_no_leaf_catches_another():
    assert not any(issubclass(a, b) for a in LEAVES for b in LEAVES if a is not b)


def test_config_error_lists_every_problem():
    error = ConfigError(f"problem {i}" for i in range(3))
    assert error.problems == ("problem 0", "problem 1", "problem 2")
    assert str(error) == "problem 0\nproblem 1\nproblem 2"
    assert ConfigError("one").problems == ("one",)


@pytest.mark.parametrize(
    ("name", "found"),
    [("bta", "beta"), ("epoch", "epochs"), ("max_lenght", "max_length"), ("zzz", ""), ("", "")],
)
def test_nearest(name, found):
    known = ["beta", "epochs", "max_length"]
    assert nearest(name, iter(known)) == (f" (did you mean '{found}'?)" if found else "")
