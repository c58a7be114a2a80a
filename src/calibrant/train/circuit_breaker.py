"""Circuit breakers by representation rerouting: harmful replies lose the states that they are written from.

Source: Zou et al. 2024, "Improving alignment and robustness with circuit breakers" (arXiv 2406.04313),
section 3 and algorithm 1; settings as in the authors' code (GraySwanAI/circuit-breakers).

    loss = c_s mean ReLU(cos(h, h0)) over harmful tokens + c_r mean ||h - h0|| over benign tokens

1. h is the residual stream behind a block of the trained model, h0 that of the model before. Harmful tokens
   are read at ``layers``, benign ones at every block up to the deepest of them. Means are over tokens and
   blocks; padding counts nowhere (in the authors' code it counts as a distance of 0).
2. c_s = alpha (1 - t / 2T) falls, c_r = alpha t / 2T rises, t = 1 ... T.
3. Nothing above the deepest of ``layers`` is trained: no gradient comes there.
4. Prompt and reply are joined on token ids. A row that does not fit is left out and counted, never truncated.

    calibrant show train.circuit_breaker
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from calibrant.core import (
    CapabilityError,
    ConfigError,
    InputError,
    OpenLM,
    Quiet,
    Run,
    digest,
    point,
    technique,
)
from calibrant.data.rows import Example, Examples
from calibrant.maths.rerouting import alignment, distance, weights
from calibrant.models.branches import Branches, Packed, pack, padded_tokens, shares, states, tokenised
from calibrant.models.fit import FIT_ALIASES, Fit, Plan, Share, batches_of, fit, last
from calibrant.models.fitting import dropped, fitting
from calibrant.models.hooks import captured
from calibrant.models.lora import LoRA, adapted
from calibrant.models.sites import places
from calibrant.models.template_check import check_trainable
from calibrant.models.training_caveats import training_caveats
from calibrant.train._settings import Settings
from calibrant.train._tuned import Tuned, save_tuned

_AT = (10 / 32, 20 / 32)
"""Shares of the depth behind which the authors read Llama 3 8B and Mistral 7B: blocks 10 and 20 of 32."""


class CircuitBreaker(Settings):
    """Settings of representation rerouting; the defaults are the authors' for Llama 3 8B."""

    aliases: ClassVar[Mapping[str, str]] = FIT_ALIASES | {
        "max_steps": "steps", "per_device_train_batch_size": "batch_size", "lorra_alpha": "alpha",
        "target_layers": "layers", "lora_r": "lora.r", "lora_alpha": "lora.alpha",
    }  # fmt: skip

    steps: int = Field(default=150, ge=1)
    """T, optimiser steps; rows are drawn anew, in another order, as often as it takes."""
    batch_size: int = Field(default=16, ge=1)
    """Rows of each of the two sets in one step."""
    alpha: float = Field(default=10.0, ge=0)
    """Weight of the whole loss: AdamW is nearly invariant to it, gradient clipping is not. At 0 nothing is
    learned."""
    retain_weight: float = Field(default=1.0, ge=0)
    """Factor of c_r; the paper has 1. Distances grow with the norm of a model's states and cosines do not, so
    states of a norm of 100 need about .01."""
    layers: tuple[int, ...] | None = None
    """Blocks, from 0, behind which harmful states are rerouted. None: at 10/32 and 20/32 of the depth."""
    tokens: Literal["reply", "all"] = "reply"
    """Tokens of a harmful row that are rerouted: its reply, or its request too, as in the authors' code. Of
    benign rows all tokens are held."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest prompt plus reply in tokens; longer rows are left out and counted. None: the context."""
    lora: LoRA = LoRA(r=16, alpha=16)
    """The adapters; the saved model has them merged."""
    start: float = Field(default=0.01, ge=0)
    """Standard deviation of the adapters' B at the start. At 0 the trained states are those before, where a
    cosine has no gradient, and rounding alone sets off the training."""
    fit: Fit = Fit(lr=1e-4, schedule="constant", warmup=0.0)
    """The optimiser."""

    def contradictions(self) -> list[str]:
        """Layers that are no set of blocks."""
        problems = super().contradictions()
        if self.layers is not None and not self.layers:
            problems.append("layers names no block; leave it out for those of the paper")
        if self.layers and (min(self.layers) < 0 or len(set(self.layers)) < len(self.layers)):
            problems.append(f"layers = {list(self.layers)}: give different numbers of blocks, from 0")
        return problems


class CircuitBreakerResult(Tuned):
    """The fine-tuned model, also saved as artefact 'model'; every row at every step in 'examples.parquet'."""


class _Draw(NamedTuple):
    """One row at one step."""

    step: int
    harmful: bool
    prompt: list[int]
    reply: list[int]
    counted: int
    """Tokens whose states count: the last ones of the row."""
    name: str


@technique(version=1)
def circuit_breaker(
    model: OpenLM,
    harmful: Examples,
    retain: Examples,
    config: CircuitBreaker = CircuitBreaker(),
    run: Run = Quiet(),
) -> CircuitBreakerResult:
    """Fine-tune a copy of ``model``; ``model`` itself gives the states before, and is not changed.

    Args:
        model: local weights.
        harmful: harmful requests with the replies that must not be written.
        retain: benign requests with good replies, and refusals where the model refuses already.
        config: see ``CircuitBreaker``.
        run: where artefacts and logs go.

    Raises:
        InputError: a set has no rows, none that fits the context, or rows that are in the other, too.
        ConfigError: the model has no such block.
        CapabilityError: its blocks were not found, its chat template renders an answered chat differently,
            or it is not causal.
        NumericalError: the loss became NaN or infinite.
    """
    check_trainable(model, config.fit.any_template)
    shares(model.module)  # refuses what is not causal
    chosen = _layers(model.module, config.layers)
    sites = [f"blocks.{block}.hook_resid_post" for block in range(max(chosen) + 1)]
    _check_apart(harmful, retain)
    kept = {kind: _fitting(model, table, config, kind) for kind, table in _sets(harmful, retain)}
    draws, batches = _drawn(model, kept, config, run.seed)
    policy = adapted(model.copy(), config.lora, run.seed)
    _nudge(policy.module, config.start, run.seed)
    device = next(policy.module.parameters()).device

    def loss(part: list[int], whole: list[int]) -> Share:
        some = [draws[i] for i in part]
        packed = pack(_branches(some), shared=False, device=device)
        now = _states(policy.module, packed, sites)
        with torch.no_grad():
            before = _states(model.module, packed, sites)
        terms = [_term(now, before, chosen, row, one) for row, one in enumerate(some)]
        counts = [sum(draws[i].counted for i in whole if draws[i].harmful == kind) for kind in (True, False)]
        means = {
            "alignment": _share(some, [term.sum() / len(chosen) for term, _ in terms], True, counts[0]),
            "distance": _share(some, [term.sum() / len(sites) for term, _ in terms], False, counts[1]),
            "relative_distance": _share(some, [ratio for _, ratio in terms], False, counts[1]),
        }
        push, hold = weights(some[0].step + 1, config.steps, config.alpha)
        rows = {
            "term": torch.stack([term.mean() for term, _ in terms]),
            "tokens": torch.tensor([one.counted for one in some]),
        }
        return Share(push * means["alignment"] + config.retain_weight * hold * means["distance"], means, rows)

    plan = Plan(
        batches,
        key=digest([config, harmful.digest, retain.digest, model.identity.digest]),
        names=[one.name for one in draws],
        costs=[len(one.prompt) + len(one.reply) for one in draws],
        size=lambda part: padded_tokens(_branches([draws[i] for i in part]), shared=False),
    )
    steps = fit(policy.module, plan, loss, config.fit, run)
    tuned = save_tuned("circuit_breaker", model, policy, run)
    return CircuitBreakerResult(
        model=tuned,
        metrics={
            "alignment_first": point(steps[0]["alignment"], unit="ReLU of a cosine"),
            "alignment_last": point(
                last(steps, "alignment"), unit="ReLU of a cosine, mean of the last 10 steps"
            ),
            "distance_last": point(last(steps, "distance"), unit="L2 norm, mean of the last 10 steps"),
            "relative_distance_last": point(
                last(steps, "relative_distance"), unit="of the norm before, mean of the last 10 steps"
            ),
            "dropped_for_length/harmful": dropped(harmful, kept["harmful"]),
            "dropped_for_length/retain": dropped(retain, kept["retain"]),
        },
        caveats=(
            "that states moved apart does not show that harm fell: attack the model, with goals held out",
            "a rerouted reply is often no refusal but broken text, also to benign requests that look alike",
            "who has the weights gets round it: embedding attacks on the authors' models reach about 100 %",
            *training_caveats(config.fit.bf16, model.module, tuned.module),
        ),
    )


def _nudge(module: nn.Module, size: float, seed: int) -> None:
    """Draw the adapters' B, which LoRA starts at 0."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if size and ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=source) * size)


def _layers(module: nn.Module, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """Blocks in order; refuses what the model does not have."""
    depth = sum(site.endswith(".hook_resid_post") for site in places(module))
    if not depth:
        raise CapabilityError(
            f"no blocks were found in {type(module).__name__}", hint="take a model of another family"
        )
    found = {max(1, round(share * depth)) - 1 for share in _AT} if wanted is None else set(wanted)
    if max(found) >= depth:
        raise ConfigError(
            f"layers = {sorted(found)}: the model has {depth} blocks", hint=f"name some of 0 to {depth - 1}"
        )
    return tuple(sorted(found))


def _sets(harmful: Examples, retain: Examples) -> tuple[tuple[str, Examples], ...]:
    return ("harmful", harmful), ("retain", retain)


def _check_apart(harmful: Examples, retain: Examples) -> None:
    both = {(row.prompt, row.completion) for row in harmful} & {(r.prompt, r.completion) for r in retain}
    if both:
        raise InputError(
            f"{len(both)} rows are in both 'harmful' and 'retain'",
            hint="pairs are read by their chosen replies: give the harmful replies themselves as 'harmful'",
        )


def _fitting(model: OpenLM, table: Examples, config: CircuitBreaker, kind: str) -> list[Example]:
    named = table if table.source else table.model_copy(update={"source": kind})
    return fitting(model, named, lambda row: [row.completion], config.max_length)


def _drawn(
    model: OpenLM, kept: Mapping[str, Sequence[Example]], config: CircuitBreaker, seed: int
) -> tuple[list[_Draw], list[list[int]]]:
    """The rows of every step, numbered through, so that a number tells its step; and the steps' numbers."""
    draws: list[_Draw] = []
    batches: list[list[int]] = [[] for _ in range(config.steps)]
    for kind, rows in kept.items():
        ids = list(
            zip(*tokenised(model, [r.prompt for r in rows], [r.completion for r in rows]), strict=True)
        )
        passes = -(-config.steps // -(-len(rows) // config.batch_size))
        order = batches_of(len(rows), config.batch_size, passes, seed)
        for step in range(config.steps):
            for row in order[step]:
                batches[step].append(len(draws))
                prompt, reply = ids[row]
                whole = kind == "retain" or config.tokens == "all"
                counted = len(reply) + (len(prompt) if whole else 0)
                draws.append(_Draw(step, kind == "harmful", prompt, reply, counted, f"{kind}/{rows[row].id}"))
    return draws, batches


def _branches(some: Sequence[_Draw]) -> Branches:
    return Branches([one.prompt for one in some], [[one.reply] for one in some])


def _states(module: nn.Module, packed: Packed, sites: Sequence[str]) -> Tensor:
    """(sites, B, T, D) residual streams of one pass."""
    with captured(module, sites) as seen:
        states(getattr(module, "base_model", module), packed)
    return torch.stack([seen[site] for site in sites])


def _term(
    now: Tensor, before: Tensor, chosen: tuple[int, ...], row: int, draw: _Draw
) -> tuple[Tensor, Tensor]:
    """(blocks, tokens) what each counted state of a row adds: its alignment, or its distance.

    And the distance as a share of the norm before, summed over tokens; of a harmful row too.
    """
    end = len(draw.prompt) + len(draw.reply)
    span = slice(end - draw.counted, end)
    new, old = now[:, row, span], before[:, row, span]
    apart = distance(new, old)
    ratio = (apart.detach() / torch.linalg.vector_norm(old.float(), dim=-1)).mean(0).sum()
    if draw.harmful:
        return alignment(new[list(chosen)], old[list(chosen)]), ratio
    return apart, ratio


def _share(some: Sequence[_Draw], sums: Sequence[Tensor], harmful: bool, tokens: int) -> Tensor:
    """What some rows add to the mean over all ``tokens`` of their kind."""
    mine = [value for one, value in zip(some, sums, strict=True) if one.harmful == harmful]
    return torch.stack(mine).sum() / tokens if mine else sums[0].new_zeros(())
