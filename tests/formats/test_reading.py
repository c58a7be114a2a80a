"""The account of a foreign file: every row is taken or refused with its line; targets are never mixed."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibrant.core import Chat, Completion, Goal, InputError, Verdict
from calibrant.formats.raw import chat_of, json_document, json_lines, text
from calibrant.formats.reading import attempt_on, gather, outcome


def shape(row):
    said = Verdict(question="q", answer=row["said"])
    goal = Goal(id=row["goal"], text="a request")
    yield attempt_on(
        row.get("on", "a"),
        goal,
        attack="plain",
        chat=Chat.ask("x"),
        completion=Completion(text=text(row["reply"], "reply")),
        verdicts={"j": said},
        seed=row.get("seed", 0),
    )


def read(write, rows, target=""):
    path = write("rows.jsonl", rows)
    return gather("tool", path, json_lines(path), shape, target)


def test_rows_are_taken_or_refused_with_their_line(write):
    path = write(
        "rows.jsonl",
        b'{"goal":"g","said":"yes","reply":"r"}\n\nnot json\n[1]\n\xff\xfe\n'
        b'{"goal":"g","said":"yes","reply":7}\n{"goal":"h","said":"perhaps","reply":"r"}\n',
    )
    reading = gather("tool", path, json_lines(path), shape)
    assert [a.outcome for a in reading.attempts] == ["success"]
    assert [row.line for row in reading.refused] == [3, 4, 5, 6, 7]
    reasons = [row.reason.split(":")[0] for row in reading.refused]
    assert reasons == ["malformed JSON", "not an object", "not UTF-8", "wrong type", "no attempt"]


def test_the_same_attempt_twice_is_counted_once(write):
    row = {"goal": "g", "said": "yes", "reply": "r"}
    reading = read(write, [row, row, {**row, "seed": 1}])
    assert len(reading.attempts) == 2
    assert reading.refused[0].line == 2 and "as in line 1" in reading.refused[0].reason


def test_goals_are_listed_once(write):
    rows = [{"goal": g, "said": "no", "reply": "r", "seed": s} for g in "ab" for s in (0, 1)]
    assert [goal.id for goal in read(write, rows).goals] == ["a", "b"]


def test_attempts_on_two_targets_are_not_mixed(write):
    rows = [{"goal": "g", "said": "yes", "reply": "r", "on": on} for on in ("first", "second")]
    with pytest.raises(InputError, match="2 targets: first, second") as caught:
        read(write, rows)
    assert "#first" in caught.value.hint
    chosen = read(write, rows, "second")
    assert (chosen.target, len(chosen.attempts)) == ("second", 1)
    with pytest.raises(InputError, match="did you mean 'first'"):
        read(write, rows, "firts")


def test_a_file_of_which_nothing_can_be_taken_is_an_error(write):
    with pytest.raises(InputError, match="none of 1 rows is an attempt of tool; line 1"):
        read(write, [{"goal": "g", "said": "yes", "reply": 7}])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        ("{}".encode("utf-16"), "UTF-16"),
        (b'{"a": "\xff"}', "not UTF-8: byte 8"),
        (b'{"a": [1, 2', "malformed JSON"),
        (b"[" * 100_000, "malformed JSON"),
    ],
)
def test_files_that_cannot_be_read(write, data, said):
    with pytest.raises(InputError, match=said):
        json_document(write("x.json", data))


def test_a_missing_file_and_a_folder(tmp_path: Path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            json_document(path)


def test_a_byte_order_mark_and_half_a_surrogate_pair_do_no_harm(write):
    path = write("rows.jsonl", b'\xef\xbb\xbf{"goal":"g","said":"yes","reply":"a\\ud800b"}\n')
    assert gather("tool", path, json_lines(path), shape).attempts[0].completion.text == "a?b"


@pytest.mark.parametrize(
    ("answers", "stop", "wanted"),
    [
        (["no", "no"], "eos", "failure"),
        (["no", "yes"], "eos", "success"),
        (["yes", "unknown"], "eos", "success"),
        (["no", "unknown"], "eos", "undetermined"),
        ([], "eos", "undetermined"),
        (["yes"], "error", "undetermined"),
        (["no"], "error", "undetermined"),
        (["unknown"], "blocked", "failure"),
    ],
)
def test_three_outcomes(answers, stop, wanted):
    verdicts = {str(at): Verdict(question="q", answer=answer) for at, answer in enumerate(answers)}
    assert outcome(Completion(text="", stop=stop), verdicts) == wanted


def test_an_unknown_role_is_refused():
    assert [m.role for m in chat_of([("developer", "a"), ("user", None)]).messages] == ["system", "user"]
    with pytest.raises(ValueError, match="role"):
        chat_of([("narrator", "a")])
