"""What people write: a table, a value, or an error that says what is wrong."""

from __future__ import annotations

import pytest

from calibrant.core.errors import ConfigError
from calibrant.core.written import parse_json, parse_toml


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = ", "not TOML: Invalid value"),
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = " + "[" * 40 + "]" * 40, "nested more than 32 deep"),
        ("a = " + "{b = " * 40 + "1" + "}" * 40, "nested more than 32 deep"),
        ("a = " + "1" * 5_000, "not TOML: Exceeds the limit"),
        ("a = 0x" + "f" * 5_000, "a whole number of 20000 bits"),
        ("a = 9223372036854775808", "a whole number of 64 bits"),
        (".".join(["a"] * 100_000) + " = 1", "a key of more than 32 parts"),
        ("[" + ".".join(['"a b"'] * 40) + "]", "a key of more than 32 parts"),
        ("a = 2026-11-29", "2026-11-29 is a date or time"),
        ("a = [{b = 10:30:00}]", "10:30:00 is a date or time"),
        ("a = 1\n" * 2, "not TOML: Cannot overwrite"),
    ],
)
def test_toml_beyond_reason(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse_toml(text, "x.toml")
    assert caught.value.message.startswith("x.toml: ")
    assert caught.value.hint
    assert len(caught.value.message) < 400


def test_toml_within_reason() -> None:
    deep = "a = " + "[" * 30 + "9223372036854775807" + "]" * 30
    assert parse_toml(deep + "\n[b.c.d]\ne = 'one. two. three. ' # v1.2.3.4", "x")["b"]["c"]["d"]["e"]
    assert parse_toml('story = """' + "It stops. " * 40 + '"""', "x")["story"].startswith("It")
    assert parse_toml("x" * 100_000 + " = 1", "x")


def test_json_that_names_a_key_twice_is_not_half_read() -> None:
    assert parse_json('[{"a": 1}, {"a": 2, "b": {"a": 3}}]') == [{"a": 1}, {"a": 2, "b": {"a": 3}}]
    for text, said in (
        ('{"label": 0, "text": "x", "label": 1}', "the key 'label' twice"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5_000, "Exceeds the limit"),
        ("{", "Expecting property name"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_json(text)
