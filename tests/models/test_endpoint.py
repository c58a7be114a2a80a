"""What an endpoint says, as it may stand in a message and in a record."""

from __future__ import annotations

import json

import pytest

from calibrant.models.endpoint import quote


@pytest.mark.parametrize("text", ["half a \ud83d pair", "\udc00", b"raw \xff\xed\xa0\x80 bytes"])
def test_what_is_quoted_can_be_written(text: object) -> None:
    """Half a surrogate pair can stand in a JSON answer; no file in UTF-8 can hold it."""
    said = quote(text)
    assert said.encode("utf-8").decode() == said
    assert json.dumps(said, ensure_ascii=False).encode()
    assert len(said) >= 1


def test_a_quote_is_one_short_line() -> None:
    assert quote("a\n b\t c") == "a b c"
    assert quote("x" * 1000) == "x" * 200
    assert quote({"error": 1}) == "{'error': 1}"
