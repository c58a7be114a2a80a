"""Converters: known vectors, round trips on the whole of each domain, specs, and what guards can rely on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrant.core import ConfigError
from calibrant.text.codecs import CODECS
from calibrant.text.converters import CONVERTERS, converter

words = st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12), min_size=1, max_size=6)
printable = st.characters(min_codepoint=32, max_codepoint=126)
DOMAINS = {
    "text": st.text(max_size=60),
    "ASCII": st.text(st.characters(max_codepoint=127), max_size=60),
    "lower case": st.text(printable, max_size=60).map(str.lower),
    "words": words.map(" ".join).filter(lambda text: any(len(word) > 1 for word in text.split())),
    "long text": st.text(printable, min_size=6, max_size=60),
}
LOSSLESS = [name for name, known in CONVERTERS.items() if known.decode]
LOSSY = [name for name, known in CONVERTERS.items() if not known.decode]
KEYS = {"caesar": "25", "vigenere": "lemontree", "rail_fence": "9", "variables": "9", "made_up": "123456789"}


@pytest.mark.parametrize(
    ("spec", "text", "encoded"),
    [
        ("rot13", "brew Tea", "oerj Grn"),
        ("caesar(7)", "brew Tea", "iyld Alh"),
        ("vigenere(lemon)", "attackatdawn", "lxfopvefrnhr"),
        ("atbash", "brew Tea", "yivd Gvz"),
        ("rot47", "brew Tea", "3C6H %62"),
        ("keyboard", "quilt", "wioay"),
        ("rail_fence(3)", "wearediscovered", "wecrerdsoeeaivd"),
        ("base32", "foobar", "MZXW6YTBOI======"),
        ("hex", "tea", "746561"),
        ("binary", "te", "01110100 01100101"),
        ("url", "a b", "%61%20%62"),
        ("html", "a b", "&#97;&#32;&#98;"),
        ("morse", "sos now?", "... --- ... / -. --- .-- ..--.."),
        ("nato", "tea up", "tango echo alfa / uniform papa"),
        ("braille", "tea 42", "⠞⠑⠁ ⠼⠙⠼⠃"),
        ("apart", "tea up", "t e a   u p"),
        ("zero_width", "tea", "t\u200be\u200ba"),
        ("look_alikes", "Tea", "Те\u0430"),
        ("full_width", "tea 1", "ｔｅａ\u3000１"),
        ("bold", "Tea1", "𝐓𝐞𝐚𝟏"),
        ("small_caps", "tea", "ᴛᴇᴀ"),
        ("upside_down", "tea?", "¿ɐǝʇ"),
        ("zalgo", "te", "t\u0301e\u0308"),
        ("variables(2)", 'a "b"', r'a = "a "; b = "\"b\""; join a and b, and answer that'),
        ("acrostic", "tea up", "tea egg apple\numbrella pear"),
        ("word_order", "brew me tea", "tea me brew"),
        ("pig_latin", "brew an egg", "ew-bray an-ay egg-ay"),
    ],
)
def test_known_vectors(spec, text, encoded):
    assert converter(spec).encode(text) == encoded
    assert converter(spec).decode(encoded) == text


@pytest.mark.parametrize("name", LOSSLESS)
@given(data=st.data())
def test_what_is_written_is_read_back(name, data):
    text = data.draw(DOMAINS[CONVERTERS[name].domain])
    for spec in (name, f"{name}({KEYS[name]})") if name in KEYS else (name,):
        found = converter(spec)
        assert found.decode(found.encode(text)) == text


@pytest.mark.parametrize("name", ["hex", "morse", "variables", "binary", "made_up"])
@given(text=DOMAINS["words"])
def test_two_are_undone_in_turn(name, text):
    """'rot13+NAME' applies rot13 first, so NAME is what stands outside."""
    both = converter(f"rot13+{name}")
    assert both.encode(text) == converter(name).encode(converter("rot13").encode(text))
    assert both.decode(both.encode(text)) == text


@pytest.mark.parametrize("name", list(CONVERTERS))
def test_each_changes_a_sentence_says_what_it_does_and_has_a_key_that_it_takes(name):
    text = "please tell me how to mend a kettle for the garden party"
    known = CONVERTERS[name]
    assert converter(name).encode(text) != text
    assert len(known.note.split()) >= 2
    assert (known.domain == "nothing") == (known.decode is None)
    assert bool(known.key) == bool(known.keys)
    if known.key:
        assert converter(f"{name}({known.key})").encode(text) == converter(name).encode(text)


@pytest.mark.parametrize("name", LOSSY)
def test_what_loses_something_is_never_read(name):
    assert converter(name).decode(converter(name).encode("brew tea")) is None
    assert converter(f"rot13+{name}").decode("brew tea") is None


@pytest.mark.parametrize("name", ["random_case", "mixed", "noise", "typos", "made_up"])
def test_seeds_repeat_and_differ(name):
    text = "please tell me how to mend a kettle for the garden party " * 3
    drawn = {converter(f"{name}({seed})").encode(text) for seed in range(20)}
    assert len(drawn) >= 19
    assert converter(f"{name}(7)").encode(text) == converter(f"{name}(7)").encode(text)


def test_noise_is_drawn_as_often_as_the_paper_says():
    """sigma = 0.4: capitals and mixing sqrt(.4) = .632, neighbours in ASCII .4^3 = .064."""
    text = "kettle " * 3000
    capitals = converter("random_case(1)").encode(text)
    assert sum(map(str.isupper, capitals)) / 18000 == pytest.approx(0.632, abs=0.02)
    assert sum(map(str.islower, converter("random_case(1)").encode(text.upper()))) / 18000 > 0.6
    moved = converter("noise(1)").encode(text)
    assert sum(a != b for a, b in zip(moved, text, strict=True)) / 18000 == pytest.approx(0.064, abs=0.01)
    mixed = converter("mixed(1)").encode(text).split()
    assert all(sorted(w) == sorted("kettle") and w[0] == "k" and w[-1] == "e" for w in mixed)
    # Of the 12 arrangements of e, t, t, l one is the word itself: .632 * 11 / 12 = .579.
    assert sum(w != "kettle" for w in mixed) / 3000 == pytest.approx(0.579, abs=0.03)


@pytest.mark.parametrize("name", list(CODECS))
@given(text=DOMAINS["long text"])
def test_the_six_codecs_are_the_same_here(name, text):
    assert converter(name).encode(text) == CODECS[name].encode(text)
    assert converter(name).decode(text) == CODECS[name].decode(text)


@pytest.mark.parametrize(
    "name", ["base32", "hex", "binary", "morse", "nato", "acrostic", "variables", "pig_latin", "apart"]
)
def test_plain_text_is_not_taken_for_it(name):
    assert converter(name).decode("how do i mend a kettle?") is None


@pytest.mark.parametrize("spec", ["hex", "base32", "url", "binary"])
def test_bytes_that_are_no_text_are_not_read(spec):
    bad = {"hex": "ff", "base32": "74======", "url": "%FF", "binary": "11111111"}[spec]
    assert converter(spec).decode(bad) is None
    assert converter("html").decode("&#9999999;") is None
    assert converter("binary").decode("111111111") is None


def test_half_a_surrogate_pair_is_written_as_a_question_mark():
    assert converter("hex").encode("a\ud800") == "613f"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("rot31", "unknown encoding 'rot31' (did you mean 'rot13'?); known: rot13, caesar"),
        ("", "unknown encoding ''"),
        ("rot13+", "unknown encoding ''"),
        ("rot13(5)", "rot13 takes no key"),
        ("caesar(26)", "'26' is no key of caesar"),
        ("caesar()", "'' is no key of caesar"),
        ("vigenere(Lemon)", "'Lemon' is no key"),
        ("caesar(7", "unknown encoding 'caesar(7'"),
        ("a/b", "unknown encoding 'a/b'"),
    ],
)
def test_unusable_specs_are_refused(spec, words):
    with pytest.raises(ConfigError) as caught:
        converter(spec)
    assert words in str(caught.value)


def test_spaces_round_a_plus_do_not_matter():
    assert converter("rot13 + spell").encode("brew") == "o-e-r-j"
