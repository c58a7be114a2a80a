"""The tables of characters that nobody sees, and of those that look like ASCII."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrant.text.codecs import CODECS
from calibrant.text.decodings import (
    _SPELLED,
    _look_alikes,
    _shown,
    _unmarked,
    _without_symbols,
    alike,
    fold,
    like,
    readings,
    shown,
    spelled,
    tables,
)

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_are_whole():
    shipped = tables()
    content = {"ignorable": shipped["ignorable"], "look_alikes": shipped["look_alikes"]}
    assert hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest() == shipped["digest"]
    assert shipped["unicode"] and "UTS #39" in shipped["source"]


def test_the_tables_say_what_icu_says():
    spec = importlib.util.spec_from_file_location("unicode_tables", ROOT / "tools/unicode_tables.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    try:
        made = json.loads(json.dumps(tool.tables()))
    except OSError:
        pytest.skip("needs ICU: Debian's libicu72")
    shipped = tables()
    if made["unicode"] != shipped["unicode"]:
        pytest.skip(f"this ICU has Unicode {made['unicode']}, and the tables {shipped['unicode']}")
    assert made["ignorable"] == shipped["ignorable"]
    if made["digest"] != shipped["digest"]:  # marks and NFKC are this Python's
        both = set(made["look_alikes"]) & set(shipped["look_alikes"])
        assert len(both) > 0.95 * len(shipped["look_alikes"])


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain Text", "plain text"),
        ("z\u043erblé", "zorble"),
        ("ŁÓDŹ", "lodz"),
        ("मेला", "मल"),
        ("z\u0903o", "zo"),
        ("ꭼ", "e"),
        ("a×b", "a×b"),
        ("ʹaǃ", "'a!"),
        ("日本", "日本"),
    ],
)
def test_alike(text, seen):
    assert alike(text).translate({0xE000: "l"}) == seen


def test_ascii_is_its_own_look_alike():
    every = "".join(map(chr, range(32, 127)))
    assert alike(every) == fold(every)
    assert readings(every, ("rot13",)).keys() == {"as written", "through rot13"}


def test_a_pattern_for_look_alikes_only_where_ascii_writes_the_word():
    assert like("mill", str) == "[m\ue001][i\ue000][l\ue000][l\ue000]"
    assert like("бомба", str) is None and like("сор", str) is None and like("été", str) == "ete"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a z o r b", ["azorb"]), ("z.o.r, then b-l-e", ["zor", "ble"]), ("i am", []), ("x y", []),
        ("_" * 5_000, []),
        ("a " * 3 + "word", ["aaa"]), ("a" + " " * 9 + "b c", []), ("1 2 3", ["123"]),
    ],
)  # fmt: skip
def test_spelled(text, found):
    assert list(spelled(text)) == found


@pytest.mark.parametrize("unit", ["a ", "_", "a_", "a.", "ab ", " ", "a b cd "])
def test_long_runs_take_linear_time(unit):
    """A backtracking pattern would not end."""
    list(spelled(unit * 20_000))


@given(st.text("a1é_- .中²", max_size=40) | st.text(max_size=40))
def test_a_text_without_single_letters_is_dismissed_as_the_pattern_would(text):
    slow = ["".join(re.findall(r"[^\W_]", match.group())) for match in _SPELLED.finditer(text)]
    assert list(spelled(text)) == slow


TEXT = st.text(st.characters(), max_size=60) | st.text("aé°\u0301\u0323‘−l1I\u200bрᴬ", max_size=60)


@given(TEXT)
def test_a_table_on_a_text_is_its_translation(text):
    for table in (_shown(), _unmarked(), _look_alikes(), _without_symbols()):
        assert table.on(text) == text.translate(table)


@given(TEXT, st.integers(25, 40))
def test_marks_beyond_thirty_on_a_letter_are_dropped(text, marks):
    def slowly(text):
        kept, run = [], 0
        for char in text:
            run = run + 1 if unicodedata.combining(char) else 0
            kept.append(char if run <= 30 else "")
        return "".join(kept)

    long = f"{text}é{chr(0x301) * marks}b"
    assert shown(long) == slowly(long.translate(_shown()))


@given(TEXT | st.text("YmFrZSBhIG1vb24=a-b-c é\u2800‘", max_size=40))
def test_no_codec_hides_anything_that_was_seen(text):
    """``readings`` takes a decoding of what hides nothing as it is."""
    source = unicodedata.normalize("NFKC", shown(text))
    if shown(source) == source:
        for name, codec in CODECS.items():
            decoded = codec.decode(source)
            assert decoded is None or shown(decoded) == decoded, name
