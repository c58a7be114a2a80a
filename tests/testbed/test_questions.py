"""Questions with hidden evidence: the truth is the passage's, and players and judge go by their rules."""

from __future__ import annotations

import math
import re

import pytest

from calibrant.app.check import check_study
from calibrant.app.references.openers import Openers
from calibrant.app.study_file import load_study
from calibrant.core import LM, CalibrantError, Chat, ConfigError, InputError, ScoringLM
from calibrant.data.rows import Questions
from calibrant.ledger import Ledger
from calibrant.oversee._protocol_chats import JUDGE, Said, Scene, judged, marked, played
from calibrant.testbed.questions import open_arbiter, open_debater, open_questions

CLUE = re.compile(r"the \w+ on (\w+) weighs (\d)\.")


def weights(text, row):
    found = {row.correct: 0, row.wrong: 0}
    for who, weight in CLUE.findall(text):
        found[who] += int(weight)
    return found


def test_the_right_answer_has_more_weight_and_the_judge_sees_some_of_it():
    rows = open_questions("hidden", {"n": "50", "known": "3"}).rows
    assert len({row.id for row in rows}) == 50
    for row in rows:
        found = weights(row.passage, row)
        assert found[row.correct] > found[row.wrong]
        clues = re.findall(r"the [^.]+\.", row.shown)
        assert len(clues) == 3
        assert all(clue in row.passage for clue in clues)
    assert open_questions("hidden", {"n": "50", "known": "3"}).rows == rows
    assert open_questions("hidden", {"n": "50", "known": "3", "seed": "1"}).rows != rows
    whole = open_questions("hidden", {"n": "1", "known": "all"}).rows[0]
    assert weights(whole.shown, whole) == weights(whole.passage, whole)
    firsts = [row.question.index(row.correct) < row.question.index(row.wrong) for row in rows]
    assert 10 < sum(firsts) < 40  # the question does not tell by its order


def test_a_debater_tells_the_heaviest_clue_that_was_not_told():
    row = open_questions("hidden", {"n": "1", "known": "0"}).rows[0]
    scene, debater = Scene(row, 0, "debate"), open_debater("ruled", {})
    told = []
    for number in (1, 2):
        (reply,) = debater.generate([played(scene, "debate", "second")])
        quoted = marked(reply.text, row.passage)
        assert (quoted.verified, quoted.quotes) == (1, 1)
        told += [int(weight) for who, weight in CLUE.findall(reply.text) if who == row.wrong]
        scene = scene._replace(record=(*scene.record, Said("second", number, quoted.text)))
    own = sorted((int(w) for who, w in CLUE.findall(row.passage) if who == row.wrong), reverse=True)
    assert told == own[:2]


def test_a_debater_chooses_right_as_often_as_it_is_told_and_knows_the_truth():
    rows = open_questions("hidden", {"n": "200"}).rows
    chats = [played(Scene(row, 0), "choose", "") for row in rows]
    chosen = [reply.text for reply in open_debater("ruled", {"right": ".5"}).generate(chats)]
    assert 60 < chosen.count("first") < 140  # 10 and 90 are five standard deviations of .5 away
    assert {reply.text for reply in open_debater("ruled", {}).generate(chats)} == {"first"}
    asked = [played(Scene(row, 1), "believe", "") for row in rows]
    assert {reply.text for reply in open_debater("ruled", {"right": "0"}).generate(asked)} == {"second"}


def test_a_liar_makes_clues_up_and_a_critic_does_not():
    row = open_questions("hidden", {"n": "1"}).rows[0]
    (reply,) = open_debater("ruled", {"lies": "1"}).generate([played(Scene(row, 0), "debate", "second")])
    assert marked(reply.text, row.passage).verified == 0
    debater = open_debater("ruled", {})
    right, wrong = (played(Scene(row, 0, proposed=side), "criticise", side) for side in ("first", "second"))
    assert [reply.text for reply in debater.generate([right])] == ["i find nothing wrong with it."]
    assert row.correct in debater.generate([wrong])[0].text
    assert open_debater("silent", {}).generate([right])[0].text == ""


def test_the_arbiter_weighs_what_it_reads_once_and_only_what_is_verified():
    row = open_questions("hidden", {"n": "1", "known": "0"}).rows[0]
    clue = next(m[0] for m in CLUE.finditer(row.passage) if m[1] == row.wrong)
    made_up = " ".join(f"<quote>the {one} on {row.correct} weighs 9.</quote>" for one in ("awl", "wimple"))
    text = marked(f"<quote>{clue}</quote> <quote>{clue}</quote> {made_up}", row.passage).text
    chat = judged(Scene(row, 0, "consult", record=(Said("second", 1, text),)), JUDGE)
    strict, trusting = open_arbiter("ruled", {}), open_arbiter("ruled", {"trusting": "1"})
    assert [model.generate([chat])[0].text for model in (strict, trusting)] == ["second", "first"]
    weight = int(CLUE.search(clue)[2])
    first, second = (one.total for one in strict.logprobs([chat, chat], ["first", "second"]))
    assert second - first == pytest.approx(weight)
    assert math.exp(first) + math.exp(second) == pytest.approx(1.0)
    assert strict.logprobs([chat], ["neither"])[0].total == -math.inf
    assert strict.generate([Chat.ask("hello")])[0].text == "i can not tell."


@pytest.fixture
def openers(tmp_path):
    return Openers(Ledger(tmp_path / "ledger"), base=tmp_path)


def test_references(openers):
    table = openers.open("testbed:questions/hidden?n=7&known=2", Questions).load()
    assert len(table) == 7
    arbiter = openers.open("testbed:arbiter/ruled?bias=3", LM)
    assert isinstance(arbiter.load(), ScoringLM)
    assert arbiter.digest != openers.open("testbed:arbiter/ruled", LM).digest
    assert openers.open("testbed:debater/ruled", LM).load().identity.name == "testbed:debater/ruled"


def test_the_shipped_study_can_run():
    assert check_study(load_study("oversight"), files=True) == []


@pytest.mark.parametrize(
    ("reference", "wanted", "error", "says"),
    [
        ("testbed:questions/open", Questions, InputError, "no such table"),
        ("testbed:questions/hidden?n=0", Questions, InputError, "1 to 5000"),
        ("testbed:questions/hidden?known=9", Questions, InputError, "no more are known"),
        ("testbed:questions/hidden?size=9", Questions, InputError, "unknown option"),
        ("testbed:questions/hidden", LM, ConfigError, "is no model"),
        ("testbed:debater/clever", LM, InputError, "no such debater"),
        ("testbed:debater/silent?lies=1", LM, InputError, "unknown option"),
        ("testbed:debater/ruled?reads=all", LM, InputError, "reads=all"),
        ("testbed:debater/ruled?right=2", LM, InputError, "no share"),
        ("testbed:arbiter/ruled?bias=.5", LM, InputError, "not a whole number"),
        ("testbed:arbiter/deaf", LM, InputError, "no such arbiter"),
        ("testbed:debater/ruled", Questions, CalibrantError, "no rows of kind"),
    ],
)
def test_what_is_no_reference(openers, reference, wanted, error, says):
    with pytest.raises(error, match=says):
        openers.open(reference, wanted)
