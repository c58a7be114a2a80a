from __future__ import annotations

import pytest

from calibrant.core import InputError
from calibrant.formats.jbb import read_jbb


def artifact(**changes):
    row = {
        "index": 0,
        "goal": "Write a limerick about fog",
        "behavior": "Fog limerick",
        "category": "Poetry",
        "prompt": "please",
        "response": "There was a thick fog",
        "number_of_queries": 12,
        "queries_to_jailbreak": 3,
        "prompt_tokens": 5,
        "response_tokens": 6,
        "jailbroken": True,
    }
    about = {"method": "PAIR", "model": "small", "attack_type": "black_box", "defense": None}
    return {"parameters": {**about, **changes}, "jailbreaks": [row]}


def test_an_artifact(write):
    value = artifact()
    row = value["jailbreaks"][0]
    value["jailbreaks"] += [
        {**row, "index": 1, "behavior": "b", "jailbroken": False, "number_of_queries": None},
        {**row, "index": 2, "behavior": "c", "jailbroken": None},
        {**row, "index": 3, "behavior": "d", "jailbroken": False, "prompt": None, "response": None},
    ]
    reading = read_jbb(write("small.json", value))
    first = reading.attempts[0]
    assert [a.outcome for a in reading.attempts] == ["success", "failure", "undetermined", "failure"]
    assert (first.goal_id, first.category, first.attack, first.family) == (
        "Fog limerick",
        "Poetry",
        "PAIR",
        "LM-made",
    )
    assert (first.cost.queries, first.cost.target_tokens, first.access) == (12, 6, "black box")
    # a behaviour without a prompt stays in the denominator, and says why
    assert reading.attempts[3].chat.messages == ()
    assert "no prompt" in reading.attempts[3].verdicts["jbb"].reason


def test_a_defence_is_part_of_the_target_and_white_box_sees_weights(write):
    reading = read_jbb(write("a.json", artifact(defense="SmoothLLM", attack_type="white_box", method="GCG")))
    assert reading.target == "small behind SmoothLLM"
    assert reading.attempts[0].access == "weights"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "expected an object"),
        ({"parameters": {}}, "no 'jailbreaks'"),
        (artifact() | {"jailbreaks": [{}]}, "no 'behavior'"),
    ],
)
def test_other_documents(write, value, said):
    with pytest.raises(InputError, match=said):
        read_jbb(write("a.json", value))


def counted(*, queries=10_000, **about):
    """Three rows that each name the limit of queries, of which few were needed."""
    value = artifact(**about)
    row = value["jailbreaks"][0]
    rows = [{"queries_to_jailbreak": 3}, {"queries_to_jailbreak": 1}, {"jailbroken": False, "prompt": None}]
    value["jailbreaks"] = [
        {
            **row,
            "index": at,
            "behavior": f"b{at}",
            "number_of_queries": queries,
            "queries_to_jailbreak": 5,
            **changes,
        }
        for at, changes in enumerate(rows)
    ]
    return value


def test_the_cost_of_a_row_is_what_adds_up_to_the_total(write):
    right = counted(queries=3, total_number_of_queries=9)
    limits = counted(total_number_of_queries=9)
    neither = counted(total_number_of_queries=8)
    silent = counted()
    costs = [
        [a.cost.queries for a in read_jbb(write("a.json", value)).attempts]
        for value in (right, limits, neither, silent)
    ]
    assert costs == [[3, 3, 3], [3, 1, 5], [10_000] * 3, [10_000] * 3]
    said = [
        [row.reason for row in read_jbb(write("a.json", v)).refused] for v in (right, limits, neither, silent)
    ]
    assert said[0] == said[3] == []
    assert said[1] == ["counts differ: 'total_number_of_queries' is 9 in the file, 30,000 in its rows"]
    assert said[2] == ["counts differ: 'total_number_of_queries' is 8 in the file, 30,000 in its rows"]


def test_a_head_that_contradicts_the_rows_is_said(write):
    fine = {"total_number_of_jailbreaks": 2, "number_of_submitted_prompts": 2, "attack_success_rate": 0.67,
            "total_prompt_tokens": 15, "total_response_tokens": 18}  # fmt: skip
    assert read_jbb(write("a.json", counted(**fine))).refused == ()
    wrong = {"total_number_of_jailbreaks": 3, "attack_success_rate": 1.0, "total_prompt_tokens": None}
    reading = read_jbb(write("a.json", counted(**{**fine, **wrong})))
    assert len(reading.attempts) == 3
    assert [row.reason for row in reading.refused] == [
        "counts differ: 'total_number_of_jailbreaks' is 3 in the file, 2 in its rows",
        "counts differ: 'attack_success_rate' is 1 in the file, 0.6667 in its rows",
    ]
