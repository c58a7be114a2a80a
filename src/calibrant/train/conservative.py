"""A reward with several members, read with caution (Coste et al. 2023, arXiv 2310.02743).

    reward = { use = "train.conservative", config = { objective = "worst_case" }, inputs = { reward = "record:many/reward" } }

A policy finds what one member of an ensemble overrates. What all members must like, or what they agree on, is
harder to find. The objectives are those of ``models.reward_model.Conservative``.
"""  # noqa: E501

from __future__ import annotations

from calibrant.core import Reward
from calibrant.models.reward_model import Conservative, ConservativeConfig


def conservative(reward: Reward, config: ConservativeConfig = ConservativeConfig()) -> Reward:
    """A reward whose score is a cautious objective of another reward's members."""
    return Conservative(reward, config.objective, config.weight)
