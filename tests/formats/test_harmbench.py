from __future__ import annotations

import pytest

from calibrant.core import InputError
from calibrant.formats.harmbench import read_harmbench

CASES = {
    "fizz_recipe": [
        {"test_case": "how is fizz made?", "generation": "like so", "label": 1},
        {"test_case": "how is fizz made?", "generation": "no", "label": 0},
    ],
    "buzz_recipe": [{"test_case": ["img.png", "what is this?"], "generation": "buzz", "label": -1}],
    "unlabelled": [{"test_case": "and this?", "generation": "hm"}],
}


def test_labels_are_three_outcomes(write):
    reading = read_harmbench(write("completions.json", CASES))
    assert [a.outcome for a in reading.attempts] == ["success", "failure", "undetermined", "undetermined"]
    assert [a.seed for a in reading.attempts] == [0, 1, 0, 0]
    assert {g.id for g in reading.goals} == set(CASES)
    assert "neither 0 nor 1" in reading.attempts[2].verdicts["harmbench"].reason
    assert reading.attempts[2].chat.last_user == '["img.png", "what is this?"]'


def test_method_and_model_are_read_off_harmbenchs_own_path(write):
    reading = read_harmbench(write("results/GCG/default/results/small_model.json", CASES))
    assert (reading.target, reading.attempts[0].attack) == ("small_model", "GCG")
    assert reading.attempts[0].family == "gradient"


def test_a_case_without_a_generation_is_refused(write):
    reading = read_harmbench(write("c.json", {**CASES, "odd": [{"test_case": "x"}, 3]}))
    assert [row.line for row in reading.refused] == [5, 6]
    assert "no 'generation'" in reading.refused[0].reason


def test_another_document(write):
    with pytest.raises(InputError, match="expected an object of behaviours, got list"):
        read_harmbench(write("c.json", [1]))


def test_a_behaviour_named_twice_is_not_half_a_file(write):
    case = '[{"test_case": "a", "generation": "b", "label": 1}]'
    with pytest.raises(InputError, match="the key 'b' twice in one object"):
        read_harmbench(write("a.json", f'{{"b": {case}, "c": {case}, "b": {case}}}'))
