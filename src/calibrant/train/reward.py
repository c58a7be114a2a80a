"""Bradley-Terry reward models on preference pairs (Ouyang et al., 2203.02155).

Where this departs from common trainers:
1. A score is read at the end token, by position and not by padding (``models/classifier.py``).
2. One row holds a prompt and all its replies: the prompt is computed once, and so is a reply in several
   pairs.
3. All pairs of a prompt may count as one ranking: a ranking of 9 must not weigh as 36 pairs.
4. Ties are a separate input with a likelihood (Rao & Kupper); they are neither dropped nor halved.
5. The artefact includes template, end token, normaliser, and a calibration card.
6. A pair that does not fit the context is left out and counted, never truncated.

    calibrant show train.reward
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from calibrant.core import (
    ConfigError,
    Estimate,
    Frozen,
    OpenLM,
    Quiet,
    Result,
    Run,
    digest,
    point,
    technique,
)
from calibrant.data.rows import Pair, Preferences
from calibrant.maths.reward_losses import bradley_terry, centring, group_mean, tie
from calibrant.maths.rounding import negligible
from calibrant.models.branches import shares, tokenised
from calibrant.models.classifier import Classifier
from calibrant.models.fit import FIT_ALIASES, Fit, Plan, Share, batches_of, fit, last
from calibrant.models.fitting import dropped, fitting
from calibrant.models.folder import folder_identity
from calibrant.models.reward_card import calibration
from calibrant.models.reward_folder import Normaliser, RewardCard, reward_identity
from calibrant.models.reward_model import RewardModel
from calibrant.models.template_check import check_trainable
from calibrant.models.training_caveats import row_caveats, training_caveats

TIE_MARGIN = 0.5
"""Threshold of ties where none is set: equal replies tie with probability .24."""
_REFERENCE = 1000  # comparisons whose replies make the normaliser's reference set


class RewardConfig(Frozen):
    """Settings of a reward model."""

    aliases: ClassVar[Mapping[str, str]] = FIT_ALIASES | {
        "center_rewards_coefficient": "centring", "num_train_epochs": "epochs",
        "per_device_train_batch_size": "batch_size",
    }  # fmt: skip

    margin: float | None = Field(default=None, ge=0)
    """Log-odds by which a chosen reply must lead; with ties, the threshold of a tie. None: 0, or 0.5 with
    ties."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed share of pairs with swapped labels."""
    centring: float = Field(default=0.0, ge=0)
    """Weight of (r_w + r_l)^2, which keeps the arbitrary offset of the scores near 0; 0.01 is usual."""
    heads: int = Field(default=1, ge=1)
    """Heads on one trunk, each with its own initialisation; their disagreement is the reward's
    uncertainty."""
    bootstrap: bool = False
    """Each head trains on its own bootstrap sample of the comparisons."""
    unit: Literal["pair", "prompt"] = "pair"
    """What has weight 1: every pair, or all pairs of a prompt together (a ranking)."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs; reward models overfit early, so one is usual."""
    batch_size: int = Field(default=16, ge=1)
    """Units in one step."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest prompt plus reply in tokens; longer pairs are left out and counted. None: the context."""
    fit: Fit = Fit(lr=3e-4)
    """The optimiser."""


class RewardResult(Result):
    """The reward, also saved as artefact 'reward'; every comparison at every step in 'examples.parquet'."""

    reward: Any = Field(exclude=True)
    """The Reward, live, under the identity of its folder."""


@technique(version=3)
def reward(
    model: OpenLM,
    pairs: Preferences,
    held_out: Preferences | None = None,
    ties: Preferences | None = None,
    config: RewardConfig = RewardConfig(),
    run: Run = Quiet(),
) -> RewardResult:
    """Train a reward model on the trunk of ``model``, which is copied and not changed.

    ``held_out`` pairs make the calibration card. ``ties`` are pairs labelled equally good.

    Raises:
        ConfigError: ties with a margin of 0, under which nothing can be a tie. InputError: there are no
        pairs, or none fits the context. CapabilityError: transformers has no classifier of the model's
        family, or the model's chat template renders an answered chat differently. NumericalError: the loss
        became NaN or infinite.
    """
    task = prepared(model, pairs, ties, config)
    classifier = Classifier.from_lm(model, config.heads, run.seed)
    steps = descend(classifier, task, config, run.seed, run)
    reward_model = RewardModel(classifier, normaliser(classifier, task))
    figures = calibration(reward_model, held_out_rows(model, held_out, config))
    kind: Literal["heads", "single"] = "heads" if config.heads > 1 else "single"
    card = RewardCard(kind=kind, members=config.heads, calibration=figures)
    saved = stored(reward_model, run.artifact("reward"), card, f"reward on {model.identity.name}")
    return RewardResult(
        reward=saved,
        metrics={
            **figures,
            "loss_last": point(last(steps, "loss"), unit="nats, mean of the last 10 steps"),
            "train_accuracy": point(last(steps, "accuracy"), unit="share of pairs, last 10 steps"),
            "train_margin": point(last(steps, "margin"), unit="log-odds, last 10 steps"),
            "dropped_for_length": task.dropped,
        },
        caveats=caveats(task, classifier, held_out, config.fit.bf16),
    )


class Comparison(NamedTuple):
    """A prompt, its different replies, and which of them were compared."""

    id: str
    """Of the pair, or of the first pair of the prompt."""
    prompt: list[int]
    """Token ids."""
    replies: list[list[int]]
    """Token ids, end token included."""
    better: list[tuple[int, int]]
    """Places in ``replies`` of chosen and rejected."""
    wrong: list[float]
    """How likely each of these labels is wrong: 1 - ``chosen_probability``."""
    equal: list[tuple[int, int]]
    """Places of replies that were called equal."""


@dataclass(frozen=True)
class Task:
    """What is learned from, ready to be read."""

    data: list[Comparison]
    key: str
    """Digest of model, data and config."""
    reference: str
    """Digest of the pairs."""
    margin: float
    dropped: Estimate
    prompts: frozenset[str]
    """Digests of the prompts."""

    def steps(self, config: RewardConfig) -> int:
        """How many steps the training takes."""
        return config.epochs * math.ceil(len(self.data) / config.batch_size)


def prepared(model: OpenLM, pairs: Preferences, ties: Preferences | None, config: RewardConfig) -> Task:
    """Comparisons of the rows that fit, and the margin that they are learned with."""
    check_trainable(model, config.fit.any_template)
    if ties is not None and config.margin == 0:
        raise ConfigError(
            "ties are impossible with margin = 0, and ties were given",
            hint=f"leave margin out ({TIE_MARGIN} is taken), or set it above 0",
        )
    fitted = [fitting(model, t, lambda row: [row.chosen, row.rejected], config.max_length)
            for t in (pairs, ties) if t is not None]  # fmt: skip
    won, tied = fitted[0], fitted[1] if ties is not None else []
    everything = Preferences(rows=(*pairs.rows, *(ties.rows if ties is not None else ())))
    margin = (TIE_MARGIN if ties is not None else 0.0) if config.margin is None else config.margin
    return Task(
        data=_compared(model, won, tied, by_prompt=config.unit == "prompt"),
        key=digest([config, everything.digest, len(pairs), model.identity.digest]),
        reference=pairs.digest,
        margin=margin,
        dropped=dropped(everything, [*won, *tied]),
        prompts=frozenset(digest(row.prompt) for row in (*won, *tied)),
    )


def descend(
    classifier: Classifier, task: Task, config: RewardConfig, seed: int, run: Run
) -> list[dict[str, float]]:
    """Train ``classifier`` in place; a row a step. Order and bootstrap follow ``seed``."""
    data, device = task.data, classifier.device
    weights = _weights(len(data), config, seed).to(device)

    def loss(part: list[int], whole: list[int]) -> Share:
        some = [data[i] for i in part]
        scores = classifier.read(*_flat(some))
        first, second, owner, tied = (column.to(device) for column in _places(some))
        one, two = scores[first], scores[second]
        each = bradley_terry(one, two, task.margin, _wrong(some, config.label_smoothing, device))
        if any(c.equal for c in some):
            each = torch.where(tied[:, None], tie(one, two, task.margin), each)
        if config.centring:
            each = each + config.centring * centring(one, two)
        by_unit = group_mean(each, owner, len(some))
        total = (by_unit * weights[part]).sum() / (config.heads * len(whole))
        wins = max(1, sum(len(data[i].better) for i in whole))
        metrics = _noted(one[~tied].detach(), two[~tied].detach(), wins)
        rows = {
            "chosen_score": group_mean(one.mean(1), owner, len(some)),
            "rejected_score": group_mean(two.mean(1), owner, len(some)),
            "loss": by_unit.mean(1),
            "tokens": torch.tensor([_tokens(c) for c in some]),
        }
        return Share(total, metrics, rows)

    plan = Plan(
        batches_of(len(data), config.batch_size, config.epochs, seed),
        key=digest([task.key, seed]),
        names=[c.id for c in data],
        costs=[_tokens(c) for c in data],
        size=lambda part: classifier.tokens(*_flat([data[i] for i in part])),
    )
    return fit(classifier.module, plan, loss, config.fit, run)


def normaliser(classifier: Classifier, task: Task) -> Normaliser:
    """Mean and deviation of each head's raw scores on the replies of the first comparisons."""
    some = task.data[:_REFERENCE]
    exact = classifier.read_all(*_flat(some)).double()
    spread = exact.std(0, correction=1 if len(exact) > 1 else 0)
    return Normaliser(
        mean=tuple(exact.mean(0).tolist()),
        # All alike, but for rounding: nothing to scale by.
        std=tuple(torch.where(negligible(spread, exact.abs().amax(0)), 1.0, spread).tolist()),
        n=len(exact),
        data=task.reference,
    )


def stored(reward_model: RewardModel, folder: Path, card: RewardCard, name: str) -> RewardModel:
    """Save as ``folder`` and return it under that folder's identity, with the card as it was written."""
    classifier = reward_model.classifier
    whole = card.model_copy(
        update={
            "normaliser": reward_model.normaliser,
            "end_id": classifier.chat_tokens.end_id,
            "template": classifier.identity.parts["template"],
        }
    )
    reward_model.save(folder, whole)
    inner = folder_identity(folder, name=name).model_copy(update={"kind": "reward"})
    trained = Classifier(classifier.module, classifier.tokenizer, identity=inner)
    return RewardModel(
        trained, reward_model.normaliser, identity=reward_identity(folder, name=name), card=whole
    )


def held_out_rows(model: OpenLM, held_out: Preferences | None, config: RewardConfig) -> list[Pair]:
    """The held-out pairs that fit; [] without any."""
    if held_out is None:
        return []
    return fitting(model, held_out, lambda row: [row.chosen, row.rejected], config.max_length)


def caveats(task: Task, classifier: Classifier, held_out: Preferences | None, bf16: bool) -> tuple[str, ...]:
    """What a reward does not show."""
    alone = shares(classifier.module)
    rows = held_out.rows if held_out is not None else ()
    shared = [row for row in rows if digest(row.prompt) in task.prompts]
    return (
        "a reward is known where its pairs were: what training against it finds elsewhere may only look good",
        "accuracy is agreement with labels, so what the labels got wrong counts as right",
        *([f"{len(shared)} held-out pairs have a prompt that training pairs have, too"] if shared else []),
        *row_caveats(alone),
        *training_caveats(bf16, classifier.module),
    )


def _compared(
    model: OpenLM, won: Sequence[Pair], tied: Sequence[Pair], *, by_prompt: bool
) -> list[Comparison]:
    """Rows as comparisons: one each, or one a prompt."""
    rows = [*won, *tied]
    prompts, first = tokenised(model, [row.prompt for row in rows], [row.chosen for row in rows])
    _, second = tokenised(model, [row.prompt for row in rows], [row.rejected for row in rows])
    units: dict[Any, Comparison] = {}
    for number, row in enumerate(rows):
        key = tuple(prompts[number]) if by_prompt else number
        unit = units.setdefault(key, Comparison(row.id, prompts[number], [], [], [], []))
        for reply in (first[number], second[number]):
            if reply not in unit.replies:
                unit.replies.append(reply)
        places = unit.replies.index(first[number]), unit.replies.index(second[number])
        (unit.better if number < len(won) else unit.equal).append(places)
        if number < len(won):
            unit.wrong.append(1 - row.chosen_probability)
    return list(units.values())


def _flat(some: Sequence[Comparison]) -> tuple[list[list[int]], list[list[int]]]:
    """Prompt and reply of every reply, in order."""
    rows = [(c.prompt, reply) for c in some for reply in c.replies]
    return [prompt for prompt, _ in rows], [reply for _, reply in rows]


def _places(some: Sequence[Comparison]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of every compared pair (P,): row of its first and second reply in ``_flat``, its unit, whether tied."""
    rows, start = [], 0
    for number, c in enumerate(some):
        rows += [(start + i, start + j, number, 0) for i, j in c.better]
        rows += [(start + i, start + j, number, 1) for i, j in c.equal]
        start += len(c.replies)
    first, second, owner, tied = torch.tensor(rows).T
    return first, second, owner, tied == 1


def _wrong(some: Sequence[Comparison], smoothing: float, device: torch.device) -> Tensor | float:
    """Share of wrong labels, (P, 1): each pair's own beside ``smoothing``; one number where no label is
    soft."""
    if not any(any(c.wrong) for c in some):
        return smoothing
    own = torch.tensor([e for c in some for e in (*c.wrong, *(0.0 for _ in c.equal))], device=device)[:, None]
    return own * (1 - smoothing) + (1 - own) * smoothing


def _tokens(c: Comparison) -> int:
    return len(c.prompt) + sum(map(len, c.replies))


def _weights(units: int, config: RewardConfig, seed: int) -> Tensor:
    """(units, heads): how often each head's draw holds each unit; all 1 without bootstrap."""
    if not config.bootstrap:
        return torch.ones(units, config.heads)
    source = torch.Generator().manual_seed(seed)
    drawn = torch.randint(units, (units, config.heads), generator=source)
    return torch.zeros(units, config.heads).scatter_add_(0, drawn, torch.ones(units, config.heads))


def _noted(chosen: Tensor, rejected: Tensor, wins: int) -> dict[str, Tensor]:
    """Shares of what is logged every step, of (P, K) scores; a batch has ``wins`` pairs that are no ties."""
    gaps = (chosen - rejected).mean(1)
    metrics = {
        "accuracy": ((gaps > 0).float() + 0.5 * (gaps == 0).float()).sum() / wins,
        "margin": gaps.sum() / wins,
        "mean_reward": ((chosen + rejected) / 2).mean(1).sum() / wins,
    }
    if chosen.shape[1] > 1:
        metrics["disagreement"] = (chosen - rejected).std(1).sum() / wins
    return metrics
