"""The planted constitutions: what each principle says, and how reader and writer behave."""

from __future__ import annotations

from collections import Counter

import pytest

from calibrant.core import Chat, InputError, Sampling
from calibrant.oversee._comparing import Asked, Comparing, comparison
from calibrant.testbed.constitutions import (
    DEFECTS,
    HARMS,
    RULES,
    open_constitution,
    open_pairs,
    open_reader,
    open_writer,
)
from calibrant.testbed.gold import GoldJudge, truth_of

KINDS = (*HARMS, "benign", "facts")


def says(reader, row, text, *, swapped=False):
    first, second = (row.rejected, row.chosen) if swapped else (row.chosen, row.rejected)
    chat = comparison(Comparing(), Asked(row.prompt.last_user, first, second, text))
    return reader.generate([chat])[0].text


def test_pairs_are_even_distinct_and_chosen_rightly():
    table = open_pairs("principled", {"n": "280"})
    assert Counter(row.category for row in table) == dict.fromkeys(KINDS, 40)
    assert len({row.prompt for row in table}) == 280
    harmful = GoldJudge("harmful")
    for row in table:
        truth = truth_of(row.prompt.last_user)
        assert truth is not None
        assert (row.category in HARMS) == truth.harmful
    assert table.digest != open_pairs("principled", {"n": "280", "seed": "1"}).digest
    assert table.digest == open_pairs("principled", {}).digest
    assert harmful.calibration == "exact"


@pytest.mark.parametrize("name", DEFECTS)
def test_every_principle_has_a_rule_and_takes_no_other_one(name):
    """The reader finds a principle by its text, so no text may stand in another."""
    texts = [text for p in open_constitution(name, {}).principles for text in (p.text, *p.reworded)]
    assert all(sum(known in text for known in RULES) == 1 for text in texts)


def test_clean_principles_take_peoples_side_in_both_orders_and_never_the_other():
    reader, rows = open_reader("ruled", {}), open_pairs("principled", {"n": "140"})
    for principle in open_constitution("clean", {}).principles:
        own = [row for row in rows if principle.speaks_to(row.category)]
        for text in (principle.text, *principle.reworded):
            words = Counter((says(reader, r, text), says(reader, r, text, swapped=True)) for r in own)
            assert set(words) <= {("first", "second"), ("neither", "neither")}
            assert words["first", "second"] >= len(own) * 0.4


def test_noise_and_bias_are_as_asked_and_drawn_by_the_text():
    rows, (no_harm, *_) = open_pairs("principled", {"n": "490"}), DEFECTS["clean"]
    harms = [row for row in rows if row.category in HARMS]
    biased = open_reader("ruled", {"bias": ".3"})
    assert all(says(biased, row, no_harm.text) == "first" for row in harms)
    turned = Counter(says(biased, row, no_harm.text, swapped=True) for row in harms)
    assert 0.2 < turned["first"] / len(harms) < 0.4
    lots = open_reader("ruled", {"error": "1"})
    share = sum(says(lots, row, no_harm.text) == "first" for row in harms) / len(harms)
    assert 0.4 < share < 0.6
    assert [says(lots, r, no_harm.text) for r in harms[:20]] == [
        says(lots, r, no_harm.text) for r in harms[:20]
    ]
    other = open_reader("ruled", {"error": "1", "seed": "1"})
    assert [says(lots, r, no_harm.text) for r in harms] != [says(other, r, no_harm.text) for r in harms]
    assert lots.identity.digest != other.identity.digest != biased.identity.digest


@pytest.mark.parametrize(
    "text", ["", "hello", "question: x first: y second: z", "<<000000000000>>\na\n<<000000000000>>"]
)
def test_what_is_no_comparison_of_this_world(text):
    assert open_reader("ruled", {}).generate([Chat.ask(text)])[0].text == "i can not tell."


def test_the_writer_drafts_all_four_kinds_anew_above_temperature_0():
    row = next(row for row in open_pairs("principled", {}) if row.category == "privacy")
    writer = open_writer("ruled", {})
    drawn = {c.text for c in writer.generate([row.prompt] * 60, Sampling(temperature=1.0))}
    assert {row.chosen, row.rejected, f"{row.chosen} {row.rejected}"} <= drawn
    assert len(drawn) > 4
    assert len({c.text for c in writer.generate([row.prompt] * 9)}) == 1
    assert writer.generate([Chat.ask("what now?")])[0].text == "i do not know."


@pytest.mark.parametrize(
    ("opener", "name", "options", "says"),
    [
        (open_constitution, "clear", {}, "did you mean 'clean'"),
        (open_constitution, "clean", {"n": "1"}, "unknown option"),
        (open_pairs, "principled", {"n": "6"}, "7 to 500"),
        (open_pairs, "principled", {"n": "501"}, "7 to 500"),
        (open_pairs, "principled", {"n": "x"}, "not a whole number"),
        (open_reader, "ruled", {"error": "2"}, "is no share"),
        (open_reader, "ruled", {"bais": ".1"}, "did you mean 'bias'"),
        (open_reader, "read", {}, "no such reader"),
        (open_writer, "ruled", {"error": ".1"}, "unknown option"),
        (open_writer, "x", {}, "no such writer"),
    ],
)
def test_bad_names_and_options(opener, name, options, says):
    with pytest.raises(InputError, match=says):
        opener(name, options)
