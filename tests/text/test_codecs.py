"""Codecs: what is encoded comes back, by any number of words; known vectors pin the direction."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrant.text.codecs import _BASE64, CODECS

letters = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12)
phrases = st.lists(letters, min_size=1, max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("name", "text", "encoded"),
    [
        ("spell", "hi moon", "h-i m-o-o-n"),
        ("reverse", "hi moon", "ih noom"),
        ("rot13", "hi Moon", "uv Zbba"),
        ("caesar", "xyz Moon", "abc Prrq"),
        ("leet", "a stone sits", "4 570n3 5175"),
        ("base64", "bake a moon", "YmFrZSBhIG1vb24="),
    ],
)
def test_known_vectors(name: str, text: str, encoded: str) -> None:
    assert CODECS[name].encode(text) == encoded
    assert CODECS[name].decode(encoded) == text


@pytest.mark.parametrize("name", ["reverse", "rot13", "caesar", "leet"])
@given(text=phrases)
def test_letter_codecs_return_lower_case_words(name: str, text: str) -> None:
    assert CODECS[name].decode(CODECS[name].encode(text)) == text


@given(phrases.filter(lambda text: any(len(word) > 1 for word in text.split())))
def test_spelling_returns_lower_case_words(text: str) -> None:
    assert CODECS["spell"].decode(CODECS["spell"].encode(text)) == text


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=6))
def test_base64_returns_any_printable_text(text: str) -> None:
    assert CODECS["base64"].decode(CODECS["base64"].encode(text)) == text


@pytest.mark.parametrize("text", ["hello", "burn the barn"])
def test_base64_decodes_short_texts_of_eight_characters_and_more(text: str) -> None:
    assert CODECS["base64"].decode(CODECS["base64"].encode(text)) == text


@pytest.mark.parametrize("word", ["dumpster", "diseases", "airports", "exchange", "emphasis", "demolish"])
def test_ordinary_words_are_not_taken_for_base64(word: str) -> None:
    assert CODECS["base64"].decode(word) is None


@pytest.mark.parametrize("text", ["a", "2-5", "how do i mend it?"])
def test_what_is_not_spelled_is_not_unspelled(text: str) -> None:
    assert CODECS["spell"].decode(text) is None


@given(phrases)
def test_rot13_twice_is_nothing(text: str) -> None:
    assert CODECS["rot13"].encode(CODECS["rot13"].encode(text)) == text


def test_text_that_is_not_encoded_is_not_decoded() -> None:
    for plain in ("", "bake a moon", "a well made thing"):
        assert CODECS["base64"].decode(plain) is None
        assert CODECS["spell"].decode(plain) is None


def test_base64_is_found_inside_a_sentence() -> None:
    assert CODECS["base64"].decode("please read YmFrZSBhIG1vb24= now") == "please read bake a moon now"


words = st.lists(
    st.sampled_from(
        ["YmFrZSBhIG1vb24=", "YmFrZSBhIGJhcm4", "dumpster", "=", "_", "é", "/", "+", " ", "-", "中²"]
    ),
    max_size=6,
)


@given(words.map("".join) | st.text("AQab=+/_ é", max_size=30) | st.text(max_size=30))
def test_base64_is_found_by_bytes_as_by_characters(text: str) -> None:
    """The slow way: one pattern over the text, whatever stands there tried."""

    def read(match: re.Match[str]) -> str:
        try:
            found = base64.b64decode(match.group(), validate=True).decode()
        except ValueError:
            return match.group()
        return found if found.isprintable() and found.isascii() else match.group()

    slow = _BASE64.sub(read, text)
    assert CODECS["base64"].decode(text) == (None if slow == text else slow)


@given(st.text("ab é_中-.", max_size=30) | st.text(max_size=30))
def test_words_are_reversed_in_place(text: str) -> None:
    assert CODECS["reverse"].encode(text) == re.sub(r"\w+", lambda match: match.group()[::-1], text)
