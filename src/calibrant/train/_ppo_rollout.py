"""One round of PPO rollouts: replies with log-probs, values, rewards and advantages of each token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from calibrant.core import OpenLM
from calibrant.maths.advantages import gae, whiten
from calibrant.maths.kl import ESTIMATORS
from calibrant.maths.logprobs import masked_sum
from calibrant.maths.shaping import Masks, explained_variance, masks, token_rewards
from calibrant.models.reward_model import RewardModel
from calibrant.models.rollouts import Rollouts
from calibrant.train._ppo_config import PPO
from calibrant.train._ppo_critic import Values, read_values
from calibrant.train._rl_common import Round
from calibrant.train._rl_state import Learner, old_and_reference


class Credit(NamedTuple):
    """Credit assignment of a reply's score by token; tables (M, T)."""

    masks: Masks
    """Tokens, and places with a value."""
    values: Tensor
    """The critic's, one place a column."""
    advantages: Tensor
    """As the policy's loss takes them, whitened where asked for."""
    returns: Tensor
    """What the critic should have said."""


@dataclass(frozen=True)
class Experience(Round):
    """A round of PPO: replies with their rewards by token."""

    credit: Credit
    """Advantages and returns, with their masks."""
    penalty: Tensor
    """(M,) what the KL takes off the reward of a reply."""

    def columns(self) -> dict[str, Tensor]:
        """What the log of examples shows of each reply."""
        advantage = masked_sum(self.credit.advantages, self.mask) / self.mask.sum(-1)
        return super().columns() | {"advantage": advantage, "value": self.credit.values[:, 0]}

    def summary(self) -> dict[str, float]:
        """What is logged of the round before learning; keys are TRL's where the numbers are."""
        tokens, scores = self.mask.sum(), self.rolled.scores
        means = {
            "objective/scores": self.rolled.rewards.mean(),
            "objective/kl": self.k1.mean(),
            "kl_per_token": self.k1.sum() / tokens,
            "objective/entropy": -masked_sum(self.old, self.mask).mean(),
            "objective/non_score_reward": -self.penalty.mean(),
            "objective/rlhf_reward": (self.shaped - self.penalty).mean(),
            "explained_variance": explained_variance(
                self.credit.values, self.credit.returns, self.credit.masks.steps
            ),
            "reply_tokens": tokens / len(self.rolled),
            "ended": self.rolled.ended.float().mean(),
        }
        if scores is not None and scores.std is not None:
            means["disagreement"] = torch.tensor(scores.std).mean()
        numbers = {name: float(value) for name, value in means.items()}
        return {name: value for name, value in numbers.items() if value == value} | {"kl_coef": self.coef}


def experience(
    learner: Learner, rolled: Rollouts, model: OpenLM, critic: RewardModel, config: PPO
) -> Experience:
    """Compute a round's log-probs and values, then rewards and advantages."""
    device = critic.classifier.device
    if (
        config.score_at == "after"
    ):  # the longest reply, too, needs a place behind it, where it was not cut off
        room = min(rolled.behaviour.shape[1] + 1, config.max_tokens) - rolled.behaviour.shape[1]
        rolled = replace(rolled, behaviour=pad(rolled.behaviour, (0, room)))
    lengths = rolled.lengths.to(device)
    old, reference = old_and_reference(learner.students["policy"], rolled, model, config.old_logprobs)
    expected = read_values(critic, rolled, learner.students["critic"].fit.bf16)
    scores, ended = rolled.rewards.to(device), rolled.ended.to(device)
    learner.moments = learner.moments.after(scores)
    shaped, coef = config.shaping.shaped(scores, ended, learner.moments), learner.controller.coef
    if config.kl.place == "reward":
        nats = coef * ESTIMATORS[config.kl.estimator](old, reference)
    else:
        nats = torch.zeros_like(old)
    credit = credited(shaped, nats, expected, lengths, ended, config)
    tokens = credit.masks.tokens
    rolled = replace(rolled, kl=masked_sum(old - reference, tokens).cpu())
    return Experience(rolled, tokens, old, reference, shaped, coef, credit, masked_sum(nats, tokens))


def credited(
    shaped: Tensor, penalty: Tensor, expected: Values, lengths: Tensor, ended: Tensor, config: PPO
) -> Credit:
    """Rewards, advantages and returns of M replies, as ``config`` asks for them.

    With ``score_at = 'after'``, and ``unbiased`` or not, these are the numbers of TRL 1.12 or of Huang et al.
    (2403.17031) on the same replies.

    Args:
        shaped: (M,) scores.
        penalty: (M, T) KL penalty of each token.
        expected: the critic's values.
        lengths: (M,) tokens of each reply.
        ended: (M,) bool.
        config: see ``PPO``.
    """
    after, width = config.score_at == "after", penalty.shape[1]
    places, values = masks(lengths, width, after=after), expected.table(lengths, width, after=after)
    rewards = token_rewards(shaped, penalty, lengths, 1.0, after=after)
    if config.shaping.whiten:
        rewards = whiten(rewards, places.steps, shift_mean=False, unbiased=config.unbiased)
    # What ended is followed by nothing; so is what was cut off, unless the critic is asked.
    follows = expected.after.masked_fill(ended, 0.0) if config.truncated == "bootstrap" else None
    advantages = gae(rewards, values, places.steps, gamma=config.gamma, lam=config.lam, bootstrap=follows)
    returns = (advantages + values).masked_fill(~places.steps, 0.0)
    if config.whiten_advantages:
        size = torch.maximum(rewards.abs().amax(), values.abs().amax()) if width else None
        advantages = whiten(advantages, places.tokens, shift_mean=True, unbiased=config.unbiased, size=size)
    return Credit(places, values, advantages, returns)
