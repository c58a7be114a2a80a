"""Simulated people: the files are about the same items and people, and as right as they are told to be."""

from __future__ import annotations

import pytest

from calibrant.app.references.openers import Openers
from calibrant.core import InputError
from calibrant.data.answers import answer_line
from calibrant.data.files import raw_rows
from calibrant.data.human_labels import HumanLabels, labels_from
from calibrant.ledger import Ledger
from calibrant.testbed.sandwich import open_labels


def test_rates_are_those_that_were_planted():
    """3,000 answers: standard errors are below .01; the advice has 500 items, .018."""
    told = {"n": "500", "alone": ".7", "advice": ".9", "follows": ".4", "again": ".1"}
    truth = {row.id: row.human for row in open_labels("truth", told)}
    alone = {(row.rater, row.id): row.human for row in open_labels("alone", told)}
    assisted = open_labels("assisted", told).rows
    assert sum(alone[key] == truth[key[1]] for key in alone) / 3000 == pytest.approx(0.7, abs=0.03)
    advice = {row.id: row.advice == "yes" for row in assisted}
    assert sum(advice[item] == truth[item] for item in truth) / 500 == pytest.approx(0.9, abs=0.05)
    changed = [
        row.human != alone[row.rater, row.id]
        for row in assisted
        if advice[row.id] == alone[row.rater, row.id]
    ]
    assert sum(changed) / len(changed) == pytest.approx(0.6 * 0.1, abs=0.03)


def test_what_is_written_is_read_back(tmp_path):
    rows = open_labels("assisted", {"n": "3"})
    path = tmp_path / "labels.jsonl"
    path.write_bytes(b"".join(map(answer_line, rows)))
    assert labels_from(raw_rows(path), "x").rows == rows.rows
    opened = Openers(Ledger(tmp_path / "ledger"), base=tmp_path).open(
        "testbed:labels/expert?n=3", HumanLabels
    )
    assert len({row.rater for row in opened.load()}) == 2


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("experts", {}, "no such answers"),
        ("alone", {"n": "0"}, "1 to 5000"),
        ("alone", {"alone": "2"}, "no share"),
        ("alone", {"follow": "1"}, "unknown option"),
    ],
)
def test_unknown_names_and_options(name, options, says):
    with pytest.raises(InputError, match=says):
        open_labels(name, options)
