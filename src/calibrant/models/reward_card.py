"""The calibration card of a reward model, on held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibrant.core import Estimate, digest, unknown
from calibrant.data.rows import Pair
from calibrant.models.reward_model import Ensemble, RewardModel
from calibrant.stats import mean
from calibrant.stats.calibration import brier, calibration_error, length_slope, pair_accuracy, temperature

NAMES = ("held_out_accuracy", "ece", "brier", "temperature", "length_slope", "disagreement")
"""What the card says; the last one of several members only."""


def calibration(made: RewardModel | Ensemble, rows: Sequence[Pair]) -> dict[str, Estimate]:
    """The card on ``rows``, by name; every number unknown without rows. Shared prompts are clusters.

    A pair's margin is the mean of the members' raw margins: log-odds, as they were trained.
    """
    scales = _scales(made)
    if not rows:
        names = NAMES if len(scales) > 1 else NAMES[:-1]
        return {name: unknown("no held-out pairs were given") for name in names}
    chats, half = [row.prompt for row in rows], len(rows)
    scores = made.score(chats + chats, [row.chosen for row in rows] + [row.rejected for row in rows])
    each = np.array(scores.members or (scores.mean,)) * np.array(scales)[:, None]
    margins = (each[:, :half] - each[:, half:]).mean(0).tolist()
    clusters = [digest(chat) for chat in chats]
    metrics = {
        "held_out_accuracy": pair_accuracy(margins, clusters=clusters),
        "ece": calibration_error(margins, clusters=clusters),
        "brier": brier(margins, clusters=clusters),
        "temperature": temperature(margins, clusters=clusters),
        "length_slope": length_slope(margins, _longer(made, rows), clusters=clusters),
    }
    if scores.std is not None:
        metrics["disagreement"] = mean(
            scores.std, clusters=clusters + clusters, better="none", unit="standard deviation between members"
        )
    return metrics


def _models(reward: RewardModel | Ensemble) -> list[RewardModel]:
    if isinstance(reward, RewardModel):
        return [reward]
    return [member for member in reward.rewards if isinstance(member, RewardModel)]


def _scales(reward: RewardModel | Ensemble) -> list[float]:
    """What each member's score is multiplied by to be in log-odds again."""
    return [scale for model in _models(reward) for scale in model.scales]


def _longer(reward: RewardModel | Ensemble, rows: Sequence[Pair]) -> list[float]:
    """Tokens by which each chosen reply is longer."""
    model, chats = _models(reward)[0].classifier, [row.prompt for row in rows]
    chosen = model.ids(chats, [row.chosen for row in rows])[1]
    rejected = model.ids(chats, [row.rejected for row in rows])[1]
    return [float(len(good) - len(bad)) for good, bad in zip(chosen, rejected, strict=True)]
