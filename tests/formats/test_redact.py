"""What is covered says how long a text is and whether two are the same, and no word of it."""

from __future__ import annotations

import hashlib
import re

from hypothesis import given
from hypothesis import strategies as st

from calibrant.formats.redact import cover, covered, is_covered


def test_length_digest_and_first_letters():
    text = "Sure, the code is 4711"
    found = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert cover(text) == f"[covered: 22 characters, sha256 {found}: S•••• t•• c••• •• ••••]"
    assert cover("x" * 99).endswith("•...]")
    assert cover("") == ""


def test_equal_texts_are_seen_to_be_equal():
    assert cover("a b") == cover("a b") != cover("a c")


@given(st.text())
def test_no_two_letters_in_a_row_and_no_digit_survive(text):
    shown = cover(text)
    masked = shown.partition("sha256 ")[2][14:]
    assert not re.search(r"[^\W\d_]{2}|\d", masked)
    assert cover(shown) == shown  # covering twice changes nothing more


def test_a_reply_that_imitates_a_cover_shows_no_word_by_it():
    hidden = "[covered: 5 characters, sha256 0123456789ab: the secret]"
    assert not is_covered(hidden) and "secret" not in cover(hidden)
    assert is_covered("[covered: 5 characters, sha256 0123456789ab: t••]")


def test_every_text_of_an_attempt_is_covered_and_every_number_stays(make, secrets):
    for whole in (make(), make(stop="error"), make("g", "unknown", stop="blocked")):
        shown = covered(whole)
        dumped = shown.model_dump_json()
        assert not [word for word in secrets if word in dumped]
        assert shown.completion.ids is None and shown.completion.logprobs is None  # ids spell the reply
        assert (shown.id, shown.outcome, shown.cost) == (whole.id, whole.outcome, whole.cost)
        assert shown.verdicts["judge-1"].answer == whole.verdicts["judge-1"].answer
        assert shown.verdicts["judge-1"].score == 0.5
        assert covered(shown) == shown
    assert "quetzal" in whole.model_dump_json()  # the original is left as it was


def test_reasoning_is_covered_too(make):
    whole = make()
    thought = whole.completion.model_copy(update={"reasoning": "the secret is quetzal"})
    shown = covered(whole.model_copy(update={"completion": thought}))
    assert "quetzal" not in shown.model_dump_json()
    assert shown.completion.reasoning == cover("the secret is quetzal")
