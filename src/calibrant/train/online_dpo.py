"""Online DPO: on-policy samples, ranked by a reward; the best and the worst are a pair (2402.04792).

Each round samples K replies to every prompt from the current policy, pairs the best and the worst by the
reward, and takes steps of a loss of the DPO family on those pairs. The reference policy is the input model.

Where this departs from common trainers:
1. Where all replies to a prompt have the same score there is no pair: it is left out and counted, never
   ranked by sampling order. Ties go to the first sample.
2. Any number of replies from 2 on, and every loss of train.dpo with its options; an option that the chosen
   loss ignores is an error.
3. Sampling, policy and reference have one temperature.
4. One row holds a prompt and both replies, and the prompt is computed once (``models/branches.py``).
5. Everything random comes from (seed, step), so a killed run resumes with the same bits. A watcher may stop
   the run (early stopping): its 'no' restores the weights of its last look that was not a 'no'; the caveats
   say whether that was 'yes' or 'unknown'.

    calibrant show train.online_dpo
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from calibrant.core import OpenLM, Quiet, Reward, Run, Watcher, technique
from calibrant.data.rows import Prompts
from calibrant.maths.kl import FixedKL
from calibrant.maths.logprobs import masked_sum
from calibrant.maths.losses import chosen_nll
from calibrant.maths.pair_losses import LOSSES, pair_loss
from calibrant.maths.pair_sums import PairSums, implicit_rewards
from calibrant.maths.policy_losses import Window
from calibrant.maths.rounding import alike
from calibrant.models.branches import Branches
from calibrant.models.checkpoint import Checkpoint
from calibrant.models.fit import Fit
from calibrant.models.lora import adapted
from calibrant.models.template_check import check_trainable
from calibrant.train import _rl_group as group
from calibrant.train._rl_common import alone, check_micro_tokens, draw, judged, key, minibatches, with_room
from calibrant.train._rl_results import caveats, metrics, saved
from calibrant.train._rl_state import Learner, Student, watched
from calibrant.train._settings import PairLoss, Rounds, Shaping
from calibrant.train._tuned import Tuned


class OnlineDPO(PairLoss, Rounds):
    """Settings of online DPO."""

    aliases: ClassVar[Mapping[str, str]] = {
        **PairLoss.aliases,
        "max_steps": "steps", "per_device_train_batch_size": "batch_size", "max_new_tokens": "max_tokens",
        "missing_eos_penalty": "missing_end", "num_generations": "samples",
        "max_completion_length": "max_tokens",
    }  # fmt: skip

    batch_size: int = Field(default=16, ge=1)
    """Prompts in one round, each at most one pair."""
    samples: int = Field(default=2, ge=2)
    """K, replies sampled for each prompt: the best and the worst are its pair."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs of a round."""
    missing_end: float | None = Field(default=None, ge=0)
    """Penalty on the score of a truncated reply, before ranking. None: no penalty."""
    fit: Fit = Fit(lr=1e-4, schedule="linear")
    """The optimiser. Full fine-tuning of a billion weights needs a learning rate of about 5e-7."""


class OnlineDPOResult(Tuned):
    """The fine-tuned model, also saved as artefact 'model'; every reply of every step in
    'examples.parquet'."""


@technique(version=2)
def online_dpo(
    model: OpenLM,
    prompts: Prompts,
    reward: Reward,
    watcher: Watcher | None = None,
    config: OnlineDPO = OnlineDPO(),
    run: Run = Quiet(),
) -> OnlineDPOResult:
    """Fine-tune a copy of ``model`` on its own samples for ``prompts``; ``model`` is the reference policy.

    Raises:
        InputError: there are no prompts, none leaves room for a reply, one with its
            replies takes more than ``fit.micro_tokens``, the reward gives a wrong number of
            scores, or a checkpoint cannot be written. What the reward raises is passed on.
        CapabilityError: there are several processes, or the model's chat template writes an answered chat
            otherwise.
        NumericalError: a score, loss or gradient is NaN or infinite; earlier checkpoints stay.
    """
    alone("train.online_dpo")
    check_trainable(model, config.fit.any_template)
    rows = with_room(model, prompts, config.max_tokens)
    check_micro_tokens(model, rows, 2, config.max_tokens, config.fit)
    policy = adapted(model.copy(), config.lora, run.seed)
    student = Student(policy.module, config.fit)
    learner = Learner({"policy": student}, FixedKL(0.0), watched(watcher, student))
    stopped = False
    store = Checkpoint(run.work / "online_dpo.safetensors", key(config, run, model, prompts, reward, watcher))
    shaping = Shaping(missing_end=config.missing_end)
    for step in range(learner.resume(store, run), config.steps):
        picked, drawn = draw(policy, rows, config, step, run.seed)
        learner.spend(drawn.tokens * (1 + config.epochs), run)
        round_ = group.known(learner, judged(reward, drawn), model, shaping)
        best, worst = _ranked(round_)
        learner.examples.note(
            step, picked, round_.rolled, **round_.columns(), side=_sides(round_, best, worst)
        )
        if stopped := learner.stops(step, policy, round_.rolled, every=config.watch_every):
            break
        student.pace(step, config.steps)
        lesson, stats = _pairs(round_, best, worst), {"updates": 0.0, "lr": student.lr}
        if best:
            batches = minibatches(len(best), config, run.seed, step)
            with learner.learning():
                stats = group.learn(student, lesson, batches, _term(student, lesson, config))
            stats["objective/scores_margin"] = float(-lesson.grouped.diff().mean())
        row = {**round_.summary(), "pairs": float(len(best)), **stats}
        learner.finish(step, config.steps, round_, row, store, run)
    return OnlineDPOResult(
        model=saved("online_dpo", model, policy, learner, rows, run),
        metrics=metrics(
            learner,
            len(rows),
            len(prompts),
            tied_last=("frac_reward_zero_std", "share of prompts"),
            train_margin_last=("rewards/margins", "beta x nats"),
            train_accuracy_last=("rewards/accuracies", "share of pairs"),
        ),
        caveats=caveats(learner, model, stopped),
    )


def _ranked(round_: group.GroupRound) -> tuple[list[int], list[int]]:
    """Numbers of the best and of the worst reply to each prompt whose replies differ in score."""
    scores = round_.grouped
    prompts = (~alike(scores)).nonzero().flatten()
    best, worst = (prompts * scores.shape[1] + at[prompts] for at in (scores.argmax(1), scores.argmin(1)))
    return best.tolist(), worst.tolist()


def _sides(round_: group.GroupRound, best: list[int], worst: list[int]) -> Tensor:
    """(M,) 1 for a chosen reply, -1 for a rejected one, 0 for one that is in no pair."""
    side = torch.zeros(len(round_.rolled), dtype=torch.int64)
    side[best], side[worst] = 1, -1
    return side


def _pairs(round_: group.GroupRound, best: list[int], worst: list[int]) -> group.GroupRound:
    """The round of the pairs alone: two replies a prompt, the chosen one first."""
    rolled, k = round_.rolled, round_.rolled.samples
    rows = [row for pair in zip(best, worst, strict=True) for row in pair]
    prompt_ids, reply_ids = rolled.branches
    prompts = [row // k for row in best]
    replies = [[reply_ids[row // k][row % k] for row in pair] for pair in zip(best, worst, strict=True)]
    pairs = replace(
        rolled,
        chats=tuple(rolled.chats[row] for row in rows),
        texts=tuple(rolled.texts[row] for row in rows),
        branches=Branches([prompt_ids[i] for i in prompts], replies),
        ended=rolled.ended[rows],
        behaviour=rolled.behaviour[rows],
        scores=None,
        kl=None,
    )
    return group.GroupRound(
        pairs, round_.mask[rows], round_.old[rows], round_.reference[rows], round_.shaped[rows], round_.coef
    )


def _term(student: Student, lesson: group.GroupRound, config: OnlineDPO) -> group.Term:
    """The pair loss of an update: its sum over the pairs of a part, over the pairs of the update."""
    tokens, reference = lesson.mask.sum(-1), masked_sum(lesson.reference, lesson.mask)
    beta = float(config.options.get("beta", LOSSES[config.loss].options.get("beta", 1.0)))

    def term(window: Window, part: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        rows, pairs = lesson.rolled.rows(part), window.sequences // 2
        new = group.logprobs(student.module, lesson.rolled, part, lesson.old)
        both = [side.view(-1, 2).unbind(1) for side in (new.sum(-1), reference[rows], tokens[rows])]
        sums = PairSums(*both[0], *both[1], *both[2])
        each = pair_loss(config.loss, sums, config.options)
        if config.nll:
            each = each + config.nll * chosen_nll(sums)
        good, bad = implicit_rewards(sums, beta)
        right = (good > bad).float() + 0.5 * (good == bad).float()
        stats = {
            "rewards/chosen": good, "rewards/rejected": bad, "rewards/margins": good - bad,
            "rewards/accuracies": right, "logps/chosen": sums.policy_chosen.detach(),
            "logps/rejected": sums.policy_rejected.detach(),
        }  # fmt: skip
        return each.sum() / pairs, {name: value.sum() / pairs for name, value in stats.items()}

    return term
