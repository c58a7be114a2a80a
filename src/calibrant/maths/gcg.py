"""GCG's arithmetic: gradients to candidates, candidates' losses, probe sampling. Tensors in, tensors out.

Papers: Zou et al. 2023, "Universal and Transferable Adversarial Attacks on Aligned Language Models" (arXiv
2307.15043), algorithm 1; Zhao et al. 2024, "Accelerating Greedy Coordinate Gradient via Probe Sampling"
(arXiv 2403.01251). Order and kind of the random draws are those of nanoGCG 0.3.0, so that one seed gives one
trajectory; n is the length of the suffix, V the size of the vocabulary, B the search width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOGITS = {"cpu": 2**20}  # logits read at once: they stay in a processor's cache
_MANY = 2**26


def token_gradient(flow: Tensor, table: Tensor) -> Tensor:
    """Gradient (n, V) by the one-hot choice of each token.

    Args:
        flow: (n, D) gradient by the embeddings of the n tokens.
        table: (V, D) embedding of every token.
    """
    return flow @ table.T


def sample(
    ids: Tensor,
    gradient: Tensor,
    forbidden: Tensor,
    *,
    width: int,
    top_k: int,
    replace: int,
    generator: torch.Generator,
) -> Tensor:
    """Candidates (width, n): ``ids`` with ``replace`` tokens exchanged for ones that the gradient likes.

    For each candidate, positions are drawn without and tokens with replacement, the latter evenly from the
    ``top_k`` of the position. Where fewer ids are allowed than ``top_k``, all that are allowed; likewise
    positions.

    Args:
        ids: (n,) int64.
        gradient: (n, V); lower is liked more. Not changed.
        forbidden: (F,) int64 ids that may not be drawn.
        width: B.
        top_k: ids to draw from at each position.
        replace: tokens to exchange.
        generator: on the gradient's device.
    """
    n, size = gradient.shape
    liked = (-gradient).index_fill(1, forbidden, -math.inf)
    k = min(top_k, size - len(set(forbidden.tolist())))
    top = liked.topk(k, dim=1).indices
    device = gradient.device
    order = torch.rand((width, n), device=device, generator=generator).argsort()
    places = order[:, : min(replace, n)]
    ranks = torch.randint(0, k, (*places.shape, 1), device=device, generator=generator)
    drawn = top[places].gather(2, ranks).squeeze(2)
    return ids.repeat(width, 1).scatter_(1, places, drawn)


def mellowmax(values: Tensor, alpha: float) -> Tensor:
    """(1 / alpha) ln mean exp(alpha x) over the last axis: a soft maximum (Asadi & Littman 2017)."""
    return (torch.logsumexp(alpha * values, -1) - math.log(values.shape[-1])) / alpha


def target_losses(logits: Tensor, target: Tensor, mellow: float | None) -> tuple[Tensor, Tensor]:
    """Losses (B,) of the target's tokens, and whether (B,) each of them is the likeliest at its place.

    Args:
        logits: (B, T, V) where each token of the target is predicted.
        target: (T,) int64.
        mellow: None for the mean cross-entropy in nats; else mellowmax of minus the target's *logits* with
            this alpha, as nanoGCG has it.
    """
    rows, length, size = logits.shape
    flat, wanted = logits.reshape(-1, size), target.repeat(rows)[:, None]
    parts = []
    step = max(1, _LOGITS.get(logits.device.type, _MANY) // size)
    for some, ids in zip(torch.split(flat, step), torch.split(wanted, step), strict=True):
        exact = some if some.dtype == torch.float64 else some.float()
        chosen = exact.gather(1, ids).squeeze(1)
        value = -chosen if mellow is not None else exact.logsumexp(1) - chosen
        parts.append((value, chosen >= exact.amax(1)))
    value, likeliest = (torch.cat(part).view(rows, length) for part in zip(*parts, strict=True))
    return (value.mean(1) if mellow is None else mellowmax(value, mellow)), likeliest.all(1)


def first_change(candidates: Tensor, ids: Tensor) -> Tensor:
    """First place (B,) where a row of ``candidates`` (B, n) differs from ``ids`` (n,); n if nowhere."""
    differs = candidates != ids
    return torch.where(differs.any(1), differs.int().argmax(1), candidates.shape[1])


def distinct(candidates: Tensor) -> tuple[Tensor, Tensor]:
    """The different rows of ``candidates`` (B, n), and for each row its number (B,) among them."""
    rows, back = torch.unique(candidates, dim=0, return_inverse=True)
    return rows, back


def agreement(target: Tensor, draft: Tensor) -> float:
    """(1 + Spearman's rank correlation) / 2 of two lists of losses: 1 agree, 0 opposite; 0.5 if undefined."""
    ranks = torch.stack([_ranks(target), _ranks(draft)])
    spread = (ranks - ranks.mean(1, keepdim=True)).double()
    scale = spread.norm(dim=1).prod()
    if len(target) < 2 or scale == 0:
        return 0.5
    return float((1 + (spread[0] @ spread[1]) / scale) / 2)


def kept(alpha: float, width: int, reduction: int) -> int:
    """How many of the draft's best the target reads: (1 - alpha) B / R, at least one (equation 4)."""
    return max(1, min(width, int((1 - alpha) * width / reduction)))


def _ranks(values: Tensor) -> Tensor:
    """Ranks (N,) float64, ties at their mean rank."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    ranks: Tensor = (ends - (counts - 1) / 2)[place]
    return ranks
