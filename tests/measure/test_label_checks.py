"""Do labels belong to their rows? Found where they were moved, and nothing where they were not."""

from __future__ import annotations

import random

import pytest
from scipy.stats import fisher_exact

from calibrant.core import Chat
from calibrant.data.rows import Graded
from calibrant.measure._label_checks import agreement_p, agrees, check_labels, overall, repeats


def rows(n=100, **changes):
    """Every third reply shows the behaviour; two raters agree."""
    return [
        Graded(
            id=str(i),
            prompt=Chat.ask(f"question {i}"),
            completion=f"reply {i}",
            label=i % 3 == 0,
            raters=("yes", "yes") if i % 3 == 0 else ("no", "no"),
            **changes,
        )
        for i in range(n)
    ]


def truth(labelled):
    return [int(row.id) % 3 == 0 for row in labelled]


def verdicts(labelled, told=None):
    return {c.name: c.verdict.answer for c in check_labels(labelled, told or truth(labelled), 0.001)}


@pytest.mark.parametrize("table", [(8, 2, 1, 9), (5, 5, 5, 5), (0, 10, 9, 1)])
def test_p_is_fishers(table):
    both, only_said, only_true, neither = table
    said = [True] * (both + only_said) + [False] * (only_true + neither)
    label = [True] * both + [False] * only_said + [True] * only_true + [False] * neither
    expected = fisher_exact([[both, only_said], [only_true, neither]], alternative="greater")[1]
    assert agreement_p([*said, None], [*label, True])[0] == pytest.approx(expected)
    assert agreement_p([None], [True]) == (1.0, 1.0)


def test_labels_in_their_place_pass():
    labelled = rows()
    assert set(verdicts(labelled).values()) == {"yes"}
    assert overall(check_labels(labelled, truth(labelled), 0.001))[0] == "yes"


def test_a_poor_judge_that_is_better_than_chance_passes():
    """It finds a fifth of the cases and is seldom wrong, as a string match may be."""
    labelled = rows(450)
    said = [row.label and int(row.id) % 15 == 0 for row in labelled]
    assert agrees("judge", said, [row.label for row in labelled], 0.001).verdict.answer == "yes"


def test_shuffled_labels_are_seen_and_the_check_seldom_cries_wolf():
    """Under the null (labels dealt at random) it lets a file pass no more often than alpha says."""
    labelled = rows(300)
    said, lot = truth(labelled), random.Random(0)
    passed = 0
    for _ in range(400):
        moved = lot.sample([row.label for row in labelled], len(labelled))
        answer = agrees("judge", said, moved, 0.05).verdict.answer
        assert answer in ("yes", "no")
        passed += answer == "yes"
    assert passed / 400 < 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_one_target_out_of_place_is_enough():
    right, moved = rows(100, target="a"), rows(100, target="b")
    lot = random.Random(1).sample([row.label for row in moved], 100)
    moved = [
        row.model_copy(update={"id": f"b{row.id}", "label": label})
        for row, label in zip(moved, lot, strict=True)
    ]
    said = [*truth(right), *truth(right)]
    answer, why = overall(check_labels([*right, *moved], said, 0.001))
    assert answer == "no"
    assert "judge on b" in why
    assert "judge on a" not in why


def test_too_few_rows_and_labels_of_one_kind_are_unknown():
    assert verdicts(rows(6))["judge"] == "unknown"
    same = [row.model_copy(update={"label": True}) for row in rows(100)]
    assert verdicts(same)["judge"] == "unknown"
    assert overall(check_labels(same, truth(same), 0.001))[0] == "unknown"


def test_a_judge_that_answered_nothing_is_unknown():
    assert verdicts(rows(), [None] * 100)["judge"] == "unknown"


def test_an_earlier_judges_column_that_does_not_belong_is_told_apart_from_the_labels():
    lot = random.Random(2)
    labelled = [row.model_copy(update={"screened": (f"gpt={lot.choice(('yes', 'no'))}",)}) for row in rows()]
    found = verdicts(labelled)
    assert found["screen gpt"] == "no"
    assert overall(check_labels(labelled, truth(labelled), 0.001))[0] == "yes"


def test_free_text_among_labels_is_seen():
    labelled = [row.model_copy(update={"raters": (f"well, i think {row.id}",)}) for row in rows()]
    assert verdicts(labelled)["vocabulary: rater 1"] == "no"


def test_equal_replies_with_other_labels_are_seen():
    labelled = rows()
    twins = [row.model_copy(update={"id": f"t{row.id}", "label": not row.label}) for row in labelled[:10]]
    said = [*truth(labelled), *truth(labelled[:10])]
    assert {c.name: c.verdict.answer for c in check_labels([*labelled, *twins], said, 0.001)}[
        "contradictions"
    ] == "no"
    assert sum(repeats([*labelled, *twins])) == 10
