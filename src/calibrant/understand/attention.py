"""Attention of each head, never alone: beside what it writes, what that says, and what is lost without it.

Where a head looks is not what it does (Jain & Wallace 2019, 1902.10186; Wiegreffe & Pinter 2019, 1908.04626).
For each head, at the position that predicts the answer of the clean prompt:

    attention  sum of a_j over the chosen positions j
    norm       | sum_j a_j v_j W_O |, what the head adds to the stream (Kobayashi et al. 2020, 2004.10102)
    direct     m - m(the last stream without what the head adds), the final norm applied anew
    effect     m - m(the head's output replaced at every position), a run of the model: by the engine

m is the logit of the answer less that of the foil. ``agreement`` says how well each of the first three ranks
the heads as their effect does.

    calibrant show understand.attention
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from scipy.stats import spearmanr
from torch import Tensor

from calibrant.core import Estimate, Frozen, InputError, OpenLM, Quiet, Result, Run, point, technique, unknown
from calibrant.data.rows import Contrasts
from calibrant.stats import mean
from calibrant.understand._cells import Cells, cells_of, left_out
from calibrant.understand._contrasts import Encoded, encode
from calibrant.understand._effects import Floats, corrected, why_idle
from calibrant.understand._engine.readers import LogitDifference
from calibrant.understand._engine.skip import last_logits
from calibrant.understand._engine.sweep import sweep, traced
from calibrant.understand._heads import written
from calibrant.understand._patterns import Patterns, patterns

_SCORES = ("attention", "norm", "direct")


class Attention(Frozen):
    """Where attention is counted, and how heads are ablated."""

    to: Literal["changed", "answer", "largest"] = "changed"
    """Positions that attention is summed over: where the two prompts differ, or where the answer's token
    stands in the clean prompt; or the largest weight on any one position."""
    ablation: Literal["corrupt", "mean"] = "corrupt"
    """At all positions a head's output becomes that of the corrupted prompt, or the mean of clean ones."""
    floor: float = Field(default=0.1, ge=0)
    """Least share of the effect of all (of m itself for 'mean') that counts as found."""
    level: float = Field(default=0.05, gt=0, lt=1)
    """Chance of any false find among all heads that is accepted."""
    limit: int | None = Field(default=100, ge=2)
    """Use at most this many pairs, evenly spread. None: all."""


class AttentionResult(Result):
    """``attention/HEAD``, ``norm/HEAD``, ``direct/HEAD`` and ``effect/HEAD`` (``layer_1/head_2``),
    ``agreement/...``, ``most_attended_effect``, ``found``, ``total_effect``. Artefact 'attention.json'."""


class _Told(NamedTuple):
    """(C, N) of each head and pair; NaN where it cannot be said."""

    attention: Floats
    norm: Floats
    direct: Floats
    effect: Floats


@technique(version=3)  # version 2 counted a pair and its swap twice
def attention(
    model: OpenLM, contrasts: Contrasts, config: Attention = Attention(), run: Run = Quiet()
) -> AttentionResult:
    """Tell each head's attention with what it writes, what that says, and what is lost without it.

    Raises:
        InputError: pairs that cannot be compared (see ``understand.patch``), or an answer in no prompt.
        CapabilityError: the model's heads were not found, or its family gives no attention patterns.
        NumericalError: an ablated run gives NaN.
    """
    pairs = encode(model, contrasts, config.limit)
    cells = cells_of(model, Cells(site="z", positions="all"), pairs.clean.shape[1])
    sites = list(dict.fromkeys(cell.edit.site for cell in cells))
    chosen = _chosen(pairs, config)
    seen = patterns(model, pairs.clean, sites)
    wrote = written(model, pairs, sites)
    run.spend(queries=2 * len(pairs.rows))
    clean = traced(model, pairs.clean, sites)
    sources = (
        traced(model, pairs.corrupt, sites)
        if config.ablation == "corrupt"
        else {site: value.mean(0, keepdim=True).expand_as(value) for site, value in clean.items()}
    )
    read = LogitDifference(pairs.answers, pairs.foils)
    patches = [(cell.edit,) for cell in cells]
    found = sweep(model, pairs.clean, sources, patches, read, lambda done, all_: run.progress(done, all_))
    run.spend(queries=found.passes)
    told = _Told(_attended(seen, chosen), wrote.norm, wrote.direct, (found.base - found.values).numpy())
    names = [cell.name for cell in cells]
    whole = found.base.numpy() - (_corrupted(model, pairs, read) if config.ablation == "corrupt" else 0.0)
    metrics, chances = _metrics(names, told, whole, pairs.clusters, config, run.seed)
    _write(run, names, told, chances, seen)
    agreed = metrics["agreement/attention"].value
    notes = [
        "attention says where a head looks, not what it does"
        + ("" if agreed is None else f": its rank correlation with the heads' effects is {agreed:.2f} here"),
        "direct leaves out what later layers make of a head; an ablation, what other heads make up for it",
    ]
    if not seen.checked:
        notes.append("this family's patterns could not be held against what its heads hand on")
    return AttentionResult(
        metrics=metrics, caveats=(*notes, *wrote.notes, *pairs.notes, *left_out(model, cells))
    )


def _chosen(pairs: Encoded, config: Attention) -> Tensor | None:
    """(N, T) positions that attention is summed over; None: the largest of all."""
    if config.to == "largest":
        return None
    if config.to == "changed":
        return (pairs.clean != pairs.corrupt).cpu()
    where = pairs.clean.cpu() == torch.tensor(pairs.answers)[:, None]
    if without := int((~where.any(1)).sum()):
        raise InputError(
            f"the answer's first token stands in {len(where) - without} of {len(where)} clean prompts",
            hint="set to = 'changed' or 'largest'",
        )
    return where


def _attended(seen: Patterns, chosen: Tensor | None) -> Floats:
    """(C, N) of weights (L, N, H, T), layer by layer."""
    weights = seen.weights
    sums = weights.amax(-1) if chosen is None else (weights * chosen[None, :, None]).sum(-1)
    found: Floats = sums.transpose(1, 2).flatten(0, 1).numpy()
    return found


def _corrupted(model: OpenLM, pairs: Encoded, read: LogitDifference) -> Floats:
    """(N,) the reading of the corrupted prompts."""
    parts = []
    with torch.inference_mode():
        for rows in torch.split(torch.arange(len(pairs.rows)), 32):
            logits = last_logits(model.module, pairs.corrupt[rows], read.columns)
            parts.append(read(logits, rows.to(logits.device)).double().cpu())
    found: Floats = torch.cat(parts).numpy()
    return found


def _metrics(
    names: Sequence[str],
    told: _Told,
    whole: Floats,
    clusters: list[str] | None,
    config: Attention,
    seed: int,
) -> tuple[dict[str, Estimate], Floats]:
    """Everything that is told, and the corrected p-values (C,) of the effects."""

    def average(values: Floats, null: float | None = None, why: str = "") -> Estimate:
        if why or np.isnan(values).all():
            return unknown(why or "what heads add to the stream cannot be told", n=values.size, unit="pair")
        given = [None if np.isnan(value) else float(value) for value in values]
        return mean(given, clusters=clusters, better="none", unit="pair", null_value=null)

    total = average(whole)
    idle = why_idle(total, "the effect of all")
    chances, mute = corrected(told.effect[None], clusters, config.level, seed)
    least = config.floor * abs(float(whole.mean()))
    hits = int(((chances[0] <= config.level) & (np.abs(told.effect.mean(1)) >= least)).sum())
    first = int(np.argmax(told.attention.mean(1)))
    count = len(names)
    metrics = {
        "total_effect": total,
        "found": unknown(mute or idle, n=count) if mute or idle else point(hits, unit="heads", n=count),
        "most_attended_effect": average(told.effect[first], 0.0, idle),
    }
    for score in _SCORES:
        ranks = _agreement(np.abs(getattr(told, score)), np.abs(told.effect))
        metrics[f"agreement/{score}"] = average(ranks, 0.0, idle)
    for kind in told._fields:
        null = None if kind in ("attention", "norm") else 0.0
        for name, row in zip(names, getattr(told, kind), strict=True):
            metrics[f"{kind}/{name}"] = average(row, null, idle if kind == "effect" else "")
    return metrics, chances[0]


def _agreement(scores: Floats, effects: Floats) -> Floats:
    """(N,) rank correlation over heads in each pair; NaN where one side is constant or unknown."""
    found = np.full(scores.shape[1], np.nan)
    there = ~np.isnan(scores).any(1)
    for pair in range(scores.shape[1]):
        one, two = scores[there, pair], effects[there, pair]
        if there.sum() > 2 and np.ptp(one) > 0 and np.ptp(two) > 0:
            found[pair] = float(spearmanr(one, two).statistic)
    return found


def _write(run: Run, names: Sequence[str], told: _Told, chances: Floats, seen: Patterns) -> None:
    """Artefact 'attention.json': every figure of every pair, and each head's mean weights by position."""
    weights = seen.weights.mean(1).flatten(0, 1).tolist()
    table = [
        {"head": name, "p": float(chances[at]), "mean_weights": [round(w, 6) for w in weights[at]]}
        | {kind: _rounded(getattr(told, kind)[at]) for kind in told._fields}
        for at, name in enumerate(names)
    ]
    run.artifact("attention.json").write_text(json.dumps({"heads": table}), encoding="utf-8")


def _rounded(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 6) for value in values]
