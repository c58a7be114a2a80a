"""Advice of an earlier job: found by the job's name, or by its file."""

from __future__ import annotations

import json

import pytest

from calibrant.app.execute import execute
from calibrant.app.people.annotate import Session
from calibrant.app.people.answer_file import Worked
from calibrant.app.people.assist import assisting
from calibrant.app.references.openers import Openers
from calibrant.core import Chat, InputError, Job
from calibrant.data.advice import Advised
from calibrant.data.rows import Pair, Preferences
from calibrant.ledger import Ledger

YES_NO = ("yes", "no")
MODEL, GOALS, JUDGE = "testbed:model/tiny", "testbed:goals/heldout?n=2", "testbed:judge/harmful"


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    """Two jobs: one that was judged, and one that left nothing to advise with."""
    root = tmp_path_factory.mktemp("assist")
    ledger = Ledger(root / "ledger")
    judged = Job(
        id="judged", use="measure.refusal", inputs={"model": MODEL, "goals": GOALS, "judge": JUDGE},
        config={"sampling": {"max_tokens": 4}},
    )  # fmt: skip
    steps = Job(
        id="steps", use="oversee.decomposition",
        inputs={"tasks": "testbed:trees/sums?n=3", "solver": "testbed:solver/perfect"},
    )  # fmt: skip
    for job in (judged, steps):
        assert execute(job, Openers(ledger, base=root)).status == "finished"
    return ledger


@pytest.mark.parametrize("source", ["judged", "record:judged", "record:judged/attempts.jsonl"])
def test_a_judge_of_an_earlier_job_advises(ledger, source):
    found = assisting(source, YES_NO, (), ledger)
    entry = next(one for one in ledger.entries() if one.record.job_id == "judged")
    artifact = next(one for one in entry.record.artifacts if one.name == "attempts.jsonl")
    rows = [json.loads(line) for line in ledger.open(artifact).read_text().splitlines()]
    assert set(found) == {row["id"] for row in rows}
    for row in rows:
        (verdict,) = row["verdicts"].values()
        assert found[row["id"]].says == ("" if verdict["answer"] == "unknown" else verdict["answer"])


def test_a_job_that_left_none_says_so(ledger):
    with pytest.raises(InputError, match="the job 'steps' left no advice"):
        assisting("steps", YES_NO, (), ledger)
    with pytest.raises(InputError, match="1: no 'id'"):
        assisting("record:steps/steps.jsonl", YES_NO, (), ledger)
    with pytest.raises(InputError, match="no job 'stepz'"):
        assisting("stepz", YES_NO, (), ledger)


def test_the_side_that_is_advised_is_told_as_it_is_displayed(tmp_path):
    rows = tuple(
        Pair(id=f"{at}", prompt=Chat.ask(f"{at}?"), chosen=f"good {at}", rejected=f"bad {at}")
        for at in range(12)
    )
    worked = Worked("assisted", {row.id: Advised(says="a") for row in rows})
    with Session(Preferences(rows=rows), tmp_path / "v.jsonl", "ann", repeats=0.5, worked=worked) as session:
        places = set()
        while shown := session.next():
            advised = {"first": shown.first, "second": shown.second}[shown.advice.says]
            assert advised.startswith("good")
            places.add(shown.advice.says)
            session.vote("first")
        assert places == {"first", "second"}
        assert all(vote.advice == "a" and vote.condition == "assisted" for vote in session.answers)
