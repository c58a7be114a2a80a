"""What each head adds to the stream at the last position, and what that says at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
    norms, directs, whole = list[Tensor](), list[Tensor](), [True] * len(sites)
    with torch.inference_mode():
        for examples in torch.split(torch.arange(len(pairs.rows)), _ROWS):
            seen = {name: value[:, -1] for name, value in traced(model, pairs.clean[examples], names).items()}
            reading, parts = _reading(model, seen[last][:, None], read, examples), list[Tensor]()
            for at, (site, name) in enumerate(zip(sites, added, strict=True)):
                part, fits = _parts(model, site, seen[site], name, seen.get(name))
                whole[at] &= fits
                parts.append(part)
            norms.append(torch.stack([part.float().norm(dim=-1) for part in parts]))
            without = [_reading(model, seen[last][:, None] - part, read, examples) for part in parts]
            directs.append(reading - torch.stack(without))
    lost = len(whole) - sum(whole)
    note = f"{lost} of {len(whole)} layers do not add up their heads (a norm follows): norm, direct unknown"
    return Written(_flat(norms, whole), _flat(directs, whole), [note] if lost else [])


def _parts(model: OpenLM, site: str, z: Tensor, name: str, added: Tensor | None) -> tuple[Tensor, bool]:
    """(R, H, D) what each head of z (R, H, d) adds, and whether all with the bias are what attention adds."""
    known = places(model.module)
    projection = model.module.get_submodule(known[site].path)
    rows, heads, size = z.shape
    apart = torch.zeros(rows, heads, heads, size, dtype=z.dtype, device=z.device)
    apart[:, range(heads), range(heads)] = z
    bias = projection(torch.zeros_like(apart[:, :1].flatten(2)))
    parts: Tensor = projection(apart.flatten(2)) - bias
    if added is None:
        return parts, False
    scale = known[name].scale
    return parts * scale, close((parts.sum(1) + bias[:, 0]) * scale, added)


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
