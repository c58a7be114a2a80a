"""Causal tracing: which states, restored, bring a fact back after its subject was corrupted.

    total effect     m(clean) - m(corrupted)                      (Meng et al. 2022, ROME, 2202.05262)
    indirect effect  m(corrupted, with the clean state) - m(corrupted)

m is the probability of the answer's first token, and its logit less the foil's where there are foils. Means
over facts, with intervals; a fact's draws of noise are averaged first.

1. Facts that the model gets wrong are counted (``known``) and left out.
2. The subject's tokens are corrupted: by Gaussian noise on their embeddings, ``noise`` times their standard
   deviation, drawn anew for each fact and kept for all cells; or by another subject of as many tokens, which
   stays closer to what the model has seen (Zhang & Nanda 2024, 2309.16042).
3. A cell is a layer and a place: a state, or what attention or MLP adds in a window of layers around it.
4. ``found`` counts cells that are beyond chance after looking at all of them, and above the floor.

    calibrant show understand.causal_trace
"""

from __future__ import annotations

import json
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from calibrant.core import Estimate, Frozen, InputError, OpenLM, Quiet, Result, Run, point, technique, unknown
from calibrant.data.rows import Facts
from calibrant.models.anatomy import anatomy
from calibrant.stats import mean
from calibrant.understand._effects import Floats, corrected, why_idle
from calibrant.understand._facts import Asked, ask
from calibrant.understand._trace_runs import Corruption, Restored, layers_of, read_clean, restore, scale_of

_WINDOW = 10 / 48
"""The paper's window, 10 layers of GPT-2 XL's 48, as a share of the depth."""
_UNITS = ("probability", "logits")
_LEAST = 1e-3
"""Least total effect, of either unit, of which shares are told: below it no answer comes or goes."""


class CausalTracing(Frozen):
    """How the subject is corrupted, and what is restored."""

    corruption: Literal["noise", "replace"] = "noise"
    """Gaussian noise on the subject's embeddings, or another subject of as many tokens."""
    noise: float = Field(default=3.0, gt=0)
    """Standard deviation of the noise, in standard deviations of all subjects' embeddings."""
    draws: int = Field(default=10, ge=1)
    """Draws of noise for each fact; of other subjects there is one."""
    site: Literal["resid_post", "resid_pre", "attn_out", "mlp_out"] = "resid_post"
    """The residual stream after or before a layer, or what attention or MLP adds to it."""
    window: int | None = Field(default=None, ge=1)
    """Layers restored together, for attn_out and mlp_out. None: a fifth of the depth, as in the paper."""
    positions: Literal["roles", "each"] = "roles"
    """By role (first, middle and last token of the subject, first and further ones after it, the last), or
    each by itself from the subject on, for prompts of one length whose subjects stand at one place."""
    wrong: Literal["leave_out", "keep"] = "leave_out"
    """What to do with facts where the model's first choice is not the answer."""
    floor: float = Field(default=0.1, ge=0)
    """Least share of the total effect that counts as found."""
    level: float = Field(default=0.05, gt=0, lt=1)
    """Chance of any false find in the whole sweep that is accepted."""
    limit: int | None = Field(default=100, ge=2)
    """Use at most this many facts, evenly spread. None: all."""

    @model_validator(mode="after")
    def _window_of_additions(self) -> Self:
        if self.window is not None and self.site.startswith("resid"):
            raise ValueError("a window is for attn_out and mlp_out: a restored state leaves no earlier one")
        return self


class CausalTraceResult(Result):
    """``probability/CELL`` and ``logits/CELL`` (``layer_3/subject_last``, ``layer_0/position_5``, ...),
    ``total_effect/...``, ``found/...``, ``known``, ``noise_std``, ``draw_error``. Artefact 'trace.json'."""


@technique(version=2)  # version 1 told shares of a total effect of any size
def causal_trace(
    model: OpenLM, facts: Facts, config: CausalTracing = CausalTracing(), run: Run = Quiet()
) -> CausalTraceResult:
    """Corrupt each fact's subject, restore one cell at a time, and see what brings the answer back.

    Raises:
        InputError: facts that cannot be traced: see the page.
        CapabilityError: the model has no such sites, or is not causal.
        NumericalError: a run gives NaN.
    """
    replace = config.corruption == "replace"
    asked = ask(model, facts, config.limit, swap=replace, seed=run.seed)
    sites = layers_of(model, config.site)
    clean, first = read_clean(model, asked)
    right = first == np.array([one.answer for one in asked])
    run.spend(queries=len(asked))
    names = [one.row.cluster or f"\0{number}" for number, one in enumerate(asked)]
    clusters = names if any(one.row.cluster for one in asked) else None
    known = mean(
        right.astype(float).tolist(), clusters=clusters, better="none", unit="fact", bounds=(0.0, 1.0)
    )
    kept, notes = _kept(asked, right, config, _example(model, asked, first))
    metrics: dict[str, Estimate] = {"known": known}
    if len(kept) < 2:
        reason = f"not testable: {len(kept)} of {len(asked)} facts are left"
        units = _UNITS if asked[0].row.foil else _UNITS[:1]
        metrics |= {f"{name}/{unit}": unknown(reason) for name in ("total_effect", "found") for unit in units}
        return CausalTraceResult(metrics=metrics, caveats=(*notes, reason))
    chosen = [asked[at] for at in kept]
    if config.positions == "each" and len({(len(one.ids), one.subject) for one in chosen}) > 1:
        raise InputError(
            "prompts of several lengths, or subjects at several places: one position means several things",
            hint="set positions = 'roles'",
        )
    width = config.window or (1 if config.site.startswith("resid") else max(1, round(_WINDOW * len(sites))))
    how = Corruption(
        scale=0.0 if replace else config.noise * scale_of(model, asked),
        draws=1 if replace else config.draws,
        seed=run.seed,
    )
    restored = restore(model, chosen, how, sites, width, config.positions == "each", run)
    found = _Traced(restored, clean[kept], [clusters[at] for at in kept] if clusters else None)
    metrics |= found.metrics(config, run.seed, logits=bool(asked[0].row.foil))
    if not replace:
        metrics["noise_std"] = point(how.scale, unit="of an embedding's entry", n=len(asked))
    found.write(run, chosen, how)
    return CausalTraceResult(metrics=metrics, caveats=(*_notes(model, config, width, len(sites)), *notes))


class _Traced:
    """Effects of all cells on all facts."""

    def __init__(self, restored: Restored, clean: Floats, clusters: list[str] | None) -> None:
        """``clean`` (N, 2): probability and logit difference."""
        self.cells, self.clusters = restored.cells, clusters
        self.total = (clean - restored.base.mean(1)).T  # (2, N)
        self.effects = restored.effects  # (2, C, N), NaN where a fact has no such place
        # What the draws alone make of the total effect's error.
        draws = restored.base.shape[1]
        spread = restored.base.var(1, ddof=1) / draws if draws > 1 else np.full(clean.shape, np.nan)
        self.draw_error = np.sqrt(spread.sum(0)) / len(clean)

    def metrics(self, config: CausalTracing, seed: int, *, logits: bool) -> dict[str, Estimate]:
        """All that is told, in each unit."""
        units = _UNITS if logits else _UNITS[:1]
        effects = self.effects[: len(units)]
        chances, mute = corrected(np.nan_to_num(effects), self.clusters, config.level, seed)
        self.chances = chances
        found: dict[str, Estimate] = {}
        for at, unit in enumerate(units):
            total = self._mean(self.total[at])
            found[f"total_effect/{unit}"] = total
            idle = why_idle(total, "the total effect") or _too_small(total)
            least = abs(config.floor * float(self.total[at].mean()))
            hits = sum(
                chance <= config.level and abs(float(np.nanmean(effect))) >= least
                for effect, chance in zip(effects[at], chances[at], strict=True)
            )
            count = len(self.cells)
            found[f"found/{unit}"] = (
                unknown(mute or idle, n=count, unit="cells")
                if mute or idle
                else point(hits, unit="cells", n=count)
            )
            for cell, effect in zip(self.cells, effects[at], strict=True):
                found[f"{unit}/{cell}"] = unknown(idle, n=effect.size) if idle else self._mean(effect)
            if np.isfinite(self.draw_error[at]):
                found[f"draw_error/{unit}"] = point(float(self.draw_error[at]), n=effects.shape[-1])
        return found

    def _mean(self, values: Floats) -> Estimate:
        there = np.flatnonzero(~np.isnan(values))
        clusters = None if self.clusters is None else [self.clusters[at] for at in there]
        kept = values[there].tolist()
        return mean(kept, clusters=clusters, better="none", unit="fact", null_value=0.0)

    def write(self, run: Run, asked: list[Asked], how: Corruption) -> None:
        """Artefact 'trace.json': every effect on every fact, what was corrupted, and the seeds."""
        table = {
            "facts": [
                {"id": one.row.id, "subject_tokens": one.subject}
                | ({"noise_seed": how.seed_of(one)} if how.scale else {"swapped": one.swapped})
                for one in asked
            ],
            "noise_std": how.scale,
            "draws": how.draws,
            "total": {unit: _rounded(self.total[at]) for at, unit in enumerate(_UNITS[: len(self.chances)])},
            "cells": [
                {"cell": cell}
                | {
                    unit: {"p": float(self.chances[at, row]), "effects": _rounded(self.effects[at, row])}
                    for at, unit in enumerate(_UNITS[: len(self.chances)])
                }
                for row, cell in enumerate(self.cells)
            ],
        }
        run.artifact("trace.json").write_text(json.dumps(table), encoding="utf-8")


def _too_small(total: Estimate) -> str:
    if total.value is None or abs(total.value) >= _LEAST:
        return ""
    return f"not testable: the total effect, {total.value:.1g}, is smaller than {_LEAST:g}"


def _example(model: OpenLM, asked: list[Asked], first: np.ndarray[tuple[int], np.dtype[np.int64]]) -> str:
    """What the model would say of the first fact that it gets wrong; "" where it gets none wrong."""
    for one, choice in zip(asked, first.tolist(), strict=True):
        if choice != one.answer:
            said, due = (model.tokenizer.decode([token]) for token in (choice, one.answer))
            return f"of '{one.row.id}' {said!r}, where the answer begins {due!r}"
    return ""


def _rounded(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 7) for value in values]


def _kept(
    asked: list[Asked],
    right: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    config: CausalTracing,
    example: str,
) -> tuple[list[int], list[str]]:
    """Facts to trace, and a caveat for those that are not; ``example`` is of one that is wrong."""
    wrong = [at for at in range(len(asked)) if not right[at]] if config.wrong == "leave_out" else []
    lonely = [
        at
        for at, one in enumerate(asked)
        if config.corruption == "replace" and not one.swapped and at not in wrong
    ]
    notes = []
    if wrong:
        blank = "; a leading blank of the answer counts" if len(wrong) == len(asked) else ""
        notes.append(
            f"{len(wrong)} of {len(asked)} facts left out: the model's first choice is not the answer "
            f"({example}){blank}"
        )
    if config.wrong == "keep" and not right.all():
        notes.append(
            f"{int((~right).sum())} of {len(asked)} facts are traced although the model gets them wrong "
            f"({example})"
        )
    if lonely:
        notes.append(
            f"{len(lonely)} of {len(asked)} facts left out: no row's subject has as many tokens: give 'other'"
        )
    return [at for at in range(len(asked)) if at not in {*wrong, *lonely}], notes


def _notes(model: OpenLM, config: CausalTracing, width: int, sites: int) -> list[str]:
    notes = [
        "a state that brings a fact back carries it here; that an edit there changes the fact does not follow"
    ]
    if config.corruption == "noise":
        notes.append(
            "noise leaves what the model has seen, and may move the peak: compare corruption = 'replace'"
        )
    if width > 1:
        notes.append(f"each cell restores {width} layers around the one that it is named after")
    layers = len(anatomy(model.module).blocks)
    if sites < layers:
        notes.append(f"{layers - sites} of {layers} layers do not have this site, and are left out")
    return notes
