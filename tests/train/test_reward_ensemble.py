"""Ensembles: what each kind saves, an average that is one, disagreement off the data, resume after a kill."""

from __future__ import annotations

import copy

import pytest
import torch

from calibrant.core import ConfigError, Identity, InputError, Quiet, resolve
from calibrant.data.rows import Preferences
from calibrant.models.classifier import Classifier
from calibrant.models.fit import Fit
from calibrant.models.open_model import OpenModel
from calibrant.models.reward_folder import read_card, reward_identity
from calibrant.models.reward_model import Conservative, Ensemble, RewardModel, open_reward
from calibrant.testbed.circuits import open_plant
from calibrant.train import reward_ensemble as module
from calibrant.train.reward import RewardConfig
from calibrant.train.reward_ensemble import RewardEnsemble, averaged, reward_ensemble

KINDS = ("independent", "shared_trunk", "warm")
EACH = RewardConfig(batch_size=8, fit=Fit(lr=1e-3))


class Log(Quiet):
    """Keeps what was logged, spent and shown."""

    def __init__(self, work, seed=0):
        super().__init__(seed=seed, work=work)
        self.rows, self.tokens, self.shown = [], 0, []

    def log(self, step, **metrics):
        self.rows.append({"step": step, **metrics})

    def spend(self, *, tokens=0, queries=0, flops=0.0):
        self.tokens += tokens

    def progress(self, done, total, note=""):
        self.shown.append((done, total))


def made(model, table, kind, run, members=3, **more):
    config = RewardEnsemble(kind=kind, members=members, each=EACH)
    return reward_ensemble(model, table, config=config, run=run, **more)


def scores(reward, table):
    return reward.score([row.prompt for row in table], [row.chosen for row in table])


@pytest.mark.parametrize("kind", KINDS)
def test_the_artefact_is_one_reward(model, pairs, kind, tmp_path):
    run = Log(tmp_path)
    result = made(model, pairs(24), kind, run, held_out=pairs(30, start=64, lot=True))
    folder = run.artifact("reward")
    opened, card = open_reward(folder), read_card(folder)
    assert opened.identity.digest == result.reward.identity.digest == reward_identity(folder).digest
    one, two = scores(opened, pairs(9)), scores(result.reward, pairs(9))
    assert one.mean == pytest.approx(two.mean, abs=1e-4)
    assert card.members == 3
    assert card.kind == {"shared_trunk": "heads"}.get(kind, kind)
    assert (one.members is None) == (kind == "warm")
    if kind != "warm":
        assert len(one.members) == 3
        assert (
            len(Conservative(opened, "worst_case").score([row.prompt for row in pairs(2)], ["a", "b"]).mean)
            == 2
        )
    assert card.calibration == {name: result.metrics[name] for name in card.calibration}
    assert ("disagreement" in result.metrics) == (kind != "warm")
    assert result.metrics["held_out_accuracy"].low is not None
    steps = 3 * (1 if kind == "shared_trunk" else 3)
    assert [row["step"] for row in run.rows] == list(range(steps))
    assert run.shown == [(i + 1, steps) for i in range(steps)]


def test_members_trained_apart_have_folders_and_logs_of_their_own(model, pairs, weights, tmp_path):
    run = Quiet(work=tmp_path)
    result = made(model, pairs(24), "independent", run)
    members = [open_reward(run.artifact("reward") / f"member{i}") for i in range(3)]
    assert isinstance(result.reward, Ensemble)
    assert all(isinstance(member, RewardModel) for member in members)
    assert len({weights(member.classifier) for member in members}) == 3
    assert [m.identity.digest for m in members] == [m.identity.digest for m in result.reward.rewards]
    names = sorted(path.name for path in (tmp_path / "artifacts").iterdir())
    assert names == ["examples_0.parquet", "examples_1.parquet", "examples_2.parquet", "reward"]


def test_warm_is_the_average_of_members_with_one_start(model, pairs, monkeypatch, tmp_path):
    """Its folder is one model; its weights are the means; heads started alike, orders did not."""
    kept, real = [], module.averaged

    def spied(classifiers):
        kept.extend(classifiers)
        return real(classifiers)

    monkeypatch.setattr(module, "averaged", spied)
    run = Quiet(work=tmp_path)
    config = RewardEnsemble(kind="warm", members=3, lr_spread=2.0, each=EACH)
    reward_ensemble(model, pairs(24), config=config, run=run)
    found = open_reward(run.artifact("reward")).classifier.module.state_dict()
    states = [classifier.module.state_dict() for classifier in kept]
    for name, tensor in found.items():
        assert torch.allclose(tensor, sum(state[name] for state in states) / 3, atol=1e-6)
    start = Classifier.from_lm(model, 1, 0).head.weight
    moved = [float((state["score.weight"] - start).abs().max()) for state in states]
    assert len({round(m, 6) for m in moved}) == 3
    assert max(moved) < 0.1  # another start would lie 0.5 away
    assert moved[0] < moved[2]  # half the rate against twice the rate


def test_an_average_of_one_is_itself(model, weights):
    one = Classifier.from_lm(model, 2, 3)
    assert weights(averaged([one, one])) == weights(one)
    assert not any(p.requires_grad for p in averaged([one]).module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_reward_and_the_model_stays(model, pairs, weights, kind, tmp_path):
    before = weights(model)
    digests = [
        made(model, pairs(16), kind, Quiet(seed=seed, work=tmp_path / str(n))).reward.identity.digest
        for n, seed in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1] != digests[2]
    assert weights(model) == before


@pytest.mark.parametrize("kind", ["independent", "warm"])
def test_a_killed_run_keeps_its_finished_members(model, pairs, monkeypatch, kind, tmp_path):
    """Killed in the third member: the second try trains that one alone and ends with the same bits."""
    calls, real = [], module.descend
    whole = Log(tmp_path / "whole")
    truth = made(model, pairs(16), kind, whole)

    def falls(classifier, *rest):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(classifier, *rest)

    monkeypatch.setattr(module, "descend", falls)
    work = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        made(model, pairs(16), kind, Log(work))
    again = Log(work)
    found = made(model, pairs(16), kind, again)
    assert len(calls) == 4
    assert found.reward.identity.digest == truth.reward.identity.digest
    assert found.metrics == truth.metrics
    assert again.tokens == whole.tokens
    for path in (tmp_path / "whole" / "artifacts").glob("*.parquet"):
        assert path.read_bytes() == (work / "artifacts" / path.name).read_bytes()
    # Other data, other members: nothing of the old ones is taken.
    made(model, pairs(16, start=20), kind, Quiet(work=work))
    assert len(calls) == 7


def test_members_disagree_more_where_there_were_no_pairs(model, pairs, tmp_path):
    """Planted: 'ember' over 'no the barn'. On replies of other words nobody knows, and members say so."""
    result = made(model, pairs(96), "independent", Quiet(work=tmp_path), members=4)
    asked = [row.prompt for row in pairs(30, start=96)]
    known, other = (
        scores_of(result.reward, asked, words)
        for words in (("ember", "no the barn"), ("say it is dusk", "well well"))
    )
    assert other > 3 * known


def scores_of(reward, asked, words):
    """Mean deviation between members over all prompts and these replies."""
    found = [reward.score(asked, [word] * len(asked)).std for word in words]
    return sum(map(sum, found)) / (len(asked) * len(words))


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_preference_is_learned(model, pairs, kind, tmp_path):
    result = made(model, pairs(96), kind, Quiet(work=tmp_path), 2, held_out=pairs(64, start=96))
    assert result.metrics["held_out_accuracy"].low > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_labels_by_lot_teach_nothing(model, pairs, by_lot, kind, tmp_path):
    result = made(
        model, pairs(96, lot=True), kind, Quiet(work=tmp_path), 2, held_out=pairs(64, start=96, lot=True)
    )
    by_lot(result.metrics["held_out_accuracy"].value, 64)


def test_members_take_turns_on_the_trunks(model, pairs, tmp_path, monkeypatch):
    """What pretraining got wrong is then not shared."""
    other, seen, trained, table = redrawn(model), [], module._trained, pairs(16)
    monkeypatch.setattr(
        module,
        "_trained",
        lambda trunk, *rest: seen.append(trunk.identity.digest) or trained(trunk, *rest),
    )
    found = made(model, table, "independent", Log(tmp_path), model_2=other)
    first, second = model.identity.digest, other.identity.digest
    assert seen == [first, second, first]
    assert any("share their data," in one for one in found.caveats)
    alone = made(model, table, "independent", Log(tmp_path / "alone"))
    assert scores(found.reward.rewards[1], table) != scores(alone.reward.rewards[1], table)
    assert scores(found.reward.rewards[0], table) == scores(alone.reward.rewards[0], table)


def test_trunks_that_do_not_go_together_are_refused(model, pairs, tmp_path):
    other = redrawn(model)
    for kind in ("warm", "shared_trunk"):
        with pytest.raises(ConfigError, match="one trunk"):
            made(model, pairs(8), kind, Log(tmp_path), model_2=other)
    with pytest.raises(ConfigError, match="3 trunks for 2 members"):
        made(
            model, pairs(8), "independent", Log(tmp_path), members=2, model_2=other, model_3=redrawn(model, 2)
        )
    with pytest.raises(InputError, match="given twice"):
        made(model, pairs(8), "independent", Log(tmp_path), model_2=model)
    with pytest.raises(InputError, match="different tokenizers"):
        made(model, pairs(8), "independent", Log(tmp_path), model_2=open_plant("induction", {}))
    other = redrawn(model)
    other.tokenizer = copy.deepcopy(model.tokenizer)
    other.tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(InputError, match="chat templates"):
        made(model, pairs(8), "independent", Log(tmp_path), model_2=other)


def redrawn(model, seed=1):
    """The same shape and vocabulary with other weights."""
    torch.manual_seed(seed)
    drawn = model.copy()
    for parameter in drawn.module.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return OpenModel(
        drawn.module, drawn.tokenizer, identity=Identity(name=f"other{seed}", parts={"seed": str(seed)})
    )


def test_contradictory_settings_are_refused():
    for given, said in (
        ({"each": {"heads": 2}}, "follows from kind"),
        ({"kind": "shared_trunk", "lr_spread": 2.0}, "one learning rate"),
        ({"members": 1}, "members"),
    ):
        with pytest.raises(ConfigError, match=said):
            resolve(RewardEnsemble, given)


def test_an_empty_table_is_refused(model):
    with pytest.raises(InputError, match="no rows"):
        reward_ensemble(model, Preferences(rows=()))
