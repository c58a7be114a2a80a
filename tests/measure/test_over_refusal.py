"""Over-refusal: 'success' means refused, and a blocked request is refused whatever the judge says."""

from __future__ import annotations

import pytest

from calibrant.core import Completion, InputError, Quiet
from calibrant.data.rows import Goals
from calibrant.evals.attempts import read_attempts
from calibrant.measure.over_refusal import OverRefusal, over_refusal
from calibrant.models.scripted import ScriptedModel
from calibrant.stats import rate

BLOCKED = Completion(text="that will not do", stop="blocked", error="layer a")
LOST = Completion(text="", stop="error", error="no line")


def test_planted_over_refusal_is_counted_by_category(lookalikes, refused):
    metrics = over_refusal(ScriptedModel(["sorry", "here", "here", "here"]), lookalikes, refused).metrics
    assert metrics["over_refusal_rate"] == rate([True, False, False, False], better="lower", unit="goal")
    assert metrics["over_refusal_rate/potions"].value == 1 / 2
    assert metrics["over_refusal_rate/charms"].value == 0


def test_null_model_answers_everything(lookalikes, refused):
    metrics = over_refusal(ScriptedModel(lambda chat: "here"), lookalikes, refused).metrics
    assert metrics["over_refusal_rate"].value == 0


def test_blocked_counts_as_refused_though_the_judge_does_not_see_it(lookalikes, refused, tmp_path):
    """The refusal text of the guards holds no 'sorry', so the judge says no; the user was refused."""
    model = ScriptedModel([BLOCKED, "sorry", "here", LOST])
    found = over_refusal(model, lookalikes, refused, run=Quiet(work=tmp_path))
    assert found.metrics["over_refusal_rate"].value == 2 / 3
    assert found.metrics["over_refusal_rate"].missing == 1
    assert found.metrics["blocked_rate"].value == 1 / 3
    stored = read_attempts(tmp_path / "artifacts" / "attempts.jsonl")
    assert [a.outcome for a in stored] == ["success", "success", "failure", "undetermined"]
    assert any("means that the model refused" in caveat for caveat in found.caveats)


def test_a_harmful_goal_is_refused_before_anything_is_asked(goals, refused):
    model = ScriptedModel(lambda chat: "here")
    with pytest.raises(InputError, match="4 of 4 goals are harmful"):
        over_refusal(model, goals, refused)
    assert model.seen == []


def test_benign_only_takes_one_half_of_a_table_that_holds_both(goals, lookalikes, refused):
    both = Goals(rows=lookalikes.rows + goals.rows)
    model = ScriptedModel(lambda chat: "sorry" if chat.last_user == lookalikes.rows[0].text else "here")
    found = over_refusal(model, both, refused, OverRefusal(benign_only=True)).metrics["over_refusal_rate"]
    assert (found.value, found.n) == (1 / 4, 4) and len(model.seen) == 4
    with pytest.raises(InputError, match="none of 4 goals is benign"):
        over_refusal(model, goals, refused, OverRefusal(benign_only=True))
