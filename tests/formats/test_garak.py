"""A garak report read here gives garak's own counts; what garak did not find out stays undetermined."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from calibrant.core import InputError
from calibrant.formats.garak import Counts, garak_counts, read_garak

DATA = Path(__file__).parent / "data"
LIPSUM, NONES = DATA / "garak_lipsum.report.jsonl", DATA / "garak_nones.report.jsonl"


def entries(path, kind):
    return [
        row
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if row["entry_type"] == kind
    ]


def evals(path):
    """garak's own counts as its report has them."""
    return {
        (row["probe"], row["detector"]): Counts(row["passed"], row["fails"], row["nones"])
        for row in entries(path, "eval")
    }


@pytest.mark.parametrize("path", [LIPSUM, NONES])
def test_counts_are_garaks_own(path):
    reading = read_garak(path)
    assert garak_counts(reading.attempts) == evals(path)
    assert reading.refused == ()


def test_every_output_is_an_attempt_with_each_detector_as_a_judge():
    reading = read_garak(LIPSUM)
    assert reading.target == "test.Lipsum"
    assert len(reading.attempts) == 2 * 9 and len(reading.goals) == 9
    first = reading.attempts[0]
    assert set(first.verdicts) == {"always.Pass", "always.Random", "any.AnyOutput"}
    assert (first.attack, first.category) == ("test.Blank", "M010blank")
    # lorem ipsum is output, so any.AnyOutput flags all: success, whatever the others say
    assert {attempt.outcome for attempt in reading.attempts} == {"success"}


def test_no_output_is_undetermined_though_garak_leaves_it_out():
    outcomes = Counter(attempt.outcome for attempt in read_garak(NONES).attempts)
    assert outcomes == {"undetermined": 18}


def test_another_threshold_disagrees_aloud():
    reading = read_garak(LIPSUM, threshold=0.05)
    assert garak_counts(reading.attempts) != evals(LIPSUM)
    assert any("counts differ: test.Test, always.Random" in row.reason for row in reading.refused)
    lines = LIPSUM.read_text(encoding="utf-8").splitlines()
    assert all(json.loads(lines[row.line - 1])["entry_type"] == "eval" for row in reading.refused)


def test_the_threshold_of_the_set_up_is_used(write):
    rows = [json.loads(line) for line in LIPSUM.read_text(encoding="utf-8").splitlines()]
    rows[0]["run.eval_threshold"] = 0.05
    path = write("r.report.jsonl", rows)
    assert garak_counts(read_garak(path).attempts) == garak_counts(
        read_garak(LIPSUM, threshold=0.05).attempts
    )


def test_a_report_cut_by_a_kill(write):
    """What was answered and never evaluated is undetermined; a line cut in two is refused with its number."""
    whole = LIPSUM.read_text(encoding="utf-8").splitlines(keepends=True)
    started = [line for line in whole if '"status": 1' in line]
    path = write("r.report.jsonl", "".join([whole[0], *started]) + started[0][:300])
    reading = read_garak(path)
    assert {attempt.outcome for attempt in reading.attempts} == {"undetermined"}
    assert garak_counts(reading.attempts) == {}
    assert [row.line for row in reading.refused] == [len(started) + 2]


def test_a_score_for_every_output_or_the_prompt_is_refused(write):
    rows = [json.loads(line) for line in LIPSUM.read_text(encoding="utf-8").splitlines()]
    broken = next(row for row in rows if row.get("status") == 2)
    broken["detector_results"]["always.Pass"] = [0.0]
    reading = read_garak(write("r.report.jsonl", rows))
    assert len(reading.attempts) == 16
    assert "always.Pass has not one for each of 2 outputs" in reading.refused[0].reason
    assert any(row.reason.startswith("counts differ") for row in reading.refused)  # and the sums say so, too


def test_a_conversation_of_several_turns(write):
    turn = lambda role, said: {"role": role, "content": {"text": said}}  # noqa: E731
    row = {
        "entry_type": "attempt",
        "uuid": "u",
        "status": 2,
        "probe_classname": "fitd.FITD",
        "seq": 0,
        "prompt": {"turns": [turn("system", "s"), turn("user", "one")]},
        "outputs": [{"text": "last"}],
        "detector_results": {"d.D": [1.0]},
        "conversations": [
            {
                "turns": [
                    turn("system", "s"),
                    turn("user", "one"),
                    turn("assistant", "a"),
                    turn("user", "two"),
                    turn("assistant", "last"),
                ]
            }
        ],
    }
    attempt = read_garak(write("r.jsonl", [row])).attempts[0]
    assert [turn.content for turn in attempt.chat.messages] == ["s", "one", "a", "two"]
    assert (attempt.completion.text, attempt.family) == ("last", "multi-turn")


def test_an_old_report_with_plain_texts(write):
    row = {
        "entry_type": "attempt",
        "uuid": "u",
        "status": 2,
        "probe_classname": "dan.Dan_6_0",
        "seq": 0,
        "prompt": "hello",
        "outputs": ["hi", None],
        "detector_results": {"d.D": [0.0, None]},
        "goal": "greet",
    }
    reading = read_garak(write("r.jsonl", [row]))
    assert [attempt.outcome for attempt in reading.attempts] == ["failure", "undetermined"]
    assert (reading.goals[0].text, reading.attempts[0].family) == ("greet", "persona")


def test_no_report_at_all(write):
    with pytest.raises(InputError, match="holds no attempts of garak"):
        read_garak(write("r.jsonl", [{"entry_type": "init"}]))


@pytest.mark.parametrize("uuid", ["one for all", None, 7, "missing"])
def test_no_row_is_lost_where_uuids_name_nothing(write, uuid):
    rows = [json.loads(line) for line in LIPSUM.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if "uuid" in row:
            row["uuid"] = uuid
            if uuid == "missing":
                del row["uuid"]
    reading = read_garak(write("r.report.jsonl", rows))
    assert garak_counts(reading.attempts) == evals(LIPSUM)
    assert reading.refused == ()
    assert len({attempt.id for attempt in reading.attempts}) == 18


def test_equal_prompts_without_uuids_are_attempts_each(write):
    row = {"entry_type": "attempt", "probe_classname": "p.P", "seq": 0, "prompt": "hello", "outputs": ["hi"]}
    seen = {**row, "status": 2, "detector_results": {"d.D": [1.0]}}
    begun = {**row, "status": 1, "detector_results": {}}
    reading = read_garak(write("r.jsonl", [begun, begun, begun, seen, seen]))
    assert [attempt.outcome for attempt in reading.attempts] == ["success", "success", "undetermined"]
    assert len({attempt.id for attempt in reading.attempts}) == 3
