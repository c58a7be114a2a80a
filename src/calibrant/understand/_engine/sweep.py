"""Effects of many patches on one batch of prompts: each runs only what its patch can change.

1. Prompts of one length, so there is no padding. The run that is patched (the base) goes through the model
   once; its residual stream is kept where a patch begins, and its keys and values.
2. Patches share forward passes, as rows of a batch: a row enters at the block where its patch begins, and
   positions before the first patched one do not run. What an MLP adds begins behind its block. Only the last
   position is unembedded, and of it only the tokens that are read; nor does the last MLP run at others.
3. A patch that changes nothing is not run (``Plan.idle``): its reading is the base's.
4. A patch is also run in full, on every example; a few are, where one does not show all (``Plan.checked``).
   Where they differ, rows of a pass begin at one block; then positions are not skipped; then no blocks are;
   where rows of a batch disturb each other, one row runs at a time. ``Swept.how`` says which.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from calibrant.core import InputError, NumericalError, OpenLM
from calibrant.models.additions import Place
from calibrant.models.anatomy import anatomy
from calibrant.models.batching import batching
from calibrant.models.hooks import captured, edited, with_first
from calibrant.models.model_facts import FOREIGN
from calibrant.models.prompts import whole_rows
from calibrant.models.sites import located
from calibrant.understand._engine.narrow import last_mlp, last_position_only
from calibrant.understand._engine.patches import Edit, Patch, check, check_still, places_of
from calibrant.understand._engine.plan import Plan, Row, positions
from calibrant.understand._engine.readers import Reader
from calibrant.understand._engine.skip import Past, joined, last_logits, resumed

How = Literal["from the patch on", "from its block on", "in full", "one row at a time"]


class _Way(NamedTuple):
    """How passes are run."""

    how: How
    joined: bool = False
    """Rows enter a pass at their blocks; otherwise rows of a pass begin at one."""
    blocks: bool = False
    """Blocks before are left out."""
    positions: bool = False
    """Positions before are left out."""


_WAYS = (
    _Way("from the patch on", joined=True, blocks=True, positions=True),
    _Way("from the patch on", blocks=True, positions=True),
    _Way("from its block on", blocks=True),
    _Way("in full"),
)
_KEYED = 2
"""So many of them need keys and values."""
_FULL = _WAYS[-1]
_ALONE = _Way("one row at a time")
_ENTRY = "blocks.0.hook_resid_pre"
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
        self.embed = located(self.module, ["hook_embed"]) if embeddings is not None else {}
        cut = {edit.site for patch in patches for edit in patch if edit.columns is not None}
        self.parts = {
            site: place.heads or (sources[site].shape[-1] if site in cut else 0)
            for site, place in self.places.items()
        }
        self.past: list[tuple[Tensor, Tensor]] = []
        self.full: dict[Row, Tensor] = {}
        self.passes = 0
        config: Any = self.module.config
        width = int(config.vocab_size) if read.columns is None else len(read.columns)
        self.room = min(_TOKENS.get(ids.device.type, 16_384), ids.shape[1] * (_LOGITS // width))

    def swept(self, todo: Tensor) -> Swept:
        """Run the patches ``todo`` (P, N) bool; the others change nothing."""
        base, way, batches, tried = self._begin(todo)
        values = base[None].repeat(len(self.patches), *(1 for _ in base.shape))
        values[todo] = torch.nan
        done = int((~todo).sum())
        for number, rows in enumerate(batches):
            patches, examples = rows.T
            values[patches, examples] = tried[number] if number in tried else self._run(rows, way)
            done += len(rows)
            if self.progress is not None:
                self.progress(done, todo.numel())
        if not values.isfinite().all() or not base.isfinite().all():
            raise NumericalError(
                "a patched run gives logits that are NaN or infinite", hint="load the model in float32"
            )
        return Swept(values, base, way.how, self.passes)

    def _begin(self, todo: Tensor) -> tuple[Tensor, _Way, list[Tensor], dict[int, Tensor]]:
        """The base's readings, how to run, the passes, and what was read in those that were tried, by number.

        Passes that hold a checked patch (``Plan.checked``) are run each way, until they give what it does in
        full. Keys and values of the base are kept where the family has some, and they are needed.
        """
        needed = bool(max(self.plan.firsts))
        for keyed, ways in [(True, _WAYS[:_KEYED]), (False, _WAYS[_KEYED:])] if needed else [(False, _WAYS)]:
            with suppress(*(FOREIGN if keyed else ())):
                base = self._bases(keyed=keyed)
                for way in ways:
                    batches = list(self._batches(todo, way))
                    if (tried := self._tried(way, batches)) is not None:
                        return base, way, batches, tried
        return base, _ALONE, list(self._batches(todo, _ALONE)), {}

    def _bases(self, *, keyed: bool) -> Tensor:
        """Readings of the base; its streams are kept, and its keys and values."""
        parts = torch.split(torch.arange(len(self.ids)), max(1, self.room // self.ids.shape[1]))
        runs, kept = [Past() if keyed else None for _ in parts], dict[str, list[Tensor]]()
        readings = [self._base(part, past, kept) for part, past in zip(parts, runs, strict=True)]
        self.bases = {site: torch.cat(values) for site, values in kept.items()}
        self.past = joined([past for past in runs if past is not None])
        return torch.cat(readings)

    def _base(self, examples: Tensor, past: Past | None, kept: dict[str, list[Tensor]]) -> Tensor:
        """Run the base; keep the stream where patches begin, what MLPs add, and how blocks give it."""

        def keep(path: str, _: Any, __: Any, output: Any) -> None:
            self.outputs[path] = with_first(output, torch.empty(0))

        names = [self.blocks[start - 1] for start in self.plan.starts if start]
        if 0 in self.plan.starts and any(self.plan.inner):
            names.append(_ENTRY)
        names += [site for site, block in self.plan.added.items() if block + 1 in self.plan.starts]
        handles = [
            self.module.get_submodule(path).register_forward_hook(partial(keep, path)) for path in self.blocks
        ]
        try:
            seen = captured(self.module, list(dict.fromkeys(names)))
            with self._corrupted(examples, 0), seen as activations:
                reading = self._forward(examples, 0, past)
        finally:
            for handle in handles:
                handle.remove()
        for name, value in activations.items():
            kept.setdefault(name, []).append(value)
        return reading

    def _tried(self, way: _Way, batches: Sequence[Tensor]) -> dict[int, Tensor] | None:
        """What passes with a checked patch read; None where one fails, or is not as in full."""
        checked, found = self.plan.checked(batches, whole=not way.positions), dict[int, Tensor]()
        for number, rows in enumerate(batches):
            some = [at for at, patch in enumerate(rows[:, 0].tolist()) if patch in checked]
            if some:
                with suppress(*FOREIGN):
                    found[number] = self._run(rows, way)
                if number not in found or not self._same(found[number][some], self._in_full(rows[some])):
                    return None
        return found

    def _in_full(self, rows: Tensor) -> Tensor:
        """Readings of rows that skip nothing; run once.

        The first goes by itself, the others together: where rows disturb each other, it shows.
        """
        keys = [(patch, example) for patch, example in rows.tolist()]
        new = [row for row, key in zip(rows, keys, strict=True) if key not in self.full]
        size = max(1, self.room // self.ids.shape[1])
        for some in filter(None, (new[:1], *(new[at : at + size] for at in range(1, len(new), size)))):
            for row, reading in zip(some, self._run(torch.stack(some), _FULL), strict=True):
                self.full[int(row[0]), int(row[1])] = reading
        return torch.stack([self.full[key] for key in keys])

    def _batches(self, todo: Tensor, way: _Way) -> Iterator[Tensor]:
        room = 1 if way is _ALONE else self.room
        return self.plan.batches(todo, room, joined=way.joined, whole=not way.positions)

    def _same(self, one: Tensor, other: Tensor) -> bool:
        tolerance = _TOLERANCE.get(next(self.module.parameters()).dtype, 0.05)
        return bool(((one - other).abs() <= tolerance * max(self.largest, 1e-9)).all())

    def _run(self, rows: Tensor, way: _Way) -> Tensor:
        """Readings (R, ...) of patched runs; rows (R, 2) of patch and example, the first to begin first."""
        patches, examples = rows.T
        first = min(self.plan.firsts[p] for p in patches.tolist()) if way.positions else 0
        joined = way.joined and all(self.plan.inner[p] for p in patches.tolist())
        starts = [self.plan.starts[p] if way.blocks else 0 for p in patches.tolist()]
        lifted, edits = self._edits(rows, starts, first)
        entering = self._streams(starts, examples, first) if joined or starts[0] else {}
        if lifted:
            stream, counts = torch.cat(list(entering.values())), [len(one) for one in entering.values()]
            for where, change in lifted.values():
                stream[where] += change.to(stream)
            entering = dict(zip(entering, torch.split(stream, counts), strict=True))
        changes = {site: partial(_replaced, *edit) for site, edit in edits.items()}
        running = [examples[: bisect_right(starts, layer)] for layer in range(len(self.past))]
        past = Past(self.past, running, first) if first else None
        self.passes += len(rows)
        with (
            nullcontext() if joined else self._corrupted(examples, first),
            resumed(self.module, self.blocks, self.outputs, entering),
            edited(self.module, changes, self.places),
            last_position_only(self.module) if entering or first else nullcontext(),
        ):
            return self._forward(examples, first, past, joined=joined)

    def _streams(self, starts: Sequence[int], examples: Tensor, first: int) -> dict[int, Tensor]:
        """Block -> the base's stream (r, T, D) of the rows that begin there."""
        names = {start: self.blocks[start - 1] if start else _ENTRY for start in starts}
        some = {start: examples[bisect_left(starts, start) : bisect_right(starts, start)] for start in names}
        return {start: self.bases[name][some[start], first:] for start, name in names.items()}

    def _corrupted(self, examples: Tensor, first: int) -> AbstractContextManager[None]:
        """A block in which the embeddings of these rows are the given ones."""
        if self.embeddings is None:
            return nullcontext()
        given = self.embeddings[examples][:, first:]
        return edited(self.module, {"hook_embed": lambda own: given.to(own)}, self.embed)

    def _edits(self, rows: Tensor, starts: Sequence[int], first: int) -> tuple[_Edits, _Edits]:
        """What is added to the stream that rows enter with, and what is replaced in the pass."""
        found: tuple[dict[str, _Cells], dict[str, _Cells]] = ({}, {})
        length = self.ids.shape[1]
        for row, ((patch, example), start) in enumerate(zip(rows.tolist(), starts, strict=True)):
            for edit in self.patches[patch]:
                side = found[self.plan.firsts_of[edit.site] >= start]
                at = side.setdefault(edit.site, ([], [], [], []))
                for position, part in _cells(edit, length, self.parts[edit.site]):
                    for numbers, number in zip(at, (row, example, position, part), strict=True):
                        numbers.append(number)
        lifted = {site: self._edit(site, at, first, self.bases[site]) for site, at in found[0].items()}
        return lifted, {site: self._edit(site, at, first) for site, at in found[1].items()}

    def _edit(
        self, site: str, cells: _Cells, first: int, base: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        row, example, position, part = (torch.tensor(one, device=self.ids.device) for one in cells)
        within = (part,) if self.parts[site] else ()
        source = self.sources[site][(example, position, *within)]
        change = source if base is None else source.to(base) - base[(example, position, *within)]
        return (row, position - first, *within), change

    def _forward(self, examples: Tensor, first: int, past: Past | None, *, joined: bool = False) -> Tensor:
        """Readings (R,) or (R, K) float64 of the last position; ids before ``first`` are in ``past``.

        ``joined``: rows enter behind the embeddings. One row of ids stands for all, whose order is turned
        round, so that the check sees a family that looks at them later.
        """
        ids = self.ids[:1].flip(1) if joined else self.ids[examples]
        logits = last_logits(self.module, ids, self.read.columns, first, past)
        self.largest = float(logits.abs().max())
        return self.read(logits, examples.to(logits.device)).double().cpu()


_Cells = tuple[list[int], list[int], list[int], list[int]]
"""Row, example, position, and head or column, of each number that is replaced."""
_Edits = dict[str, tuple[tuple[Tensor, ...], Tensor]]
"""Site -> where rows are changed (rows, positions, and perhaps heads or columns), and by what."""


def _cells(edit: Edit, length: int, parts: int) -> Iterator[tuple[int, int]]:
    """(position, head or column) of an edit; -1 at a site that is replaced whole."""
    named = edit.heads if edit.heads is not None else edit.columns
    return product(positions(edit, length), named if named is not None else range(parts) if parts else (-1,))


def _replaced(where: tuple[Tensor, ...], source: Tensor, value: Tensor) -> Tensor:
    value = value.clone()
    value[where] = source.to(value)
    return value
