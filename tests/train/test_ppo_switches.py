"""Every switch of PPO: connected, and doing what it says; settings that contradict are refused."""

from __future__ import annotations

import math
import statistics

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from calibrant.core import CapabilityError, Chat, ConfigError, Identity, Quiet, Sampling, Scores, resolve
from calibrant.core.digest import digest_path
from calibrant.data.rows import Prompt, Prompts
from calibrant.models.classifier import Classifier
from calibrant.models.fit import Fit, rate
from calibrant.models.lora import LoRA
from calibrant.models.open_model import OpenModel
from calibrant.models.reward_folder import Normaliser
from calibrant.models.reward_model import PythonReward, RewardModel, open_reward
from calibrant.models.rollouts import roll
from calibrant.train import _rl_common
from calibrant.train._ppo_critic import open_critic, read_values
from calibrant.train.ppo import PPO, ppo

ASKED = tuple(f"how do i {verb} the {thing}?" for verb in ("mend", "paint", "find", "open")
              for thing in ("barn", "mill", "cave", "deed"))  # fmt: skip
SMALL = PPO(steps=3, batch_size=4, samples=2, max_tokens=4, epochs=2, fit=Fit(lr=1e-3, eps=1e-5))


PLAIN = PythonReward(lambda chats, replies: [float(len(r)) for r in replies], "letters")
"""A reward without weights."""


class Lengths:
    """A reward that is never the same: letters of the reply over those of the prompt; two members."""

    identity = Identity(name="lengths", kind="reward", parts={"of": "letters"})

    def score(self, chats, replies):
        mean = tuple(len(r) / len(c.last_user) for c, r in zip(chats, replies, strict=True))
        return Scores(mean=mean, std=tuple(0.1 * len(r) for r in replies))


class Log(Quiet):
    """Keeps what was logged."""

    def __init__(self, work):
        super().__init__(work=work)
        self.rows = []

    def log(self, step, **metrics):
        self.rows.append(metrics)


def prompts(n=16):
    return Prompts(rows=tuple(Prompt(id=text, prompt=Chat.ask(text)) for text in ASKED[:n]))


@pytest.fixture(scope="module")
def ending(model):
    """A model that ends a reply with one chance in four at each token, so that lengths differ."""
    lm = model.copy()
    head = lm.module.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    with torch.no_grad():
        head.bias[lm.chat_tokens.end_id] = math.log(head.out_features / 3)
    return OpenModel.from_module(lm.module, lm.tokenizer, "ending")


def changed(config=SMALL, **changes):
    """A config with other values, checked as if it had been written so."""
    return PPO.model_validate(config.model_dump() | changes)


def first_row(lm, tmp_path, reward=None, **changes):
    """What one run logs at its last step, and the run itself."""
    run = Log(tmp_path / str(sorted(changes.items())).translate({47: 45})[:80])
    result = ppo(lm, prompts(), reward or Lengths(), config=changed(**changes), run=run)
    return run.rows, result


def test_the_critic_warms_up_alone(model, weights, tmp_path):
    """Two of three steps for the critic: all three draw from the policy of the start; the third moves it."""
    rows, result = first_row(model, tmp_path, critic_warmup=2)
    assert all(abs(row["objective/kl"]) < 1e-4 for row in rows)
    assert weights(result.model) != weights(model)
    assert [row["lr"] == 0.0 for row in rows] == [True, True, False]
    assert all("loss/policy_avg" not in row for row in rows[:2])


def test_a_fresh_critic_and_its_scale(model, tmp_path):
    """N(0, 1 / (d + 1)); scaled to 0 it expects 0 everywhere."""
    critic = open_critic(model, PLAIN, "policy", None, 3)
    weight = critic.classifier.head.weight
    assert float(weight.std()) == pytest.approx(1 / math.sqrt(65), rel=0.25)
    rolled = roll(model, [Chat.ask(text) for text in ASKED], 1, Sampling(max_tokens=4, temperature=1.0))
    zero = read_values(open_critic(model, PLAIN, "policy", 0.0, 3), rolled)
    assert not zero.before.any()
    assert not zero.after.any()
    assert read_values(critic, rolled).before.abs().max() > 0.1


def test_a_critic_from_the_reward_model_is_in_its_units(model, tmp_path):
    """Behind an ended reply its value is the reward model's score of it, normaliser included."""
    reward = RewardModel(Classifier.from_lm(model, 1, 7), Normaliser(mean=(0.5,), std=(2.0,)))
    critic = open_critic(model, reward, "reward", None, 0)
    rolled = roll(model, [Chat.ask(text) for text in ASKED], 4, Sampling(max_tokens=1, temperature=1.0))
    ends = [[[model.chat_tokens.end_id]] * 4 for _ in ASKED]  # replies that end at once
    object.__setattr__(rolled, "branches", rolled.branches._replace(replies=ends))
    found = read_values(critic, rolled).after.tolist()
    assert found == pytest.approx(list(reward.score(rolled.chats, [""] * len(rolled)).mean), abs=1e-4)
    assert critic.classifier is not reward.classifier
    run = Quiet(work=tmp_path)
    ppo(model, prompts(), reward, config=changed(critic="reward"), run=run)
    saved = open_reward(run.artifact("critic"))
    assert saved.normaliser == reward.normaliser
    # A folder's tokenizer has a digest of its own; the words are the same, so it fits.
    assert torch.equal(
        open_critic(model, saved, "reward", None, 0).classifier.head.weight, saved.classifier.head.weight
    )
    with pytest.raises(ConfigError, match="head_scale"):
        open_critic(model, saved, "auto", 0.0, 0)


def test_a_critic_that_cannot_be_had(model):
    with pytest.raises(CapabilityError, match="critic's start"):
        open_critic(model, PLAIN, "reward", None, 0)
    two_heads = RewardModel(Classifier.from_lm(model, 2, 7))
    with pytest.raises(CapabilityError, match="critic's start"):
        open_critic(model, two_heads, "reward", None, 0)
    assert open_critic(model, two_heads, "auto", None, 0).classifier.heads == 1


@pytest.mark.parametrize(("value_clip", "clip"), [(None, None), (1e-6, 1e-6), (0.2, 0.2)])
def test_clips_of_value_and_ratio(model, tmp_path, value_clip, clip):
    """No clip is never taken; a tiny one is taken by about half of the tokens once the weights have moved."""
    rows, _ = first_row(model, tmp_path, value_clip=value_clip, clip=clip, epochs=4, minibatches=1)
    shares = [row["policy/clipfrac_avg"] for row in rows], [row["val/clipfrac_avg"] for row in rows]
    for fractions in shares:
        if clip is None:
            assert not any(fractions)
        elif clip == 1e-6:
            assert statistics.mean(fractions) > 0.2


def test_an_asymmetric_clip(model, tmp_path):
    """A high upper clip alone is taken less often than a low one on both sides."""
    low, _ = first_row(model, tmp_path, clip=0.01, epochs=4)
    high, _ = first_row(model, tmp_path, clip=0.01, clip_high=10.0, epochs=4)
    assert high[0]["policy/clipfrac_avg"] < low[0]["policy/clipfrac_avg"]


def test_learning_rate_and_epsilon_arrive(model, monkeypatch, tmp_path):
    seen, real = [], torch.optim.AdamW

    def noted(groups, **options):
        seen.append(options)
        return real(groups, **options)

    monkeypatch.setattr(torch.optim, "AdamW", noted)
    policy = Fit(lr=2e-3, eps=1e-5, warmup=0.5, schedule="linear")
    rows, _ = first_row(model, tmp_path, fit=policy, critic_fit=Fit(lr=5e-3, eps=1e-6))
    assert [row["lr"] for row in rows] == [rate(policy, step, 3) for step in range(3)]
    assert [(o["lr"], o["eps"]) for o in seen] == [(2e-3, 1e-5), (5e-3, 1e-6)]


def test_the_gradient_is_clipped(model, tmp_path):
    """The norm that is logged is the one before; AdamW's epsilon makes the difference visible."""
    rows, one = first_row(model, tmp_path, fit=Fit(lr=1e-3, eps=1e-3, clip=1e-6))
    _, two = first_row(model, tmp_path, fit=Fit(lr=1e-3, eps=1e-3, clip=1e6))
    assert rows[0]["policy/grad_norm"] > 1e-3

    def moved(tuned):
        pairs = zip(tuned.module.parameters(), model.module.parameters(), strict=True)
        return max(float((a - b).detach().abs().max()) for a, b in pairs)

    assert moved(one.model) < 1e-2 * moved(two.model)


def test_an_early_stop_on_kl(model, tmp_path):
    rows, _ = first_row(model, tmp_path, epochs=6, minibatches=1, stop_kl=1e-9)
    assert {row["updates"] for row in rows} == {2}  # the first update meets pi = pi_old, the second stops
    rows, _ = first_row(model, tmp_path, epochs=6, minibatches=1, stop_kl=1e9)
    assert {row["updates"] for row in rows} == {6}


def test_an_adaptive_coefficient_follows_its_rule(model, tmp_path):
    """coef *= 1 + clip(KL / target - 1, +-0.2) n / horizon, with the KL that was logged."""
    kl = {"coef": 0.1, "target": 0.01, "horizon": 100.0, "unit": "token"}
    rows, _ = first_row(model, tmp_path, kl=kl, fit=Fit(lr=3e-3))
    expected = 0.1
    for row in rows:
        assert row["kl_coef"] == pytest.approx(expected)
        expected *= 1 + min(max(row["kl_per_token"] / 0.01 - 1, -0.2), 0.2) * 8 / 100
    assert len({row["kl_coef"] for row in rows}) == 3


def test_old_log_probs_of_the_draw_or_of_a_pass(model, tmp_path):
    """On one machine they agree, and so do the runs; where the draw is off, only the first is misled."""
    one, _ = first_row(model, tmp_path, old_logprobs="behaviour")
    two, _ = first_row(model, tmp_path, old_logprobs="rescored")
    for a, b in zip(one, two, strict=True):
        assert a["loss/value_avg"] == pytest.approx(b["loss/value_avg"], rel=1e-3)
        assert a["policy/approxkl_avg"] == pytest.approx(b["policy/approxkl_avg"], rel=1e-2, abs=1e-6)


def test_a_draw_from_another_distribution_is_noticed(model, monkeypatch, tmp_path):
    """A generator that reports log-probs 0.3 nats off: it is said, and a pass of our own mends it."""
    real = OpenModel.generate

    def off(self, chats, sampling):
        return [
            c.model_copy(update={"logprobs": tuple(p - 0.3 for p in c.logprobs)})
            for c in real(self, chats, sampling)
        ]

    monkeypatch.setattr(OpenModel, "generate", off)
    behaviour, _ = first_row(model, tmp_path, old_logprobs="behaviour")
    rescored, _ = first_row(model, tmp_path, old_logprobs="rescored")
    for rows in (behaviour, rescored):
        assert rows[0]["logprob_mismatch"] == pytest.approx(0.3, abs=1e-3)
    assert behaviour[0]["policy/approxkl_avg"] > 0.03
    assert rescored[0]["policy/approxkl_avg"] < 0.02


def test_the_entropy_is_exact(model, tmp_path):
    """With a bonus it is computed, and at the first update it is that of the distributions drawn from."""
    rows, _ = first_row(model, tmp_path, entropy_bonus=0.1, epochs=1, steps=1)
    rolled = roll(
        model,
        [Chat.ask(ASKED[i]) for i in _rl_common.cycle(16, 4, 0, 0)],
        2,
        _rl_common.sampling(SMALL, 0, 0),
    )
    total = 0.0
    for chat, ids in zip(rolled.chats, (r for group in rolled.branches.replies for r in group), strict=True):
        whole = torch.tensor([model.prompt_ids(chat) + ids])
        logs = model.module(input_ids=whole).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
        total -= float((logs.exp() * logs).sum())
    assert rows[0]["policy/entropy_avg"] == pytest.approx(total / int(rolled.lengths.sum()), rel=1e-4)
    assert "policy/entropy_avg" not in first_row(model, tmp_path, steps=1)[0][0]


def test_shaping_reaches_the_reward(model, tmp_path):
    """Scores of about 0.7 cut to 0.1, and a penalty of 5 in place of what was cut off (nearly all is)."""
    run = Log(tmp_path)
    shaping = {"clip": 0.1, "missing_end": 5.0, "missing_end_mode": "replace"}
    ppo(model, prompts(), Lengths(), config=changed(shaping=shaping), run=run)
    table = pq.read_table(run.artifact("examples.parquet")).to_pydict()
    for raw, shaped, ended in zip(table["reward"], table["shaped_reward"], table["ended"], strict=True):
        assert shaped == pytest.approx(min(raw, 0.1) if ended else -5.0)


ONE = {"steps": 2, "epochs": 1, "max_tokens": 6}


@pytest.fixture(scope="module")
def plain(ending, tmp_path_factory):
    """Weights of policy and critic after two steps as ``ONE`` has them."""
    folder = tmp_path_factory.mktemp("plain")
    _, result = first_row(ending, folder, **ONE)
    (critic,) = (digest_path(p) for p in folder.glob("*/artifacts/critic"))
    return result.model.identity.parts["weights"], critic


@pytest.mark.slow
@pytest.mark.parametrize("switch", [
    {"score_at": "after"}, {"truncated": "bootstrap"}, {"whiten_advantages": False}, {"unbiased": False},
    {"shaping": {"whiten": True}}, {"shaping": {"normalise": True}}, {"value_weight": 0.1},
    {"aggregation": "sequence_mean"}, {"aggregation": "constant"}, {"kl": {"estimator": "k3"}},
    {"kl": {"place": "loss", "estimator": "k3+"}}, {"lam": 1.0}, {"gamma": 0.9}, {"temperature": 0.7},
])  # fmt: skip
def test_every_other_switch_is_connected(ending, plain, tmp_path, switch):
    """Whatever it does is tested where it is computed; here: it does something, and nothing breaks."""
    rows, result = first_row(ending, tmp_path, **{**ONE, **switch})
    (critic,) = (digest_path(p) for p in tmp_path.glob("*/artifacts/critic"))
    assert (result.model.identity.parts["weights"], critic) != plain
    assert all(math.isfinite(value) for row in rows for value in row.values())


@pytest.mark.parametrize("settings", [
    {"minibatches": 5}, {"critic_warmup": 4}, {"critic": "reward", "head_scale": 0.0},
    {"truncated": "bootstrap", "shaping": {"missing_end": 1.0}},
    {"truncated": "bootstrap", "score_at": "after"}, {"temperature": 0.0}, {"kl": {"place": "loss"}},
])  # fmt: skip
def test_settings_that_contradict(settings):
    with pytest.raises(ValidationError):
        changed(**settings)


def test_names_of_other_tools():
    config = resolve(PPO, {"num_ppo_epochs": 2, "cliprange": 0.1, "kl_coef": 0.3, "learning_rate": 1e-5})
    assert (config.epochs, config.clip, config.kl.coef, config.fit.lr) == (2, 0.1, 0.3, 1e-5)
    assert config.fit.eps == 1e-5  # the rest of the table stays


def test_adapters_alone(model, tmp_path):
    rows, result = first_row(model, tmp_path, lora=LoRA(r=4))
    assert not any("lora" in name for name, _ in result.model.module.named_parameters())
    assert rows[-1]["objective/kl"] != 0
