"""Digests: RFC 8785 vectors, a second route by json and hashlib, and what has no canonical form."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrant.core import Chat, digest
from calibrant.core.digest import canonical, digest_bytes, digest_file, digest_path, manifest, plain

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of nothing


def test_sample_of_rfc_8785_section_3_2_2():
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    assert canonical(value).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


def test_keys_are_sorted_by_utf_16_units():
    """RFC 8785, 3.2.3: the emoji (surrogates D83D DE00) comes before U+FB33; by code point it would not."""
    order = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert list(json.loads(canonical(dict.fromkeys(reversed(order), 0)))) == order
    assert sorted(order) != order


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),  # minus zero
        ("0000000000000001", "5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("444b1ae4d6e2ef4f", "999999999999999900000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555555", "333333333.3333333"),
    ],
)
def test_numbers_of_rfc_8785_appendix_b(bits, text):
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical(value).decode() == text


def test_golden():
    """A moved literal means that every stored record and resume key is void."""
    value = {"b": [1, 2.5, "é"], "a": {"x": None, "y": True}}
    assert canonical(value) == '{"a":{"x":null,"y":true},"b":[1,2.5,"é"]}'.encode()
    assert digest(value) == "0e66b709b76a56a58aecb5a8de76fd7f53b43f39cee9d050c82cf5f6a5c76479"


ASCII = st.text(st.characters(max_codepoint=126, min_codepoint=32), max_size=6)
LEAVES = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | ASCII
TREES = st.recursive(LEAVES, lambda t: st.lists(t, max_size=3) | st.dictionaries(ASCII, t, max_size=3))


@given(TREES)
def test_second_route(value):
    """Without floats and beyond-ASCII text, sorted compact JSON is canonical."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    assert digest(value) == hashlib.sha256(text.encode()).hexdigest()


def _integer(text):
    """Written bare from 2^53 on, a number was a float: integers of that size are strings."""
    return int(text) if abs(int(text)) < 2**53 else float(text)


@given(st.recursive(LEAVES | st.floats() | st.text(max_size=4), lambda t: st.lists(t, max_size=3)))
def test_reading_back_keeps_the_digest(value):
    assert digest(json.loads(canonical(value), parse_int=_integer)) == digest(value)


def test_order_of_keys_and_kind_of_sequence_do_not_matter():
    assert digest({"a": 1, "b": (1, 2)}) == digest({"b": [1, 2], "a": 1.0})
    assert digest([1, 2]) != digest([2, 1])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (2**53 - 1, b"9007199254740991"),
        (2**53, b'"9007199254740992"'),
        (-(2**53), b'"-9007199254740992"'),
        (10**30, b'"1000000000000000000000000000000"'),
        (True, b"true"),
        (math.nan, b"null"),
        (-math.inf, b"null"),
        (Path("a/b"), b'"a/b"'),
        ({1: "x"}, b'{"1":"x"}'),
        ("\U0001f600", '"\U0001f600"'.encode()),
        ("e\u0301", '"e\u0301"'.encode()),  # no normalisation: not the same as é
        (Chat.ask("x"), b'{"messages":[{"content":"x","role":"user"}]}'),
    ],
)
def test_what_json_cannot_say(value, said):
    assert canonical(value) == said


def test_lone_surrogates():
    """No UTF-8 holds them. In a value, which a model may say, one becomes '?'; as a key it is refused, since
    two names could become one.
    """
    assert canonical({"said": "a\udfff"}) == b'{"said":"a?"}'
    with pytest.raises(ValueError, match="surrogates not allowed"):
        digest({"\ud800": 1})


@pytest.mark.parametrize("value", [{1, 2}, b"x", object(), 1j])
def test_no_guessing(value):
    with pytest.raises(TypeError, match=f"no canonical form for {type(value).__name__}"):
        digest({"deep": [value]})


def test_plain_leaves_its_argument_alone():
    value = {"a": [math.nan, 2**60]}
    plain(value)
    assert value["a"][1] == 2**60
    assert math.isnan(value["a"][0])


def test_files_and_folders(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_bytes(b"")
    (tmp_path / "b.txt").write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert digest_bytes(b"") == EMPTY
    assert digest_file(tmp_path / "b.txt") == digest_path(tmp_path / "b.txt") == abc
    assert manifest(tmp_path) == {"b.txt": abc, "sub/a.txt": EMPTY}
    assert digest_path(tmp_path) == digest({"sub/a.txt": EMPTY, "b.txt": abc})
    before = digest_path(tmp_path)
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    assert digest_path(tmp_path) != before
