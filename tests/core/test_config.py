"""Configs: frozen, strict, and every problem told at once with the nearest name."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from calibrant.core import ConfigError, Frozen, InputError, resolve


class Bowl(Frozen):
    """Inner config."""

    depth: float = Field(default=1.0, gt=0)
    """How deep."""
    clay: bool = False
    """What it is made of."""


class Kettle(Frozen):
    """Outer config."""

    volume: int = Field(default=2, ge=1)
    """Litres."""
    Colour: Literal["Red", "Blue"] = "Red"
    """Paint."""
    bowl: Bowl = Bowl(clay=True)
    """What it stands in."""
    lid: Bowl | None = None
    """What covers it."""

    @field_validator("volume")
    @classmethod
    def _even(cls, value):
        if value % 2:
            raise ValueError("the volume of a Kettle must be even")
        return value


class Needy(Frozen):
    """Has no default."""

    name: str
    """Who."""


def problems(kind, given):
    with pytest.raises(ConfigError) as caught:
        resolve(kind, given)
    return caught.value.problems


def test_defaults_and_overrides():
    assert resolve(Kettle, {}) == Kettle()
    assert resolve(Kettle, {"bowl": {"clay": False}}).bowl == Bowl(clay=False)


def test_naming_one_nested_key_keeps_the_others():
    """The kettle's own bowl is of clay; asking for a deeper one does not change that."""
    assert resolve(Kettle, {"bowl": {"depth": 3}}).bowl == Bowl(depth=3.0, clay=True)
    assert resolve(Kettle, {"lid": {"depth": 3}}).lid == Bowl(depth=3.0)


def test_all_problems_at_once():
    given = {"volum": 3, "volume": 0, "Colour": "Green", "bowl": {"depht": 1, "depth": -1}}
    assert sorted(problems(Kettle, given)) == [
        "config: 'Colour': input should be 'Red' or 'Blue', got 'Green'",
        "config: 'bowl.depth': input should be greater than 0, got -1",
        "config: 'volume': input should be greater than or equal to 1, got 0",
        "config: unknown key 'bowl.depht' (did you mean 'depth'?)",
        "config: unknown key 'volum' (did you mean 'volume'?)",
    ]


def test_nearest_name_is_of_the_same_level():
    """'volum' lies near a key of the kettle, but the bowl has no such key."""
    assert problems(Kettle, {"bowl": {"volum": 1}}) == (
        "config: unknown key 'bowl.volum'; 'bowl' takes depth, clay",
    )
    assert problems(Kettle, {"lid": {"deep": 1}})[0].endswith("'lid.deep' (did you mean 'depth'?)")
    (said,) = problems(Kettle, {"bowl": {"volume": 1}})
    assert said == "config: unknown key 'bowl.volume' ('volume' is on the level of 'bowl', not in it)"
    assert problems(Kettle, {"zzz": 1}) == ("config: unknown key 'zzz'",)


def test_the_message_of_a_validator_stands_alone_and_keeps_its_capitals():
    (said,) = problems(Kettle, {"volume": 3})
    assert said == "config: 'volume': the volume of a Kettle must be even, got 3"


def test_required_and_where():
    with pytest.raises(ConfigError) as caught:
        resolve(Needy, {}, where="job 'tea'")
    assert caught.value.problems == ("job 'tea': 'name' is required and was not given",)


def test_long_values_are_cut_in_the_message():
    (said,) = problems(Kettle, {"Colour": "x" * 500})
    assert len(said) < 150


def test_frozen_and_strict():
    with pytest.raises(ValidationError, match="frozen"):
        Kettle().volume = 4
    with pytest.raises(ValidationError, match="extra"):
        Kettle(volum=4)


def test_docstrings_are_the_help_text():
    assert {f.description for f in Kettle.model_fields.values()} == {
        "Litres.", "Paint.", "What it stands in.", "What covers it.",
    }  # fmt: skip


def test_json_round_trip():
    config = Kettle(volume=4, lid=Bowl(depth=0.1))
    assert Kettle.model_validate_json(config.model_dump_json()) == config


def test_other_errors_pass_through():
    """Only pydantic's report is translated."""

    class Odd(Frozen):
        n: int = 0

        @field_validator("n")
        @classmethod
        def _never(cls, value):
            raise InputError("no such thing")

    with pytest.raises(InputError, match="no such thing"):
        resolve(Odd, {"n": 1})


def test_numbers_beyond_reason_are_named():
    class Inner(Frozen):
        sizes: tuple[int, ...] = ()
        """Some."""
        seed: int = 0
        """Any."""

    class Outer(Frozen):
        members: int = 2
        """How many."""
        inner: Inner = Inner()
        """More."""

    assert resolve(Outer, {"members": 10**9, "inner": {"seed": 2**80}}).inner.seed == 2**80
    with pytest.raises(ConfigError) as caught:
        resolve(Outer, {"members": 1e12, "inner": {"sizes": [1, 10**10]}}, where="job 'x'")
    assert caught.value.problems == (
        "job 'x': 'members' is more than 1,000,000,000",
        "job 'x': 'inner.sizes' is more than 1,000,000,000",
    )
    with pytest.raises(ConfigError, match="beyond writing down"):
        resolve(Outer, {"inner": 10**5_000})


@pytest.mark.parametrize("word", ["none", "null"])
def test_a_word_is_none_where_it_can_mean_nothing_else(word):
    class Inner(Frozen):
        limit: int | None = 100
        """Most."""
        name: str | None = "x"
        """Text."""

    class Outer(Frozen):
        inner: Inner = Inner()
        """More."""
        other: Inner | None = Inner()
        """More."""
        how: Literal["none", "null", "some"] | None = "some"
        """A choice that has the word."""
        way: Literal["one"] | None = "one"
        """A choice that has not."""
        count: int = 2
        """Never None."""

    made = resolve(Outer, {"inner": {"limit": word, "name": word}, "other": word, "how": word, "way": word})
    assert made.inner == Inner(limit=None, name=word) and made.other is None
    assert made.how == word and made.way is None
    assert resolve(Outer, {"other": {"limit": word}}).other.limit is None
    assert problems(Outer, {"count": word})[0].endswith(f"got '{word}'")
