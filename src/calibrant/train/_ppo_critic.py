"""The critic: a separate value network, evaluated before every token and once after the last."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from calibrant.core import CapabilityError, ConfigError, OpenLM, Reward
from calibrant.models.branches import Packed, pack, shares, spread, states
from calibrant.models.classifier import Classifier
from calibrant.models.reward_model import RewardModel
from calibrant.models.rollouts import Rollouts
from calibrant.train._ppo_config import Start
from calibrant.train._rl_common import PASS, cuts


class Values(NamedTuple):
    """The critic's values, in units of the shaped score."""

    before: Tensor
    """(M, T) value of the state that each token was drawn from, 0 beyond a reply."""
    after: Tensor
    """(M,) value of the state behind the last token."""

    def table(self, lengths: Tensor, width: int, *, after: bool) -> Tensor:
        """(M, width) values by position; ``after`` puts the last one after the reply, where there is room."""
        place = torch.arange(width, device=lengths.device)[None]
        table = pad(self.before, (0, width - self.before.shape[1]))
        return torch.where(place == lengths[:, None], self.after[:, None], table) if after else table


def open_critic(
    model: OpenLM, reward: Reward, start: Start, head_scale: float | None, seed: int
) -> RewardModel:
    """A new critic: a copy of the reward model in its units, or the policy's trunk with a new head.

    The new head is N(0, 1 / (d + 1)) (Huang et al. 2024, arXiv 2403.17031), times ``head_scale``: 0 is a
    critic that predicts 0 everywhere. 'auto' uses the reward model where possible.

    Raises:
        CapabilityError: ``start`` is 'reward', but that has no weights, several outputs, or other tokens than
            the policy.
        ConfigError: ``head_scale`` is given, but the reward model's own head is taken.
    """
    if start != "policy" and isinstance(reward, RewardModel) and _fits(reward, model):
        if head_scale is not None:
            raise ConfigError(
                "the critic starts from the reward model, which has a head, so head_scale would be ignored",
                hint="critic = 'policy' takes the policy's trunk and a fresh head",
            )
        return RewardModel(reward.classifier.copy(), reward.normaliser)
    if start == "reward":
        raise CapabilityError(
            f"the reward '{reward.identity.name}' cannot be the critic's start: it has no weights with one "
            "output, or another tokenizer than the policy",
            hint="critic = 'policy' starts from the policy's trunk",
        )
    fresh = Classifier.from_lm(model, 1, seed)
    with torch.no_grad():
        fresh.head.weight.mul_(1.0 if head_scale is None else head_scale)
    return RewardModel(fresh)


def _fits(reward: RewardModel, model: OpenLM) -> bool:
    """Whether a reward model has one output and the policy's tokenizer (the same id for every token)."""
    theirs, ours = reward.classifier.tokenizer.get_vocab(), model.tokenizer.get_vocab()
    return reward.classifier.heads == 1 and bool(theirs == ours)


def values(critic: RewardModel, packed: Packed) -> Values:
    """Values of the replies in ``packed``; gradients as the caller set them. One pass of the trunk."""
    both = replace(packed, before=torch.cat([packed.before, packed.last]))
    raw = critic.classifier.head(states(critic.classifier.backbone, both)).squeeze(-1).float()
    scaled, tokens = (raw - critic.means[0]) / critic.scales[0], len(packed.targets)
    return Values(spread(scaled[:tokens], packed), scaled[tokens:])


@torch.no_grad()
def read_values(critic: RewardModel, rolled: Rollouts, bf16: bool = False) -> Values:
    """The values of all replies, in passes of a bounded number of tokens."""
    device, shared = critic.classifier.device, not shares(critic.classifier.module)
    before, after = torch.zeros_like(rolled.behaviour, device=device), torch.zeros(len(rolled), device=device)
    for part in cuts(rolled, range(len(rolled.branches.prompts)), shared, PASS[device.type == "cpu"]):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            some = values(critic, pack(rolled.of(part), shared=shared, device=device))
        rows = rolled.rows(part)
        before[rows, : some.before.shape[1]], after[rows] = some.before, some.after
    return Values(before, after)
