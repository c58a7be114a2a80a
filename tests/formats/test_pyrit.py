from __future__ import annotations

import pytest

from calibrant.core import InputError
from calibrant.formats.pyrit import read_pyrit

ATTACK = {
    "class_name": "AtomicAttack",
    "children": {
        "attack_technique": {
            "class_name": "AttackTechnique",
            "children": {"attack": {"class_name": "CrescendoAttack"}},
        }
    },
}


def result(outcome, at=0, **changes):
    row = {
        "conversation_id": f"c{at}",
        "objective": "name a colour",
        "attack_result_id": f"a{at}",
        "outcome": outcome,
        "atomic_attack_identifier": ATTACK,
        "executed_turns": 3,
        "execution_time_ms": 1500,
        "last_response": {
            "id": f"p{at}",
            "role": "assistant",
            "converted_value": "mauve",
            "response_error": "none",
        },
        "last_score": {"score_value": "true", "score_type": "true_false"},
        "targeted_harm_categories": ["colours"],
    }
    return {**row, **changes}


def piece(at, role, said, *, conversation="c0", scores=None, **changes):
    row = {
        "id": f"p{at}",
        "role": role,
        "conversation_id": conversation,
        "sequence": at,
        "original_value": said,
        "converted_value": said,
        "response_error": "none",
        "scores": scores,
        "prompt_target_identifier": {"class_name": "OpenAIChatTarget", "model_name": "small"},
    }
    return {**row, **changes}


def score(value, kind="true_false", scorer="SelfAskTrueFalseScorer", **changes):
    about = {"class_name": scorer}
    return {"score_value": value, "score_type": kind, "scorer_class_identifier": about, **changes}


def test_attack_results_keep_pyrits_four_outcomes(write):
    rows = [result(said, at) for at, said in enumerate(("success", "failure", "undetermined", "error"))]
    reading = read_pyrit(write("results.jsonl", rows))
    wanted = ["success", "failure", "undetermined", "undetermined"]
    assert [a.outcome for a in reading.attempts] == wanted
    first = reading.attempts[0]
    assert (first.attack, first.family, first.category) == ("CrescendoAttack", "multi-turn", "colours")
    assert (first.cost.queries, first.cost.seconds, first.completion.text) == (3, 1.5, "mauve")
    assert first.chat.messages == ()  # the file does not hold what was sent
    assert [goal.text for goal in reading.goals] == ["name a colour"]


def test_pieces_in_the_same_file_tell_what_was_sent_and_are_not_counted_twice(write):
    rows = [
        piece(1, "user", "hello?"),
        piece(0, "system", "be brief"),
        piece(2, "assistant", "mauve", scores=[score("true")]),
    ]
    reading = read_pyrit(write("r.json", [*rows, result("success", last_response=rows[2] | {"id": "p2"})]))
    assert [t.content for t in reading.attempts[0].chat.messages] == ["be brief", "hello?"]
    assert len(reading.attempts) == 1


def test_a_scenario_is_its_attacks_on_one_target(write):
    about = {"children": {"objective_target": {"class_name": "OpenAIChatTarget", "model_name": "small"}}}
    value = {
        "scenario_identifier": about,
        "attack_results": {"x": [result("success")], "y": [result("failure", 1)]},
    }
    reading = read_pyrit(write("scenario.json", value))
    assert (reading.target, len(reading.attempts)) == ("small", 2)


def test_a_memory_export_is_read_by_its_scores(write):
    said = [
        [score("true")],
        [score("false")],
        [score("true", scorer="SelfAskRefusalScorer")],
        [score("false", scorer="SelfAskRefusalScorer")],
        [score("0.9", kind="float_scale")],
        [score(None, status="undetermined")],
    ]
    rows = []
    for at, scores in enumerate(said):
        rows += [
            piece(2 * at, "user", "hello?", conversation=f"c{at}"),
            piece(2 * at + 1, "assistant", "hm", conversation=f"c{at}", scores=scores),
        ]
    rows.append(piece(90, "assistant", "nobody scored this", conversation="c9"))
    reading = read_pyrit(write("memory.json", rows))
    wanted = ["success", "failure", "failure", "undetermined", "undetermined", "undetermined"]
    assert [a.outcome for a in reading.attempts] == wanted
    assert reading.attempts[4].verdicts["SelfAskTrueFalseScorer"].score == 0.9
    assert reading.target == "small" and reading.attempts[0].chat.last_user == "hello?"


def test_two_scores_of_one_scorer_are_both_kept(write):
    rows = [piece(0, "assistant", "hm", scores=[score("false"), score("true"), score("false")])]
    attempt = read_pyrit(write("m.json", rows)).attempts[0]
    names = ["SelfAskTrueFalseScorer", "SelfAskTrueFalseScorer 2", "SelfAskTrueFalseScorer 3"]
    assert list(attempt.verdicts) == names and attempt.outcome == "success"


def test_a_filtered_reply_is_blocked_and_an_error_is_undetermined(write):
    rows = [
        piece(0, "assistant", "", scores=[score("true")], response_error="blocked"),
        piece(1, "assistant", "", scores=[score("true")], response_error="unknown"),
    ]
    assert [a.outcome for a in read_pyrit(write("m.json", rows)).attempts] == ["failure", "undetermined"]


OBJECTIVE = """# dataset_version=1.0,,,,
objective,assistant_response,human_score,data_type,harm_category
name a colour,"mauve,
a fine one",1,text,colours
name a colour,no,0,text,colours
name a colour,x.png,1,image_path,colours
name a colour,hm,,text,colours
short
"""
SCALE = """# dataset_version=1.0, harm_definition=colours.yaml
harm_category,objective,assistant_response,human_score_1,human_score_2,human_score_3,data_type
colours,a,r,0.75,1,0,text
colours,b,r,0.25,0,1,text
colours,c,r,0.5,1,0,text
"""
REFUSAL = """# dataset_version=1.2
objective,assistant_response,human_score,data_type
a,I would rather not,1,text
b,gladly,0,text
"""


def test_human_labels_of_objectives(write):
    reading = read_pyrit(write("colours.csv", OBJECTIVE))
    assert [(a.outcome, a.human) for a in reading.attempts] == [("success", True), ("failure", False)]
    assert reading.attempts[0].completion.text == "mauve,\na fine one"
    assert [row.line for row in reading.refused] == [6, 7, 8]
    assert [row.reason.split(":")[0] for row in reading.refused] == [
        "not text",
        "no label",
        "wrong number of cells",
    ]


def test_human_labels_on_a_scale_go_by_the_majority_and_a_tie_is_unknown(write):
    attempts = read_pyrit(write("scale.csv", SCALE)).attempts
    assert [(a.outcome, a.human) for a in attempts] == [
        ("success", True),
        ("failure", False),
        ("undetermined", None),
    ]
    assert "severity" in attempts[0].verdicts["human"].reason


def test_a_reply_that_is_no_refusal_is_not_yet_harm(write):
    attempts = read_pyrit(write("refusal.csv", REFUSAL)).attempts
    assert [(a.outcome, a.human) for a in attempts] == [("failure", False), ("undetermined", None)]


def test_a_broken_table_is_an_error_for_later_rows_would_be_guesses(write):
    with pytest.raises(InputError, match="not well-formed"):
        read_pyrit(write("x.csv", 'objective,assistant_response,human_score\na,"open,1\n'))
    with pytest.raises(InputError, match="not UTF-8"):
        read_pyrit(write("y.csv", b"objective,assistant_response\n\xff,b\n"))


def test_an_error_in_a_result_or_its_score_is_undetermined(write):
    bad = {"score_value": "true", "score_type": "true_false", "status": "error"}
    rows = [
        result("success", 0),
        result("success", 1, error_message="timeout"),
        result("success", 2, last_score=bad),
    ]
    outcomes = [attempt.outcome for attempt in read_pyrit(write("r.json", rows)).attempts]
    assert outcomes == ["success", "undetermined", "undetermined"]


def test_pieces_without_ids_are_not_all_the_last_one(write):
    pieces = [piece(0, "user", "hello"), piece(1, "assistant", "hm"), piece(2, "user", "a colour, please"),
              piece(3, "assistant", "mauve")]  # fmt: skip
    for name in (None, "same for all"):
        rows = [{**one, "id": name} for one in pieces]
        last = {"id": name, "role": "assistant", "converted_value": "mauve", "response_error": "none"}
        [attempt] = read_pyrit(write("r.json", [*rows, result("success", 0, last_response=last)])).attempts
        assert [turn.content for turn in attempt.chat.messages] == ["hello", "hm", "a colour, please"]


def test_scores_without_ids_are_not_one_attempt(write):
    rows = [piece(0, "user", "hi"), piece(1, "assistant", "a", scores=[score("true")]),
            piece(2, "user", "hi"), piece(3, "assistant", "b", scores=[score("false")])]  # fmt: skip
    reading = read_pyrit(write("r.json", [{**row, "id": None} for row in rows]))
    assert [attempt.outcome for attempt in reading.attempts] == ["success", "failure"]


def test_a_conversation_without_end_is_refused_by_name(write):
    rows = [piece(at, "assistant", "a", scores=[score("true")]) for at in range(1_003)]
    reading = read_pyrit(write("r.json", rows))
    assert len(reading.attempts) == 1_001  # the last of them after 1,000 turns
    assert "too long: 1,001 turns before a reply" in reading.refused[0].reason
