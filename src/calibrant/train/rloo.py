"""RLOO: REINFORCE with the mean of the prompt's other replies as baseline (Back to Basics, 2402.14740).

Each of K replies y_i to a prompt is one action with reward R_i = score - beta sum_t k1 and advantage A_i =
R_i - mean of the other R_j: no critic, no value loss, no GAE.

Where this departs from common trainers:
1. KL is in the reward, as in the paper: summed over the reply *before* the baseline is taken. Some
   implementations use the baseline of raw scores and add the KL per token; that is another method.
2. The ratio pi / pi_old is per reply, or per token, by ``ratio``. In the first update of a
   round both have the gradient of REINFORCE.
3. Equal scores give advantages of exactly 0, not a rounding error that AdamW would amplify.
4. One row holds a prompt and all its replies, and the prompt is computed once (``models/branches.py``).
5. Everything random comes from (seed, step), so a killed run resumes with the same bits. A watcher may stop
   the run (early stopping): its 'no' restores the weights of its last look that was not a 'no'; the caveats
   say whether that was 'yes' or 'unknown'.

    calibrant show train.rloo
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from calibrant.core import OpenLM, Quiet, Reward, Run, Watcher, technique
from calibrant.data.rows import Prompts
from calibrant.maths.advantages import group_normalised, leave_one_out
from calibrant.maths.kl import ESTIMATORS
from calibrant.maths.logprobs import masked_sum
from calibrant.maths.policy_losses import Window, clipped_surrogate, constant
from calibrant.models.fit import FIT_ALIASES
from calibrant.train import _rl_group as group
from calibrant.train._rl_common import clips
from calibrant.train._rl_state import Student
from calibrant.train._settings import KL, Grouped
from calibrant.train._tuned import Tuned


class RLOO(Grouped):
    """Settings of RLOO."""

    aliases: ClassVar[Mapping[str, str]] = FIT_ALIASES | {
        "max_steps": "steps", "num_generations": "samples", "max_completion_length": "max_tokens",
        "num_iterations": "epochs", "epsilon": "clip", "epsilon_high": "clip_high", "beta": "kl.coef",
        "normalize_advantages": "normalise_advantages",
    }  # fmt: skip

    samples: int = Field(default=4, ge=2)
    """K, replies sampled for each prompt: each is compared with the K - 1 others."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the replies of a round. One with one minibatch is REINFORCE: pi is still pi_old."""
    ratio: Literal["sequence", "token"] = "sequence"
    """pi / pi_old of a whole reply, clipped as one (the paper, TRL), or of each token, clipped one by one."""
    clip: float | None = Field(default=0.2, gt=0)
    """The ratio counts from 1 - clip to 1 + clip. None: no clip."""
    clip_high: float | None = Field(default=None, gt=0)
    """Another upper clip. None: ``clip`` on both sides."""
    normalise_advantages: bool = False
    """Advantages of a round get mean 0 and standard deviation 1 (unbiased, plus 1e-4)."""
    kl: KL = KL()
    """KL penalty to the reference policy (the input model): always in the reward, summed over the reply."""

    def contradictions(self) -> list[str]:
        """Settings that belong to another method."""
        problems = super().contradictions()
        if self.kl.place != "reward":
            problems.append("RLOO takes the KL off the reward; train.grpo adds it to the loss")
        return problems


class RLOOResult(Tuned):
    """The fine-tuned model, also saved as artefact 'model'; every reply of every step in
    'examples.parquet'."""


@technique(version=2)
def rloo(
    model: OpenLM,
    prompts: Prompts,
    reward: Reward,
    watcher: Watcher | None = None,
    config: RLOO = RLOO(),
    run: Run = Quiet(),
) -> RLOOResult:
    """Fine-tune a copy of ``model`` on its own samples for ``prompts``; ``model`` is the reference policy.

    Raises:
        InputError: there are no prompts, none leaves room for a reply, one with its
            replies takes more than ``fit.micro_tokens``, the reward gives a wrong number of
            scores, or a checkpoint cannot be written. What the reward raises is passed on.
        CapabilityError: there are several processes, or the model's chat template writes an answered chat
            otherwise.
        NumericalError: a score, loss or gradient is NaN or infinite; earlier checkpoints stay.
    """
    fields = group.train("rloo", model, prompts, reward, watcher, config, run, _advantages, _term)
    return RLOOResult(**fields)


def _advantages(round_: group.GroupRound, config: RLOO) -> Tensor:
    """(M,) float32: R_i less the mean of the prompt's other R_j."""
    nats = masked_sum(ESTIMATORS[config.kl.estimator](round_.old, round_.reference), round_.mask)
    advantages = leave_one_out((round_.shaped - round_.coef * nats).view(-1, config.samples)).flatten()
    if config.normalise_advantages:
        advantages = group_normalised(advantages[None], scale="group").flatten()
    return advantages.float()


def _term(student: Student, round_: group.GroupRound, advantages: Tensor, config: RLOO) -> group.Term:
    """The loss of an update: its sum over the replies of a part, over the replies of the update."""
    low, high = clips(config.clip, config.clip_high)

    def term(window: Window, part: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        rows = round_.rolled.rows(part)
        mask, old, credit = round_.mask[rows], round_.old[rows], advantages[rows, None]
        new = group.logprobs(student.module, round_.rolled, part, old)
        if config.ratio == "sequence":
            sums = masked_sum(new, mask)[:, None], masked_sum(old, mask)[:, None]
            out, counts = clipped_surrogate(*sums, credit, low=low, high=high), torch.ones_like(credit).bool()
        else:
            out, counts = clipped_surrogate(new, old, credit.expand_as(new), low=low, high=high), mask
        # Tokens of a reply are summed, never averaged, so that at ratio 1 both kinds have one gradient.
        share = constant(out.loss, counts, window)
        return share, group.moved(round_, rows, new, out, credit, window)

    return term
