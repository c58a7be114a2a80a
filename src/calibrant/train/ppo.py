"""PPO: learn from a reward on the policy's own replies (arXiv 1707.06347, for language models 1909.08593).

Where this departs from common trainers:
1. The score stands on the last *generated* token. Whether a reply ended or was cut off is explicit, and so is
   what follows a cut: nothing, or the critic's value.
2. Masks come first: padding is neither rewarded nor bootstrapped from.
3. Old log-probs are those of the draw itself; how far the training pass is from them is logged.
4. One row holds a prompt and all its replies, and the unembedding is applied to scored tokens only.
5. Policy and critic have an optimiser and a clip each. Everything random comes from (seed, step), so a killed
   run goes on with the same bits.
6. A watcher may look on; its 'no' ends the run at the weights of its last look that was not a 'no': what it
   said of them ('yes', or 'unknown') stands in the caveats.

    calibrant run tour
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from calibrant.core import (
    CapabilityError,
    Estimate,
    Frozen,
    OpenLM,
    Quiet,
    Result,
    Reward,
    Run,
    Sampling,
    Watcher,
    digest,
    point,
    technique,
    unknown,
)
from calibrant.data.rows import Prompts
from calibrant.maths.policy_losses import Aggregation
from calibrant.models.checkpoint import Checkpoint
from calibrant.models.fit import Fit
from calibrant.models.lora import LoRA, adapted, merged
from calibrant.models.open_model import OpenModel
from calibrant.models.parallel import world
from calibrant.models.reward_folder import RewardCard
from calibrant.models.reward_model import RewardModel
from calibrant.models.rollouts import roll
from calibrant.models.template_check import check_trainable
from calibrant.models.training_caveats import training_caveats
from calibrant.train._ppo_critic import Start, open_critic
from calibrant.train._ppo_rollout import experience
from calibrant.train._ppo_update import learn
from calibrant.train._rl_common import KL, Old, Shaping, check_micro_tokens, cycle, judged, with_room
from calibrant.train._rl_state import Learner, Student, Watch, watched


class PPO(Frozen):
    """Settings of PPO; every stabiliser of Huang et al. (2403.17031) is a switch."""

    aliases: ClassVar[Mapping[str, str]] = {
        "num_ppo_epochs": "epochs", "num_mini_batches": "minibatches", "num_generations": "samples",
        "response_length": "max_tokens", "cliprange": "clip", "cliprange_value": "value_clip",
        "vf_coef": "value_weight", "kl_coef": "kl.coef", "kl_estimator": "kl.estimator",
        "whiten_rewards": "shaping.whiten", "missing_eos_penalty": "shaping.missing_end",
        "learning_rate": "fit.lr", "max_grad_norm": "fit.clip", "weight_decay": "fit.weight_decay",
        "warmup_ratio": "fit.warmup", "lr_scheduler_type": "fit.schedule", "adam_beta2": "fit.beta2",
        "adam_epsilon": "fit.eps", "gradient_checkpointing": "fit.recompute", "bf16": "fit.bf16",
    }  # fmt: skip

    steps: int = Field(default=100, ge=1)
    """Rounds of drawing, scoring and learning."""
    batch_size: int = Field(default=32, ge=1)
    """Prompts in one round."""
    samples: int = Field(default=1, ge=1)
    """Replies drawn to each prompt of a round."""
    max_tokens: int = Field(default=64, ge=1)
    """Most tokens of a reply; prompts that leave no room for it are left out and counted."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the draw; every log-prob (old, new, reference) divides its logits by it."""
    epochs: int = Field(default=4, ge=1)
    """Passes over the replies of a round."""
    minibatches: int = Field(default=1, ge=1)
    """Optimiser steps in one pass."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount a token."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """GAE: 1 sums all rewards to come, 0 trusts the critic after one token."""
    clip: float | None = Field(default=0.2, gt=0)
    """The ratio pi / pi_old counts from 1 - clip to 1 + clip. None: no clip."""
    clip_high: float | None = Field(default=None, gt=0)
    """Another upper clip. None: ``clip`` on both sides."""
    aggregation: Aggregation = "token_mean"
    """How tokens are averaged: token_mean, sequence_mean, constant, micro_token_mean."""
    entropy_bonus: float = Field(default=0.0, ge=0)
    """Weight of the policy's entropy a token, in nats, in the objective."""
    score_at: Literal["last", "after"] = "last"
    """The score stands on the last generated token, or on the place after it (TRL up to 1.12)."""
    truncated: Literal["terminal", "bootstrap"] = "terminal"
    """What follows a reply that was cut off: nothing, or the critic's value of where it stood."""
    old_logprobs: Old = "auto"
    """pi_old as the draw reported it (behaviour), or from one more pass before learning (rescored). auto: as
    drawn in full precision, rescored in half, where the passes that draw and learn round differently."""
    whiten_advantages: bool = True
    """Advantages of a round get mean 0 and standard deviation 1 over its tokens."""
    unbiased: bool = True
    """Whitening divides a variance by n - 1 (TRL), else by n (Huang et al.)."""
    critic: Start = "auto"
    """Start the critic from the reward model, from the policy's trunk, or from the first where it can be."""
    head_scale: float | None = Field(default=None, ge=0)
    """Scale of a fresh critic's head, N(0, 1 / (width + 1)): 0 expects 0 everywhere. None: 1."""
    critic_warmup: int = Field(default=0, ge=0)
    """Rounds at the start in which the critic learns alone."""
    value_clip: float | None = Field(default=0.2, gt=0)
    """A value may move this far from that of the draw; further away it stops being pulled. None: no clip."""
    value_weight: float = Field(default=1.0, gt=0)
    """Weight of the critic's loss. AdamW is nearly blind to it; the clip of the gradient is not."""
    stop_kl: float | None = Field(default=None, gt=0)
    """Leave a round once pi is this far from pi_old, in nats a token (half the mean squared log-ratio)."""
    watch_every: int = Field(default=10, ge=1)
    """Rounds between two looks of the watcher, where there is one."""
    kl: KL = KL()
    """The pull to the model that came in."""
    shaping: Shaping = Shaping()
    """What becomes of a score before it is learned from."""
    lora: LoRA | None = None
    """Train low-rank adapters of the policy alone; the saved model has them merged. None: all weights."""
    fit: Fit = Fit(lr=1e-4, eps=1e-5, schedule="linear")
    """The policy's optimiser. Whole models of a billion weights take a rate of about 3e-6."""
    critic_fit: Fit | None = None
    """The critic's optimiser. None: as the policy's."""

    @model_validator(mode="after")
    def _nothing_contradicts(self) -> PPO:
        problems = []
        if self.minibatches > self.batch_size:
            problems.append(f"{self.minibatches} minibatches cannot be cut from {self.batch_size} prompts")
        if self.truncated == "bootstrap" and self.shaping.missing_end is not None:
            problems.append(
                "truncated = 'bootstrap' says that a cut is no end, shaping.missing_end punishes it"
            )
        if self.truncated == "bootstrap" and self.score_at == "after":
            problems.append(
                "score_at = 'after' gives the place behind a reply a step of its own: no bootstrap"
            )
        if self.critic == "reward" and self.head_scale is not None:
            problems.append("critic = 'reward' has a head already, so head_scale would be ignored")
        if self.critic_warmup >= self.steps:
            problems.append(
                f"critic_warmup = {self.critic_warmup} leaves no step of {self.steps} to learn in"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def sampling(self, seed: int, step: int) -> Sampling:
        """How replies are drawn at ``step``."""
        drawn = int(digest(["rollouts", seed, step]), 16) % 2**31
        return Sampling(max_tokens=self.max_tokens, temperature=self.temperature, seed=drawn)


class PPOResult(Result):
    """The tuned model is also artefact 'model', the critic 'critic', every reply in 'examples.parquet'."""

    model: Any = Field(exclude=True)
    """The tuned OpenLM, live, under an identity of its own."""


@technique(version=2)
def ppo(
    model: OpenLM,
    prompts: Prompts,
    reward: Reward,
    watcher: Watcher | None = None,
    config: PPO = PPO(),
    run: Run = Quiet(),
) -> PPOResult:
    """Tune a copy of ``model`` on its own replies to ``prompts``; ``model`` is the reference, and unchanged.

    Raises:
        InputError: there are no prompts, none leaves room for a reply, one with its
            replies takes more than ``fit.micro_tokens``, the reward gives a wrong number of
            scores, or a checkpoint cannot be written. What the reward raises is passed on.
        CapabilityError: ``config.critic`` is 'reward' and that cannot be, there are several processes, or
            the model's chat template writes an answered chat otherwise.
        NumericalError: a score, loss or gradient is NaN or infinite; what was saved before stays.
    """
    if world().size > 1:
        raise CapabilityError(
            "train.ppo learns in one process", hint="start it without a launcher; train.dpo takes several"
        )
    check_trainable(model, config.fit.any_template)
    rows = with_room(model, prompts, config.max_tokens)
    check_micro_tokens(
        model, rows, config.samples, config.max_tokens, config.fit, config.critic_fit or config.fit
    )
    policy = adapted(model.copy(), config.lora, run.seed)
    critic = open_critic(model, reward, config.critic, config.head_scale, run.seed)
    learner = _start(policy, critic, watcher, config)
    watch = learner.watch
    kept = Checkpoint(run.work / "ppo.safetensors", _key(config, run, model, prompts, reward, watcher))
    stopped = False
    for step in range(learner.resume(kept, run), config.steps):
        picked = cycle(len(rows), config.batch_size, step, run.seed)
        drawn = roll(
            policy, [rows[i].prompt for i in picked], config.samples, config.sampling(run.seed, step)
        )
        learner.spend(drawn.tokens * (1 + config.epochs), run)
        found = experience(learner, judged(reward, drawn), model, critic, config)
        learner.examples.note(step, picked, found.rolled, **found.columns())
        if watch is not None and step % config.watch_every == 0:
            stopped = watch.stops(step, policy, learner.students["policy"], found.rolled)
        if stopped:
            break
        with learner.learning():
            shown = learn(learner, found, critic, config, run.seed, step)
        nats, lengths = found.k1.sum(), found.rolled.lengths
        learner.controller = learner.controller.after(float(nats), len(lengths), int(lengths.sum()))
        learner.rows.append({**found.summary(), **shown})
        run.log(step, **learner.rows[-1])
        if kept.due():
            learner.save(kept, step + 1)
        run.progress(step + 1, config.steps, f"reward {learner.rows[-1]['objective/scores']:.3f}")
    if kept.path.exists() and not stopped:  # a long run: what follows must not cost it again
        learner.save(kept, config.steps)
    # Named anew: under the old identity it would pass for the model that came in.
    tuned = OpenModel.from_module(merged(policy).module, policy.tokenizer, f"{model.identity.name} after ppo")
    tuned.save(run.artifact("model"))
    critic.save(run.artifact("critic"), RewardCard(kind="single", members=1, normaliser=critic.normaliser))
    if watch is not None:
        watch.write(run)
    learner.examples.write(run, rows)
    return PPOResult(
        model=tuned,
        metrics={
            **_metrics(learner.rows),
            "dropped_for_length": point(1 - len(rows) / len(prompts), unit="share of rows", n=len(prompts)),
        },
        caveats=(
            "the reward is what was optimised: a higher one does not show that replies are better",
            "numbers are of the replies that were learned from, drawn by the policy before each step",
            *_watched(watch, stopped, len(learner.rows)),
            *training_caveats(config.fit.bf16, model.module, tuned.module),
        ),
    )


def _start(policy: OpenLM, critic: RewardModel, watcher: Watcher | None, config: PPO) -> Learner:
    """The learner before the first step."""
    students = {
        "policy": Student(policy.module, config.fit),
        "critic": Student(critic.classifier.module, config.critic_fit or config.fit),
    }
    return Learner(students, config.kl.controller(), watched(watcher, students["policy"]))


def _key(
    config: PPO, run: Run, model: OpenLM, prompts: Prompts, reward: Reward, watcher: Watcher | None
) -> str:
    """What a checkpoint belongs to."""
    seen = [prompts.digest, model.identity.digest, reward.identity.digest]
    return digest([config, run.seed, *seen, watcher.identity.digest if watcher else ""])


def _metrics(rows: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """What the log says of the first and of the last 10 steps."""
    found = {"steps": point(len(rows), unit="steps taken")}
    for name, key, unit, some in (
        ("reward_first", "objective/scores", "reward, first 10 steps", rows[:10]),
        ("reward_last", "objective/scores", "reward, last 10 steps", rows[-10:]),
        ("kl_last", "objective/kl", "nats a reply (k1), last 10 steps", rows[-10:]),
        ("entropy_last", "objective/entropy", "nats a reply, last 10 steps", rows[-10:]),
        ("ended_last", "ended", "share of replies, last 10 steps", rows[-10:]),
        ("explained_variance_last", "explained_variance", "share of variance, last 10 steps", rows[-10:]),
    ):
        numbers = [row[key] for row in some if key in row]
        mean = sum(numbers) / max(1, len(numbers))
        found[name] = point(mean, unit=unit) if numbers else unknown(f"no step showed {key}", unit=unit)
    return found


def _watched(watch: Watch | None, stopped: bool, steps: int) -> list[str]:
    """What to say of the watcher."""
    if watch is None:
        return ["nobody watched: whether the true quality rose with the reward was not looked at"]
    return [watch.told(stopped, steps)]
