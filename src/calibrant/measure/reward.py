"""Mean reward of a model's samples, and their KL divergence from a reference policy.

Reward alone says little: a policy optimised against a learned reward first gains true reward, then loses it
(Gao et al., 2210.10760). So the distance KL(model || reference) is measured too, by k1 = ln pi - ln ref
summed over each reply and averaged over samples of the model: unbiased, in nats.

    calibrant run kl_sweep
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from calibrant.core import (
    Estimate,
    Frozen,
    InputError,
    OpenLM,
    Quiet,
    Result,
    Reward,
    Run,
    Sampling,
    point,
    technique,
)
from calibrant.core import unknown as not_known
from calibrant.data.distinct import normal_chat
from calibrant.data.parquet import write_columns
from calibrant.data.rows import Prompt, Prompts
from calibrant.models.branches import Branches
from calibrant.models.reference import branch_sums, reference_sums
from calibrant.stats import mean


class RewardConfig(Frozen):
    """How replies are sampled."""

    samples: int = Field(default=4, ge=1)
    """Replies to each prompt."""
    sampling: Sampling = Sampling(max_tokens=48, temperature=1.0)
    """How replies are sampled. At another temperature than 1 the KL is that of the tempered distribution."""


class RewardResult(Result):
    """Mean reward and KL with intervals; every reply is in the artefact 'samples.parquet'."""


@technique(version=3)
def reward(
    model: OpenLM,
    prompts: Prompts,
    reward: Reward,
    reference: OpenLM | None = None,
    config: RewardConfig = RewardConfig(),
    run: Run = Quiet(),
) -> RewardResult:
    """Sample replies, score them, and measure their KL from ``reference``.

    Raises:
        InputError: there are no prompts, a reply cannot be sampled, or the temperature is 0 (no sampling).
    """
    if not prompts.rows:
        raise InputError("there are no prompts", hint="give at least one")
    if config.sampling.temperature <= 0:
        raise InputError("temperature 0 draws nothing", hint="set sampling.temperature above 0, mostly 1")
    rows = [row for row in prompts for _ in range(config.samples)]
    sampling = config.sampling.model_copy(update={"seed": config.sampling.seed + run.seed})
    run.spend(queries=len(rows))
    replies = model.generate([row.prompt for row in rows], sampling)
    if broken := next((reply for reply in replies if reply.stop == "error"), None):
        raise InputError(f"a reply could not be sampled: {broken.error}", hint="check prompts and model")
    run.spend(tokens=sum(len(reply.ids or ()) for reply in replies))
    scores = reward.score([row.prompt for row in rows], [reply.text for reply in replies])
    clusters = _clusters(rows)
    metrics: dict[str, Any] = {
        "reward": _mean(scores.mean, clusters, "higher", "reward, mean of replies"),
        "length": _mean([float(len(r.ids or ())) for r in replies], clusters, "none", "tokens"),
        "ended": point(
            sum(r.stop == "eos" for r in replies) / len(replies), unit="share of replies", n=len(replies)
        ),
    }
    if scores.std is not None:
        metrics["reward_std"] = _mean(scores.std, clusters, "lower", "reward")
    columns: dict[str, list[Any]] = {
        "id": [row.id for row in rows], "reward": list(scores.mean),
        "tokens": [len(r.ids or ()) for r in replies], "reply": [r.text for r in replies],
    }  # fmt: skip
    if reference is not None:
        columns["kl"] = _distance(model, reference, [row.prompt for row in rows], replies, config, run)
        metrics["kl"] = _mean(columns["kl"], clusters, "none", "nats a reply, k1")
        metrics["sqrt_kl"] = _root(metrics["kl"].value)
    write_columns(run.artifact("samples.parquet"), columns)
    return RewardResult(
        metrics=metrics,
        caveats=(
            "the reward is a proxy: compare with a held-out reward",
            "replies were sampled at one temperature; a greedy policy may earn another reward",
        ),
    )


def _clusters(rows: Sequence[Prompt]) -> list[str]:
    """Of each reply: the id of the first row that asks the same."""
    first: dict[object, str] = {}
    return [first.setdefault(normal_chat(row.prompt), row.id) for row in rows]


def _root(kl: float | None) -> Estimate:
    """The square root of a KL, by which over-optimisation is plotted; an estimate below 0 is noise around
    0."""
    if kl is None:
        return not_known("the KL is not known")
    return point(math.sqrt(max(0.0, kl)), unit="root nats")


def _mean(
    values: Sequence[float], clusters: list[str], better: Literal["higher", "lower", "none"], unit: str
) -> Estimate:
    """Mean over replies, prompts drawn whole; an interval has two ends or none."""
    value = mean(list(values), clusters=clusters, better=better, unit=unit)
    return (
        value if None not in (value.low, value.high) else value.model_copy(update={"low": None, "high": None})
    )


def _distance(
    model: OpenLM, reference: OpenLM, chats: list[Any], replies: list[Any], config: RewardConfig, run: Run
) -> list[float]:
    """k1 of each reply in nats: ln pi - ln ref of the very ids that were drawn."""
    prompts = [model.prompt_ids(chat) for chat in chats]
    if prompts != [reference.prompt_ids(chat) for chat in chats]:
        raise InputError(
            f"'{reference.identity.name}' reads prompts as other tokens than '{model.identity.name}'",
            hint="a reference has the tokenizer and chat template of the model that it is the start of",
        )
    branches = Branches(prompts, [[list(reply.ids)] for reply in replies])
    temperature = config.sampling.temperature
    own = branch_sums(model, branches, temperature)
    theirs = reference_sums(reference, branches, run, temperature)
    difference: torch.Tensor = own.double() - theirs.double()
    return [float(value) for value in difference]
