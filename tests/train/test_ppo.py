"""PPO: a step by a slow route, every switch, kill and resume, watchers, and rewards that break."""

from __future__ import annotations

import math
import statistics

import pyarrow.parquet as pq
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from calibrant.core import (
    BudgetError,
    Chat,
    Identity,
    InputError,
    NumericalError,
    Quiet,
    Scores,
    Verdict,
)
from calibrant.core.digest import digest_path
from calibrant.data.rows import Prompt, Prompts
from calibrant.models import checkpoint
from calibrant.models.fit import Fit
from calibrant.models.open_model import OpenModel
from calibrant.models.rollouts import roll
from calibrant.train import _ppo_critic, _ppo_rollout, _ppo_update, _rl_common
from calibrant.train._ppo_critic import open_critic
from calibrant.train._settings import KL
from calibrant.train.ppo import PPO, ppo

ASKED = tuple(f"how do i {verb} the {thing}?" for verb in ("mend", "paint", "find", "open")
              for thing in ("barn", "mill", "cave", "deed"))  # fmt: skip
SMALL = PPO(steps=3, batch_size=4, samples=2, max_tokens=4, epochs=2, fit=Fit(lr=1e-3, eps=1e-5))


class Lengths:
    """A reward that is never the same: letters of the reply over those of the prompt; two members."""

    identity = Identity(name="lengths", kind="reward", parts={"of": "letters"})

    def score(self, chats, replies):
        mean = tuple(len(r) / len(c.last_user) for c, r in zip(chats, replies, strict=True))
        return Scores(mean=mean, std=tuple(0.1 * len(r) for r in replies))


class Other(Lengths):
    """Another reward, by its identity."""

    identity = Identity(name="other", kind="reward", parts={"of": "nothing"})

    def score(self, chats, replies):
        return Scores(mean=tuple(1.0 + len(r) % 3 for r in replies))


class Log(Quiet):
    """Keeps what was logged and spent; dies at a step if asked to."""

    def __init__(self, work, seed=0, dies_at=None):
        super().__init__(seed=seed, work=work)
        self.rows, self.tokens, self.dies_at = [], 0, dies_at

    def log(self, step, **metrics):
        if step == self.dies_at:
            raise KeyboardInterrupt
        self.rows.append({"step": step, **metrics})

    def spend(self, *, tokens=0, queries=0, flops=0.0):
        self.tokens += tokens


class Looks:
    """A watcher that says 'no' at a step and 'yes' before it; what it saw is its state."""

    def __init__(self, no_at=None, before="yes"):
        self.no_at, self.before, self.saw, self.rollouts = no_at, before, [], []
        self.identity = Identity(name="looks", kind="watcher", parts={"no_at": str(no_at)})

    def see(self, step, policy, rollouts):
        self.saw.append([step, policy.identity.digest])
        self.rollouts.append(rollouts)
        answer = "no" if self.no_at is not None and step >= self.no_at else self.before
        return Verdict(question="go on?", answer=answer, reason="the count says so")

    def state(self):
        return {"saw": self.saw}

    def restore(self, state):
        self.saw = state["saw"]


def prompts(n=16):
    return Prompts(rows=tuple(Prompt(id=text, prompt=Chat.ask(text)) for text in ASKED[:n]))


@pytest.fixture(scope="module")
def small(model, tmp_path_factory):
    """One run with ``SMALL``."""
    run = Log(tmp_path_factory.mktemp("small"))
    ppo(model, prompts(), Lengths(), config=SMALL, run=run)
    return run


def everything(work):
    """Name -> digest of every artefact."""
    return {path.name: digest_path(path) for path in sorted((work / "artifacts").iterdir())}


def changed(config=SMALL, **changes):
    """A config with other values, checked as if it had been written so."""
    return PPO.model_validate(config.model_dump() | changes)


# A step by a slow route


def slow_values(critic, lm, chat, ids):
    """The critic's value before each token and behind the last, reading the reply alone by a plain pass."""
    whole = torch.tensor([lm.prompt_ids(chat) + ids])
    hidden = critic.classifier.backbone(input_ids=whole).last_hidden_state[0]
    found = critic.classifier.head(hidden).squeeze(-1)[-len(ids) - 1 :].tolist()
    return found[:-1], found[-1]


@torch.no_grad()
@pytest.mark.parametrize("place", ["reward", "loss"])
def test_the_first_step_by_a_slow_route(model, tmp_path, place):
    """Draw, score, GAE, whitening and both losses in plain floats, one reply at a time.

    At the first step pi = pi_old = ref: no KL, ratio 1, so the policy's loss is -mean(A) = 0 after whitening
    and the mean of -A without; the critic's is half the mean squared error.
    """
    config = PPO(
        steps=1, batch_size=5, samples=2, max_tokens=4, epochs=1, temperature=1.3, gamma=0.97,
        whiten_advantages=False, kl=KL(place=place, estimator="k1" if place == "reward" else "k2"),
    )  # fmt: skip
    run = Log(tmp_path)
    with torch.enable_grad():
        ppo(model, prompts(5), Lengths(), config=config, run=run)
    chats = [Chat.ask(ASKED[i]) for i in _rl_common.cycle(5, 5, 0, 0)]
    rolled = roll(model, chats, 2, _rl_common.sampling(config, 0, 0))
    critic = open_critic(model, Lengths(), "auto", None, 0)
    scores = Lengths().score(rolled.chats, rolled.texts).mean
    advantages, errors = [], []
    replies = [ids for group in rolled.branches.replies for ids in group]
    for chat, ids, score in zip(rolled.chats, replies, scores, strict=True):
        before, _ = slow_values(critic, model, chat, ids)
        running, ahead, found = 0.0, 0.0, []
        for t in reversed(range(len(ids))):
            reward = score if t == len(ids) - 1 else 0.0
            running = reward + 0.97 * ahead - before[t] + 0.97 * 0.95 * running
            ahead = before[t]
            found.append(running)
        advantages += found
        errors += [a**2 for a in found]  # return - value is the advantage
    shown = run.rows[0]
    assert shown["loss/policy_avg"] == pytest.approx(-statistics.mean(advantages), abs=1e-4)
    assert shown["loss/value_avg"] == pytest.approx(0.5 * statistics.mean(errors), rel=1e-4)
    assert shown["objective/scores"] == pytest.approx(statistics.mean(scores), abs=1e-6)
    assert shown["disagreement"] == pytest.approx(statistics.mean(0.1 * len(r) for r in rolled.texts))
    assert shown["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert shown["logprob_mismatch"] < 1e-4
    assert shown["reply_tokens"] == pytest.approx(statistics.mean(map(len, replies)))
    assert shown["ended"] == statistics.mean(map(float, rolled.ended.tolist()))
    drawn = [float(row.sum()) for row in rolled.behaviour]
    assert shown["objective/entropy"] == pytest.approx(-statistics.mean(drawn), rel=1e-5)


def test_tokens_are_charged(model, small, tmp_path):
    """Each step: prompts once and replies, for the draw and for each epoch."""
    table = pq.read_table(small.artifact("examples.parquet")).to_pydict()
    asked = {text: len(model.prompt_ids(Chat.ask(text))) for text in ASKED}
    total = sum(table["reply_tokens"]) + sum(asked[text] for text in table["prompt"]) // 2
    assert small.tokens == total * (1 + SMALL.epochs)

    class Poor(Quiet):
        def spend(self, *, tokens=0, queries=0, flops=0.0):
            raise BudgetError("no tokens left")

    with pytest.raises(BudgetError):
        ppo(model, prompts(), Lengths(), config=SMALL, run=Poor(work=tmp_path / "poor"))
    assert not (tmp_path / "poor" / "artifacts").exists()


# What must not matter


def test_the_model_that_came_in_is_unchanged(model, weights, tmp_path):
    before, state = weights(model), torch.get_rng_state()
    result = ppo(model, prompts(), Lengths(), config=SMALL, run=Quiet(work=tmp_path))
    assert weights(model) == before != weights(result.model)
    assert torch.equal(torch.get_rng_state(), state)
    for lm in (model, result.model):
        assert not lm.module.training
        assert all(not p.requires_grad and p.grad is None for p in lm.module.parameters())
    assert result.model.identity.name == "tiny after ppo"


def test_same_seed_same_bits(model, small, tmp_path):
    again, other = (Log(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    for run in (again, other):
        ppo(model, prompts(), Lengths(), config=SMALL, run=run)
    assert everything(small.work) == everything(again.work) != everything(other.work)
    assert small.rows == again.rows


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["micro-batches", "rows of their own", "gradient checkpointing"])
def test_how_a_step_is_computed_does_not_matter(model, small, monkeypatch, tmp_path, cut):
    run, config = Log(tmp_path), SMALL
    if cut == "rows of their own":
        for module in (_ppo_critic, _rl_common, _ppo_update):
            monkeypatch.setattr(module, "shares", lambda module: "because")
    elif cut == "micro-batches":
        config = changed(fit=SMALL.fit.model_copy(update={"micro_tokens": 26}))
    else:
        config = changed(fit=SMALL.fit.model_copy(update={"recompute": True}))
    ppo(model, prompts(), Lengths(), config=config, run=run)
    for one, two in zip(small.rows, run.rows, strict=True):
        assert one == pytest.approx(two, rel=2e-3, abs=2e-4)


def test_dropout_and_absolute_positions_have_no_say(model, tmp_path):
    """GPT-2 has both: draws padded on the left are what a training pass finds, twice the same."""
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": len(model.tokenizer)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.5, eos_token_id=1))
    lm = OpenModel.from_module(module, model.tokenizer, "gpt2")
    uneven = Prompts(
        rows=tuple(Prompt(id=t, prompt=Chat.ask(t)) for t in (*ASKED[:2], "who?", "where is it?"))
    )
    runs = Log(tmp_path / "a"), Log(tmp_path / "b")
    for run in runs:
        ppo(lm, uneven, Lengths(), config=SMALL, run=run)
    assert max(row["logprob_mismatch"] for row in runs[0].rows) < 1e-4
    assert everything(runs[0].work) == everything(runs[1].work)


# Kill and resume


RESUMED = changed(
    steps=5, epochs=1, minibatches=2, watch_every=2, kl={"coef": 0.1, "target": 0.5, "horizon": 100.0},
    shaping={"normalise": True}, critic_warmup=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """A run that was never killed, and its result."""
    run = Log(tmp_path_factory.mktemp("whole"))
    return run, ppo(model, prompts(), Lengths(), Looks(), RESUMED, run)


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_killed_run_goes_on_with_the_same_bits(model, whole, monkeypatch, tmp_path, step):
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        ppo(model, prompts(), Lengths(), Looks(), RESUMED, Log(tmp_path / "killed", dies_at=step))
    assert not (tmp_path / "killed" / "artifacts").exists()
    watcher, run = Looks(), Log(tmp_path / "killed")
    again = ppo(model, prompts(), Lengths(), watcher, RESUMED, run)
    assert [row["step"] for row in run.rows] == list(range(step, 5))
    assert everything(whole[0].work) == everything(tmp_path / "killed")
    assert again.metrics == whole[1].metrics
    assert [at for at, _ in watcher.saw] == [0, 2, 4]
    assert run.tokens == whole[0].tokens


def test_a_checkpoint_of_another_run_is_not_taken(model, monkeypatch, weights, tmp_path):
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        ppo(model, prompts(), Lengths(), config=SMALL, run=Log(tmp_path / "one", dies_at=1))
    run, fresh = Log(tmp_path / "one"), Log(tmp_path / "fresh")
    found = [ppo(model, prompts(), Other(), config=SMALL, run=r).model for r in (run, fresh)]
    assert [row["step"] for row in run.rows] == [0, 1, 2]
    assert weights(found[0]) == weights(found[1])


# Watchers


def test_a_watcher_sees_replies_scores_and_kl(model, tmp_path):
    watcher = Looks()
    result = ppo(model, prompts(), Lengths(), watcher, changed(watch_every=2), Log(tmp_path))
    assert [step for step, _ in watcher.saw] == [0, 2]
    assert len({digest for _, digest in watcher.saw}) == 2  # another policy is another identity
    first, second = watcher.rollouts
    assert first.scores == Lengths().score(first.chats, first.texts)
    assert first.kl.abs().max() < 1e-4
    assert second.kl.shape == (8,)
    assert second.kl.abs().max() > 1e-3
    assert any("looked last at step 2 of 3" in caveat for caveat in result.caveats)


@pytest.mark.parametrize("before", ["yes", "unknown"])
def test_a_no_stops_at_the_weights_of_the_last_look(model, weights, tmp_path, before):
    """No at step 3: the model is that of step 2, whether it had a yes or nothing could be told yet."""
    watcher = Looks(no_at=3, before=before)
    run = Log(tmp_path)
    result = ppo(model, prompts(), Lengths(), watcher, changed(watch_every=1, steps=9), run)
    assert [row["step"] for row in run.rows] == [0, 1, 2]
    seen = dict(watcher.saw)
    assert result.model.identity.digest == seen[2] != model.identity.digest
    assert any("stopped the run at step 3" in caveat for caveat in result.caveats)
    assert result.metrics["steps"].value == 3
    assert (
        max(pq.read_table(run.artifact("examples.parquet"))["step"].to_pylist()) == 3
    )  # what it objected to


def test_a_no_at_once(model, weights, tmp_path):
    result = ppo(model, prompts(), Lengths(), Looks(no_at=0), SMALL, Log(tmp_path))
    assert weights(result.model) == weights(model)
    assert result.metrics["reward_last"].value is None
    assert result.metrics["reward_last"].reason


def test_without_a_watcher_it_is_said(model, tmp_path):
    result = ppo(model, prompts(), Lengths(), config=SMALL, run=Quiet(work=tmp_path))
    assert any("no watcher" in caveat for caveat in result.caveats)


# Bad rewards and prompts


class Breaks(Lengths):
    """Right for a while, then ``bad(mean)``."""

    def __init__(self, bad, after=2):
        self.bad, self.left = bad, after

    def score(self, chats, replies):
        scores = super().score(chats, replies)
        self.left -= 1
        return scores if self.left >= 0 else Scores(mean=self.bad(scores.mean))


def raises(mean):
    raise ValueError("the reward's server is down")


@pytest.mark.parametrize(
    ("bad", "error", "said"),
    [
        (lambda mean: (math.nan, *mean[1:]), NumericalError, "gave nan"),
        (lambda mean: mean[1:], InputError, "7 scores for 8 replies"),
        (raises, ValueError, "server is down"),
    ],
)
def test_a_reward_that_breaks_leaves_the_last_good_state(
    model, small, monkeypatch, tmp_path, bad, error, said
):
    """Nothing half-written; run again with the reward mended, and it ends as if nothing had happened."""
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    with pytest.raises(error, match=said):
        ppo(model, prompts(), Breaks(bad), config=SMALL, run=Log(tmp_path / "broken"))
    assert not (tmp_path / "broken" / "artifacts").exists()
    run = Log(tmp_path / "broken")
    ppo(model, prompts(), Lengths(), config=SMALL, run=run)
    assert [row["step"] for row in run.rows] == [2]
    assert everything(tmp_path / "broken") == everything(small.work)


def test_a_broken_model_is_named(model, tmp_path):
    broken = model.copy()
    with torch.no_grad():
        broken.module.model.norm.weight.fill_(math.nan)
    with pytest.raises(NumericalError, match="NaN"):
        ppo(broken, prompts(), Lengths(), config=SMALL, run=Quiet(work=tmp_path))
    assert not (tmp_path / "artifacts").exists()


def test_prompts_that_do_not_fit_are_counted(model, tmp_path):
    long = Prompt(id="long", prompt=Chat.ask("how " * 1021))
    table = Prompts(rows=(*prompts(9).rows, long))
    result = ppo(model, table, Lengths(), config=SMALL, run=Quiet(work=tmp_path))
    assert result.metrics["dropped_for_length"].value == pytest.approx(0.1)
    with pytest.raises(InputError, match="no rows"):
        ppo(model, Prompts(rows=()), Lengths(), config=SMALL, run=Quiet(work=tmp_path))


def test_the_score_has_a_place_behind_the_longest_reply_too(model, monkeypatch, tmp_path):
    """TRL puts it there; where all replies end early the table must be one wider than the longest."""
    seen, real = [], _ppo_rollout.credited

    def watched(shaped, penalty, expected, lengths, ended, config):
        seen.append((penalty.shape[1], int(lengths.max())))
        return real(shaped, penalty, expected, lengths, ended, config)

    monkeypatch.setattr(_ppo_rollout, "credited", watched)
    config = changed(score_at="after", steps=4, max_tokens=5)
    ppo(model, prompts(), Lengths(), config=config, run=Log(tmp_path))
    assert seen and all(width == min(longest + 1, 5) for width, longest in seen)
