"""Runs with a corrupted subject, in which clean states are put back: the sweeps of causal tracing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from calibrant.core import CapabilityError, NumericalError, OpenLM, Run, digest
from calibrant.core.figure_data import ROLES
from calibrant.models.anatomy import anatomy
from calibrant.models.batching import batching
from calibrant.models.sites import places
from calibrant.understand._effects import Floats
from calibrant.understand._engine.patches import Edit, Patch, check_still
from calibrant.understand._engine.readers import LogProbAndDifference
from calibrant.understand._engine.skip import last_logits
from calibrant.understand._engine.sweep import sweep, traced
from calibrant.understand._facts import Asked

_ROWS = 64
"""Corrupted prompts in one sweep."""


class Corruption(NamedTuple):
    """How subjects are corrupted."""

    scale: float
    """Standard deviation of the noise on each entry of an embedding; 0: another subject."""
    draws: int
    seed: int

    def seed_of(self, one: Asked) -> int:
        """The seed of a fact's noise: other facts have others."""
        return int(digest([self.seed, one.row.id]).rpartition(":")[2][:12], 16)

    def noise(self, one: Asked, width: int) -> Tensor:
        """(draws, subject tokens, width)."""
        generator = torch.Generator().manual_seed(self.seed_of(one))
        tokens = one.subject[1] - one.subject[0]
        return self.scale * torch.randn(self.draws, tokens, width, generator=generator)


class Restored(NamedTuple):
    """What restoring did."""

    cells: list[str]
    effects: Floats
    """(2, C, N): on the probability and the logit difference; NaN where a fact has no such place."""
    base: Floats
    """(N, draws, 2): the corrupted readings."""


def layers_of(model: OpenLM, site: str) -> dict[int, str]:
    """Layer -> its site, of the layers that have it.

    Raises:
        CapabilityError: no layer has it, or the model is not causal.
    """
    check_still(model.module)
    batching(model.module)  # raises where the model is not causal
    known, layers = places(model.module), len(anatomy(model.module).blocks)
    sites = {at: name for at in range(layers) if (name := f"blocks.{at}.hook_{site}") in known}
    if not sites:
        raise CapabilityError(
            f"'{model.identity.name}' has no hook_{site}: its blocks were not found, or do not add up",
            hint="model.sites() lists what it has; site = 'resid_post' works for most",
        )
    return sites


def read_clean(
    model: OpenLM, asked: Sequence[Asked]
) -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """(N, 2) probability and logit difference of clean prompts, and (N,) the token that comes first."""
    found, first = np.empty((len(asked), 2)), np.empty(len(asked), np.int64)
    read = _reader(asked, 1)
    for some in _alike(asked, _ROWS, by_subject=False):
        with torch.inference_mode():
            logits = last_logits(model.module, _ids(model, [asked[at].ids for at in some]), None)
            found[some] = _shown(read(logits, torch.tensor(some, device=logits.device)).double().cpu())
            first[some] = logits.argmax(-1).cpu().numpy()
    if np.isnan(found).any():
        raise NumericalError("a clean prompt's logits are no numbers", hint="load the model in float32")
    return found, first


def scale_of(model: OpenLM, asked: Sequence[Asked]) -> float:
    """Standard deviation of all entries of all subjects' embeddings, as they stand at ``hook_embed``."""
    parts = []
    for some in _alike(asked, _ROWS, by_subject=False):
        here = traced(model, _ids(model, [asked[at].ids for at in some]), ["hook_embed"])["hook_embed"]
        parts += [row[slice(*asked[at].subject)].flatten() for row, at in zip(here, some, strict=True)]
    return float(torch.cat(parts).double().std(correction=0))


def restore(
    model: OpenLM,
    asked: Sequence[Asked],
    how: Corruption,
    sites: dict[int, str],
    width: int,
    each: bool,
    run: Run,
) -> Restored:
    """Restore every cell of every fact; ``width`` layers at a time."""
    layers = list(sites)
    roles = [_roles(one, each) for one in asked]
    order = list(dict.fromkeys(name for one in roles for name in one))
    order = order if each else [name for name in ROLES if name in order]
    cells = [f"layer_{layer}/{name}" for layer in layers for name in order]
    effects = np.full((2, len(layers), len(order), len(asked)), np.nan)
    base = np.empty((len(asked), how.draws, 2))
    groups = list(_alike(asked, max(1, _ROWS // how.draws), by_subject=True))
    done = 0
    for some in groups:
        places_ = roles[some[0]]
        positions = sorted({at for group in places_.values() for at in group})
        windows = [layers[max(0, at - width // 2) : at + (width + 1) // 2] for at in range(len(layers))]
        patches = [
            tuple(Edit(sites[layer], (position,)) for layer in window)
            for window in windows
            for position in positions
        ]
        after, before = _swept(model, [asked[at] for at in some], how, patches, run)
        base[some] = before
        change = (after - before).mean(2).reshape(len(layers), len(positions), len(some), 2)
        for number, name in enumerate(order):
            if name in places_:
                where = [positions.index(at) for at in places_[name]]
                effects[:, :, number, some] = change[:, where].mean(1).transpose(2, 0, 1)
        done += len(some)
        run.progress(done, len(asked), "restoring")
    return Restored(cells, effects.reshape(2, len(cells), len(asked)), base)


def _swept(
    model: OpenLM, some: Sequence[Asked], how: Corruption, patches: Sequence[Patch], run: Run
) -> tuple[Floats, Floats]:
    """Readings (P, N, draws, 2) of facts of one shape with each cell restored, and (N, draws, 2) without."""
    sites = list(dict.fromkeys(edit.site for patch in patches for edit in patch))
    clean = _ids(model, [one.ids for one in some])
    named = sites if not how.scale else [*sites, "hook_embed"]
    sources = {
        site: value.repeat_interleave(how.draws, 0) for site, value in traced(model, clean, named).items()
    }
    embeddings: Tensor | None = None
    if how.scale:
        embeddings = sources.pop("hook_embed").clone()
        start, stop = some[0].subject
        noise = torch.cat([how.noise(one, embeddings.shape[-1]) for one in some])
        embeddings[:, start:stop] += noise.to(embeddings)
        ids = clean.repeat_interleave(how.draws, 0)
    else:
        ids = _ids(model, [one.swapped for one in some])
    found = sweep(model, ids, sources, patches, _reader(some, how.draws), embeddings=embeddings)
    run.spend(queries=found.passes)
    shape = (len(some), how.draws, 2)
    return _shown(found.values).reshape(len(patches), *shape), _shown(found.base).reshape(shape)


def _roles(one: Asked, each: bool) -> dict[str, list[int]]:
    """Name of a place -> its positions; no position has two names."""
    (start, stop), end = one.subject, len(one.ids)
    if each:
        return {f"position_{at}": [at] for at in range(start, end)}
    roles = {"subject_last": [stop - 1]}
    if stop - start > 1:
        roles["subject_first"] = [start]
    if stop - start > 2:
        roles["subject_middle"] = list(range(start + 1, stop - 1))
    if end > stop:
        roles["last"] = [end - 1]
    if end > stop + 1:
        roles["after_first"] = [stop]
    if end > stop + 2:
        roles["after_further"] = list(range(stop + 1, end - 1))
    return roles


def _alike(asked: Sequence[Asked], most: int, *, by_subject: bool) -> Iterator[list[int]]:
    """Numbers of facts of one length (and subjects at one place), at most so many at a time."""
    groups: dict[object, list[int]] = {}
    for at, one in enumerate(asked):
        groups.setdefault((len(one.ids), one.subject if by_subject else ()), []).append(at)
    for group in groups.values():
        yield from (group[first : first + most] for first in range(0, len(group), most))


def _reader(asked: Sequence[Asked], draws: int) -> LogProbAndDifference:
    answers, foils = (
        [getattr(one, name) for one in asked for _ in range(draws)] for name in ("answer", "foil")
    )
    return LogProbAndDifference(answers, foils)


def _shown(readings: Tensor) -> Floats:
    """(..., 2) log-probability and logit difference -> probability and logit difference."""
    shown: Floats = torch.stack([readings[..., 0].exp(), readings[..., 1]], dim=-1).numpy()
    return shown


def _ids(model: OpenLM, rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([list(row) for row in rows], device=next(model.module.parameters()).device)
