"""What each head adds to the stream at the last position, and what that says at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from calibrant.core import CapabilityError, OpenLM
from calibrant.models.anatomy import anatomy
from calibrant.models.model_facts import close
from calibrant.models.sites import places
from calibrant.understand._contrasts import Encoded
from calibrant.understand._effects import Floats
from calibrant.understand._engine.readers import LogitDifference
from calibrant.understand._engine.sweep import traced

_ROWS = 16
How = Literal["whole", "scaled", "unknown"]


class Written(NamedTuple):
    """Of C heads and N pairs."""

    norm: Floats
    """(C, N); NaN where what a head adds cannot be told."""
    direct: Floats
    """(C, N) m less m without the head's part of the last stream; NaN likewise."""
    notes: list[str]
    """Caveats."""


def written(model: OpenLM, pairs: Encoded, sites: Sequence[str]) -> Written:
    """What the heads at ``sites`` (``hook_z`` of some layers) add, and say by themselves."""
    read = LogitDifference(pairs.answers, pairs.foils)
    last = f"blocks.{len(anatomy(model.module).blocks) - 1}.hook_resid_post"
    added = [site.replace("attn.hook_z", "hook_attn_out") for site in sites]
    known = places(model.module)
    names = [last, *sites, *(name for name in added if name in known)]
    norms, directs, whole, scaled = list[Tensor](), list[Tensor](), [True] * len(sites), [False] * len(sites)
    count = len(pairs.rows)
    with torch.inference_mode():
        for examples in torch.tensor_split(torch.arange(count), -(-count // _ROWS)):
            seen = {name: value[:, -1] for name, value in traced(model, pairs.clean[examples], names).items()}
            reading, parts = _reading(model, seen[last][:, None], read, examples), list[Tensor]()
            for at, (site, name) in enumerate(zip(sites, added, strict=True)):
                part, how = _parts(model, site, seen[site], name, seen.get(name))
                whole[at] &= how != "unknown"
                scaled[at] |= how == "scaled"
                parts.append(part)
            norms.append(torch.stack([part.float().norm(dim=-1) for part in parts]))
            without = [_reading(model, seen[last][:, None] - part, read, examples) for part in parts]
            directs.append(reading - torch.stack(without))
    notes, lost = [], len(whole) - sum(whole)
    if lost:
        notes.append(f"{lost} of {len(whole)} layers do not add up their heads: norm and direct are unknown")
    if any(scaled):
        notes.append("a norm follows attention: a head's norm and direct are its share at the norm's scale")
    return Written(_flat(norms, whole), _flat(directs, whole), notes)


def _parts(model: OpenLM, site: str, z: Tensor, name: str, added: Tensor | None) -> tuple[Tensor, How]:
    """(R, H, D) what each head of z (R, H, d) adds, and how all with the bias are what attention adds.

    Behind an RMS norm (Gemma 2, OLMo 2) shares are taken at the scale that it has with all heads present:
    so they add up, and what a head's absence does to the scale is left out.
    """
    known = places(model.module)
    projection = model.module.get_submodule(known[site].path)
    rows, heads, size = z.shape
    apart = torch.zeros(rows, heads, heads, size, dtype=z.dtype, device=z.device)
    apart[:, range(heads), range(heads)] = z
    bias = projection(torch.zeros_like(apart[:, :1].flatten(2)))
    parts: Tensor = projection(apart.flatten(2)) - bias
    if added is None:
        return parts, "unknown"
    scale = known[name].scale
    total = (parts.sum(1) + bias[:, 0]) * scale
    if close(total, added):
        return parts * scale, "whole"
    config: Any = getattr(model.module, "config", None)
    eps = float(getattr(config, "rms_norm_eps", None) or 0.0)
    length = (total.double().square().mean(-1, keepdim=True) + eps).sqrt()
    normed, aim = total.double() / length, added.double()
    gain = (normed * aim).sum(0) / normed.square().sum(0).clamp_min(1e-30)  # the norm's weight, by rows
    if rows < 2 or not close(normed * gain, aim):
        return parts, "unknown"
    return parts * scale * (gain / length)[:, None].to(parts), "scaled"


def _reading(model: OpenLM, streams: Tensor, read: LogitDifference, examples: Tensor) -> Tensor:
    """(R, K) float64 readings of streams (R, K, D)."""
    try:
        logits = model.unembed(streams).float()
    except CapabilityError:
        return torch.full(streams.shape[:2], torch.nan, dtype=torch.float64)
    assert read.columns is not None
    narrow = logits[..., read.columns.to(logits.device)].flatten(0, 1)
    values = read(narrow, examples.repeat_interleave(streams.shape[1]).to(logits.device))
    return values.view(streams.shape[:2]).double().cpu()


def _flat(parts: Sequence[Tensor], whole: Sequence[bool]) -> Floats:
    """(L, N, H) in pieces -> (L H, N), NaN for layers that do not add up."""
    joined = torch.cat(list(parts), dim=1).double().cpu()
    joined[[not one for one in whole]] = torch.nan
    found: Floats = joined.transpose(1, 2).flatten(0, 1).numpy()
    return found
