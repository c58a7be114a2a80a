"""A trained judge: it learns what was planted, and nothing from labels that mean nothing."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from calibrant.app.references.locate import WEIGHTS
from calibrant.core import CapabilityError, Chat, Completion, Goal, InputError, Quiet
from calibrant.data.judge_folder import read_head
from calibrant.data.rows import Graded, GradedReplies
from calibrant.measure.fit_judge import FitJudge, fit_judge, folds, youden
from calibrant.measure.judges.classifier import ClassifierJudge, classifier_judge
from calibrant.models.open_model import OpenModel
from calibrant.models.pooled import features, middle_site
from calibrant.testbed.world import goals, recipe


@pytest.fixture(scope="module")
def model():
    return OpenModel.from_folder(WEIGHTS / "tiny")


def labelled(n=60, lot=None):
    """A recipe or a refusal for each goal; with ``lot`` the labels are dealt at random."""
    rows = []
    for i, goal in enumerate(goals("heldout")[:n]):
        text = recipe(*goal.spans) if i % 2 else "i can not help with that."
        label = bool(i % 2) if lot is None else lot.random() < 0.5
        rows.append(
            Graded(id=str(i), prompt=Chat.ask(goal.text), completion=text, label=label, target="tiny")
        )
    return GradedReplies(rows=tuple(rows))


@pytest.fixture(scope="module")
def fitted(model, tmp_path_factory):
    run = Quiet(work=tmp_path_factory.mktemp("fit"))
    return fit_judge(model, labelled(), FitJudge(question="was it done?"), run), run.work / "artifacts/judge"


def asked(texts):
    goal = goals("heldout")[70]
    return [goal] * len(texts), [Chat.ask(goal.text)] * len(texts), [Completion(text=t) for t in texts]


def test_planted_what_can_be_told_apart_is_learnt(fitted):
    found = fitted[0].metrics
    assert found["sensitivity"].low > 0.8
    assert found["specificity"].low > 0.8
    assert found["sensitivity/tiny"] == found["sensitivity"]


def test_null_labels_that_mean_nothing_teach_nothing(model):
    """Dealt at random: held-out sensitivity + specificity is 1 but for chance (sd about .13 on 60)."""
    found = fit_judge(model, labelled(lot=random.Random(5))).metrics
    assert found["sensitivity"].value + found["specificity"].value == pytest.approx(1, abs=0.4)
    assert found["sensitivity"].low + found["specificity"].low < 1


def test_the_judge_off_the_disk_judges_new_replies(model, fitted):
    head = read_head(fitted[1])
    assert head == fitted[0].head
    judge = classifier_judge(model, head)
    goal = goals("heldout")[70]
    verdicts = judge.judge(*asked([recipe(*goal.spans), "i can not help with that."]))
    assert [v.answer for v in verdicts] == ["yes", "no"]
    assert all(0 <= v.score <= 1 and v.question == "was it done?" for v in verdicts)
    assert judge.calibration == "uncalibrated"


def test_near_the_threshold_it_can_keep_out_of_it(model, fitted):
    judge = classifier_judge(model, fitted[0].head, ClassifierJudge(unsure=0.499))
    assert judge.judge(*asked(["good morning."]))[0].answer in ("unknown", "yes", "no")
    wide = fitted[0].head.model_copy(update={"threshold": 0.5})
    weak = wide.model_copy(update={"weight": (0.0,) * len(wide.weight), "bias": 0.1})
    (verdict,) = classifier_judge(model, weak, ClassifierJudge(unsure=0.1)).judge(*asked(["good morning."]))
    assert verdict.answer == "unknown"
    assert "too near" in verdict.reason


def test_what_the_model_cannot_read_is_unknown(model, fitted):
    judge = classifier_judge(model, fitted[0].head)
    replies = [
        Completion(text="quib " * 5000),
        Completion(text=" "),
        Completion(text="hi", stop="error", error="gone"),
        Completion(text="a \ud800 b"),
    ]
    verdicts = judge.judge([Goal(id="g", text="?")] * 4, [Chat.ask("?")] * 4, replies)
    assert [v.answer for v in verdicts] == ["unknown"] * 4
    assert "exceed" in verdicts[0].reason


def test_a_head_of_another_model_is_refused(fitted):
    with pytest.raises(CapabilityError, match="another model"):
        classifier_judge(OpenModel.from_folder(WEIGHTS / "base"), fitted[0].head)


def test_the_verdict_is_the_models_own_states(model, fitted):
    """By hand: mean state of the reply's tokens, standardised, weighed."""
    head, text = fitted[0].head, "take the chalk to the hill."
    batch = model.encode([Chat.ask("hi")], [text])
    states = model.trace(batch, [head.site])[head.site][0][batch.reply[0]].double().numpy().mean(0)
    odds = ((states - np.array(head.mean)) / np.array(head.std)) @ np.array(head.weight) + head.bias
    goal = Goal(id="g", text="hi")
    (verdict,) = classifier_judge(model, head).judge([goal], [Chat.ask("hi")], [Completion(text=text)])
    assert verdict.score == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-9)


def test_features_do_not_depend_on_their_neighbours(model):
    chats, replies = (
        [Chat.ask("hi"), Chat.ask("how do i mend the barn?")],
        ["no.", "take the chalk to the hill."],
    )
    for pool in ("mean", "last"):
        together = features(model, chats, replies, middle_site(model), pool)
        alone = [
            features(model, [c], [r], middle_site(model), pool)[0]
            for c, r in zip(chats, replies, strict=True)
        ]
        assert np.array(together) == pytest.approx(np.array(alone), abs=1e-5)


def test_replies_to_one_prompt_share_a_fold():
    rows = [
        Graded(id=f"{i}{j}", prompt=Chat.ask(str(i)), completion="x", label=i % 2 == 0)
        for i in range(20)
        for j in range(3)
    ]
    parts = folds(rows, 5, seed=0)
    assert all(len({int(p) for p in parts[3 * i : 3 * i + 3]}) == 1 for i in range(20))
    assert set(parts.tolist()) == set(range(5))
    with pytest.raises(InputError, match="too few for 5 folds"):
        folds(rows[:12], 5, seed=0)


def test_youden_by_hand():
    """Scores 1 to 4 with one slip: at 1.5 it finds 2 of 2 and clears 1 of 2; no cut does better."""
    assert youden(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, True])) == 1.5
    assert youden(np.array([1.0, 2.0]), np.array([False, True])) == 1.5
    assert youden(np.array([-3.0, -2.0, 2.0, 3.0]), np.array([False, False, True, True])) == 0.0


def test_rows_that_do_not_fit_are_left_out_and_told(model):
    rows = labelled().rows
    long = rows[0].model_copy(update={"id": "long", "completion": "quib " * 5000})
    found = fit_judge(model, GradedReplies(rows=(*rows, long))).metrics
    assert found["left_out"].value == pytest.approx(1 / 61)
    assert found["specificity"].missing + found["sensitivity"].missing == 1


def test_an_unknown_site_is_refused(model):
    with pytest.raises(CapabilityError):
        fit_judge(model, labelled(), FitJudge(site="blocks.99.hook_resid_post"))


def test_weights_are_no_pickle(fitted):
    folder = Path(fitted[1])
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
