"""GRPO: a reply is as good as it is better than the prompt's others, in units of their spread (2402.03300).

Each of K replies to a prompt is worth A_i = (r_i - mean r) / (std r + eps), the same for all of its tokens.
Their ratios pi / pi_old are clipped one by one. No critic; KL, where wanted, is part of the loss.

Where this departs from common trainers:
1. ``scale``, ``eps`` and ``unbiased`` say what the scores are divided by; ``scale = "none"`` is Dr. GRPO.
2. ``aggregation`` says how tokens are averaged, over the whole optimiser step however it is cut. The one that
   depends on the cut (``micro_token_mean``, TRL's 'bnpo') is marked, and never the default.
3. Prompts whose replies all have one score teach nothing; how many is logged (``frac_reward_zero_std``).
   Their advantages are exactly 0, not a rounding error that AdamW would blow up.
4. One row holds a prompt and all its replies, and the prompt is read once (``models/branches.py``).
5. Everything random comes from (seed, step), so a killed run goes on with the same bits. A watcher may look
   on; its 'no' ends the run at the weights of its last look that was not a 'no': what it said of them ('yes',
   or 'unknown') stands in the caveats.

    calibrant show train.grpo
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator
from torch import Tensor

from calibrant.core import Frozen, OpenLM, Quiet, Result, Reward, Run, Watcher, technique
from calibrant.data.rows import Prompts
from calibrant.maths.advantages import Scale, group_normalised
from calibrant.maths.kl import PENALTIES
from calibrant.maths.policy_losses import AGGREGATIONS, Aggregation, Window, clipped_surrogate
from calibrant.models.checkpoint import Checkpoint
from calibrant.models.fit import Fit
from calibrant.models.lora import LoRA, adapted
from calibrant.models.rollouts import roll
from calibrant.models.template_check import check_trainable
from calibrant.train import _rl_group as group
from calibrant.train._rl_common import KL, Old, Shaping, check_micro_tokens, cycle, judged, with_room
from calibrant.train._rl_state import Learner, Student, watched

_TRL = {"grpo": "sequence_mean", "bnpo": "micro_token_mean", "dr_grpo": "constant", "dapo": "token_mean"}


class GRPO(Frozen):
    """Settings of GRPO."""

    aliases: ClassVar[Mapping[str, str]] = {
        "max_steps": "steps", "num_generations": "samples", "max_completion_length": "max_tokens",
        "num_iterations": "epochs", "epsilon": "clip", "epsilon_high": "clip_high", "beta": "kl.coef",
        "scale_rewards": "scale", "loss_type": "aggregation", "learning_rate": "fit.lr",
        "mask_truncated_completions": "mask_truncated",
        "max_grad_norm": "fit.clip", "weight_decay": "fit.weight_decay", "warmup_ratio": "fit.warmup",
        "lr_scheduler_type": "fit.schedule", "adam_beta2": "fit.beta2", "adam_epsilon": "fit.eps",
        "gradient_checkpointing": "fit.recompute", "bf16": "fit.bf16",
    }  # fmt: skip

    steps: int = Field(default=100, ge=1)
    """Rounds of drawing, scoring and learning."""
    batch_size: int = Field(default=8, ge=1)
    """Prompts in one round."""
    samples: int = Field(default=8, ge=2)
    """K, replies drawn to each prompt: the group that each is compared with."""
    max_tokens: int = Field(default=64, ge=1)
    """Most tokens of a reply; prompts that leave no room for it are left out and counted."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the draw; every log-prob (old, new, reference) divides its logits by it."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the replies of a round."""
    minibatches: int = Field(default=1, ge=1)
    """Optimiser steps in one pass."""
    scale: Scale = "group"
    """Divide by the standard deviation of the prompt's own scores (the paper), of the whole round's (batch),
    or by nothing (none: Dr. GRPO, 2503.20783)."""
    eps: float = Field(default=1e-4, gt=0)
    """Added to that deviation; TRL has 1e-4, verl 1e-6."""
    unbiased: bool = True
    """The deviation divides its variance by n - 1, else by n."""
    aggregation: Aggregation = "token_mean"
    """How tokens are averaged: token_mean (DAPO), sequence_mean (GRPO's paper), constant (Dr. GRPO), or
    micro_token_mean (TRL's 'bnpo'), the one that changes with ``fit.micro_tokens``. TRL's names are taken."""
    clip: float | None = Field(default=0.2, gt=0)
    """The ratio of a token counts from 1 - clip to 1 + clip. None: no clip."""
    clip_high: float | None = Field(default=None, gt=0)
    """Another upper clip (DAPO: 0.28, 2503.14476). None: ``clip`` on both sides."""
    mask_truncated: bool = False
    """Replies that were cut off are compared with, but not learned from."""
    old_logprobs: Old = "auto"
    """pi_old as the draw reported it (behaviour), or from one more pass before learning (rescored). auto: as
    drawn in full precision, rescored in half, where the passes that draw and learn round differently."""
    watch_every: int = Field(default=10, ge=1)
    """Rounds between two looks of the watcher, where there is one."""
    kl: KL = KL(coef=0.0, place="loss", estimator="k3")
    """The pull to the model that came in: always in the loss (k3 as in the paper, k2 or k3+)."""
    shaping: Shaping = Shaping()
    """What becomes of a score before it is compared."""
    lora: LoRA | None = None
    """Train low-rank adapters alone; the saved model has them merged. None: all weights."""
    fit: Fit = Fit(lr=1e-4, eps=1e-5, schedule="linear")
    """The optimiser. Whole models of a billion weights take a rate of about 1e-6."""

    @field_validator("aggregation", mode="before")
    @classmethod
    def _named_as_in_trl(cls, value: Any) -> Any:
        return _TRL.get(value, value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _nothing_contradicts(self) -> GRPO:
        problems = group.contradictions(self.batch_size, self.minibatches)
        if self.scale == "none" and not (self.eps == 1e-4 and self.unbiased):
            problems.append("scale = 'none' divides by nothing, so eps and unbiased would be ignored")
        if self.shaping.whiten:
            problems.append("shaping.whiten scales rewards of tokens; here a reply has one reward")
        if self.kl.place != "loss":
            problems.append(
                "GRPO adds the KL to the loss (kl.place = 'loss'); train.rloo takes it off the reward"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


class GRPOResult(Result):
    """The tuned model, also saved as artefact 'model'; every reply of every step in 'examples.parquet'."""

    model: Any = Field(exclude=True)
    """The tuned OpenLM, live, under an identity of its own."""


@technique(version=2)
def grpo(
    model: OpenLM,
    prompts: Prompts,
    reward: Reward,
    watcher: Watcher | None = None,
    config: GRPO = GRPO(),
    run: Run = Quiet(),
) -> GRPOResult:
    """Tune a copy of ``model`` on its own replies to ``prompts``; ``model`` is the reference, and unchanged.

    Raises:
        InputError: there are no prompts, none leaves room for a reply, one with its
            replies takes more than ``fit.micro_tokens``, the reward gives a wrong number of
            scores, or a checkpoint cannot be written. What the reward raises is passed on.
        CapabilityError: there are several processes, or the model's chat template writes an answered chat
            otherwise.
        NumericalError: a score, loss or gradient is NaN or infinite; what was saved before stays.
    """
    group.alone("train.grpo")
    check_trainable(model, config.fit.any_template)
    rows = with_room(model, prompts, config.max_tokens)
    check_micro_tokens(model, rows, config.samples, config.max_tokens, config.fit)
    policy = adapted(model.copy(), config.lora, run.seed)
    student = Student(policy.module, config.fit)
    learner = Learner({"policy": student}, config.kl.controller(), watched(watcher, student))
    watch, stopped = learner.watch, False
    kept = Checkpoint(run.work / "grpo.safetensors", group.key(config, run, model, prompts, reward, watcher))
    for step in range(learner.resume(kept, run), config.steps):
        picked = cycle(len(rows), config.batch_size, step, run.seed)
        sampling = group.sampling(config.max_tokens, config.temperature, run.seed, step)
        drawn = roll(policy, [rows[i].prompt for i in picked], config.samples, sampling)
        learner.spend(drawn.tokens * (1 + config.epochs), run)
        found = group.known(learner, judged(reward, drawn), model, config.shaping, config.old_logprobs)
        advantages = _advantages(found, config)
        learner.examples.note(step, picked, found.rolled, **found.columns(), advantage=advantages)
        if watch is not None and step % config.watch_every == 0:
            stopped = watch.stops(step, policy, student, found.rolled)
        if stopped:
            break
        student.pace(step, config.steps)
        batches = group.minibatches(len(picked), config.epochs, config.minibatches, f"{run.seed}/{step}")
        lesson = found.only_ended() if config.mask_truncated else found
        term = _term(student, lesson, advantages, config)
        with learner.learning():
            shown = group.learn(student, lesson, batches, term, longest=config.max_tokens)
        nats, lengths = found.k1.sum(), found.rolled.lengths
        learner.controller = learner.controller.after(float(nats), len(lengths), int(lengths.sum()))
        learner.rows.append({**found.summary(), **shown})
        run.log(step, **learner.rows[-1])
        if kept.due():
            learner.save(kept, step + 1)
        run.progress(step + 1, config.steps, f"reward {learner.rows[-1]['reward']:.3f}")
    if kept.path.exists() and not stopped:  # a long run: what follows must not cost it again
        learner.save(kept, config.steps)
    return GRPOResult(
        model=group.saved("grpo", model, policy, learner, rows, run),
        metrics=group.metrics(
            learner, len(rows), len(prompts), flat_last=("frac_reward_zero_std", "share of prompts")
        ),
        caveats=group.caveats(learner, model, stopped),
    )


def _advantages(found: group.Round, config: GRPO) -> Tensor:
    """(M,) float32: r_i less the mean of the prompt's scores, over their spread."""
    scale, unbiased, eps = config.scale, config.unbiased, config.eps
    return group_normalised(found.grouped, scale=scale, unbiased=unbiased, eps=eps).flatten().float()


def _term(student: Student, found: group.Round, advantages: Tensor, config: GRPO) -> group.Term:
    """The loss of an update: clipped ratios of tokens, the KL, and how they are averaged."""
    low, high = group.clips(config.clip, config.clip_high)

    def term(window: Window, part: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        rows = found.rolled.rows(part)
        mask, old, credit = found.mask[rows], found.old[rows], advantages[rows, None]
        new = group.logprobs(student.module, found.rolled, part, old)
        out = clipped_surrogate(new, old, credit.expand_as(new), low=low, high=high)
        each = out.loss
        if found.coef and student.moved:  # before the first step the KL and its gradient are 0
            each = each + found.coef * PENALTIES[config.kl.estimator](new, found.reference[rows])
        share = AGGREGATIONS[config.aggregation](each, mask, window)
        return share, group.moved(found, rows, new, out, credit, window)

    return term
