"""Conservative (pessimistic) scoring of a reward ensemble (Coste et al. 2023, arXiv 2310.02743).

    reward = { use = "train.conservative", config = { objective = "median" }, inputs = { reward = REWARD } }

A policy exploits what one member of an ensemble overrates (reward hacking). What all members score high, or
agree on, is harder to exploit. The objectives are those of ``models.reward_model.Conservative``.
"""

from __future__ import annotations

from calibrant.core import Reward
from calibrant.models.reward_model import Conservative, ConservativeConfig


def conservative(reward: Reward, config: ConservativeConfig = ConservativeConfig()) -> Reward:
    """A reward whose score is a conservative objective of another reward's members."""
    return Conservative(reward, config.objective, config.weight)
