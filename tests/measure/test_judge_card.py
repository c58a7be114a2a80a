"""A judge's card: simulated judges with known errors are measured, and their labels are looked at."""

from __future__ import annotations

import random

import pytest

from calibrant.core import BudgetError, Chat, Identity, InputError, Quiet, Verdict, digest
from calibrant.data.cards import read_card
from calibrant.data.rows import Graded, GradedReplies
from calibrant.measure.judge_card import JudgeCardConfig, judge_card


class Noisy:
    """A judge with a known sensitivity and specificity; the truth stands in the reply."""

    calibration = "uncalibrated"

    def __init__(self, se, sp, *, mute=0.0, tokens=0, name="noisy"):
        self.se, self.sp, self.mute, self.tokens = se, sp, mute, tokens
        self.identity = Identity(name=name, kind="judge", parts={"name": name, "se": str(se), "sp": str(sp)})
        self.asked = []

    def judge(self, goals, chats, completions):
        return [self._one(completion.text) for completion in completions]

    def _one(self, text):
        self.asked.append(text)
        lot = random.Random(digest([text, self.identity.digest]))
        right = lot.random() < (self.se if "it happened" in text else self.sp)
        answer = "yes" if right == ("it happened" in text) else "no"
        return Verdict(
            question="?", answer="unknown" if lot.random() < self.mute else answer, tokens=self.tokens
        )


def labelled(n=400, base=0.4, target="tiny", family="plain", seed=0):
    lot = random.Random(f"{seed}/{target}/{family}")
    rows = []
    for i in range(n):
        label = lot.random() < base
        said = "it happened" if label else "nothing"
        rows.append(
            Graded(
                id=f"{target}/{family}/{i}",
                prompt=Chat.ask(f"question {i}"),
                completion=f"{said} {target} {family} {seed} {i}",
                label=label,
                target=target,
                family=family,
                raters=("yes" if label else "no",) * 2,
            )
        )
    return rows


def table(*parts):
    return GradedReplies(rows=tuple(row for part in parts for row in part), source="made.jsonl")


def test_known_errors_are_found_by_target_and_family(tmp_path):
    rows = table(labelled(), labelled(family="persona"), labelled(target="other"))
    result = judge_card(rows, Noisy(0.8, 0.95), run=Quiet(work=tmp_path))
    for where in ("", "/tiny", "/tiny/plain", "/tiny/persona", "/other"):
        found, cleared = result.metrics[f"sensitivity{where}"], result.metrics[f"specificity{where}"]
        assert found.low <= 0.8 <= found.high
        assert cleared.low <= 0.95 <= cleared.high
    assert "sensitivity/other/plain" not in result.metrics, "one family needs no line of its own"
    assert result.metrics["checks_failed"].value == 0
    assert result.metrics["human_agreement"].value == 1
    card = read_card(tmp_path / "artifacts" / "card.json")
    assert card == result.card
    assert (card.judge, card.labels, card.integrity) == (Noisy(0.8, 0.95).identity.digest, rows.digest, "yes")
    assert [(row.target, row.family) for row in card.rows] == [
        ("other", "plain"),
        ("tiny", "persona"),
        ("tiny", "plain"),
    ]
    tiny = card.errors("plain", "tiny")
    assert tiny.found / tiny.positives == pytest.approx(result.metrics["sensitivity/tiny/plain"].value)


def test_null_a_judge_that_guesses_gets_no_card():
    result = judge_card(table(labelled()), Noisy(0.3, 0.7))
    assert result.card.integrity == "no"
    assert "at chance level" in result.caveats[0]


def test_labels_of_other_rows_get_no_card():
    rows = labelled()
    moved = random.Random(3).sample([row.label for row in rows], len(rows))
    wrong = [row.model_copy(update={"label": label}) for row, label in zip(rows, moved, strict=True)]
    result = judge_card(table(wrong), Noisy(1.0, 1.0))
    assert result.card.integrity == "no"
    assert result.metrics["checks_failed"].value >= 1


def test_exact_intervals_cover():
    """Clopper-Pearson on 60 simulated sets of labels: at least 95 % less Monte-Carlo error."""
    held = 0
    for seed in range(60):
        result = judge_card(table(labelled(60, seed=seed)), Noisy(0.7, 0.9))
        found = result.metrics["sensitivity"]
        held += found.low <= 0.7 <= found.high
    assert held >= 60 * 0.95 - 3 * (60 * 0.95 * 0.05) ** 0.5


def test_a_judge_that_does_not_answer_is_neither_right_nor_wrong():
    result = judge_card(table(labelled()), Noisy(0.9, 0.9, mute=0.3))
    found = result.metrics["sensitivity"]
    assert found.missing > 20
    assert found.low < 0.7 < found.value, "the lower bound counts every unknown as a miss"
    assert result.metrics["undetermined_rate"].value == pytest.approx(0.3, abs=0.07)
    row = result.card.rows[0]
    assert row.positives + row.negatives + row.undetermined == 400


def test_drift_is_seen_and_its_absence_too():
    before = judge_card(table(labelled(seed=1)), Noisy(0.95, 0.95)).card
    same = judge_card(table(labelled(seed=2)), Noisy(0.95, 0.95), before)
    assert same.metrics["sensitivity_change/tiny"].low < 0 < same.metrics["sensitivity_change/tiny"].high
    worse = judge_card(table(labelled(seed=2)), Noisy(0.6, 0.95, name="worse"), before)
    assert worse.metrics["sensitivity_change/tiny"].high < 0
    assert worse.metrics["specificity_change/tiny"].low < 0 < worse.metrics["specificity_change/tiny"].high
    assert any("another judge" in caveat for caveat in worse.caveats)
    elsewhere = judge_card(table(labelled(target="new")), Noisy(0.95, 0.95), before)
    assert elsewhere.metrics["sensitivity_change"].value is None


def test_labels_of_one_kind_leave_the_other_side_unknown():
    rows = [row for row in labelled() if row.label]
    result = judge_card(table(rows), Noisy(0.9, 0.9))
    assert result.metrics["specificity"].value is None
    assert result.card.integrity == "unknown"


def test_a_killed_job_asks_nobody_twice(tmp_path):
    rows = table(labelled(200))
    whole = judge_card(rows, Noisy(0.8, 0.9)).metrics
    first = Noisy(0.8, 0.9)
    judge_card(rows, first, run=Quiet(work=tmp_path))
    log = tmp_path / "verdicts.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:150]) + lines[150][:20])
    second = Noisy(0.8, 0.9)
    result = judge_card(rows, second, run=Quiet(work=tmp_path))
    assert len(second.asked) == 50
    assert result.metrics == whole


def test_a_judge_is_paid_for_and_a_budget_stops_it():
    class Purse(Quiet):
        left = 100

        def spend(self, *, tokens=0, queries=0, flops=0.0):
            if tokens > self.left:
                raise BudgetError("no more")
            self.left -= tokens

    judge, purse = Noisy(0.8, 0.9, tokens=5), Purse()
    with pytest.raises(BudgetError):
        judge_card(table(labelled(200)), judge, run=purse)
    assert len(judge.asked) < 20, "the first answers show the price, the next chunk is not begun"
    rich = Purse()
    rich.left = 1000
    judge_card(table(labelled(200)), Noisy(0.8, 0.9, tokens=5), run=rich)
    assert rich.left == 0


@pytest.mark.parametrize(("rows", "said"), [([], "no labelled replies"), (labelled(1) * 2, "share the id")])
def test_labels_from_which_nothing_follows_are_refused(rows, said):
    with pytest.raises(InputError, match=said):
        judge_card(table(rows), Noisy(1, 1), config=JudgeCardConfig())
