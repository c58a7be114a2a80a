"""RLOO: its first gradient by a slow route, what must not matter, kill and resume, a wish and its null."""

from __future__ import annotations

import math
import statistics

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from calibrant.core import (
    BudgetError,
    CapabilityError,
    Chat,
    ConfigError,
    Identity,
    InputError,
    NumericalError,
    Quiet,
    Sampling,
    Scores,
    Verdict,
    resolve,
)
from calibrant.core.digest import digest_path
from calibrant.data.rows import Example, Examples, Prompt, Prompts
from calibrant.models import checkpoint
from calibrant.models.fit import Fit
from calibrant.models.lora import LoRA
from calibrant.models.open_model import OpenModel
from calibrant.models.parallel import World
from calibrant.models.reward_model import PythonReward
from calibrant.models.rollouts import roll
from calibrant.train import _rl_common, _rl_group
from calibrant.train._rl_state import Student
from calibrant.train._settings import KL
from calibrant.train.rloo import RLOO, rloo
from calibrant.train.sft import SFT, sft

SLOW = pytest.mark.slow

WORDS = ("ember", "dusk", "rook", "sable")
ASKED = tuple(f"how do i {verb} the {thing}?" for verb in ("mend", "paint", "find", "open")
              for thing in ("barn", "mill", "cave", "deed"))  # fmt: skip
SMALL = RLOO(
    steps=4, batch_size=4, samples=3, max_tokens=4, epochs=2, minibatches=2, fit=Fit(lr=1e-3, eps=1e-5)
)
PLAIN = Fit(lr=1e4, eps=1e4, clip=1e9, schedule="constant")
"""AdamW's first step is then minus the gradient: its own second moment is nothing beside eps."""


class Likes:
    """A reward that likes one reply; with ``constant`` it likes all alike."""

    def __init__(self, worth=2.0, constant=False):
        self.worth, self.constant = worth, constant
        self.identity = Identity(name="likes ember", kind="reward", parts={"worth": str(worth)})

    def score(self, chats, replies):
        return Scores(mean=tuple(self.worth * float(self.constant or r == "ember") for r in replies))


class Lengths:
    """A reward that is never the same: letters of the reply over those of the prompt; members disagree."""

    identity = Identity(name="lengths", kind="reward", parts={"of": "letters"})

    def score(self, chats, replies):
        mean = tuple(len(r) / len(c.last_user) for c, r in zip(chats, replies, strict=True))
        return Scores(mean=mean, std=tuple(0.1 * len(r) for r in replies))


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
    """A watcher that says 'no' from a step on and 'yes' before it; what it saw is its state."""

    def __init__(self, no_at=None):
        self.no_at, self.saw, self.rollouts = no_at, [], []
        self.identity = Identity(name="looks", kind="watcher", parts={"no_at": str(no_at)})

    def see(self, step, policy, rollouts):
        self.saw.append([step, policy.identity.digest])
        self.rollouts.append(rollouts)
        answer = "no" if self.no_at is not None and step >= self.no_at else "yes"
        return Verdict(question="go on?", answer=answer, reason="the count says so")

    def state(self):
        return {"saw": self.saw}

    def restore(self, state):
        self.saw = state["saw"]


def prompts(n=16):
    return Prompts(rows=tuple(Prompt(id=text, prompt=Chat.ask(text)) for text in ASKED[:n]))


def changed(config=SMALL, **changes):
    """A config with other values, checked as if it had been written so."""
    return RLOO.model_validate(config.model_dump() | changes)


@pytest.fixture(scope="module")
def four(model, tmp_path_factory):
    """A model that answers with one of four words, each about as often, and then ends."""
    rows = [
        Example(id=f"{i}/{text}", prompt=Chat.ask(text), completion=WORDS[(i + j) % 4])
        for i, text in enumerate(ASKED)
        for j in range(4)
    ]
    run = Quiet(work=tmp_path_factory.mktemp("four"))
    return sft(model, Examples(rows=tuple(rows)), SFT(epochs=16, fit=Fit(lr=3e-3)), run).model


@pytest.fixture(scope="module")
def plain(model, tmp_path_factory):
    """What SMALL gives with the reward of lengths."""
    run = Quiet(work=tmp_path_factory.mktemp("plain"))
    return rloo(model, prompts(), Lengths(), config=SMALL, run=run)


def rate(lm, n=16):
    """Share of 'ember' among replies at temperature 1."""
    chats = [Chat.ask(text) for text in ASKED for _ in range(n)]
    drawn = lm.generate(chats, Sampling(max_tokens=4, temperature=1))
    return sum(c.text == "ember" for c in drawn) / len(drawn)


# The first gradient, by a slow route


def shifted(completion, number):
    """The same draw with log-probs that are off by -0.5 to 0.4: as if an older policy had drawn."""
    off = [0.1 * ((7 * number + 3 * t) % 10 - 5) for t in range(len(completion.ids))]
    told = tuple(p + d for p, d in zip(completion.logprobs, off, strict=True))
    return completion.model_copy(update={"logprobs": told})


@pytest.fixture
def older(monkeypatch):
    """Every draw looks as if an older policy had made it, so that ratios differ from 1 and clips bite."""
    real = OpenModel.generate

    def generate(self, chats, sampling):
        return [shifted(c, i) for i, c in enumerate(real(self, chats, sampling))]

    monkeypatch.setattr(OpenModel, "generate", generate)
    monkeypatch.setattr(Student, "moved", True)  # it has taken steps since


def log_probs(module, prompt, reply, temperature):
    """ln pi of each token, from a pass of this reply alone in float64."""
    logits = module(input_ids=torch.tensor([prompt + reply])).logits[0] / temperature
    rows = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return [rows[t, token] for t, token in enumerate(reply)]


def drawn_first(model, config, n):
    """Prompt, K replies and what the draw said of them, for each prompt of step 0."""
    picked = [Chat.ask(ASKED[i]) for i in _rl_common.cycle(n, config.batch_size, 0, 0)]
    rolled = roll(model, picked, config.samples, _rl_common.sampling(config, 0, 0))
    told = iter(rolled.behaviour.double().tolist())
    scores = iter(Lengths().score(rolled.chats, rolled.texts).mean)
    for prompt, replies in zip(*rolled.branches, strict=True):
        yield prompt, [(reply, next(told)[: len(reply)], next(scores)) for reply in replies]


def clipped(ratio, advantage, low, high):
    """min(rho A, clip(rho) A), which is to be raised."""
    seen = float(ratio.detach())
    held = min(max(seen, 1 - low), 1 + high)
    return held * advantage if held * advantage < seen * advantage else ratio * advantage


def gradient(before, after):
    """What one step of PLAIN took off every weight."""
    pairs = zip(before.module.parameters(), after.module.parameters(), strict=True)
    return torch.cat([(a - b).detach().double().flatten() for a, b in pairs])


@pytest.mark.parametrize(
    "changes",
    [{}, {"ratio": "token"}, {"clip": None}, {"normalise_advantages": True}, {"clip": 0.1, "clip_high": 0.3},
     {"kl": KL(coef=0.7, estimator="k3")}, {"temperature": 0.7}],
)  # fmt: skip
def test_the_first_gradient_by_a_slow_route(model, older, tmp_path, changes):
    """Leave-one-out in plain floats, each reply read alone in float64; no table, no padding, no mask."""
    config = RLOO(steps=1, batch_size=5, samples=3, max_tokens=4, fit=PLAIN).model_copy(update=changes)
    run = Log(tmp_path)
    tuned = rloo(model, prompts(5), Lengths(), config=config, run=run).model
    module = model.copy().module.double()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    low, high = (math.inf,) * 2 if config.clip is None else (config.clip, config.clip_high or config.clip)
    advantages, gathered = [], []
    for prompt, replies in drawn_first(model, config, 5):
        worth = []
        for reply, old, score in replies:
            new = log_probs(module, prompt, reply, config.temperature)
            nats = [o - float(n.detach()) for o, n in zip(old, new, strict=True)]  # pi is the reference still
            if config.kl.estimator == "k3":
                nats = [math.exp(-d) - 1 + d for d in nats]
            worth.append(score - config.kl.coef * sum(nats))
            gathered.append((new, old))
        advantages += [r - (sum(worth) - r) / (len(worth) - 1) for r in worth]
    if config.normalise_advantages:
        mean, std = statistics.mean(advantages), statistics.stdev(advantages)
        advantages = [(a - mean) / (std + 1e-4) for a in advantages]
    total = 0.0
    for (new, old), advantage in zip(gathered, advantages, strict=True):
        pairs = [(n - o) for n, o in zip(new, old, strict=True)]
        for apart in pairs if config.ratio == "token" else [sum(pairs)]:
            total = total - clipped(apart.exp(), advantage, low, high)
    loss = total / 15
    loss.backward()
    slow = torch.cat([p.grad.flatten() for p in module.parameters()])
    assert run.rows[0]["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert run.rows[0]["grad_norm"] == pytest.approx(float(slow.norm()), rel=1e-4)
    assert float((gradient(model, tuned) - slow).norm() / slow.norm()) < 1e-3
    assert (run.rows[0]["clip_ratio/region_mean"] > 0) == (config.clip is not None)


def test_while_pi_is_pi_old_both_ratios_are_reinforce(model, tmp_path):
    """One epoch, one minibatch: the gradient is that of -mean(A ln pi(y)), whatever ratio and clip are."""
    found = []
    for number, changes in enumerate([{}, {"ratio": "token"}, {"clip": None}]):
        config = changed(steps=1, epochs=1, minibatches=1, fit=PLAIN, **changes)
        tuned = rloo(model, prompts(), Lengths(), config=config, run=Quiet(work=tmp_path / str(number))).model
        found.append(gradient(model, tuned))
    for other in found[1:]:
        assert float((other - found[0]).norm() / found[0].norm()) < 1e-3


# What must not matter


def test_the_model_that_came_in_is_unchanged(model, weights, tmp_path):
    before, state = weights(model), torch.get_rng_state()
    result = rloo(model, prompts(), Lengths(), config=SMALL, run=Quiet(work=tmp_path))
    assert weights(model) == before != weights(result.model)
    assert torch.equal(torch.get_rng_state(), state)
    for lm in (model, result.model):
        assert not lm.module.training
        assert all(not p.requires_grad and p.grad is None for p in lm.module.parameters())
    assert result.model.identity.name == "tiny after rloo"


@pytest.mark.slow
def test_same_seed_same_bits(model, weights, tmp_path):
    found = [rloo(model, prompts(), Lengths(), config=SMALL, run=Log(tmp_path / str(i), seed=seed))
             for i, seed in enumerate((0, 0, 1))]  # fmt: skip
    first, again, other = (weights(result.model) for result in found)
    assert first == again != other
    assert found[0].metrics == found[1].metrics


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["micro-batches", "rows of their own", "gradient checkpointing"])
@pytest.mark.parametrize("ratio", ["sequence", "token"])
def test_how_a_step_is_computed_does_not_matter(model, monkeypatch, tmp_path, ratio, cut):
    config = changed(ratio=ratio, steps=2)
    runs = Log(tmp_path / "a"), Log(tmp_path / "b")
    rloo(model, prompts(), Lengths(), config=config, run=runs[0])
    if cut == "rows of their own":
        for module in (_rl_common, _rl_group):
            monkeypatch.setattr(module, "shares", lambda module: "because")
    elif cut == "micro-batches":
        config = changed(config, fit=SMALL.fit.model_copy(update={"micro_tokens": 26}))
    else:
        config = changed(config, fit=SMALL.fit.model_copy(update={"recompute": True}))
    rloo(model, prompts(), Lengths(), config=config, run=runs[1])
    for one, two in zip(*(run.rows for run in runs), strict=True):
        assert one == pytest.approx(two, rel=2e-3, abs=2e-4)


def test_tokens_are_charged(model, tmp_path):
    """Each step: prompts once and replies, for the draw and for each epoch."""
    run = Log(tmp_path)
    rloo(model, prompts(), Lengths(), config=SMALL, run=run)
    table = pq.read_table(run.artifact("examples.parquet")).to_pydict()
    asked = sum(len(model.prompt_ids(Chat.ask(text))) for text in table["prompt"]) // SMALL.samples
    assert run.tokens == (sum(table["reply_tokens"]) + asked) * (1 + SMALL.epochs)

    class Poor(Quiet):
        def spend(self, *, tokens=0, queries=0, flops=0.0):
            raise BudgetError("no tokens left")

    with pytest.raises(BudgetError):
        rloo(model, prompts(), Lengths(), config=SMALL, run=Poor(work=tmp_path / "poor"))
    assert not (tmp_path / "poor" / "artifacts").exists()


# What is logged


def test_the_log_and_the_table_of_examples_agree(model, tmp_path):
    """Every mean of the log can be worked out again from the replies; the members' disagreement is there."""
    run = Log(tmp_path)
    rloo(model, prompts(), Lengths(), config=SMALL, run=run)
    table = pq.read_table(run.artifact("examples.parquet")).to_pylist()
    for row in run.rows:
        replies = [reply for reply in table if reply["step"] == row["step"]]
        assert len(replies) == SMALL.batch_size * SMALL.samples
        tokens = sum(reply["reply_tokens"] for reply in replies)
        assert row["reward"] == pytest.approx(statistics.mean(r["reward"] for r in replies), rel=1e-5)
        assert row["reward_std"] == pytest.approx(statistics.stdev(r["reward"] for r in replies), rel=1e-5)
        assert row["disagreement"] == pytest.approx(statistics.mean(0.1 * len(r["reply"]) for r in replies))
        assert row["objective/kl"] == pytest.approx(statistics.mean(r["kl"] for r in replies), abs=1e-5)
        assert row["kl"] == pytest.approx(sum(r["kl"] for r in replies) / tokens, abs=1e-5)
        assert row["entropy"] == pytest.approx(-sum(r["logprob"] for r in replies) / tokens, rel=1e-5)
        for i in range(0, len(replies), SMALL.samples):  # over a prompt's replies, advantages add up to 0
            assert sum(r["advantage"] for r in replies[i : i + 3]) == pytest.approx(0, abs=1e-5)
    assert abs(run.rows[0]["objective/kl"]) < 1e-4 < abs(run.rows[-1]["objective/kl"])
    assert run.rows[0]["logprob_mismatch"] < 1e-4


def test_prompts_whose_replies_are_all_alike_are_counted(model, tmp_path):
    run = Log(tmp_path)
    rloo(model, prompts(), Likes(constant=True), config=SMALL, run=run)
    assert [row["frac_reward_zero_std"] for row in run.rows] == [1.0] * 4


# Settings


def test_names_of_trl():
    config = resolve(RLOO, {
        "num_generations": 2, "max_completion_length": 9, "num_iterations": 3, "epsilon": 0.1, "beta": 0.3,
        "epsilon_high": 0.4, "normalize_advantages": True, "learning_rate": 1e-6, "max_steps": 7,
    })  # fmt: skip
    assert (config.samples, config.max_tokens, config.epochs, config.steps) == (2, 9, 3, 7)
    assert (config.clip, config.clip_high, config.kl.coef, config.fit.lr) == (0.1, 0.4, 0.3, 1e-6)
    assert config.normalise_advantages
    assert config.kl.place == "reward"
    assert config.fit.eps == 1e-5  # the rest of a table stays


@pytest.mark.parametrize(("given", "said"), [
    ({"vf_coef": 0.1}, "unknown key 'vf_coef'"), ({"sample": 3}, "did you mean 'samples'"),
    ({"samples": 1}, "greater than or equal to 2"), ({"beta": 0.1, "kl": {"coef": 0.1}}, "another name"),
    ({"kl": {"place": "loss", "estimator": "k2"}}, "train.grpo adds it"), ({"ratio": "word"}, "ratio"),
    ({"shaping": {"whiten": True}}, "one reward"), ({"minibatches": 9}, "cannot be cut from 8 prompts"),
])  # fmt: skip
def test_settings_that_cannot_be(given, said):
    with pytest.raises(ConfigError, match=said):
        resolve(RLOO, given)
    with pytest.raises(ValidationError):
        RLOO(**given)


@pytest.mark.slow
@pytest.mark.parametrize("switch", [
    {"shaping": {"normalise": True}}, {"shaping": {"clip": 0.1}}, {"shaping": {"missing_end": 1.0}},
    {"old_logprobs": "rescored"}, {"kl": {"coef": 0.1, "target": 0.01, "horizon": 50.0}}, {"epochs": 1},
    {"clip": 0.001}, {"minibatches": 1}, {"kl": {"coef": 3.0}}, {"temperature": 0.5},
])  # fmt: skip
def test_every_other_switch_is_connected(model, plain, weights, tmp_path, switch):
    """Whatever it does is tested where it is computed; here: it does something, and nothing breaks."""
    run = Log(tmp_path)
    result = rloo(model, prompts(), Lengths(), config=changed(**switch), run=run)
    assert weights(result.model) != weights(plain.model)
    assert all(math.isfinite(value) for row in run.rows for value in row.values())


def test_adapters_alone(model, tmp_path):
    run = Log(tmp_path)
    result = rloo(model, prompts(), Lengths(), config=changed(lora=LoRA(r=4), fit=Fit(lr=1e-2)), run=run)
    assert not any("lora" in name for name, _ in result.model.module.named_parameters())
    assert abs(run.rows[-1]["objective/kl"]) > 1e-5


# Kill and resume, watchers

RESUMED = changed(
    steps=5, watch_every=2, kl={"coef": 0.1, "target": 0.5, "horizon": 100.0}, shaping={"normalise": True}
)


def everything(work):
    return {path.name: digest_path(path) for path in sorted((work / "artifacts").iterdir())}


@pytest.mark.parametrize("step", [pytest.param(1, marks=SLOW), 3, pytest.param(4, marks=SLOW)])
def test_a_killed_run_goes_on_with_the_same_bits(model, monkeypatch, tmp_path, step):
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    fresh = Log(tmp_path / "whole")
    whole = rloo(model, prompts(), Lengths(), Looks(), RESUMED, fresh)
    with pytest.raises(KeyboardInterrupt):
        rloo(model, prompts(), Lengths(), Looks(), RESUMED, Log(tmp_path / "killed", dies_at=step))
    assert not (tmp_path / "killed" / "artifacts").exists()
    watcher, run = Looks(), Log(tmp_path / "killed")
    again = rloo(model, prompts(), Lengths(), watcher, RESUMED, run)
    assert [row["step"] for row in run.rows] == list(range(step, 5))
    assert everything(tmp_path / "whole") == everything(tmp_path / "killed")
    assert again.metrics == whole.metrics
    assert [at for at, _ in watcher.saw] == [0, 2, 4]
    assert run.tokens == fresh.tokens


def test_a_checkpoint_of_another_run_is_not_taken(model, monkeypatch, weights, tmp_path):
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        rloo(model, prompts(), Lengths(), config=SMALL, run=Log(tmp_path / "one", dies_at=2))
    run, fresh = Log(tmp_path / "one"), Log(tmp_path / "fresh")
    config = changed(ratio="token")
    found = [rloo(model, prompts(), Lengths(), config=config, run=r).model for r in (run, fresh)]
    assert [row["step"] for row in run.rows] == [0, 1, 2, 3]
    assert weights(found[0]) == weights(found[1])


def test_a_no_stops_at_the_weights_of_the_last_look(model, plain, tmp_path):
    watcher, run = Looks(no_at=3), Log(tmp_path)
    result = rloo(model, prompts(), Lengths(), watcher, changed(watch_every=1, steps=9), run)
    assert [row["step"] for row in run.rows] == [0, 1, 2]
    assert result.model.identity.digest == dict(watcher.saw)[2]
    assert any("stopped the run at step 3" in caveat for caveat in result.caveats)
    assert watcher.rollouts[1].kl.shape == (12,)
    assert watcher.rollouts[1].scores == Lengths().score(watcher.rollouts[1].chats, watcher.rollouts[1].texts)
    assert any("no watcher" in caveat for caveat in plain.caveats)


# Rewards and prompts


def letters(chats, replies):
    return [len(r) / len(c.last_user) for c, r in zip(chats, replies, strict=True)]


def test_a_plain_function_is_a_reward(model, plain, weights, tmp_path):
    """It gives what the object with the same numbers gives, to the bit."""
    found = rloo(model, prompts(), PythonReward(letters), config=SMALL, run=Quiet(work=tmp_path))
    assert weights(found.model) == weights(plain.model)


def broken(bad, after=2):
    """A function that is right for a while, then gives ``bad(scores)``."""
    calls = []

    def scores(chats, replies):
        calls.append(1)
        right = letters(chats, replies)
        return right if len(calls) <= after else bad(right)

    return scores


def raises(scores):
    raise ValueError("the server is down")


@pytest.mark.parametrize(("bad", "error", "said"), [
    (lambda scores: [math.nan, *scores[1:]], NumericalError, "gave nan"),
    (lambda scores: scores[1:], InputError, "11 scores for 12 replies"),
    (lambda scores: [scores], InputError, "failed on 12 replies"),
    (raises, InputError, "ValueError: the server is down"),
])  # fmt: skip
def test_a_reward_that_breaks_leaves_the_last_good_state(
    model, plain, weights, monkeypatch, tmp_path, bad, error, said
):
    """Nothing half-written; run again with the reward mended, and it ends as if nothing had happened."""
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    reward = PythonReward(broken(bad))
    with pytest.raises(error, match=said):
        rloo(model, prompts(), reward, config=SMALL, run=Log(tmp_path / "broken"))
    assert not (tmp_path / "broken" / "artifacts").exists()
    reward.fn, run = letters, Log(tmp_path / "broken")
    found = rloo(model, prompts(), reward, config=SMALL, run=run)
    assert [row["step"] for row in run.rows] == [2, 3]
    assert weights(found.model) == weights(plain.model)


def test_several_processes_are_refused(model, monkeypatch):
    monkeypatch.setattr(_rl_common, "world", lambda: World(rank=0, size=2))
    with pytest.raises(CapabilityError, match="learns in one process"):
        rloo(model, prompts(), Lengths(), config=SMALL)


def test_prompts_that_do_not_fit_are_counted(model, tmp_path):
    long = Prompt(id="long", prompt=Chat.ask("how " * 1021))
    table = Prompts(rows=(*prompts(9).rows, long))
    result = rloo(model, table, Lengths(), config=SMALL, run=Quiet(work=tmp_path))
    assert result.metrics["dropped_for_length"].value == pytest.approx(0.1)
    with pytest.raises(InputError, match="no rows"):
        rloo(model, Prompts(rows=()), Lengths(), config=SMALL, run=Quiet(work=tmp_path))


# Planted truth and its null


STRONG = RLOO(
    steps=24, batch_size=16, samples=8, max_tokens=4, kl=KL(coef=1.0),
    fit=Fit(lr=5e-3, eps=1e-5, schedule="linear"),
)  # fmt: skip


def test_a_planted_wish_is_met_as_far_as_its_price_allows(four, tmp_path):
    """r = 2 for 'ember' at beta = 1: from p to p e^2 / (p e^2 + 1 - p), and no further; its KL is known."""
    p = rate(four)
    result = rloo(four, prompts(), Likes(), config=STRONG, run=Quiet(work=tmp_path))
    best = p * math.e**2 / (p * math.e**2 + 1 - p)
    assert rate(result.model) == pytest.approx(best, abs=0.1)  # over six seeds .02 +- .016
    kl = best * math.log(best / p) + (1 - best) * math.log((1 - best) / (1 - p))
    assert result.metrics["kl_last"].value == pytest.approx(kl, abs=0.25)  # over six seeds 0 +- .04
    assert result.metrics["reward_last"].value > result.metrics["reward_first"].value + 0.3
    assert all(estimate.method == "point" for estimate in result.metrics.values())


@pytest.mark.parametrize(
    "changes", [{}, {"ratio": "token"}, {"normalise_advantages": True}, {"old_logprobs": "rescored"}]
)
def test_a_reward_that_likes_all_alike_moves_nothing(model, weights, nearly, tmp_path, changes):
    """A score worked out in several ways (its last bits differ), the KL on: the weights stay to the bit.

    With a real reward they move. What pi and ref differ by before the first step is rounding, and AdamW
    would make a full step of it.
    """
    config = changed(samples=7, steps=10, kl={"coef": 0.05}, fit=Fit(lr=1e-3), **changes)
    result = rloo(model, prompts(), nearly, config=config, run=Quiet(work=tmp_path))
    assert weights(result.model) == weights(model)
