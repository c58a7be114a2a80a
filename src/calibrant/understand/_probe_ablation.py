"""What the model says without the direction of a probe, and after moves of the same size at random."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import log_softmax

from calibrant.core import Batch, Estimate, NumericalError, OpenLM, Run, unknown
from calibrant.stats.auroc import crossed
from calibrant.understand._probe_rows import Texts

_ROWS = 16
Change = Callable[[Tensor], Tensor]


def ablation(
    model: OpenLM,
    texts: Texts,
    site: str,
    plane: tuple[Tensor, Tensor],
    directions: int,
    limit: int,
    run: Run,
) -> dict[str, Estimate]:
    """Mean absolute change of a log-prob, in nats, where the probe's direction is set to its mean.

    At every position, x becomes x - ((x - m) . d) d; the control is x - ((x - m) . d) r, of the same size at
    each position, for random directions r. The log-prob is the reply's, a mean over its tokens; without
    replies, that of the model's own likeliest next token.

    Args:
        plane: mean m (D,) of the texts' activations, and the probe's direction d (D,), of any length.
    """
    count = min(limit, len(texts.rows))
    chosen = sorted(random.Random(run.seed).sample(range(len(texts.rows)), count))
    middle, way = plane
    if not bool(way.norm() > 0):
        why = "the probe has no direction: no feature of this layer varies"
        return {f"ablation/{name}": unknown(why, unit="nat") for name in ("probe", "random", "excess")}
    way = way / way.norm()
    lot = torch.Generator().manual_seed(run.seed)
    others = torch.randn(directions, len(way), generator=lot, dtype=torch.float64)
    targets = torch.cat([way[None], others / others.norm(dim=1, keepdim=True)])
    changes = [_moved(middle, way, target) for target in targets]
    found: list[NDArray[np.float64]] = []
    for start in range(0, count, _ROWS):
        rows = [texts.rows[i] for i in chosen[start : start + _ROWS]]
        replies = None if texts.replies is None else [row.reply for row in rows]
        batch = model.encode([row.prompt for row in rows], replies)
        found.append(_apart(model, batch, site, changes))
        run.spend(queries=len(rows) * (len(changes) + 1))
        run.progress(start + len(rows), count, "ablating")
    apart = np.concatenate(found, axis=1)
    if not np.isfinite(apart).all():
        raise NumericalError("a log-prob after ablation is not finite", hint="load the model in float32")
    clusters = [[names[i] for i in chosen] for names in texts.kinds]
    control = apart[1:].mean(0)
    parts = {"probe": (apart[0], None), "random": (control, None), "excess": (apart[0] - control, 0.0)}
    made = {}
    for name, (values, null) in parts.items():
        one = crossed(values.tolist(), clusters, null_value=null, better="none", unit="nat")
        if name != "excess" and one.low is not None:  # a mean of absolute changes
            one = one.model_copy(update={"low": max(one.low, 0.0)})
        made[f"ablation/{name}"] = one
    return made


def _apart(model: OpenLM, batch: Batch, site: str, changes: list[Change]) -> NDArray[np.float64]:
    """(changes, B) absolute changes of the log-prob that is read."""
    with torch.inference_mode():
        logits = model.forward(batch)
        replied = bool(batch.reply.any())
        last = batch.mask.sum(1) - 1
        rows = torch.arange(len(last), device=last.device)
        greedy = logits[rows, last].argmax(1)

        def read(said: Tensor) -> Tensor:
            if not replied:
                return log_softmax(said[rows, last].double(), 1)[rows, greedy]
            tokens = log_softmax(said[:, :-1].double(), 2).gather(2, batch.ids[:, 1:, None])[..., 0]
            scored = batch.reply[:, 1:]
            return torch.where(scored, tokens, 0.0).sum(1) / scored.sum(1)

        before, found = read(logits), []
        for change in changes:
            with model.edit({site: change}):
                found.append((read(model.forward(batch)) - before).abs().cpu())
    return torch.stack(found).numpy()


def _moved(middle: Tensor, way: Tensor, target: Tensor) -> Change:
    def change(value: Tensor) -> Tensor:
        m, d, r = (one.to(value.device) for one in (middle, way, target))
        size = (value.double() - m) @ d
        return (value.double() - size[..., None] * r).to(value.dtype)

    return change
