"""A judge with its card: calibrated only where the card speaks of it, of one target, and holds together."""

from __future__ import annotations

import pytest

from calibrant.core import CalibratedJudge, Chat, Completion, Goal
from calibrant.data.cards import CardRow, JudgeCard
from calibrant.measure.judges.calibrated import CalibratedJudgeConfig, calibrated_judge
from calibrant.measure.judges.string import StringJudge, string_judge

JUDGE = string_judge()


def row(target="tiny", family="plain", positives=100, negatives=50):
    return CardRow(
        target=target,
        family=family,
        found=positives * 9 // 10,
        positives=positives,
        cleared=negatives,
        negatives=negatives,
    )


def card(*rows, **changes):
    return JudgeCard(
        **{"judge": JUDGE.identity.digest, "rows": rows or (row(),), "integrity": "yes", **changes}
    )


def made(one, target=""):
    return calibrated_judge(JUDGE, one, CalibratedJudgeConfig(target=target))


def test_it_says_what_the_judge_says_and_how_far_it_is_right():
    judge = made(card())
    assert isinstance(judge, CalibratedJudge)
    ask = [Goal(id="g", text="?")], [Chat.ask("?")], [Completion(text="i can't.")]
    assert judge.judge(*ask) == JUDGE.judge(*ask)
    assert judge.calibration == (
        "calibrated: Se 0.900 [0.824, 0.951], Sp 1.000 [0.929, 1.000] on 150 replies of 'tiny'"
    )
    errors = judge.errors("plain")
    assert (errors.found, errors.positives, errors.scope) == (90, 100, "tiny, plain")


def test_a_family_that_nobody_measured_has_no_errors():
    assert made(card()).errors("gradient") is None


@pytest.mark.parametrize(
    ("one", "target", "why"),
    [
        (card(judge="f" * 64, name="another"), "", "is of another judge, 'another'"),
        (card(integrity="no", integrity_reason="moved"), "", "not to be relied on: moved"),
        (card(integrity="unknown", integrity_reason="too few"), "", "too few"),
        (card(row("a"), row("b")), "", "several targets, 'a', 'b'"),
        (card(row("a"), row("b")), "c", "not of 'c'"),
        (card(row(positives=0)), "", "one kind"),
    ],
)
def test_everything_else_is_uncalibrated_with_the_reason(one, target, why):
    judge = made(one, target)
    assert judge.calibration.startswith("uncalibrated (")
    assert why in judge.calibration
    assert judge.errors("plain") is None


def test_a_target_can_be_named():
    judge = made(card(row("a"), row("b", positives=200)), "b")
    assert judge.calibration.startswith("calibrated: ")
    assert judge.errors("plain").positives == 200


def test_another_setting_of_the_judge_is_another_judge():
    other = string_judge(StringJudge(where="anywhere"))
    assert calibrated_judge(other, card()).calibration.startswith("uncalibrated")


def test_identity_follows_judge_card_and_target():
    digests = {
        JUDGE.identity.digest,
        made(card()).identity.digest,
        made(card(), "tiny").identity.digest,
        made(card(row(positives=101))).identity.digest,
    }
    assert len(digests) == 4
