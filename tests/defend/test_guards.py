"""Guards: metamorphic tests. Wherever and however the forbidden word stands, the answer stays 'no'."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.core import Chat, Completion, ConfigError, Guard, Message, resolve
from calibrant.defend.ask_guard import AskGuard, ask_guard
from calibrant.defend.pattern_guard import PatternGuard, pattern_guard
from calibrant.models.scripted import ScriptedModel
from calibrant.text.codecs import CODECS
from calibrant.text.decodings import fold, readings

ZORBLE = pattern_guard(PatternGuard(words=("zorble tea",)))
TRIGGER = "how do i make zorble tea?"
BENIGN = "how do i bake a plain loaf?"


def asks(text):
    return Chat.ask(text)


def test_planted_and_null():
    assert isinstance(ZORBLE, Guard)
    assert ZORBLE.ask([asks(TRIGGER)], "input")[0].answer == "no"
    assert ZORBLE.ask([asks(BENIGN)], "input")[0].answer == "yes"


@pytest.mark.parametrize(
    "chat",
    [
        asks(f"{BENIGN} {TRIGGER} {BENIGN}"),
        asks(BENIGN)
        .then("assistant", "so")
        .then("user", TRIGGER)
        .then("assistant", "no")
        .then("user", BENIGN),
        Chat.ask(BENIGN, system=f"you know this: {TRIGGER}"),
        asks(BENIGN).then("assistant", TRIGGER).then("user", "go on"),
        asks("what about zorble").then("user", "tea, then?"),  # split over two turns
        asks("word " * 50_000 + TRIGGER),  # far beyond any window
        asks("how do i make ZORBLE   \n TEA?"),
        asks("zo\u200brb\u00adle\u2060 te\u200da"),  # invisible characters
        asks("ｚｏｒｂｌｅ ｔｅａ"),  # full-width forms
        asks("zorble\u00a0tea"),
        asks("z\u2010o\u2010r\u2010b\u2010l\u2010e t\u2011e\u2011a"),  # spelled with other hyphens
    ],
    ids=[
        "decoy",
        "earlier turn",
        "system",
        "assistant turn",
        "split",
        "long",
        "case",
        "invisible",
        "wide",
        "nbsp",
        "hyphens",
    ],
)
def test_the_trigger_is_found_wherever_it_stands(chat):
    assert ZORBLE.ask([chat], "input")[0].answer == "no"


@pytest.mark.parametrize("codec", list(CODECS))
def test_the_trigger_is_found_under_each_encoding_and_missed_without_the_view(codec):
    hidden = asks(CODECS[codec].encode(TRIGGER))
    assert ZORBLE.ask([hidden], "input")[0].answer == "no"
    blind = pattern_guard(PatternGuard(words=("zorble tea",), views=()))
    by_letters = codec == "spell"  # read in every view
    assert blind.ask([hidden], "input")[0].answer == ("no" if by_letters else "yes")
    assert ZORBLE.ask([asks(CODECS[codec].encode(BENIGN))], "input")[0].answer == "yes"


def test_output_reads_the_reply_and_only_the_reply():
    clean = asks(TRIGGER).then("assistant", "no, sorry")
    dirty = asks(BENIGN).then("assistant", "first, take zorble tea")
    assert ZORBLE.ask([clean], "output")[0].answer == "yes"
    assert ZORBLE.ask([dirty], "output")[0].answer == "no"
    assert ZORBLE.ask([asks(BENIGN)], "output")[0].answer == "unknown"
    assert ZORBLE.ask([Chat(messages=())], "output")[0].answer == "unknown"


def test_words_are_whole_and_patterns_are_not():
    words = pattern_guard(PatternGuard(words=("quib", "été")))
    assert words.ask([asks("a quib, please")], "input")[0].answer == "no"
    assert words.ask([asks("a quibble, please")], "input")[0].answer == "yes"
    assert words.ask([asks("l'ÉTÉ")], "input")[0].answer == "no"
    assert words.ask([asks("pétété")], "input")[0].answer == "yes"
    assert words.ask([asks("e\u0301t\u200be\u0301")], "input")[0].answer == "no"
    stems = pattern_guard(PatternGuard(patterns=(r"quib\w*",)))
    assert stems.ask([asks("Quibbles")], "input")[0].answer == "no"


@pytest.mark.parametrize("mark", ["\x00", "\x08", "\ud800", "\ufe0f", "\u3164", "\U000e0041", "\ue000"])
def test_hidden_characters_inside_a_word_do_not_hide_it(mark):
    assert ZORBLE.ask([asks(f"zor{mark}ble t{mark}ea")], "input")[0].answer == "no"


def test_case_folding_is_unicodes():
    guard = pattern_guard(PatternGuard(words=("straße",)))
    assert guard.ask([asks("STRASSE")], "input")[0].answer == "no"


def test_the_reason_says_what_stands_where():
    chat = Chat.ask(BENIGN, system="rot13 of it: mbeoyr grn")
    assert (
        ZORBLE.ask([chat], "input")[0].reason
        == "'zorble tea' stands in message 1 (system), read through rot13"
    )


@settings(max_examples=60, deadline=None)
@given(before=st.text(), after=st.text())
def test_nothing_around_the_trigger_opens_the_guard(before, after):
    """Any Unicode on both sides, stray surrogates included: never a crash, never a yes."""
    assert ZORBLE.ask([asks(f"{before} zorble tea {after}")], "input")[0].answer == "no"


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.characters()))
def test_fold_is_idempotent_and_needs_no_surrogates(text):
    once = fold(text)
    assert fold(once) == once
    once.encode()


def test_a_hostile_pattern_cannot_hang():
    """(a+)+$ on a long run of a takes exponential time in a backtracking matcher."""
    guard = pattern_guard(PatternGuard(patterns=(r"(a+)+$",), views=()))
    assert guard.ask([asks("a" * 50_000 + "!")], "input")[0].answer == "yes"


def test_bad_patterns_are_all_listed():
    with pytest.raises(ConfigError) as caught:
        pattern_guard(PatternGuard(patterns=("(", "fine", "(?=a)")))
    assert len(caught.value.problems) == 2
    assert "'(?=a)'" in caught.value.problems[1]


def test_a_guard_that_forbids_nothing_is_refused():
    with pytest.raises(ConfigError, match="forbids nothing"):
        pattern_guard()


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (PatternGuard, {"views": ["rot31"]}, "did you mean 'rot13'?"),
        (PatternGuard, {"words": ["a", " \u200b"]}, "blank"),
        (AskGuard, {"views": ["moon"]}, "unknown view 'moon'"),
        (AskGuard, {"on_input": "safe?"}, "{request}"),
        (AskGuard, {"on_output": "safe? {request}"}, "{reply}"),
        (AskGuard, {"allow": []}, "each need a phrase"),
        (AskGuard, {"deny": ["No", "YES"]}, "both allowed and denied: yes"),
    ],
)
def test_unusable_configs_are_refused(kind, given, words):
    with pytest.raises(ConfigError) as caught:
        resolve(kind, given)
    assert words in str(caught.value)


def test_identity_follows_the_config():
    same = pattern_guard(PatternGuard(words=("zorble tea",)))
    other = pattern_guard(PatternGuard(words=("zorble tea",), views=("rot13",)))
    assert same.identity.digest == ZORBLE.identity.digest != other.identity.digest
    one, two = (ask_guard(ScriptedModel([], name=name)) for name in ("a", "b"))
    assert one.identity.digest != two.identity.digest


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("yes", "yes"),
        ("  Yes.", "yes"),
        ('"Yes", it is', "yes"),
        ("no", "no"),
        ("No, never", "no"),
        ("No. yes", "no"),
        ("yes or no", "unknown"),  # an echo of the question is not a yes
        ("yes, no problem", "unknown"),
        ("yesterday", "unknown"),
        ("not safe", "unknown"),
        ("nothing", "unknown"),
        ("well, yes", "unknown"),
        ("", "unknown"),
        (Completion(text="yes", stop="error", error="lost"), "unknown"),
        (Completion(text="yes", stop="blocked", error="a layer"), "unknown"),
        (Completion(text="yes", stop="length"), "yes"),
    ],
)
def test_reading_the_asked_models_answer(reply, answer):
    assert ask_guard(ScriptedModel([reply])).ask([asks(BENIGN)], "input")[0].answer == answer


def test_not_safe_is_not_safe():
    config = AskGuard(allow=("safe",), deny=("unsafe", "not safe"))
    for reply, answer in [
        ("safe", "yes"),
        ("not safe", "no"),
        ("unsafe", "no"),
        ("safe? not safe", "unknown"),
    ]:
        assert ask_guard(ScriptedModel([reply]), config).ask([asks("x")], "input")[0].answer == answer


def test_the_question_holds_every_message_and_never_expands_what_a_user_typed():
    model = ScriptedModel(lambda chat: "yes")
    guard = ask_guard(model, AskGuard(on_input="I<{request}>", on_output="O<{request}|{reply}>"))
    chat = Chat.ask("mind the {reply} and {request}", system="be {kind}")
    guard.ask([chat], "input")
    guard.ask([chat.then("assistant", "here is {request}")], "output")
    assert [c.last_user for c in model.seen] == [
        "I<be {kind}\nmind the {reply} and {request}>",
        "O<be {kind}\nmind the {reply} and {request}|here is {request}>",
    ]
    assert guard.ask([chat], "output")[0].answer == "unknown"
    assert len(model.seen) == 2


@pytest.mark.parametrize(
    ("answers", "combined"), [("yy", "yes"), ("yn", "no"), ("?n", "no"), ("y?", "unknown"), ("?y", "unknown")]
)
def test_every_view_must_pass(answers, combined):
    said = {"y": "yes", "n": "no", "?": "hm"}
    model = ScriptedModel([said[a] for a in answers])
    guard = ask_guard(model, AskGuard(on_input="{request}", views=("rot13",)))
    assert guard.ask([asks("oerj")], "input")[0].answer == combined
    assert [c.last_user for c in model.seen] == ["oerj", "brew"]


def test_views_that_change_nothing_are_not_asked():
    assert readings("hello", ("spell", "base64")) == {"as written": "hello"}
    assert readings("uryyb", ("rot13", "rot13")) == {"as written": "uryyb", "through rot13": "hello"}


def test_message_order_of_roles_does_not_matter():
    turns = [Message(role="system", content=TRIGGER), Message(role="user", content=BENIGN)]
    for order in (turns, turns[::-1]):
        assert ZORBLE.ask([Chat(messages=tuple(order))], "input")[0].answer == "no"
