from __future__ import annotations

import pytest

from calibrant.core import InputError
from calibrant.formats.promptfoo import read_promptfoo


def result(success, *, at=0, strategy=None, provider="openai:small", **changes):
    row = {
        "id": f"r{at}",
        "testIdx": at,
        "promptIdx": 0,
        "provider": {"id": provider},
        "prompt": {"raw": "tell me a tall tale", "label": "p"},
        "vars": {"prompt": "tell me a tall tale"},
        "response": {"output": "once upon a time"},
        "success": success,
        "score": float(success),
        "failureReason": 0 if success else 1,
        "latencyMs": 250,
        "tokenUsage": {"completion": 4, "numRequests": 1},
        "gradingResult": {
            "pass": success,
            "score": float(success),
            "reason": "it held" if success else "it told",
        },
        "testCase": {"metadata": {"pluginId": "tall-tales", "strategyId": strategy}},
    }
    return {**row, **changes}


def document(*rows):
    return {
        "evalId": "e",
        "config": {},
        "results": {"version": 3, "results": list(rows), "prompts": [], "stats": {}},
    }


def test_a_pass_is_a_failure_of_the_attack(write):
    rows = [
        result(True, at=0),
        result(False, at=1, strategy="base64"),
        result(False, at=2, failureReason=2, error="timeout", response={"error": "timeout"}),
        result(False, at=3, gradingResult=None),
        result(False, at=4, gradingResult={"pass": False, "score": 0, "metadata": {"graderError": True}}),
        result(True, at=5, response={}),
    ]
    reading = read_promptfoo(write("results.json", document(*rows)))
    wanted = ["failure", "success", "undetermined", "undetermined", "undetermined", "undetermined"]
    assert [a.outcome for a in reading.attempts] == wanted
    assert [a.attack for a in reading.attempts[:2]] == ["plain", "base64"]
    assert [a.family for a in reading.attempts[:2]] == ["plain", "transform"]
    first = reading.attempts[0]
    assert (reading.target, first.category, first.cost.seconds) == ("openai:small", "tall-tales", 0.25)
    # the same goal, whatever the strategy
    assert len(reading.goals) == 1


def test_what_was_sent(write):
    chat = '[{"role": "system", "content": "be brief"}, {"role": "user", "content": "hm?"}]'
    history = [{"prompt": "one", "output": "a"}, {"prompt": "two", "output": "once upon a time"}]
    rows = [
        result(False, at=0, prompt={"raw": chat}),
        result(
            False,
            at=1,
            metadata={"redteamHistory": history},
            testCase={"metadata": {"pluginId": "p", "goal": "g"}},
        ),
        result(False, at=2, response={"output": {"a": 1}, "prompt": "what the provider sent"}),
    ]
    one, two, three = read_promptfoo(write("results.json", document(*rows))).attempts
    assert [(t.role, t.content) for t in one.chat.messages] == [("system", "be brief"), ("user", "hm?")]
    assert [t.content for t in two.chat.messages] == ["one", "a", "two"]
    assert (three.chat.last_user, three.completion.text) == ("what the provider sent", '{"a": 1}')


def test_ordinary_tests_are_no_attacks(write):
    reading = read_promptfoo(write("r.json", document(result(False), result(False, at=1, testCase={}))))
    assert len(reading.attempts) == 1
    assert reading.refused[0].line == 2 and "no red-team row" in reading.refused[0].reason


def test_json_lines_and_several_providers(write):
    rows = [result(False), result(True, at=1, provider="openai:large")]
    path = write("results.jsonl", rows)
    with pytest.raises(InputError, match="2 targets"):
        read_promptfoo(path)
    assert read_promptfoo(path, "openai:large").attempts[0].outcome == "failure"


def test_malformed_rows_do_not_stop_the_file(write):
    odd = [
        3,
        {},
        result(False, response=[]),
        result(False, tokenUsage={"numRequests": -1}),
        result(False, at=9),
    ]
    reading = read_promptfoo(write("r.json", document(*odd)))
    assert len(reading.attempts) == 1 and [row.line for row in reading.refused] == [1, 2, 3, 4]


def test_a_document_without_results(write):
    with pytest.raises(InputError, match="no 'results'"):
        read_promptfoo(write("r.json", {"a": 1}))


def graded(at, success, *, inner=None, metadata=None, **changes):
    part = {"pass": success, "score": 0, "reason": "r", "metadata": inner or {}, "componentResults": []}
    whole = {"pass": success, "score": 0, "reason": "r", "componentResults": [part, {**part, "metadata": {}}]}
    return result(success, at=at, gradingResult=whole, metadata=metadata or {}, **changes)


@pytest.mark.parametrize("success", [True, False])
def test_an_error_of_a_grader_is_undetermined_wherever_it_stands(write, success):
    deep = {
        "componentResults": [{"pass": success, "componentResults": [{"metadata": {"graderError": True}}]}]
    }
    rows = [
        graded(0, success),
        graded(1, success, inner={"graderError": True}),
        graded(2, success, metadata={"storedGraderResult": {"metadata": {"graderError": True}}}),
        graded(3, success, response={"output": "x", "metadata": {"turns": [{"graderError": "timeout"}]}}),
        result(success, at=4, gradingResult={"pass": success, "reason": "r", **deep}),
        result(
            success,
            at=5,
            gradingResult={"pass": success, "componentResults": [{"pass": False, "error": "e"}]},
        ),
        result(success, at=6, gradingResult={"pass": not success, "reason": "r"}),
        result(success, at=7, gradingResult={"reason": "no verdict"}),
    ]
    outcomes = [a.outcome for a in read_promptfoo(write("r.json", document(*rows))).attempts]
    assert outcomes == ["failure" if success else "success", *["undetermined"] * 7]


def test_totals_that_are_not_those_of_the_rows_are_said(write):
    value = document(result(True), result(False, at=1), result(False, at=2, failureReason=2, error="e"))
    value["results"]["stats"] = {"successes": 1, "failures": 1, "errors": 1}
    metrics = {"testPassCount": 1, "testFailCount": 1, "testErrorCount": 1}
    value["results"]["prompts"] = [{"metrics": metrics}]
    assert read_promptfoo(write("r.json", value)).refused == ()
    value["results"]["stats"]["failures"] = 12
    metrics["testErrorCount"] = 0
    assert [row.reason for row in read_promptfoo(write("r.json", value)).refused] == [
        "counts differ: 'stats.failures' is 12 in the file, 1 in its rows",
        "counts differ: 'testErrorCount' is 0 in the file, 1 in its rows",
    ]


def test_rows_without_ids_are_not_one_row(write):
    rows = [result(False, response={"output": said}) for said in ("one", "two", "two")]
    reading = read_promptfoo(write("r.jsonl", [{**row, "id": None, "testIdx": None} for row in rows]))
    assert [a.completion.text for a in reading.attempts] == ["one", "two"]
    assert len({a.id for a in reading.attempts}) == 2
    assert [(row.line, row.reason) for row in reading.refused] == [
        (3, "duplicate: the same attempt as in line 2")
    ]
