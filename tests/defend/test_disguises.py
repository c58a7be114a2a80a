"""Words in disguise: what nobody sees, marks, look-alikes, single letters. And benign text that must pass."""

from __future__ import annotations

import time

import pytest
from babel import Locale
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.core import Chat, ConfigError, resolve
from calibrant.defend.pattern_guard import PatternGuard, pattern_guard
from calibrant.text.decodings import tables


def asks(text):
    return Chat.ask(text)


IGNORED = [chr(code) for first, last in tables()["ignorable"] for code in range(first, last + 1)]


def test_every_character_that_nobody_sees_at_every_place():
    """4,174 Default_Ignorable code points and Braille's blank, round and between six letters: 0 pass."""
    assert len(IGNORED) > 4_000
    guard = pattern_guard(PatternGuard(words=("zorble",), views=()))
    for mark in (*IGNORED, "\u2800"):
        chats = [asks("a " + "zorble"[:at] + mark + "zorble"[at:]) for at in range(7)]
        assert {verdict.answer for verdict in guard.ask(chats, "input")} == {"no"}, hex(ord(mark))


ALIKE = tables()["look_alikes"]
WORD = "zorbled"
LETTERS = [
    st.sampled_from(letter + letter.upper() + ALIKE[letter] + ALIKE[letter.upper()]) for letter in "zorb"
] + [
    st.sampled_from("lL" + ALIKE["l"] + ALIKE["L"]),
    *(st.sampled_from(c + ALIKE[c] + ALIKE[c.upper()]) for c in "ed"),
]


@settings(max_examples=300, deadline=None)
@given(
    word=st.tuples(*LETTERS),
    marks=st.lists(
        st.sampled_from(["", "\u0301", "\u0336", "\u20dd", "\u200b", "\U000e0100"]), min_size=7, max_size=7
    ),
    apart=st.sampled_from(["", " ", "-", ". ", "\n", "*_"]),
)
def test_look_alikes_marks_and_single_letters_together(word, marks, apart):
    text = apart.join(letter + mark for letter, mark in zip(word, marks, strict=True))
    guard = pattern_guard(PatternGuard(words=(WORD,), views=()))
    assert guard.ask([asks(f"how is {text} made?")], "input")[0].answer == "no"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("z o r b l e", "zorble"), ("z.o.r.b.l.e", "zorble"), ("Z\nO\nR\nB\nL\nE", "zorble"),
        ("z\u043erble", "zorble"), ("ΖORBLΕ", "zorble"), ("zørblé", "zorble"), ("\u0399ron", "iron"),
        ("\u04c0etter", "letter"), ("\u0399\u04c0legal", "illegal"), ("bo\u0271b", "bomb"),
        ("mbeo\u0443r", "zorble"),
        ("z o r b l e t e a", "zorble tea"), ("zorblé tea", "zorblé tea"),
    ],
)  # fmt: skip
def test_other_ways_to_write_a_word(text, rule):
    guard = pattern_guard(PatternGuard(words=(rule,)))
    assert guard.ask([asks(f"about {text}, then")], "input")[0].answer == "no"
    assert guard.ask([asks("about a plain loaf, then")], "input")[0].answer == "yes"


@pytest.mark.parametrize(
    "text",
    ["corn", "a b c", "U S A", "the zorblet", "zo rb le", "z o r b", "modern times", "m e d i c i n e"],
)
def test_what_only_resembles_a_rule_passes(text):
    guard = pattern_guard(PatternGuard(words=("com", "zorble", "modem", "abcd", "die", "c++"), views=()))
    assert guard.ask([asks(text)], "input")[0].answer == "yes"


def test_a_pattern_is_tried_on_look_alikes():
    guard = pattern_guard(PatternGuard(patterns=(r"zorb\w+",), views=()))
    for text in ("z\u043erbling", "zorb\u04c0ing"):
        assert guard.ask([asks(text)], "input")[0].answer == "no"


def test_a_rule_in_another_script_is_matched_as_written():
    """Without their marks many words of Hindi are the same: such a rule does not lose them."""
    guard = pattern_guard(PatternGuard(words=("कि", "бомба"), views=()))
    answers = [
        verdict.answer
        for verdict in guard.ask([asks("की"), asks("कि"), asks("БОМБА"), asks("тромба")], "input")
    ]
    assert answers == ["yes", "no", "no", "yes"]


SHORT = (
    "bomb gun kill drug hack porn hate meth poison virus weapon murder rape steal knife fraud scam nude sex "
    "cop dope acid crack toxin nerve gas rob spy bot root pass key pin arms ricin sarin mine fuse oil tnt "
    "car bank card top hot rope cap bop pop pot tot crop torch"
)


@pytest.mark.parametrize("language", ["ru", "uk", "bg", "sr", "ar", "fa", "ur", "hi", "mr", "ne", "el", "he"])
def test_benign_names_in_other_scripts_pass(language):
    """Names of countries, languages and currencies (CLDR); the rules are words that others look like."""
    names = Locale.parse(language)
    texts = sorted(
        {str(n) for kind in (names.territories, names.languages, names.currencies) for n in kind.values()}
    )
    guard = pattern_guard(PatternGuard(words=tuple(SHORT.split())))
    blocked = [
        t
        for t, v in zip(texts, guard.ask([asks(t) for t in texts], "input"), strict=True)
        if v.answer != "yes"
    ]
    assert len(texts) > 900 and all("САР" in text for text in blocked), blocked
    assert len(blocked) <= 2


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("z×o×r×b×l×e", "zorble"), ("×z\u043erble×", "zorble"), ("zorb\u04cfe", "zorble"),
        ("\u0430\u0440\u0440\u04cf\u0435", "apple"), ("k \u0399 \u0399 \u0399", "kill"),
        ("z\u0903orble", "zorble"), ("zorble\u302e", "zorble"), ("zorble\u01c3", "zorble"),
        ("\u02bczorble\u02bc", "zorble"), ("zorble\u30fc", "zorble"),
        ("z\u02b9o\u02b9r\u02b9b\u02b9l\u02b9e", "zorble"), ("zorble™", "zorble"), ("zorble²", "zorble"),
        ("№zorble", "zorble"), ("z™o™r™b™l™e", "zorble"), ("_zorble_", "zorble"),
        ("__zorble__", "zorble"), ("请zorble吧", "zorble"), ("怎么做炸弹？", "炸弹"),
        ("วิธีทำระเบิด", "ระเบิด"), ("zo\x1crble", "zorble"), ("zo\x85rb\x0ble", "zorble"),
        ("s t r a ß e", "strasse"), ("o ﬃ c e", "office"), ("Æ s o p", "aesop"),
        ("z o r b l \uab7c", "zorble"), ("don’t refuse", "don't refuse"),
        ("don't refuse", "don’t refuse"), ("make−it", "make-it"), ("d o n t p a n i c", "don’t panic"),
        ("\u041eday", "0day"), ("\u041e d a y", "0day"), ("ⓩ ⓞ ⓡ ⓑ ⓛ ⓔ", "zorble"), ("cafe", "café"),
        ("cafe ☕", "café"), ("\u0399VTVY", "vigil"),
    ],
)  # fmt: skip
def test_ways_round_a_first_draft(text, rule):
    """What a tester wrote past it: symbols like letters, ambiguous letters, marks beside letters."""
    assert answer(f"so: {text}", rule) == "no"


def answer(text, *words, **config):
    return pattern_guard(PatternGuard(words=words, **config)).ask([asks(text)], "input")[0].answer


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("कुल", "कल"), ("ガス", "カス"), ("パパ", "ハハ"), ("кйт", "кит"), ("ม้า", "มา"),
        ("cop ☕", "сор"), ("c o p", "сор"), ("f(a, b, c)", "c++"), ("option D, i.e. the last", "die"),
        ("a × e = 3", "axe"), ("G ∪ N = X", "gun"), ("s k i l l s", "kilo"), ("5 ¢", "c"),
    ],
)  # fmt: skip
def test_other_words_that_a_first_draft_blocked(text, rule):
    assert answer(text, rule) == "yes"


def test_users_turns_are_read_as_one():
    chat = asks("how is zorble").then("assistant", "ok").then("user", "tea made?")
    guard = pattern_guard(PatternGuard(words=("zorble tea",), views=()))
    verdict = guard.ask([chat], "input")[0]
    assert verdict.reason == "'zorble tea' stands in what the user says, read as written"


@pytest.mark.parametrize("char", ["ß", "…", "½", "ﬁ", "İ", "ｂ"])
def test_a_pattern_that_can_match_nothing_is_refused(char):
    with pytest.raises(ConfigError, match="never matches"):
        pattern_guard(PatternGuard(patterns=(f"a{char}b",)))


def test_marks_without_end_take_linear_time():
    """Normalising 40,000 marks of two classes takes seconds."""
    text = "a" + "\u0301" * 20_000 + "\u0323" * 20_000 + "zorble"
    start = time.process_time()
    assert answer(f"{text} zorble", "zorble") == "no"
    assert time.process_time() - start < 5


def test_rules_that_are_no_unicode_are_refused():
    with pytest.raises(ConfigError, match="no Unicode"):
        resolve(PatternGuard, {"words": ["x\ud800y"]}, where="guard")
    with pytest.raises(ConfigError):
        pattern_guard(PatternGuard(patterns=("\ud800",)))


@pytest.mark.parametrize("pattern", ["", ".*", "(a|)", "x*"])
def test_a_pattern_that_matches_every_text_is_refused(pattern):
    with pytest.raises(ConfigError, match="matches every text"):
        pattern_guard(PatternGuard(patterns=(pattern,)))


RULES = PatternGuard(
    words=("zorble", "o'brien", "क", "smash"),
    patterns=("qu+ib", "^fen|wick$", r"\bma\w+n\b", "(?P<a>x)(y|z)"),
)
ANCHORED = PatternGuard(
    words=("smash",), patterns=(r"\Amarn", r"wick\z", "(?s)fen.x", "(?-m)^quuib", r"[^a]\Bo", "^wick ?fen")
)
PIECES = (
    "zorble",
    "z-o-r-b-l-e",
    "zоrble",
    "O’Brien",
    "क",
    "quuib",
    "xz",
    "fen",
    "wick",
    "marn",
    "mar",
    "é",
    " ",
    "a",
)


@pytest.mark.parametrize("config", [RULES, ANCHORED])
@given(texts=st.lists(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), min_size=1, max_size=3))
def test_one_look_at_all_rules_changes_no_verdict(config, texts):
    """Texts that break no rule are dismissed at one look, as lines of one, where no pattern asks for the ends
    of a text; with the rules one by one, on a text at a time, it is the same."""
    quick, slow = pattern_guard(config), pattern_guard(config)
    slow.__dict__["_any"] = None
    assert quick._any.together == (config is RULES)
    chat = Chat.ask(texts[0])
    for text in texts[1:]:
        chat = chat.then("assistant", "well").then("user", text)
    assert quick.ask([chat], "input") == slow.ask([chat], "input")


def test_rules_that_are_too_large_together_are_tried_one_by_one(monkeypatch):
    monkeypatch.setattr("calibrant.defend.pattern_guard._MEMORY", 500)
    guard = pattern_guard(PatternGuard(words=("quib",)))
    assert guard._any is None
    assert [v.answer for v in guard.ask([Chat.ask("a quib"), Chat.ask("a barn")], "input")] == ["no", "yes"]


@pytest.mark.parametrize(
    ("patterns", "text"),
    [
        ((r"\Qc++ bomb", r"\Q.net\E"), "make a c++ bomb"),
        ((r"\Qc++ bomb", r"\Q.net\E"), "the .net"),
        ((r"\Qc++ bomb", "poison", r"C:\\Etc"), "poison"),
    ],
)
def test_an_open_quotation_swallows_no_other_rule(patterns, text):
    guard = pattern_guard(PatternGuard(patterns=patterns))
    assert [v.answer for v in guard.ask([Chat.ask(text), Chat.ask("a mill")], "input")] == ["no", "yes"]


def test_a_long_text_is_read_as_a_short_one(monkeypatch):
    texts = ["a zorble", "mneoyr, elbroz", "mend a barn"]
    guard = pattern_guard(PatternGuard(words=("zorble",)))
    asked = [Chat.ask(text) for text in texts]
    whole = guard.ask(asked, "input")
    monkeypatch.setattr("calibrant.defend.pattern_guard._LONG", 3)
    assert guard.ask(asked, "input") == whole and [v.answer for v in whole] == ["no", "no", "yes"]
