"""GRPO: its first gradient by a slow route, what must not matter, kill and resume, a wish and its null."""

from __future__ import annotations

import math
import statistics

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from calibrant.core import (
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
from calibrant.models.reward_model import Conservative, Ensemble, PythonReward
from calibrant.models.rollouts import roll
from calibrant.train import _rl_common, _rl_group, _rl_state
from calibrant.train._settings import KL
from calibrant.train.grpo import GRPO, grpo
from calibrant.train.sft import SFT, sft

SLOW = pytest.mark.slow

WORDS = ("ember", "dusk", "rook", "sable")
ASKED = tuple(f"how do i {verb} the {thing}?" for verb in ("mend", "paint", "find", "open")
              for thing in ("barn", "mill", "cave", "deed"))  # fmt: skip
SMALL = GRPO(
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
    return GRPO.model_validate(config.model_dump() | changes)


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
def plain_log(tmp_path_factory):
    """What ``plain`` logs."""
    return Log(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def plain(model, plain_log):
    """What SMALL gives with the reward of lengths."""
    return grpo(model, prompts(), Lengths(), config=SMALL, run=plain_log)


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
    monkeypatch.setattr(_rl_state.Student, "moved", True)  # it has taken steps since


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


def gradient(before, after):
    """What one step of PLAIN took off every weight."""
    pairs = zip(before.module.parameters(), after.module.parameters(), strict=True)
    return torch.cat([(a - b).detach().double().flatten() for a, b in pairs])


def clipped(ratio, advantage, low, high):
    """min(rho A, clip(rho) A), which is to be raised."""
    seen = float(ratio.detach())
    held = min(max(seen, 1 - low), 1 + high)
    return held * advantage if held * advantage < seen * advantage else ratio * advantage


def slow_advantages(groups, config):
    """(r - mean) / (std + eps), group by group, in plain floats."""
    spread = statistics.stdev if config.unbiased else statistics.pstdev
    whole = spread([score for group in groups for score in group])
    found = []
    for group in groups:
        over = {"group": spread(group) + config.eps, "batch": whole + config.eps, "none": 1.0}[config.scale]
        found += [(score - statistics.mean(group)) / over for score in group]
    return found


def penalty(estimator, apart):
    """The KL term of a token with ln pi - ln ref = ``apart``: value and gradient as the name says."""
    k2, k3 = 0.5 * apart**2, (-apart).exp() - 1 + apart
    return {"k2": k2, "k3": k3, "k3+": k2 + (k3 - k2).detach()}[estimator]


def pull(number, t):
    """How far the reference is from the policy at a token, so that its pull shows at the first step."""
    return 0.1 * ((5 * number + 7 * t) % 9 - 4)


@pytest.fixture
def elsewhere(monkeypatch):
    """A reference that is not where the policy starts."""
    real = _rl_state.read

    def read(module, rolled, bf16=False):
        table = real(module, rolled, bf16)
        rows, columns = table.shape
        return table + torch.tensor([[pull(i, t) for t in range(columns)] for i in range(rows)])

    monkeypatch.setattr(_rl_state, "read", read)
    monkeypatch.setattr(_rl_state.Student, "moved", True)  # it has taken steps since


@pytest.mark.parametrize("changes", [
    {}, {"scale": "batch"}, {"scale": "none"}, {"unbiased": False, "eps": 0.1}, {"clip": None},
    {"clip": 0.1, "clip_high": 0.3}, {"aggregation": "sequence_mean"}, {"aggregation": "constant"},
    {"aggregation": "micro_token_mean"}, {"mask_truncated": True},
    {"mask_truncated": True, "aggregation": "sequence_mean"}, {"temperature": 1.5},
    *({"kl": KL(coef=0.7, place="loss", estimator=name)} for name in ("k2", "k3", "k3+")),
])  # fmt: skip
def test_the_first_gradient_by_a_slow_route(four, older, elsewhere, tmp_path, changes):
    """Groups in plain floats, each reply read alone in float64; no table, no padding, no mask."""
    config = GRPO(steps=1, batch_size=5, samples=3, max_tokens=2, fit=PLAIN).model_copy(update=changes)
    run = Log(tmp_path)
    tuned = grpo(four, prompts(5), Lengths(), config=config, run=run).model
    module = four.copy().module.double()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    low, high = (math.inf,) * 2 if config.clip is None else (config.clip, config.clip_high or config.clip)
    drawn = list(drawn_first(four, config, 5))
    advantages = iter(slow_advantages([[score for _, _, score in group] for _, group in drawn], config))
    replies = [(prompt, *reply) for prompt, group in drawn for reply in group]
    each, ends = [], four.chat_tokens.end_id
    for number, (prompt, reply, old, _) in enumerate(replies):
        advantage, terms = next(advantages), []
        for t, new in enumerate(log_probs(module, prompt, reply, config.temperature)):
            term = -clipped((new - old[t]).exp(), advantage, low, high)
            if config.kl.coef:
                reference = new.detach() + pull(number, t)
                term = term + config.kl.coef * penalty(config.kl.estimator, new - reference)
            terms.append(term)
        each.append(terms if reply[-1] == ends or not config.mask_truncated else [])
    assert {reply[-1] == ends for _, reply, _, _ in replies} == {True, False}
    tokens = sum(map(len, each))
    loss = {
        "token_mean": sum(map(sum, each)) / tokens,
        "micro_token_mean": sum(map(sum, each)) / tokens,  # one micro-batch here
        "sequence_mean": sum(sum(terms) / max(1, len(terms)) for terms in each) / 15,
        "constant": sum(map(sum, each)) / (15 * config.max_tokens),
    }[config.aggregation]
    loss.backward()
    slow = torch.cat([p.grad.flatten() for p in module.parameters()])
    assert run.rows[0]["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert run.rows[0]["grad_norm"] == pytest.approx(float(slow.norm()), rel=1e-4)
    assert float((gradient(four, tuned) - slow).norm() / slow.norm()) < 1e-3
    assert (run.rows[0]["clip_ratio/region_mean"] > 0) == (config.clip is not None)


def test_where_every_reply_was_cut_off_nothing_is_learned(model, weights, tmp_path):
    """This model never ends within 4 tokens, so all is masked: a step of nothing, not of NaN."""
    result = grpo(model, prompts(), Lengths(), config=changed(mask_truncated=True), run=Log(tmp_path))
    assert result.metrics["ended_last"].value == 0
    assert weights(result.model) == weights(model)


# What must not matter


def test_the_model_that_came_in_is_unchanged(model, weights, tmp_path):
    before, state = weights(model), torch.get_rng_state()
    result = grpo(model, prompts(), Lengths(), config=SMALL, run=Quiet(work=tmp_path))
    assert weights(model) == before != weights(result.model)
    assert torch.equal(torch.get_rng_state(), state)
    for lm in (model, result.model):
        assert not lm.module.training
        assert all(not p.requires_grad and p.grad is None for p in lm.module.parameters())
    assert result.model.identity.name == "tiny after grpo"


@pytest.mark.slow
def test_same_seed_same_bits(model, weights, tmp_path):
    found = [grpo(model, prompts(), Lengths(), config=SMALL, run=Log(tmp_path / str(i), seed=seed))
             for i, seed in enumerate((0, 0, 1))]  # fmt: skip
    first, again, other = (weights(result.model) for result in found)
    assert first == again != other
    assert found[0].metrics == found[1].metrics


def cut_in_parts(model, tmp_path, aggregation):
    """Rows of a run whose every prompt is a micro-batch of its own, beside those of a run in one piece."""
    runs = Log(tmp_path / "whole"), Log(tmp_path / "parts")
    for run, most in zip(runs, (None, 26), strict=True):
        fit = SMALL.fit.model_copy(update={"micro_tokens": most})
        config = changed(aggregation=aggregation, steps=2, minibatches=1, fit=fit)
        grpo(model, prompts(), Lengths(), config=config, run=run)
    return zip(runs[0].rows, runs[1].rows, strict=True)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_micro_batches_do_not_matter(four, tmp_path, aggregation):
    for one, two in cut_in_parts(four, tmp_path, aggregation):
        assert one == pytest.approx(two, rel=2e-3, abs=2e-4)


def test_the_one_aggregation_that_depends_on_the_cut(four, tmp_path):
    """A token in a short micro-batch weighs more: TRL's 'bnpo'."""
    (one, two), *_ = cut_in_parts(four, tmp_path, "micro_token_mean")
    assert one["grad_norm"] != pytest.approx(two["grad_norm"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["rows of their own", "gradient checkpointing"])
def test_how_a_step_is_computed_does_not_matter(model, plain, plain_log, monkeypatch, tmp_path, way):
    config, run = SMALL, Log(tmp_path)
    if way == "rows of their own":
        for module in (_rl_common, _rl_group):
            monkeypatch.setattr(module, "shares", lambda module: "because")
    else:
        config = changed(fit=SMALL.fit.model_copy(update={"recompute": True}))
    grpo(model, prompts(), Lengths(), config=config, run=run)
    for one, two in zip(plain_log.rows, run.rows, strict=True):
        assert one == pytest.approx(two, rel=2e-3, abs=2e-4)


# What is logged


def test_the_disagreement_of_members_is_logged_at_every_step(plain, plain_log):
    table = pq.read_table(plain_log.artifact("examples.parquet")).to_pylist()
    for row in plain_log.rows:
        replies = [reply for reply in table if reply["step"] == row["step"]]
        assert row["disagreement"] == pytest.approx(statistics.mean(0.1 * len(r["reply"]) for r in replies))
        assert row["reward"] == pytest.approx(statistics.mean(r["reward"] for r in replies), rel=1e-5)


def test_prompts_whose_replies_are_all_alike_are_counted(four, tmp_path):
    run = Log(tmp_path)
    result = grpo(four, prompts(), Likes(), config=SMALL, run=run)
    table = pq.read_table(run.artifact("examples.parquet")).to_pylist()
    for row in run.rows:
        scores = [reply["reward"] for reply in table if reply["step"] == row["step"]]
        groups = [scores[i : i + 3] for i in range(0, 12, 3)]
        assert row["frac_reward_zero_std"] == statistics.mean(len(set(g)) == 1 for g in groups)
    shares = [row["frac_reward_zero_std"] for row in run.rows]
    assert result.metrics["flat_last"].value == pytest.approx(statistics.mean(shares))
    assert 0 < statistics.mean(shares) < 1


# Settings


@pytest.mark.parametrize(("name", "ours"), [
    ("grpo", "sequence_mean"), ("bnpo", "micro_token_mean"), ("dr_grpo", "constant"), ("dapo", "token_mean"),
    ("constant", "constant"),
])  # fmt: skip
def test_names_of_trl(name, ours):
    config = resolve(GRPO, {
        "num_generations": 2, "max_completion_length": 9, "num_iterations": 3, "epsilon": 0.1, "beta": 0.3,
        "epsilon_high": 0.4, "scale_rewards": "batch", "loss_type": name, "learning_rate": 1e-6,
        "mask_truncated_completions": True,
    })  # fmt: skip
    assert (config.samples, config.max_tokens, config.epochs) == (2, 9, 3)
    assert (config.clip, config.clip_high, config.kl.coef, config.fit.lr) == (0.1, 0.4, 0.3, 1e-6)
    assert (config.scale, config.aggregation, config.mask_truncated) == ("batch", ours, True)
    assert (config.kl.place, config.kl.estimator) == ("loss", "k3")  # the rest of a table stays
    assert GRPO.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(("given", "said"), [
    ({"vf_coef": 0.1}, "unknown key 'vf_coef'"), ({"sample": 3}, "did you mean 'samples'"),
    ({"samples": 1}, "greater than or equal to 2"), ({"beta": 0.1, "kl": {"coef": 0.1}}, "another name"),
    ({"kl": {"place": "reward", "estimator": "k1"}}, "train.rloo takes it"),
    ({"loss_type": "cispo"}, "cispo"),
    ({"shaping": {"whiten": True}}, "one reward"), ({"minibatches": 9}, "cannot be cut from 8 prompts"),
    ({"scale": "none", "eps": 1e-6}, "would be ignored"), ({"kl": {"estimator": "k1"}}, "no gradient"),
])  # fmt: skip
def test_settings_that_cannot_be(given, said):
    with pytest.raises(ConfigError, match=said):
        resolve(GRPO, given)
    with pytest.raises(ValidationError):
        GRPO(**given)


def test_adapters_alone(model, tmp_path):
    run = Log(tmp_path)
    result = grpo(model, prompts(), Lengths(), config=changed(lora=LoRA(r=4), fit=Fit(lr=1e-2)), run=run)
    assert not any("lora" in name for name, _ in result.model.module.named_parameters())
    assert abs(run.rows[-1]["objective/kl"]) > 1e-5


# Kill and resume, watchers

RESUMED = changed(
    steps=5, watch_every=2, shaping={"normalise": True}, scale="none",
    kl={"coef": 0.1, "target": 0.5, "horizon": 100.0, "place": "loss", "estimator": "k2"},
)  # fmt: skip


def everything(work):
    return {path.name: digest_path(path) for path in sorted((work / "artifacts").iterdir())}


@pytest.mark.parametrize("step", [pytest.param(1, marks=SLOW), 3, pytest.param(4, marks=SLOW)])
def test_a_killed_run_goes_on_with_the_same_bits(model, monkeypatch, tmp_path, step):
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    fresh = Log(tmp_path / "whole")
    whole = grpo(model, prompts(), Lengths(), Looks(), RESUMED, fresh)
    with pytest.raises(KeyboardInterrupt):
        grpo(model, prompts(), Lengths(), Looks(), RESUMED, Log(tmp_path / "killed", dies_at=step))
    assert not (tmp_path / "killed" / "artifacts").exists()
    watcher, run = Looks(), Log(tmp_path / "killed")
    again = grpo(model, prompts(), Lengths(), watcher, RESUMED, run)
    assert [row["step"] for row in run.rows] == list(range(step, 5))
    assert everything(tmp_path / "whole") == everything(tmp_path / "killed")
    assert again.metrics == whole.metrics
    assert [at for at, _ in watcher.saw] == [0, 2, 4]
    assert run.tokens == fresh.tokens


def test_a_checkpoint_of_another_run_is_not_taken(model, monkeypatch, weights, tmp_path):
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        grpo(model, prompts(), Lengths(), config=SMALL, run=Log(tmp_path / "one", dies_at=2))
    run, fresh = Log(tmp_path / "one"), Log(tmp_path / "fresh")
    config = changed(aggregation="constant")
    found = [grpo(model, prompts(), Lengths(), config=config, run=r).model for r in (run, fresh)]
    assert [row["step"] for row in run.rows] == [0, 1, 2, 3]
    assert weights(found[0]) == weights(found[1])


def test_a_no_stops_at_the_weights_of_the_last_look(model, plain, tmp_path):
    watcher, run = Looks(no_at=3), Log(tmp_path)
    result = grpo(model, prompts(), Lengths(), watcher, changed(watch_every=1, steps=9), run)
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
    found = grpo(model, prompts(), PythonReward(letters), config=SMALL, run=Quiet(work=tmp_path))
    assert weights(found.model) == weights(plain.model)


def test_an_ensemble_read_with_caution_is_a_reward(model, tmp_path):
    """Worst case of two functions: each reply is learned from by the smaller score, and both are known."""
    members = [PythonReward(letters), PythonReward(lambda chats, replies: [0.4 for _ in replies])]
    run = Log(tmp_path)
    grpo(model, prompts(), Conservative(Ensemble(members), "worst_case"), config=SMALL, run=run)
    table = pq.read_table(run.artifact("examples.parquet")).to_pylist()
    for reply in table:
        own = len(reply["reply"]) / len(reply["prompt"])
        assert reply["reward"] == pytest.approx(min(own, 0.4), rel=1e-5)
        assert reply["disagreement"] == pytest.approx(abs(own - 0.4) / math.sqrt(2), rel=1e-4)
    assert all(row["disagreement"] > 0 for row in run.rows)


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
        grpo(model, prompts(), reward, config=SMALL, run=Log(tmp_path / "broken"))
    assert not (tmp_path / "broken" / "artifacts").exists()
    reward.fn, run = letters, Log(tmp_path / "broken")
    found = grpo(model, prompts(), reward, config=SMALL, run=run)
    assert [row["step"] for row in run.rows] == [2, 3]
    assert weights(found.model) == weights(plain.model)


def test_prompts_that_do_not_fit_are_counted(model, tmp_path):
    long = Prompt(id="long", prompt=Chat.ask("how " * 1021))
    table = Prompts(rows=(*prompts(9).rows, long))
    result = grpo(model, table, Lengths(), config=SMALL, run=Quiet(work=tmp_path))
    assert result.metrics["dropped_for_length"].value == pytest.approx(0.1)
    with pytest.raises(InputError, match="no rows"):
        grpo(model, Prompts(rows=()), Lengths(), config=SMALL, run=Quiet(work=tmp_path))


# Planted truth and its null


STRONG = GRPO(steps=20, batch_size=16, max_tokens=4, fit=Fit(lr=3e-3, eps=1e-5, schedule="linear"))


def test_a_planted_wish_is_met(four, tmp_path):
    """Without a price there is no reason to stop at a share: nearly all replies say 'ember'."""
    result = grpo(four, prompts(), Likes(), config=STRONG, run=Quiet(work=tmp_path))
    assert rate(four) < 0.3
    assert rate(result.model) > 0.9
    assert result.metrics["reward_last"].value > result.metrics["reward_first"].value + 0.3
    assert all(estimate.method == "point" for estimate in result.metrics.values())


@pytest.mark.slow
def test_a_high_price_holds_the_policy(four, tmp_path):
    kl = KL(coef=20.0, place="loss", estimator="k2")
    result = grpo(four, prompts(), Likes(), config=changed(STRONG, kl=kl), run=Quiet(work=tmp_path))
    assert rate(result.model) == pytest.approx(rate(four), abs=0.15)  # six seeds: .01 +- .024
    assert result.metrics["kl_last"].value < 0.1


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_reward_that_likes_all_alike_moves_nothing(model, weights, nearly, tmp_path, scale):
    """A score worked out in several ways (its last bits differ), the KL on: the weights stay to the bit.

    With a real reward they move. What pi and ref differ by before the first step is rounding, and AdamW
    would make a full step of it.
    """
    run, kl = Log(tmp_path), KL(coef=0.05, place="loss", estimator="k3")
    config = changed(samples=7, scale=scale, kl=kl, fit=Fit(lr=1e-3))
    result = grpo(model, prompts(), nearly, config=config, run=run)
    assert weights(result.model) == weights(model)
    assert [row["frac_reward_zero_std"] for row in run.rows] == [1.0] * 4
