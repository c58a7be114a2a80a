"""Rewards: what members say by hand, cautious objectives, plain functions, and folders in and out."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from calibrant.core import (
    CapabilityError,
    Chat,
    ConfigError,
    Identity,
    InputError,
    NumericalError,
    Reward,
    Scores,
)
from calibrant.core.config import resolve
from calibrant.models.classifier import Classifier
from calibrant.models.reward_folder import Normaliser, RewardCard, member_folders, reward_identity, write_card
from calibrant.models.reward_model import (
    Conservative,
    ConservativeConfig,
    Ensemble,
    PythonReward,
    RewardModel,
    open_reward,
)

CHATS = [Chat.ask(t) for t in ("the cat", "one two", "the cat")]
REPLIES = ["sat on the mat", "", "nine ten"]
MEMBERS = ((1.0, 0.0, 2.0), (3.0, -1.0, 2.0), (2.0, 4.0, 2.0))


class Fixed:
    """A reward with given members."""

    def __init__(self, members=MEMBERS, std=None):
        self.members = members
        self.identity = Identity(name="fixed", kind="reward", parts={"members": str(members)})

    def score(self, chats, replies):
        rows = np.array(self.members)
        several = len(rows) > 1
        return Scores(
            mean=tuple(rows.mean(0).tolist()),
            std=tuple(rows.std(0, ddof=1).tolist()) if several else None,
            members=self.members if several else None,
        )


@pytest.fixture
def heads(tiny):
    """A reward with three heads and a normaliser for each."""
    scale = Normaliser(mean=(0.5, -1.0, 0.0), std=(2.0, 1.0, 0.5), n=10, data="d")
    return RewardModel(Classifier.from_lm(tiny("llama"), heads=3, seed=2), scale)


def test_members_are_normalised_one_by_one(heads):
    raw = heads.classifier.read_all(*heads.classifier.ids(CHATS, REPLIES))
    found = heads.score(CHATS, REPLIES)
    for head, (mean, std) in enumerate([(0.5, 2.0), (-1.0, 1.0), (0.0, 0.5)]):
        truth = [(float(value) - mean) / std for value in raw[:, head]]
        assert found.members[head] == pytest.approx(truth, abs=1e-6)
    assert found.mean == pytest.approx(np.mean(found.members, axis=0))
    assert found.std == pytest.approx(np.std(found.members, axis=0, ddof=1))
    assert isinstance(heads, Reward)
    assert heads.identity.kind == "reward"


def test_one_head_has_no_members(tiny):
    found = RewardModel(Classifier.from_lm(tiny("llama"))).score(CHATS, REPLIES)
    assert found.std is found.members is None
    assert len(found.mean) == 3


def test_nothing_asked_nothing_scored(heads):
    for reward in (
        heads,
        Ensemble([Fixed(((),)), Fixed(((),))]),
        PythonReward(lambda chats, replies: [], "f"),
    ):
        assert reward.score([], []).mean == ()


def test_a_normaliser_changes_the_identity_and_must_fit(tiny):
    model = Classifier.from_lm(tiny("llama"))
    bare, scaled, noted = (
        RewardModel(model, scale).identity.digest
        for scale in (None, Normaliser(mean=(1.0,)), Normaliser(mean=(1.0,), n=5, data="x"))
    )
    assert bare != scaled == noted  # where the numbers came from moves no score
    for wrong in (
        Normaliser(mean=(0.0, 0.0)),
        Normaliser(std=(0.0,)),
        Normaliser(mean=(0.0, 1.0), std=(1.0, 1.0)),
    ):
        with pytest.raises(InputError, match="does not fit 1 heads"):
            RewardModel(model, wrong)


def test_an_ensemble_brings_all_members():
    """Three members and one: the single reward is a member with its score."""
    both = Ensemble([Fixed(), Fixed(((5.0, 5.0, 5.0),))])
    found = both.score(CHATS, REPLIES)
    assert found.members == (*MEMBERS, (5.0, 5.0, 5.0))
    assert found.mean == pytest.approx((11 / 4, 8 / 4, 11 / 4))
    assert found.std[0] == pytest.approx(np.std([1, 3, 2, 5], ddof=1))
    assert both.identity.digest == Ensemble([Fixed(), Fixed(((5.0, 5.0, 5.0),))]).identity.digest
    assert both.identity.digest != Ensemble([Fixed(((5.0, 5.0, 5.0),)), Fixed()]).identity.digest
    with pytest.raises(InputError, match="ensemble of 1"):
        Ensemble([Fixed()])
    with pytest.raises(InputError, match="3 chats, 2 replies"):
        both.score(CHATS, REPLIES[:2])


# First reply: members 1, 3, 2 have mean 2, variance 1. Second: 0, -1, 4: mean 1, variance 7. Third: all 2.
OBJECTIVES = {
    ("mean", None): (2, 1, 2),
    ("worst_case", None): (1, -1, 2),
    ("median", None): (2, 0, 2),
    ("uncertainty_weighted", None): (2 - 0.5, 1 - 0.5 * 7, 2),
    ("uncertainty_weighted", 0.1): (2 - 0.1, 1 - 0.7, 2),
    ("lower_bound", None): (2 - 1, 1 - math.sqrt(7), 2),
    ("lower_bound", 2.0): (0, 1 - 2 * math.sqrt(7), 2),
}


@pytest.mark.parametrize(("objective", "weight"), OBJECTIVES)
def test_cautious_objectives_by_hand(objective, weight):
    found = Conservative(Fixed(), objective, weight).score(CHATS, REPLIES)
    assert found.mean == pytest.approx(OBJECTIVES[objective, weight])
    assert found.members == MEMBERS
    assert found.std[1] == pytest.approx(math.sqrt(7))


def test_caution_has_an_identity_of_its_own():
    digests = {Conservative(Fixed(), *key).identity.digest for key in OBJECTIVES}
    assert len(digests) == len(OBJECTIVES)
    same = Conservative(Fixed(), "lower_bound"), Conservative(Fixed(), "lower_bound", 1.0)
    assert same[0].identity.digest == same[1].identity.digest


def test_caution_needs_members_and_takes_no_idle_weight():
    for objective in ("worst_case", "uncertainty_weighted", "lower_bound", "median"):
        with pytest.raises(CapabilityError, match="no members"):
            Conservative(Fixed(((1.0,),)), objective).score(CHATS[:1], REPLIES[:1])
    assert Conservative(Fixed(((1.0,),)), "mean").score(CHATS[:1], REPLIES[:1]).mean == (1.0,)
    for objective, weight in (
        ("worst_case", 0.5),
        ("mean", 0.0),
        ("lower_bound", -1.0),
        ("lower_bound", math.nan),
    ):
        with pytest.raises(InputError, match="weight"):
            Conservative(Fixed(), objective, weight)
    with pytest.raises(ConfigError, match="takes no weight"):
        resolve(ConservativeConfig, {"objective": "median", "weight": 1.0})


def length(chats, replies):
    return [len(reply) for reply in replies]


def test_a_plain_function_is_a_reward():
    made = PythonReward(length, "length")
    assert made.score(CHATS, REPLIES) == Scores(mean=(14.0, 0.0, 8.0))
    assert isinstance(made, Reward)
    assert made.identity.name == "length"
    other = PythonReward(lambda chats, replies: [0.0] * len(replies), "length")
    assert made.identity.digest == PythonReward(length, "length").identity.digest != other.identity.digest
    assert PythonReward(np.vectorize(lambda chat, reply: len(reply))).score(CHATS, REPLIES).mean[0] == 14.0


@pytest.mark.parametrize(
    ("fn", "kind", "said"),
    [
        (lambda chats, replies: 1 / 0, InputError, "ZeroDivisionError"),
        (lambda chats, replies: [1.0], InputError, "1 scores for 3 replies"),
        (lambda chats, replies: 1.0, InputError, "TypeError"),
        (lambda chats, replies: ["a", "b", "c"], InputError, "ValueError"),
        (lambda chats, replies: [None] * 3, InputError, "TypeError"),
        (lambda replies: [1.0] * 3, InputError, "TypeError"),
        (lambda chats, replies: [1.0, math.nan, 2.0], NumericalError, "row 1"),
        (lambda chats, replies: torch.tensor([1.0, 2.0, math.inf]), NumericalError, "row 2"),
    ],
)
def test_a_function_that_fails_is_said_aloud(fn, kind, said):
    with pytest.raises(kind, match=said) as caught:
        PythonReward(fn, "mine").score(CHATS, REPLIES)
    assert "mine" in str(caught.value)


def saved(reward, folder, kind="heads"):
    model = reward.classifier
    card = RewardCard(
        kind=kind, members=model.heads, normaliser=reward.normaliser, end_id=model.chat_tokens.end_id
    )
    reward.save(folder, card)
    return card


def test_a_folder_says_the_same_and_is_the_same(heads, tmp_path):
    card = saved(heads, tmp_path)
    again = open_reward(tmp_path)
    assert again.score(CHATS, REPLIES).mean == pytest.approx(heads.score(CHATS, REPLIES).mean, abs=1e-5)
    assert again.card == card
    assert again.identity == reward_identity(tmp_path)
    text = (tmp_path / "reward.json").read_text().replace('"std": [\n      2.0', '"std": [\n      3.0')
    (tmp_path / "reward.json").write_text(text)
    assert reward_identity(tmp_path).digest != again.identity.digest
    moved = open_reward(tmp_path).score(CHATS, REPLIES).members[0][0]
    assert moved == pytest.approx(heads.score(CHATS, REPLIES).members[0][0] * 2 / 3, abs=1e-5)


def test_models_trained_apart_lie_in_folders_of_their_own(tiny, tmp_path):
    card = RewardCard(kind="independent", members=2)
    members = [
        RewardModel(Classifier.from_lm(tiny("llama"), seed=s), Normaliser(mean=(float(s),))) for s in (1, 2)
    ]
    for member, folder in zip(members, member_folders(tmp_path, card), strict=True):
        saved(member, folder, "single")
    write_card(tmp_path, card)
    again = open_reward(tmp_path, name="two")
    assert isinstance(again, Ensemble)
    truth = Ensemble(members).score(CHATS, REPLIES)  # loaded weights may lie otherwise in memory
    for one, two in zip(again.score(CHATS, REPLIES).members, truth.members, strict=True):
        assert one == pytest.approx(two, abs=1e-5)
    assert again.identity == reward_identity(tmp_path, name="two")
    assert again.identity.digest == Ensemble(again.rewards).identity.digest
    shutil.rmtree(tmp_path / "member1")
    with pytest.raises(InputError, match="member1"):
        reward_identity(tmp_path)


def test_a_classifier_of_others_is_a_reward_as_it_stands(tiny, tmp_path):
    model = Classifier.from_lm(tiny("llama"))
    model.save(tmp_path)
    found = open_reward(tmp_path)
    assert found.normaliser is None
    assert found.identity == reward_identity(tmp_path)
    raw = model.read_all(*model.ids(CHATS, REPLIES))[:, 0].tolist()
    assert found.score(CHATS, REPLIES).mean == pytest.approx(raw)


def test_folders_that_are_refused(heads, tiny, tmp_path):
    tiny("llama").save(tmp_path / "lm")
    for call in (reward_identity, open_reward):
        with pytest.raises(InputError, match="LlamaForCausalLM, not a reward model"):
            call(tmp_path / "lm")
        with pytest.raises(InputError, match="not a folder"):
            call(tmp_path / "nothing")
    saved(heads, tmp_path / "card")
    path = tmp_path / "card" / "reward.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps(good | {"end_id": 2}))
    with pytest.raises(InputError, match="trained to read token 2"):
        open_reward(tmp_path / "card")
    path.write_text(json.dumps(good | {"kind": "other"}))
    with pytest.raises(InputError, match="no reward card"):
        reward_identity(tmp_path / "card")
    path.write_text("{")
    with pytest.raises(InputError, match="no reward card"):
        open_reward(tmp_path / "card")


def test_an_identity_needs_no_torch(heads, tmp_path):
    saved(heads, tmp_path)
    code = (
        "import sys; from calibrant.models.reward_folder import reward_identity;"
        f"print(reward_identity({str(tmp_path)!r}).digest, 'torch' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert said == [open_reward(tmp_path).identity.digest, "False"]
