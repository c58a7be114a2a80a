"""The one plain gradient loop: AdamW, warm-up, a schedule, clipping, and a stop at the first NaN.

A loss is given part of a batch and the whole of it, and returns its *share*: what this part adds. The shares
of all parts add up to the batch's loss, gradient and metrics, so it makes no difference how a batch is cut:
into micro-batches that fit the memory (``Fit.micro_tokens``) or among processes (``models/parallel.py``).

A killed loop goes on where its last checkpoint stands, and ends with the bits of a run that was never killed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from calibrant.core import CapabilityError, Frozen, InputError, NumericalError, Run, digest
from calibrant.data.parquet import write_columns
from calibrant.models.checkpoint import Checkpoint, optimiser_state, prefixed, restore_optimiser, under
from calibrant.models.parallel import World, add_up, everyone, world
from calibrant.models.precision import announce

_RECOMPUTE = partial(checkpoint, use_reentrant=False)
FIT_ALIASES = {
    "learning_rate": "fit.lr", "max_grad_norm": "fit.clip", "weight_decay": "fit.weight_decay",
    "warmup_ratio": "fit.warmup", "lr_scheduler_type": "fit.schedule", "adam_beta2": "fit.beta2",
    "adam_epsilon": "fit.eps", "gradient_checkpointing": "fit.recompute", "bf16": "fit.bf16",
}  # fmt: skip
"""``aliases`` of a config with a field ``fit``: what transformers and TRL call these settings."""


class Fit(Frozen):
    """How to descend."""

    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay, on matrices only."""
    beta2: float = Field(default=0.99, gt=0, lt=1)
    """Second-moment decay of AdamW."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment; Huang et al. (2403.17031) take 1e-5 for PPO."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the rate climbs from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate falls afterwards, to 0 at the end."""
    clip: float = Field(default=1.0, gt=0)
    """Largest L2 norm of the whole gradient."""
    bf16: bool = False
    """Run the forward pass under bfloat16 autocast; weights and optimiser stay float32. On a CPU without
    bfloat16 units (no AVX-512) it is some 80 times slower, and says so."""
    micro_tokens: int | None = Field(default=None, ge=1)
    """Most tokens in one forward pass, padding included; an example that takes more by itself is refused.
    None: the whole batch at once."""
    any_template: bool = False
    """Train although the chat template writes an answered chat otherwise than as prompt, reply, end token."""
    recompute: bool = False
    """Gradient checkpointing: keep one activation a layer and compute the rest again; slower, less memory."""


class Share(NamedTuple):
    """What one part adds to its batch."""

    loss: Tensor
    """Scalar; the sum over parts is what is descended."""
    metrics: Mapping[str, Tensor | float] = {}
    """Name -> this part's share of the batch's number, logged every step."""
    rows: Mapping[str, Tensor] = {}
    """Name -> one number an example of the part, (rows,): goes to the artefact 'examples.parquet'."""


Loss = Callable[[list[int], list[int]], Share]
"""(part, whole): numbers of the examples in this part and in the whole batch."""


@dataclass(frozen=True)
class Plan:
    """What a loop goes through."""

    batches: Sequence[list[int]]
    """Numbers of the examples of each step."""
    key: str
    """Digest of all that tells this training from another: config and data. A checkpoint carries it."""
    names: Sequence[str] = ()
    """Ids of the examples, for the log of examples."""
    costs: Sequence[int] = ()
    """Tokens of each example: what the budget is charged."""
    size: Callable[[list[int]], int] | None = None
    """Tokens that one pass over some examples reads, padding included: what micro-batches are cut by. None:
    the sum of their costs."""

    def tokens(self, part: list[int]) -> int:
        """Tokens that one pass over these examples reads."""
        if self.size is not None:
            return self.size(part)
        return sum(self.costs[i] for i in part) if self.costs else len(part)


def rate(config: Fit, step: int, total: int) -> float:
    """Learning rate at ``step`` of ``total`` steps, counted from 0."""
    climb = max(1, round(config.warmup * total))
    if step < climb:
        return config.lr * (step + 1) / climb
    left = (total - step) / max(1, total - climb)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "linear":
        return config.lr * left
    return config.lr * 0.5 * (1 + math.cos(math.pi * (1 - left)))


def adamw(module: nn.Module, config: Fit) -> torch.optim.AdamW:
    """AdamW over what of ``module`` asks for gradients; decay on matrices only."""
    params = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), eps=config.eps)


@contextmanager
def training(module: nn.Module, recompute: bool = False) -> Iterator[None]:
    """Ask for gradients inside the block; on exit there are none, also after an exception.

    Adapters (parameters named 'lora_') are trained alone where there are any. Dropout stays off: it draws
    from the global generator, so no seed of ours could repeat it, and a policy with dropout would be compared
    with a reference without.
    """
    module.eval()
    adapters = any("lora_" in name for name, _ in module.named_parameters())
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not adapters or "lora_" in name)
    blocks = _blocks(module) if recompute else []
    for block in blocks:
        block.gradient_checkpointing, block._gradient_checkpointing_func = True, _RECOMPUTE
        block.training = True  # of the block alone, not of the dropout inside: what transformers looks at
    try:
        yield
    finally:
        for block in blocks:
            block.gradient_checkpointing = False
        module.eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None


def fit(module: nn.Module, plan: Plan, loss: Loss, config: Fit, run: Run) -> list[dict[str, float]]:
    """Take one step on each batch, in order; returns a row a step: loss, the metrics, grad_norm and lr.

    Raises:
        NumericalError: the loss or the gradient norm is NaN or infinite; names the step. The weights
            are those of the last good step.
        InputError: a checkpoint cannot be written, or an example takes more than ``config.micro_tokens``.
    """
    _check_fits(plan, config.micro_tokens)
    place, steps = world(), _Steps()
    announce(config.bf16, next(module.parameters()).device, run, len(plan.batches))
    with training(module, config.recompute):
        optimiser = adamw(module, config)
        store = Checkpoint(run.work / "fit.safetensors", _key(module, plan, config))
        start = _resume(store, module, optimiser, steps)
        for step, batch in enumerate(plan.batches):
            run.spend(tokens=sum(plan.costs[i] for i in batch) if plan.costs else 0)
            if step < start:
                continue
            for group in optimiser.param_groups:
                group["lr"] = rate(config, step, len(plan.batches))
            optimiser.zero_grad(set_to_none=True)
            parts = _parts(batch, plan, config.micro_tokens, place.size)
            shares = _shares(module, parts[place.rank :: place.size], batch, loss, config.bf16)
            row = _together(module, shares, config.clip, step, place)
            optimiser.step()
            steps.rows.append({**row, "lr": rate(config, step, len(plan.batches))})
            if place.first:
                run.log(step, **steps.rows[-1])
            if plan.names:
                steps.note(step, parts, shares, place)
            if place.first and store.due():
                _save(store, module, optimiser, steps, step + 1)
            run.progress(step + 1, len(plan.batches), f"loss {row['loss']:.3f}")
        if store.path.exists() and place.first:  # a long run: what follows must not cost it again
            _save(store, module, optimiser, steps, len(plan.batches))
    if plan.names and place.first:
        steps.write(run, plan.names)
    return steps.rows


def batches_of(n: int, size: int, epochs: int, seed: int) -> list[list[int]]:
    """Row numbers of each batch: every epoch is shuffled anew; the last batch of an epoch may be smaller."""
    rng = random.Random(f"batches/{seed}")
    batches = []
    for _ in range(epochs):
        order = rng.sample(range(n), n)
        batches += [order[start : start + size] for start in range(0, n, size)]
    return batches


def last(rows: Sequence[Mapping[str, float]], name: str, steps: int = 10) -> float:
    """Mean of a logged number over the last steps."""
    tail = [row[name] for row in rows[-steps:]]
    return sum(tail) / len(tail)


@dataclass
class _Steps:
    """What the loop has seen: a row a step, and columns of numbers an example."""

    rows: list[dict[str, float]] = field(default_factory=list)
    columns: dict[str, list[Tensor]] = field(default_factory=dict)

    def note(self, step: int, parts: list[list[int]], results: list[Share], place: World) -> None:
        """Keep the numbers of every example of this step, those of other processes included."""
        mine = [{name: value.cpu() for name, value in share.rows.items()} for share in results]
        for rank, shares in enumerate(everyone(mine, place)):
            for part, columns in zip(parts[rank :: place.size], shares, strict=True):
                numbers = {"step": torch.full((len(part),), step), "example": torch.tensor(part)}
                for name, value in {**numbers, **columns}.items():
                    self.columns.setdefault(name, []).append(value)

    def table(self) -> dict[str, Tensor]:
        """The columns, each as one tensor."""
        return {name: torch.cat(values) for name, values in sorted(self.columns.items())}

    def write(self, run: Run, names: Sequence[str]) -> None:
        """Write 'examples.parquet': step, id, and what the loss noted."""
        table = {name: values.tolist() for name, values in self.table().items()}
        ids = [names[i] for i in table.pop("example", [])]
        write_columns(run.artifact("examples.parquet"), {"step": table.pop("step", []), "id": ids, **table})


def _check_fits(plan: Plan, most: int | None) -> None:
    """Refuse, before anything is spent, what no cut can bring under the limit."""
    if most is None:
        return
    costs = {i: plan.tokens([i]) for i in sorted({i for batch in plan.batches for i in batch})}
    over = [i for i, cost in costs.items() if cost > most]
    if over:
        name = f"'{plan.names[over[0]]}'" if plan.names else f"number {over[0]}"
        raise InputError(
            f"{len(over)} of {len(costs)} examples take more than fit.micro_tokens = {most} in a pass alone, "
            f"{name} the first with {costs[over[0]]} tokens",
            hint=f"raise it to {max(costs.values())}, or leave long examples out (max_length)",
        )


def _parts(batch: list[int], plan: Plan, most: int | None, size: int) -> list[list[int]]:
    """Cut a batch in order: parts of at most ``most`` tokens, at least one for each process."""
    limit = max(1, math.ceil(len(batch) / size))
    parts: list[list[int]] = [[]]
    for i in batch:
        full = len(parts[-1]) == limit or (most is not None and plan.tokens([*parts[-1], i]) > most)
        if parts[-1] and full:
            parts.append([])
        parts[-1].append(i)
    return parts


def _shares(
    module: nn.Module, parts: list[list[int]], batch: list[int], loss: Loss, bf16: bool
) -> list[Share]:
    """The shares of these parts, detached; their gradients are added up on the parameters."""
    kind = next(module.parameters()).device.type
    shares = []
    for part in parts:
        with torch.autocast(kind, torch.bfloat16, enabled=bf16):
            share = loss(part, batch)
        if share.loss.requires_grad:
            share.loss.backward()  # type: ignore[no-untyped-call]
        rows = {name: value.detach().float() for name, value in share.rows.items()}
        shares.append(Share(share.loss.detach(), share.metrics, rows))
    return shares


def _together(
    module: nn.Module, shares: list[Share], clip: float, step: int, place: World
) -> dict[str, float]:
    """Add up shares and gradients, clip, and bring the numbers to the host in one piece."""
    params = [p for p in module.parameters() if p.requires_grad]
    device = params[0].device
    # A process without a part still has to say which numbers it adds nothing to.
    names = next(
        names for names in everyone(list(shares[0].metrics) if shares else None, place) if names is not None
    )
    sums = torch.zeros(1 + len(names), dtype=torch.float64, device=device)
    for share in shares:
        values = [share.loss, *(share.metrics[name] for name in names)]
        sums += torch.stack([torch.as_tensor(value, device=device).detach().double() for value in values])
    if place.size > 1:
        for parameter in params:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        add_up([p.grad for p in params if p.grad is not None], place)
        add_up([sums], place)
    norm = nn.utils.clip_grad_norm_(params, clip)
    value, *metrics, size = torch.cat([sums, norm.detach().double()[None].to(device)]).tolist()
    for name, number in (("loss", value), ("gradient norm", size)):
        if not math.isfinite(number):
            raise NumericalError(
                f"{name} is {number} at step {step}",
                hint="lower lr, check the data for empty or huge rows; nothing was saved from this step",
            )
    return {"loss": value, **dict(zip(names, metrics, strict=True)), "grad_norm": size}


def _blocks(module: nn.Module) -> list[Any]:
    """Layers that transformers can compute again."""
    blocks = [child for child in module.modules() if isinstance(child, GradientCheckpointingLayer)]
    if not blocks:
        raise CapabilityError(
            f"{type(module).__name__} has no layers that can be computed again",
            hint="leave fit.recompute out",
        )
    return blocks


def _key(module: nn.Module, plan: Plan, config: Fit) -> str:
    """What a checkpoint belongs to: this plan and config, from these weights on."""
    weights = {name: float(p.detach().double().sum()) for name, p in module.named_parameters()}
    return digest([plan.key, [list(batch) for batch in plan.batches], config, weights])


def _save(
    store: Checkpoint, module: nn.Module, optimiser: torch.optim.Optimizer, steps: _Steps, step: int
) -> None:
    weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
    tensors, facts = optimiser_state(optimiser)
    store.save(
        {**prefixed("weights", weights), **prefixed("adamw", tensors), **prefixed("rows", steps.table())},
        {"step": step, "adamw": facts, "log": steps.rows},
    )


def _resume(store: Checkpoint, module: nn.Module, optimiser: torch.optim.Optimizer, steps: _Steps) -> int:
    """Put back what the last checkpoint holds; the step to go on from."""
    contents = store.load()
    if contents is None:
        return 0
    tensors, facts = contents
    weights: dict[str, Any] = dict(module.named_parameters())
    with torch.no_grad():
        for name, tensor in under("weights", tensors).items():
            weights[name].copy_(tensor)
    restore_optimiser(optimiser, under("adamw", tensors), facts["adamw"])
    steps.rows = facts["log"]
    steps.columns = {name: [tensor] for name, tensor in under("rows", tensors).items()}
    return int(facts["step"])
