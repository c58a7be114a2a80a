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
