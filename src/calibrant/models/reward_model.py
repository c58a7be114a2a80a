"""Rewards: a trained model, an ensemble, conservative scoring of one, and a plain Python function.

Each has ``score(chats, replies) -> Scores(mean, std, members)``, so that best-of-n, PPO, RLOO, GRPO and
online DPO take any of them. ``std`` is the unbiased standard deviation between members (n - 1 in the
denominator), None where there is one member.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from calibrant.core import (
    CapabilityError,
    Chat,
    Frozen,
    Identity,
    InputError,
    NumericalError,
    Reward,
    Scores,
    digest,
)
from calibrant.core.behaviours import same_length
from calibrant.models.classifier import Classifier
from calibrant.models.loading import Dtype
from calibrant.models.reward_folder import (
    POOLED,
    Normaliser,
    RewardCard,
    ensemble_identity,
    member_folders,
    normaliser_part,
    read_card,
    reward_identity,
    write_card,
)
from calibrant.models.template_check import Differences

Objective = Literal["mean", "worst_case", "uncertainty_weighted", "lower_bound", "median"]
_WEIGHTS = {"uncertainty_weighted": 0.5, "lower_bound": 1.0}


class RewardModel:
    """A classifier whose scores are normalised; K heads are K members."""

    def __init__(
        self,
        classifier: Classifier,
        normaliser: Normaliser | None = None,
        *,
        identity: Identity | None = None,
        card: RewardCard | None = None,
    ) -> None:
        """``identity`` is worked out where it is not given; ``card`` is what the folder says, if any.

        Raises:
            InputError: the normaliser has not one finite mean and one std above 0 for every head.
        """
        self.classifier, self.normaliser, self.card = classifier, normaliser, card
        scaling = normaliser or Normaliser(mean=(0.0,) * classifier.heads, std=(1.0,) * classifier.heads)
        fits = len(scaling.mean) == len(scaling.std) == classifier.heads
        if not fits or min(scaling.std) <= 0 or not np.isfinite([*scaling.mean, *scaling.std]).all():
            raise InputError(
                f"a normaliser with means {scaling.mean} and deviations {scaling.std} does not fit "
                f"{classifier.heads} heads",
                hint="give each head one mean and one standard deviation above 0",
            )
        self.means, self.scales = scaling.mean, scaling.std
        parts = {**classifier.identity.parts, "normaliser": normaliser_part(normaliser)}
        parts |= {"read_at": POOLED} if classifier.pooled else {}
        self.identity = identity or Identity(name=classifier.identity.name, kind="reward", parts=parts)

    @property
    def template_differences(self) -> Differences:
        """Where the chat template writes an answered chat otherwise than as prompt, reply, end token."""
        return self.classifier.chat_tokens.differences

    def score(self, chats: Sequence[Chat], replies: Sequence[str]) -> Scores:
        """Score each reply, read as a finished one, at its end token.

        Raises:
            InputError: a row longer than the context, a chat without turns, lists of different length.
            NumericalError: a score is NaN or infinite.
        """
        raw = self.classifier.read_all(*self.classifier.ids(chats, replies)).double().numpy()
        return _combined(((raw - self.means) / self.scales).T)

    def save(self, path: str | Path, card: RewardCard) -> None:
        """Write weights, tokenizer and card to a folder that ``open_reward`` opens."""
        self.classifier.save(path)
        write_card(Path(path), card)


class Ensemble:
    """Several rewards asked together; a member that has members of its own brings them all."""

    def __init__(self, rewards: Sequence[Reward], *, identity: Identity | None = None) -> None:
        """Raises InputError for fewer than two rewards."""
        if len(rewards) < 2:
            raise InputError(
                f"an ensemble of {len(rewards)} has no one to disagree with", hint="give two or more"
            )
        self.rewards = tuple(rewards)
        named = f"ensemble of {len(rewards)}"
        self.identity = identity or ensemble_identity([r.identity.digest for r in rewards], named)

    def score(self, chats: Sequence[Chat], replies: Sequence[str]) -> Scores:
        """Mean, deviation and scores of all members."""
        same_length(chats=chats, replies=replies)
        results = [reward.score(chats, replies) for reward in self.rewards]
        return _combined(np.array([row for scores in results for row in (scores.members or (scores.mean,))]))


class Conservative:
    """A reward's members read with caution: the score is an objective of them (Coste et al., 2310.02743).

    - mean: the mean, as the reward has it.
    - worst_case (WCO): the smallest member.
    - uncertainty_weighted (UWO): mean - weight x variance, unbiased (Coste et al. use both kinds).
    - lower_bound: mean - weight x standard deviation.
    - median: the median.
    """

    def __init__(self, reward: Reward, objective: Objective, weight: float | None = None) -> None:
        """``weight``: None is 0.5 for uncertainty_weighted and 1 for lower_bound; the others take none.

        Raises:
            InputError: a weight for an objective that has none, or below 0.
        """
        if weight is not None and (objective not in _WEIGHTS or not weight >= 0):
            raise InputError(
                f"objective '{objective}' takes no weight {weight!r}",
                hint=f"a weight of 0 or more belongs to {' or '.join(_WEIGHTS)}",
            )
        self.reward, self.objective = reward, objective
        self.weight = _WEIGHTS.get(objective, 0.0) if weight is None else weight
        self.identity = Identity(
            name=f"{objective} of {reward.identity.name}",
            kind="reward",
            parts={"reward": reward.identity.digest, "objective": objective, "weight": repr(self.weight)},
        )

    def score(self, chats: Sequence[Chat], replies: Sequence[str]) -> Scores:
        """The objective as ``mean``; ``std`` and ``members`` are the reward's own.

        Raises:
            CapabilityError: the reward has no members to be cautious about.
        """
        scores = self.reward.score(chats, replies)
        if self.objective == "mean":
            return scores
        members = scores.members
        if members is None or len(members) < 2:
            raise CapabilityError(
                f"'{self.reward.identity.name}' has no members, so '{self.objective}' has nothing to read",
                hint="take an ensemble: train.reward_ensemble, heads of train.reward, or Ensemble([...])",
            )
        return scores.model_copy(update={"mean": tuple(self._read(np.array(members)).tolist())})

    def _read(self, members: NDArray[np.float64]) -> NDArray[np.float64]:
        """The objective (N,) of scores (M, N)."""
        if self.objective == "worst_case":
            return np.asarray(members.min(0))
        if self.objective == "median":
            return np.asarray(np.median(members, 0))
        power = 2 if self.objective == "uncertainty_weighted" else 1
        return np.asarray(members.mean(0) - self.weight * members.std(0, ddof=1) ** power)


class ConservativeConfig(Frozen):
    """How cautiously a reward with several members is read."""

    objective: Objective = "uncertainty_weighted"
    """mean, worst_case (WCO), uncertainty_weighted (UWO), lower_bound or median."""
    weight: float | None = Field(default=None, ge=0)
    """Of the variance (UWO; None: 0.5) or the standard deviation (lower_bound; None: 1). Others take none."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> ConservativeConfig:
        if self.weight is not None and self.objective not in _WEIGHTS:
            raise ValueError(f"objective '{self.objective}' takes no weight")
        return self


class PythonReward:
    """A plain function ``f(chats, replies) -> scores`` as a reward."""

    def __init__(
        self, fn: Callable[[Sequence[Chat], Sequence[str]], Sequence[float]], name: str = ""
    ) -> None:
        """``name`` is for people (default: the function's own); the identity follows the source text."""
        self.fn = fn
        named = f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', repr(fn))}"
        try:
            source = digest(inspect.getsource(fn))
        except (OSError, TypeError):  # typed at a prompt, built in, or a callable object
            source = ""
        self.identity = Identity(
            name=name or named, kind="reward", parts={"function": named, "source": source, "name": name}
        )

    def score(self, chats: Sequence[Chat], replies: Sequence[str]) -> Scores:
        """What the function says.

        Raises:
            InputError: it raised, or did not give one number a reply.
            NumericalError: a number is NaN or infinite.
        """
        same_length(chats=chats, replies=replies)
        if not replies:
            return Scores(mean=())
        try:
            values = [float(value) for value in self.fn(chats, replies)]
        except Exception as error:
            raise InputError(
                f"the reward function '{self.identity.name}' failed on {len(replies)} replies: "
                f"{type(error).__name__}: {error}",
                hint="it takes a list of Chat and a list of replies, and returns one number a reply",
            ) from error
        if len(values) != len(replies):
            raise InputError(
                f"the reward function '{self.identity.name}' gave {len(values)} scores for "
                f"{len(replies)} replies",
                hint="return one number a reply, in the same order",
            )
        for row, value in enumerate(values):
            if not np.isfinite(value):
                raise NumericalError(
                    f"row {row}: the reward '{self.identity.name}' gave {value}",
                    hint="find out why the score broke",
                )
        return Scores(mean=tuple(values))


def open_reward(
    path: str | Path, *, name: str = "", dtype: Dtype = "float32", device: str = "cpu"
) -> RewardModel | Ensemble:
    """Open a reward's folder, or a classifier saved by others: see ``reward_folder`` for what lies in it.

    Raises:
        InputError: no reward in it, weights or tokenizer that do not fit its card, pickled weights.
        CapabilityError: the model is no decoder.
    """
    folder = Path(path)
    identity = reward_identity(folder, name=name, dtype=dtype)
    card = read_card(folder)
    if card is not None and card.kind == "independent":
        members = [open_reward(m, dtype=dtype, device=device) for m in member_folders(folder, card)]
        _check_same(identity, ensemble_identity([m.identity.digest for m in members], identity.name), folder)
        return Ensemble(members, identity=identity)
    # Without a card it is somebody else's, trained to be read where transformers reads.
    classifier = Classifier.from_folder(folder, name=name, dtype=dtype, device=device, pooled=card is None)
    if card is not None and card.end_id not in (None, classifier.chat_tokens.end_id):
        raise InputError(
            f"'{folder}' was trained to read token {card.end_id}, but its tokenizer ends replies with "
            f"{classifier.chat_tokens.end_id}",
            hint="tokenizer and weights must come from the same save",
        )
    model = RewardModel(classifier, card.normaliser if card else None, card=card)
    _check_same(identity, model.identity, folder)
    model.identity = identity
    return model


def _check_same(named: Identity, current: Identity, folder: Path) -> None:
    if named.digest != current.digest:
        raise InputError(
            f"a file in '{folder}' was changed while the reward was opened",
            hint="wait until whatever writes there has finished, then open it again",
        )


def _combined(members: NDArray[np.float64]) -> Scores:
    """Mean and deviation of each reply over members (M, N)."""
    if len(members) == 1:
        return Scores(mean=tuple(members[0].tolist()))
    return Scores(
        mean=tuple(members.mean(0).tolist()),
        std=tuple(members.std(0, ddof=1).tolist()),
        members=tuple(tuple(row) for row in members.tolist()),
    )
