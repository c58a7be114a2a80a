"""Streaming: no character of what is forbidden leaves, however it is written, wherever it stands, however it
is cut; what is allowed leaves whole, and the verdict is that of the reply read at once."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.core import Chat, Identity, Verdict
from calibrant.defend._reach import Reach, longest
from calibrant.defend.defended import Caller, Layer, OnFailure
from calibrant.defend.pattern_guard import PatternGuard, pattern_guard
from calibrant.serve.proxy.release import Release
from calibrant.text.codecs import CODECS

WORD = "zorble"
PHRASE = "grey lantern"
GUARD = pattern_guard(PatternGuard(words=(WORD, PHRASE)))
ASKED = Chat.ask("tell me")


def released(pieces, guard=GUARD, **rules):
    """What leaves of a reply that comes in ``pieces``, and the layer that blocks."""
    release = Release([Caller(Layer("words", "output", guard, **rules))], ASKED)
    text = "".join(release.push(piece).text for piece in pieces) + release.finish().text
    assert len(text) == release.released
    return text, release.blocked


def disguises(word):
    yield "as written", word
    yield "upper case", word.upper()
    yield "between signs", f"({word})"
    for name, codec in CODECS.items():
        yield name, codec.encode(word if name != "base64" else f"{word} it is")
    yield "full width", "".join(chr(ord(c) + 0xFEE0) if c != " " else c for c in word)
    yield "invisible", "\u200b\U000e0100\u2800".join(word)
    yield "many invisible", word[:3] + "\u200d" * 300 + word[3:]
    yield "marks", "\u0336".join(word)
    yield "look-alikes", word.replace("o", "\u043e").replace("e", "\u0435")
    yield "letter by letter", " ".join(word.replace(" ", ""))
    yield "signs and letters", " .- * ".join(word.replace(" ", ""))
    yield "letter by letter, reversed case", ".".join(word.replace(" ", "")).swapcase()
    yield "letter by letter through rot13", " ".join(CODECS["rot13"].encode(word.replace(" ", "")))
    yield "letter by letter in base64", CODECS["base64"].encode(" ".join(word.replace(" ", "")))
    yield "letters and base64", " ".join(word[:3]) + " " + CODECS["base64"].encode(" ".join(word[3:].strip()))
    yield "symbols between", "\u2122\u00ae ".join(word.replace(" ", ""))


FORMS = [
    pytest.param(form, id=f"{word}: {name}") for word in (WORD, PHRASE) for name, form in disguises(word)
]


@pytest.mark.parametrize("form", FORMS)
def test_no_character_of_what_is_forbidden_leaves(form):
    """Every offset in a sentence, and every cut into two, three and single characters."""
    before = "the keeper of the tower says 4 things a day, and it is"
    if released([form])[1] is None:
        pytest.fail("the guard does not see this form at all: the test would show nothing")
    for place in [*range(0, len(before), 11), len(before)]:
        lead = before[:place].rstrip() + " " if place else ""
        text = f"{lead}{form} and so it goes on for a while longer than before, as it must be"
        end = min(len(lead) + len(form), len(lead) + 60)
        cuts = [[text[i : i + size] for i in range(0, len(text), size)] for size in (1, 3, 16, len(text))]
        if place == len(before):
            cuts += [[text[:cut], text[cut:]] for cut in range(len(lead), end + 1)]
        for pieces in cuts:
            got, by = released(pieces)
            assert by is not None
            assert text.startswith(got)
            assert len(got) <= len(lead), (got, pieces)


def test_the_visible_forms_are_seen_only_when_whole():
    """'burn' may become 'burning': a word at the end is held, and lets go where it goes on."""
    text = "it is zorbles that they keep"
    for size in range(1, 9):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert released(pieces) == (text, None)


LEAKED = [
    ("grey lantern", "see grey l-a-n-t-e-r-n ok"),
    ("grey lantern", "see g-r-e-y l-a-n-t-e-r-n ok"),
    ("zorble", "see \u24cf-o-r-b-l-e ok"),
    ("zorble", "see z-o-r\u0336b-l-e ok"),
    ("zorble", "see z---o\u0336r---b---l---e ok"),
    ("zorble", "see aXQgaXMgc\x1c2FpZCB6b3JibGUgYXQgdGhlIGVuZA== ok"),
    ("\uac00\ub098\ub2e4", "see \u3131\u314f\u3134\u314f\u3137\u314f ok"),
    ("zorble", "see " + "\u01c3".join("zorble")),
    ("zorble", "see " + ("\u01c3" * 3).join("zorble")),
    ("zorble", "see z-.-.-.byByIGI=-.-.-.l-.-.-.e ok"),
    ("zorble", "see z_o_r_b_l_ez . o . r . b . l . e ok"),
    ("yellow", "see \u01c0ryybj ok"),
]


@pytest.mark.parametrize(("word", "text"), LEAKED)
def test_forms_of_which_a_part_once_left(word, text):
    guard = pattern_guard(PatternGuard(words=(word,)))
    for size in (1, 2, 3, 5):
        got, by = released([text[i : i + size] for i in range(0, len(text), size)], guard)
        assert by is not None
        assert "see ".startswith(got)


@pytest.mark.parametrize(
    "filler", ["| 1 | 2 | 3 |\n", "0123456789abcdef", "aGVsbG8g", "---", "   ", "\u200b"]
)
def test_text_that_is_held_long_is_asked_about_in_linear_time(filler):
    """Counted in what the guard reads, not in seconds: twice the text, about twice the reading."""
    read = []

    class Counts:
        identity = GUARD.identity
        held = staticmethod(GUARD.held)

        def ask(self, chats, side):
            read[-1] += sum(len(chat.messages[-1].content) for chat in chats)
            return GUARD.ask(chats, side)

    for length in (1000, 2000, 4000):
        read.append(0)
        text = (filler * length)[:length]
        assert released([text[i : i + 4] for i in range(0, length, 4)], Counts()) == (text, None)
    assert read[2] < 3 * read[1] + 20_000


@pytest.mark.parametrize("text", ["zorble" + "\u200b" * 900 + "s and so on", "the zorble" + "x" * 900])
def test_what_may_still_become_another_word_is_not_blocked_early(text):
    assert released([text[i : i + 4] for i in range(0, len(text), 4)]) == (text, None)


PARTS = st.sampled_from(
    [
        "the ", "a ", "zor", "ble", WORD, " ", "  ", "\n", "-", ".", "z o r ", "b l e", "z-o-r-", "b-l-e ",
        "em9yYmxl", "em9y", "YmxlIGl0IGlz ", "elbroz", "mbeoyr", "z0rb1e", "grey", " lantern", "yerg nretnal",
        "\u200b", "\u0336", "\u043e", "\u2122", "Z3JleSBs", "YW50ZXJu", " g r e y ", "l a n t e r n",
        "language ", "https://a/b?c=", "\u4f60\u597d", "\u00e9", "1 2 3 ", "_", "=", "/",
    ]
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(parts=st.lists(PARTS, min_size=1, max_size=30), seed=st.integers(0, 10**6))
def test_the_verdict_is_that_of_the_whole_and_what_left_is_its_beginning(parts, seed):
    text = "".join(parts)
    rng = random.Random(seed)
    cuts = sorted(rng.sample(range(len(text) + 1), min(len(text), rng.randint(0, 12))))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    got, by = released(pieces)
    whole = GUARD.ask([ASKED.then("assistant", text)], "output")[0]
    if whole.answer == "yes":
        assert (got, by) == (text, None)
    else:
        assert by is not None
        assert text.startswith(got)
        # What left is clean, but for its last word, which may be the beginning of a longer one.
        left = re.sub(r"\S+$", "", got)
        assert not left or GUARD.ask([ASKED.then("assistant", left)], "output")[0].answer == "yes"
        # What is forbidden lies in what stayed: cut off, the rest is still forbidden.
        rest = text[len(got) :]
        assert GUARD.ask([ASKED.then("assistant", rest)], "output")[0].answer == "no"


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(PARTS, min_size=1, max_size=30))
def test_what_leaves_can_not_become_part_of_a_match(parts):
    """The promise of ``held``, without streaming: whatever follows, a match begins behind it."""
    text = "".join(parts)
    if GUARD.ask([ASKED.then("assistant", text)], "output")[0].answer != "yes":
        return
    left = text[: GUARD.held(text)]
    kept = text[len(left) :]
    for more in (WORD, "ble", "b l e ", "lantern ", "-b-l-e ", "YmxlIGl0IGlz ", "elbroz", " it is"):
        if GUARD.ask([ASKED.then("assistant", text + more)], "output")[0].answer == "no":
            assert GUARD.ask([ASKED.then("assistant", kept + more)], "output")[0].answer == "no"


@pytest.mark.parametrize(
    ("pattern", "most"),
    [("ab+", None), ("a.*b", None), ("a.{0,20}b", 22), ("(cat|horse) dog", 9), ("\\pL{3}", 3), ("a", 1),
     ("[[:alpha:]]{2}x", 3), ("\\x{1F600}?a", 2), ("\\Qa+b\\E", None), ("a{3000}", None), ("^ab", 2),
     ("ab$", None), ("ab\\z", None), ("a\\$", 2), ("\\\\p{abcde}", 9), ("\\\\x{100}", 101),
     ("a{,1}", None), ("(?i)ab\\b", 2), ("a??b", 2)],
)  # fmt: skip
def test_the_longest_match_of_a_pattern(pattern, most):
    assert longest(pattern) == most


def test_a_pattern_without_bound_holds_the_reply_to_its_end():
    guard = pattern_guard(PatternGuard(patterns=("begin.*end",)))
    assert "begin.*end" in guard.streams
    release = Release([Caller(Layer("p", "output", guard))], ASKED)
    assert [release.push("a begin of "), release.push("it, all the way ")] == [("", ""), ("", "")]
    assert release.finish().text == "a begin of it, all the way "
    text, by = released(["begin ", "x" * 5000, " end"], guard)
    assert text == ""
    assert by is not None
    assert Reach.of((), ("begin.*end",), ()) is None


class Counting:
    """Says no from so many characters on; keeps what it was asked."""

    identity = Identity(name="counting", kind="guard", parts={"counting": "1"})

    def __init__(self, limit=10**9):
        self.limit, self.read = limit, []

    def ask(self, chats, side):
        self.read += [chat.messages[-1].content for chat in chats]
        return [
            Verdict(question="?", answer="no" if len(chat.messages[-1].content) > self.limit else "yes")
            for chat in chats
        ]


def test_a_guard_that_knows_no_bound_reads_the_whole_before_any_of_it_leaves():
    guard = Counting()
    release = Release([Caller(Layer("g", "output", guard))], ASKED)
    assert [release.push("a") for _ in range(5)] == [("", "")] * 5
    assert guard.read == []
    assert release.finish().text == "aaaaa"
    assert guard.read == ["aaaaa"]


def test_every_k_tokens_the_guard_reads_the_reply_so_far():
    guard = Counting(limit=6)
    release = Release([Caller(Layer("g", "output", guard, every=2))], ASKED)
    assert [release.push("ab").text for _ in range(6)] == ["", "abab", "", "", "", ""]
    assert guard.read == ["abab", "abababab"]
    assert release.blocked.layer == "g"
    assert release.finish().text == ""
    assert release.released == 4


def test_reasoning_and_reply_are_read_as_one_and_leave_apart():
    release = Release([Caller(Layer("w", "output", GUARD))], ASKED)
    out = [release.push(reasoning="so the user wants a thing, and i shall say what it may be. ")]
    out += [release.push(text="well, here it is, my friend, all of it at once")]
    out += [release.finish()]
    assert "".join(o.reasoning for o in out) == "so the user wants a thing, and i shall say what it may be. "
    assert "".join(o.text for o in out) == "well, here it is, my friend, all of it at once"
    split = Release([Caller(Layer("w", "output", GUARD))], ASKED)
    split.push(reasoning="i think of z o r")
    assert split.push(text="b l e").text == ""
    assert split.finish() == ("", "")
    assert split.blocked is not None
    late = Release([Caller(Layer("w", "output", GUARD))], ASKED)
    late.push(text="the reply has begun and goes on and on and on. ")
    assert late.push(reasoning="zorble") == ("", "")
    assert late.finish() == ("", "")
    assert late.blocked is not None


def test_what_leaves_with_the_reply_is_read_before_its_end_leaves():
    release = Release([Caller(Layer("w", "output", GUARD))], ASKED)
    release.push("calling a tool now")
    assert release.finish(["tool", "zorble"]) == ("", "")
    assert release.blocked.verdict.answer == "no"


class Fails:
    identity = Identity(name="fails", kind="guard", parts={"fails": "1"})

    def held(self, reply):
        return len(reply)

    def ask(self, chats, side):
        raise RuntimeError("the fuse is gone")


def test_a_failing_layer_blocks_or_leaves_it_to_the_others():
    assert released(["a", "b"], Fails())[0] == ""
    assert released(["a", "b"], Fails(), failing=OnFailure(on_error="escalate"))[0] == ""  # read by nobody
    both = [
        Caller(Layer("fails", "output", Fails(), OnFailure(on_error="escalate"))),
        Caller(Layer("words", "output", GUARD)),
    ]
    release = Release(both, ASKED)
    text = "it goes on and on, my friend, as it always did"
    assert release.push(text).text + release.finish().text == text
    assert [said.status for said in release.verdicts] == ["escalated", "answered"]
