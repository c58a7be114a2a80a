"""Intents: content-addressed, readable back, and in front of the evidence or not at all."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from calibrant.core import Entry, Evidence, Record
from calibrant.govern.intent import Intent, intent_record, registration
from calibrant.govern.policy import ReleasePolicy


def _intent(world: Any, **changes: Any) -> Intent:
    given = {
        "use": "answers about the garden",
        "hazards": ("wrong dose",),
        "policy": world.policy(world.rule()),
    }
    return Intent(**{**given, **changes})


def test_the_record_says_what_was_intended_and_survives_the_ledger(world: Any) -> None:
    intent = _intent(world, tax_margin=0.02, notes="n")
    record = intent_record(intent, "garden")
    assert (record.technique, record.version, record.status, record.study) == (
        "intent",
        1,
        "finished",
        "garden",
    )
    assert record.config["hazards"] == ["wrong dose"]
    assert record.config["tax_margin"] == 0.02
    assert Record.from_statement(record.statement()) == record
    kept = dict(record.config["policy"])
    named = kept.pop("digest")
    assert ReleasePolicy.model_validate(kept).digest == named == intent.policy.digest  # type: ignore[union-attr]


def test_distinct_content_is_a_distinct_job_and_equal_content_is_the_same(world: Any) -> None:
    first = intent_record(_intent(world), "s")
    assert first == intent_record(_intent(world), "s")
    assert first.job == intent_record(_intent(world), "another study").job
    for change in (
        {"use": "x"}, {"hazards": ()}, {"tax_margin": 0.1}, {"notes": "later"}, {"policy": None},
        {"policy": world.policy(world.rule(threshold=0.2))},
    ):  # fmt: skip
        assert intent_record(_intent(world, **change), "s").job != first.job


def test_an_intent_without_a_policy_registers_nothing(world: Any) -> None:
    record = intent_record(_intent(world, policy=None), "s")
    assert record.config["policy"] is None
    assert registration(world.policy(world.rule()), world.ledger(record)) is None


@pytest.mark.parametrize(
    "bad", [{"use": ""}, {"tax_margin": -0.1}, {"tax_margin": float("nan")}, {"tax_margin": True}]
)
def test_bad_values_are_refused(world: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        _intent(world, **bad)


def test_the_first_exact_match_counts_by_its_place_in_the_ledger(world: Any) -> None:
    policy, other = world.policy(world.rule()), world.policy(world.rule(threshold=0.2))
    mine, theirs = world.intent(policy), world.intent(other)
    assert registration(policy, world.ledger(theirs, mine, mine)).seq == 1
    shuffled = Evidence(entries=tuple(Entry(seq=s, digest=mine.digest, record=mine) for s in (9, 4, 7)))
    assert registration(policy, shuffled).seq == 4
    assert registration(policy, world.ledger(theirs)) is None
    for forged in (
        mine.model_copy(update={"status": "failed"}),
        mine.model_copy(update={"technique": "measure.refusal"}),
        mine.model_copy(update={"config": {"policy": policy.digest}}),
    ):
        assert registration(policy, world.ledger(forged)) is None
