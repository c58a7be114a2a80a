"""Effects of many patches on one batch of prompts: each runs only what its patch can change.

1. Prompts of one length, so there is no padding. The run that is patched (the base) goes through the model
   once; its residual stream is kept where a patch begins, and its keys and values.
2. Patches that begin at the same block share forward passes, as rows of a batch: blocks below do not run, nor
   do positions before the first patched one. What an MLP adds begins behind its block. Only the last position
   is unembedded, and of it only the tokens that are read; nor does the last MLP run at others.
3. A patch that changes nothing is not run (``Plan.idle``): its reading is the base's.
4. One patch is also run in full, on every example; two are, where an MLP's change begins late. Where they
   differ, the sweep goes on without skipping positions, then without skipping blocks; where rows of a batch
   disturb each other, one row at a time. ``Swept.how`` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor

from calibrant.core import InputError, NumericalError, OpenLM
from calibrant.models.additions import Place
from calibrant.models.anatomy import anatomy
from calibrant.models.batching import batching
from calibrant.models.hooks import captured, edited, with_first
from calibrant.models.model_facts import FOREIGN
from calibrant.models.sites import located
from calibrant.models.trace import whole_rows
from calibrant.understand._engine.narrow import last_mlp, last_position_only
from calibrant.understand._engine.patches import Edit, Patch, check, check_still, places_of
from calibrant.understand._engine.plan import Plan, positions
from calibrant.understand._engine.readers import Reader
from calibrant.understand._engine.skip import Past, joined, last_logits, resumed

How = Literal["from the patch on", "from its block on", "in full", "one row at a time"]
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # of the largest logit; half precision: 5 %
_TOKENS = {"cpu": 512}  # in one forward pass; elsewhere 16,384
_LOGITS = 2**27


@dataclass(frozen=True)
class Swept:
    """What a sweep found."""

    values: Tensor
    """(P, N), or (P, N, K) of a reader of K numbers, float64: each example's reading under each patch."""
    base: Tensor
    """(N,) or (N, K) float64: the reading without a patch."""
    how: How
    """How the passes were run."""
    passes: int
    """Rows of forward passes that were run."""


def sweep(
    model: OpenLM,
    ids: Tensor,
    sources: Mapping[str, Tensor],
    patches: Sequence[Patch],
    read: Reader,
    progress: Callable[[int, int], None] | None = None,
    embeddings: Tensor | None = None,
    shared: Tensor | None = None,
) -> Swept:
    """The reading of every example under every patch.

    Args:
        model: local weights.
        ids: (N, T) token ids of the run that is patched.
        sources: site -> its activation (N, T, ...) in the other run.
        patches: what is replaced, each in a run of its own.
        read: what is read off the last position's logits.
        progress: called with rows done and rows in all.
        embeddings: (N, T, D) what stands at ``hook_embed`` in the run that is patched, instead of the
            embeddings of ``ids``: a corruption that no token spells. A patch comes after it.
        shared: (N,) how many first positions are the same in both runs; see ``shared_start``.

    Raises:
        InputError: see ``patches.check``; embeddings of other prompts.
        CapabilityError: a site that the model does not have, or a model that is not causal.
        NumericalError: a reading is NaN or infinite.
    """
    check_still(model.module)
    places, shape = places_of(model.module, patches), (ids.shape[0], ids.shape[1])
    check(places, patches, sources, shape)
    if embeddings is not None and embeddings.shape[:2] != ids.shape:
        raise InputError(
            f"embeddings of shape {tuple(embeddings.shape)} for prompts of {tuple(ids.shape)}",
            hint="give a vector for each token of each prompt",
        )
    batching(model.module)  # raises where the model is not causal
    last_mlp(model.module)  # a probe: within a pass of the sweep it would see only a part of one
    with torch.inference_mode():
        plan = Plan(model.module, patches, places, shape)
        run = _Sweep(model, ids, sources, patches, places, plan, read, progress, embeddings)
        return run.swept(~plan.idle(shared))


def traced(model: OpenLM, ids: Tensor, sites: Sequence[str], rows: int = 64) -> dict[str, Tensor]:
    """Activations (N, T, ...) at each site, a few prompts at a time."""
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    with torch.inference_mode():
        for chunk in torch.split(ids, rows):
            for site, value in model.trace(whole_rows(chunk), sites).items():
                parts[site].append(value)
    return {site: torch.cat(values) for site, values in parts.items()}


class _Sweep:
    """One sweep under way."""

    def __init__(
        self,
        model: OpenLM,
        ids: Tensor,
        sources: Mapping[str, Tensor],
        patches: Sequence[Patch],
        places: Mapping[str, Place],
        plan: Plan,
        read: Reader,
        progress: Callable[[int, int], None] | None,
        embeddings: Tensor | None,
    ) -> None:
        self.model, self.module, self.ids = model, model.module, ids
        self.sources, self.patches, self.places, self.plan = sources, patches, places, plan
        self.read, self.progress, self.embeddings = read, progress, embeddings
        self.blocks = anatomy(self.module).blocks
        self.outputs: dict[str, Any] = {}
        self.kept: dict[str, list[Tensor]] = {}
        self.embed = located(self.module, ["hook_embed"]) if embeddings is not None else {}
        cut = {edit.site for patch in patches for edit in patch if edit.columns is not None}
        self.parts = {
            site: place.heads or (sources[site].shape[-1] if site in cut else 0)
            for site, place in self.places.items()
        }
        self.past: list[tuple[Tensor, Tensor]] = []
        self.passes = 0
        config: Any = self.module.config
        width = int(config.vocab_size) if read.columns is None else len(read.columns)
        self.room = min(_TOKENS.get(ids.device.type, 16_384), ids.shape[1] * (_LOGITS // width))

    def swept(self, todo: Tensor) -> Swept:
        """Run the patches ``todo`` (P, N) bool; the others change nothing."""
        parts = torch.split(torch.arange(len(self.ids)), max(1, self.room // self.ids.shape[1]))
        base = torch.cat([self._base(examples) for examples in parts])
        self._remember(parts)
        self.bases = {site: torch.cat(parts) for site, parts in self.kept.items()}
        values = base[None].repeat(len(self.patches), *(1 for _ in base.shape))
        values[todo] = torch.nan
        how = self._how(todo)
        done = int((~todo).sum())
        for start in sorted(set(self.plan.starts)):
            for rows in self._batches(start, todo, how):
                patches, examples = rows.T
                values[patches, examples] = self._run(rows, *self._skipped(rows, how))
                done += len(rows)
                if self.progress is not None:
                    self.progress(done, todo.numel())
        if not values.isfinite().all() or not base.isfinite().all():
            raise NumericalError(
                "a patched run gives logits that are NaN or infinite", hint="load the model in float32"
            )
        return Swept(values, base, how, self.passes)

    def _base(self, examples: Tensor) -> Tensor:
        """Run the base; keep the stream where patches begin, what MLPs add, and how blocks give it."""

        def keep(path: str, _: Any, __: Any, output: Any) -> None:
            self.outputs[path] = with_first(output, torch.empty(0))

        names = [self.blocks[start - 1] for start in self.plan.starts if start]
        names += [site for site, block in self.plan.added.items() if block + 1 in self.plan.starts]
        handles = [
            self.module.get_submodule(path).register_forward_hook(partial(keep, path)) for path in self.blocks
        ]
        try:
            kept = captured(self.module, list(dict.fromkeys(names)))
            with self._corrupted(examples, 0), kept as activations:
                reading = self._forward(examples, 0, None)
        finally:
            for handle in handles:
                handle.remove()
        for name, value in activations.items():
            self.kept.setdefault(name, []).append(value)
        return reading

    def _remember(self, parts: Sequence[Tensor]) -> None:
        """Keys and values of the base, where they are needed and the family has some."""
        if not max(self.plan.firsts):
            return
        runs = []
        with suppress(*FOREIGN):
            for examples in parts:
                runs.append(Past())
                with self._corrupted(examples, 0):
                    self._forward(examples, 0, runs[-1])
            self.past = joined(runs)

    def _how(self, todo: Tensor) -> How:
        """How to run: one patch, or two, are run each way, and in full (``Plan.checked``)."""
        ways: tuple[How, ...] = ("from the patch on", "from its block on", "in full")
        trials = []
        for patch in self.plan.checked(todo):
            rows = torch.tensor([(patch, n) for n in todo[patch].nonzero()[:, 0].tolist()])
            trials.append((rows, torch.cat([self._run(row[None], 0, 0) for row in rows])))
        for how in ways if self.past or not max(self.plan.firsts) else ways[1:]:
            with suppress(*FOREIGN):
                if all(
                    self._same(self._run(rows, *self._skipped(rows, how)), alone) for rows, alone in trials
                ):
                    return how
        return "one row at a time"

    def _skipped(self, rows: Tensor, how: How) -> tuple[int, int]:
        """Blocks and positions that rows (R, 2) of one start do not need."""
        if how not in ("from the patch on", "from its block on"):
            return 0, 0
        first = min(self.plan.firsts[p] for p in rows[:, 0].tolist()) if how == "from the patch on" else 0
        return self.plan.starts[int(rows[0, 0])], first

    def _batches(self, start: int, todo: Tensor, how: How) -> Iterator[Tensor]:
        room = 1 if how == "one row at a time" else self.room
        return self.plan.batches(start, todo, room, whole=how != "from the patch on")

    def _same(self, one: Tensor, other: Tensor) -> bool:
        tolerance = _TOLERANCE.get(next(self.module.parameters()).dtype, 0.05)
        return bool(((one - other).abs() <= tolerance * max(self.largest, 1e-9)).all())

    def _run(self, rows: Tensor, start: int, first: int) -> Tensor:
        """Readings (R, ...) of patched runs of blocks from ``start`` and positions from ``first`` on."""
        patches, examples = rows.T
        edits = self._edits(patches, examples, first)
        stream = self.bases[self.blocks[start - 1]][examples][:, first:] if start else None
        for site in [site for site in edits if stream is not None and self.plan.firsts_of[site] < start]:
            assert stream is not None
            where, source = edits.pop(site)
            there = self.bases[site][examples][:, first:][where]
            stream[where] += source.to(stream) - there.to(stream)
        changes = {site: partial(_replaced, *edit) for site, edit in edits.items()}
        past = Past(self.past, examples, first, start) if first else None
        self.passes += len(rows)
        with (
            self._corrupted(examples, first),
            resumed(self.module, {path: self.outputs[path] for path in self.blocks[:start]}, stream),
            edited(self.module, changes, self.places),
            last_position_only(self.module) if start or first else nullcontext(),
        ):
            return self._forward(examples, first, past)

    def _corrupted(self, examples: Tensor, first: int) -> AbstractContextManager[None]:
        """A block in which the embeddings of these rows are the given ones."""
        if self.embeddings is None:
            return nullcontext()
        given = self.embeddings[examples][:, first:]
        return edited(self.module, {"hook_embed": lambda own: given.to(own)}, self.embed)

    def _edits(
        self, patches: Tensor, examples: Tensor, first: int
    ) -> dict[str, tuple[tuple[Tensor, ...], Tensor]]:
        """Site -> where rows are replaced (rows, positions, and perhaps heads or columns), and by what."""
        found: dict[str, tuple[list[int], list[int], list[int]]] = {}
        length = self.ids.shape[1]
        for row, patch in enumerate(patches.tolist()):
            for edit in self.patches[patch]:
                at = found.setdefault(edit.site, ([], [], []))
                for position, part in _cells(edit, length, self.parts[edit.site]):
                    at[0].append(row)
                    at[1].append(position)
                    at[2].append(part)
        edits = {}
        for site, lists in found.items():
            where, places, which = (torch.tensor(one, device=self.ids.device) for one in lists)
            within = (which,) if self.parts[site] else ()
            taken = examples.to(self.ids.device)[where]
            edits[site] = ((where, places - first, *within), self.sources[site][(taken, places, *within)])
        return edits

    def _forward(self, examples: Tensor, first: int, past: Past | None) -> Tensor:
        """Readings (R,) or (R, K) float64 of the last position; ids before ``first`` are in ``past``."""
        logits = last_logits(self.module, self.ids[examples], self.read.columns, first, past)
        self.largest = float(logits.abs().max())
        return self.read(logits, examples.to(logits.device)).double().cpu()


def _cells(edit: Edit, length: int, parts: int) -> Iterator[tuple[int, int]]:
    """(position, head or column) of an edit; -1 at a site that is replaced whole."""
    named = edit.heads if edit.heads is not None else edit.columns
    return product(positions(edit, length), named if named is not None else range(parts) if parts else (-1,))


def _replaced(where: tuple[Tensor, ...], source: Tensor, value: Tensor) -> Tensor:
    value = value.clone()
    value[where] = source.to(value)
    return value
