"""What instruments of several families say of sets of cells, on the same pairs of prompts.

    interventional  denoise, noise: the set is patched both ways, together
    edit            ablation: in the clean run, the set is replaced by its mean over the corrupted prompts
    gradient        gradient: attribution patching, the mean of the slopes at both ends
    weights         direct: what the set adds to the reading through the output weights alone
    correlational   attention: how much more a head looks at the answer's own token in the clean prompt

Each gives an effect per pair, in the reading's unit, so that all are read alike: a share of the corruption's
effect, positive where the set works for the answer. Attention is a mass: its share is how much of it moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calibrant.core import CapabilityError, InputError, OpenLM, Run
from calibrant.models.hooks import captured, edited
from calibrant.models.sites import places
from calibrant.understand._cells import Cell
from calibrant.understand._contrasts import Encoded
from calibrant.understand._effects import Floats, both_ways
from calibrant.understand._engine.gradients import gradients, leaf
from calibrant.understand._engine.patches import Edit, Patch, check_still
from calibrant.understand._engine.paths import plain_readings
from calibrant.understand._engine.readers import LogitDifference
from calibrant.understand._engine.skip import last_logits
from calibrant.understand._engine.sweep import sweep, traced
from calibrant.understand._patterns import patterns

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "interventional": ("denoise", "noise"),
    "edit": ("ablation",),
    "gradient": ("gradient",),
    "weights": ("direct",),
    "correlational": ("attention",),
}
"""Family -> its instruments. What one family gets wrong, another need not."""
INSTRUMENTS = tuple(name for names in FAMILIES.values() for name in names)


@dataclass(frozen=True)
class Evidence:
    """Effects of S sets of cells on N pairs."""

    effects: Mapping[str, Floats]
    """Instrument -> (S, N), in the reading's unit."""
    total: Floats
    """(N,) the corruption's effect."""
    pairs: Encoded


def total_effect(model: OpenLM, pairs: Encoded) -> Floats:
    """(N,) the reading after each clean prompt, less that after the corrupted one."""
    check_still(model.module)
    read = LogitDifference(pairs.answers, pairs.foils)
    sides = [plain_readings(model, ids, read, rows=32).numpy() for ids in (pairs.clean, pairs.corrupt)]
    difference: Floats = sides[0] - sides[1]
    return difference


def measured(
    model: OpenLM, pairs: Encoded, cells: Sequence[Cell], sets: Sequence[Sequence[int]], run: Run
) -> Evidence:
    """Every instrument on every set; a set is the numbers of its ``cells``.

    An instrument that cannot be asked is left out: ``direct`` needs what a block adds to the stream, and
    ``attention`` heads, patterns, and prompts that hold their answer.

    Raises:
        CapabilityError, NumericalError: as ``sweep`` and ``gradients`` do.
    """
    if not sets:
        raise InputError("there is nothing to measure", hint="give at least one set of cells")
    patches = [joined([cells[at] for at in members]) for members in sets]
    denoised, noised = both_ways(model, pairs, patches, run)
    clean, corrupt = noised.base.numpy(), denoised.base.numpy()
    effects = {
        "denoise": (denoised.values - denoised.base).numpy(),
        "noise": (noised.base - noised.values).numpy(),
        "ablation": _ablation(model, pairs, patches, run),
    }
    single = _slopes(model, pairs, cells, run)
    looked = _attention(model, pairs, cells, run)
    if looked is not None:
        single["attention"] = looked * float((clean - corrupt).mean())
    for name, effect in single.items():
        effects[name] = np.stack([effect[list(members)].sum(0) for members in sets])
    return Evidence(effects, clean - corrupt, pairs)


def joined(cells: Sequence[Cell]) -> Patch:
    """One patch of several cells: the heads of a layer in one edit."""
    heads: dict[tuple[str, tuple[int, ...] | None], list[int]] = {}
    for cell in cells:
        heads.setdefault((cell.edit.site, cell.edit.positions), []).extend(cell.edit.heads or ())
    return tuple(Edit(site, where, tuple(own) or None) for (site, where), own in heads.items())


def _ablation(model: OpenLM, pairs: Encoded, patches: Sequence[Patch], run: Run) -> Floats:
    """(S, N) what the clean reading loses where a set has its mean over corrupted prompts, by position."""
    sites = list(dict.fromkeys(edit.site for patch in patches for edit in patch))
    means = {
        site: value.mean(0, keepdim=True).expand_as(value)
        for site, value in traced(model, pairs.corrupt, sites).items()
    }
    read = LogitDifference(pairs.answers, pairs.foils)
    found = sweep(
        model, pairs.clean, means, patches, read, lambda done, total: run.progress(done, total, "ablation")
    )
    run.spend(queries=found.passes)
    return (found.base - found.values).numpy()


def _slopes(model: OpenLM, pairs: Encoded, cells: Sequence[Cell], run: Run) -> dict[str, Floats]:
    """Instrument -> (C, N) of each cell by itself: what is read off two passes and their gradients."""
    read, sites = LogitDifference(pairs.answers, pairs.foils), list(dict.fromkeys(c.edit.site for c in cells))
    clean, corrupt = (traced(model, ids, sites) for ids in (pairs.clean, pairs.corrupt))
    change = {site: clean[site] - corrupt[site] for site in sites}
    flows = [gradients(model, ids, sites, read)[1] for ids in (pairs.clean, pairs.corrupt)]
    run.spend(queries=4 * len(pairs.rows))
    slope = {site: (flows[0][site] + flows[1][site]) / 2 for site in sites}
    found = {"gradient": np.stack([summed(change[c.edit.site] * slope[c.edit.site], c) for c in cells])}
    straight = direct_gradients(model, pairs.clean, sites, read)
    if straight:
        run.spend(queries=2 * len(pairs.rows))
        found["direct"] = np.stack([summed(change[c.edit.site] * straight[c.edit.site], c) for c in cells])
    return found


def _attention(model: OpenLM, pairs: Encoded, cells: Sequence[Cell], run: Run) -> Floats | None:
    """(C, N) attention from the last position to the answer's token, less that of the corrupted run there."""
    held = (pairs.clean == torch.tensor(pairs.answers, device=pairs.clean.device)[:, None]).cpu()
    sites = list(dict.fromkeys(cell.edit.site for cell in cells))
    if not held.any(1).all() or not all(site.endswith("attn.hook_z") for site in sites):
        return None
    try:
        clean, corrupt = (patterns(model, ids, sites).weights for ids in (pairs.clean, pairs.corrupt))
    except CapabilityError:
        return None
    run.spend(queries=2 * len(pairs.rows))
    moved = ((clean - corrupt) * held[:, None]).sum(-1)  # (L, N, H)
    heads = [(sites.index(cell.edit.site), (cell.edit.heads or (0,))[0]) for cell in cells]
    return np.stack([moved[layer, :, head].numpy() for layer, head in heads])


def summed(product: Tensor, cell: Cell) -> Floats:
    """(N,) float64: a product (N, T, ...) summed over what the cell holds."""
    part = product if cell.edit.positions is None else product[:, list(cell.edit.positions)]
    part = part if cell.edit.heads is None else part[:, :, list(cell.edit.heads)]
    values: Floats = part.double().flatten(1).sum(1).cpu().numpy()
    return values


def direct_gradients(
    model: OpenLM, ids: Tensor, sites: Sequence[str], read: LogitDifference, rows: int = 32
) -> dict[str, Tensor]:
    """Gradient (N, T, ...) of the reading by what is written at each site, past all later blocks.

    The gradient at the last block's end is taken back through the output weights of the site's own block
    alone: direct logit attribution, with the last norm linearised (Elhage et al. 2021). {} where a site is
    not what a block adds, or a head's part of it.
    """
    known = places(model.module)
    last = max(
        (s for s in known if s.endswith("hook_resid_post")),
        key=lambda site: int(site.split(".")[1]),
        default="",
    )
    written = {site: _written(site) for site in sites}
    if not last or not all(site in known for site in written.values()):
        return {}
    wanted = list(dict.fromkeys([*sites, *written.values(), last]))
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    with torch.inference_mode(False), torch.enable_grad():
        for examples in torch.split(torch.arange(len(ids)), rows):
            with edited(model.module, {"hook_embed": leaf}), captured(model.module, wanted) as acts:
                reading = read(last_logits(model.module, ids[examples].clone(), read.columns), examples)
            (end,) = torch.autograd.grad(reading.sum(), [acts[last]], retain_graph=True)
            for site, added in written.items():
                flow = end
                if added != site:
                    (flow,) = torch.autograd.grad(acts[added], [acts[site]], end, retain_graph=True)
                parts[site].append(flow.detach())
    return {site: torch.cat(flows) for site, flows in parts.items()}


def _written(site: str) -> str:
    """The site of what a block adds that this one is, or is a part of; "" where it is none."""
    if site.endswith(("hook_attn_out", "hook_mlp_out")):
        return site
    return site.replace("attn.hook_z", "hook_attn_out") if site.endswith("attn.hook_z") else ""
