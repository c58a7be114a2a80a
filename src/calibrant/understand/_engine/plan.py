"""Where each patched run may begin, which runs change nothing, and which go together in a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from calibrant.models.additions import Place, additions
from calibrant.models.anatomy import anatomy
from calibrant.understand._engine.patches import Edit, Patch, first_block


class Plan:
    """A sweep's patches, in numbers."""

    def __init__(
        self, module: nn.Module, patches: Sequence[Patch], places: Mapping[str, Place], shape: tuple[int, int]
    ) -> None:
        """``places``: of every site; ``shape``: (N, T) of the ids."""
        self.count, self.length = shape
        self.blocks = len(anatomy(module).blocks)
        mlps = [parts.mlp for parts in additions(module)] if _may_lift(module) else []
        self.added = {
            site: mlps.index(place)
            for site, place in places.items()
            if place in mlps and _untouched(module, anatomy(module).blocks[mlps.index(place)])
        }
        """Site of an MLP -> its block: a change of what it adds is one of the stream behind the block."""
        self.firsts_of = {site: first_block(module, place) for site, place in places.items()}
        spans = [[p for edit in patch for p in positions(edit, self.length)] for patch in patches]
        inside = {site for site, first in self.firsts_of.items() if first or _within(module, places[site])}
        self.inner = [all(edit.site in inside for edit in patch) for patch in patches]
        """Whether all of a patch is in the blocks, or behind: its stream may enter at its first block."""
        self.early = [min(self.firsts_of[edit.site] for edit in patch) for patch in patches]
        self.starts = [self._start(patch) for patch in patches]
        """The first block that each patch runs."""
        self.firsts = [min(span) for span in spans]
        """Its first position."""
        self.lasts = [max(span) for span in spans]
        tail = [module.get_submodule(path) for path in anatomy(module).tail]
        self.by_position = not any(_hooked(part) or _replaced(part) for part in tail)
        """Whether what runs behind the last block takes each position by itself."""

    def _start(self, patch: Patch) -> int:
        start = min(self.firsts_of[edit.site] for edit in patch)
        first = {edit.site for edit in patch if self.firsts_of[edit.site] == start}
        return start + (len(first) == 1 and self.added.get(*first) == start)

    def checked(self, batches: Sequence[Tensor], *, whole: bool) -> list[int]:
        """Patches that are tried against a pass in full: as few as show all that is left out.

        Most begin where their pass does, so nothing runs before them. One has two blocks to go, for what is
        wrong at its first position is read in the next block; one enters below rows that run already; one
        begins later since it is what an MLP adds; one is in the blocks, and not alone in its pass. Of the
        passes that leave positions out, one begins at the lowest block, so it runs all that may go by
        positions or ids; and one at the lowest block of the latest pass, where nothing is left to hide it.
        Of rows that enter a pass at their blocks, one is of the lowest: they are handed other ids.
        """
        shown: dict[int, tuple[bool, ...]] = {}
        lowest: list[tuple[int, bool, bool, int, int]] = []
        latest: list[tuple[int, int, bool, int]] = []
        handed: dict[int, int] = {}
        for rows in batches:
            patches = set(rows[:, 0].tolist())
            first, start = min(self.firsts[p] for p in patches), min(self.starts[p] for p in patches)
            for p in patches:
                begins, beside = self.starts[p], self.inner[p] and len(rows) > 1
                at_first = whole or self.firsts[p] == first
                if first and not whole and at_first:
                    latest.append((-first, begins, not beside, p))
                if begins == self.blocks:
                    continue
                if at_first:
                    shown[p] = (begins < self.blocks - 1, begins > start, begins > self.early[p], beside)
                if beside and not whole:
                    handed[p] = begins
                if first and not whole:
                    lowest.append((begins, not at_first, not beside, first, p))
        order = sorted(shown, key=lambda p: (sum(shown[p]), self.starts[p], self.firsts[p], p))
        chosen: list[int] = []
        for kind in range(4):
            able = [p for p in order if shown[p][kind]]
            if able and not any(shown[p][kind] for p in chosen):
                chosen.append(able[-1])
        for *_, p in [min(some) for some in (lowest, latest) if some]:
            chosen += [p] if p not in chosen else []
        if handed and min(handed.values()) not in {handed.get(p) for p in chosen}:
            chosen.append(min(handed, key=lambda p: (handed[p], p)))
        return chosen or order[-1:] or [p for rows in batches for p in rows[:, 0].tolist()][-1:]

    def idle(self, shared: Tensor | None) -> Tensor:
        """(P, N) bool: the patch changes nothing that the last position sees.

        It lies in the first ``shared`` (N,) tokens, which both runs have in common; or behind the last block,
        and not at the last position.
        """
        behind = [
            self.by_position and start == self.blocks and last < self.length - 1
            for start, last in zip(self.starts, self.lasts, strict=True)
        ]
        still = torch.tensor(behind)[:, None].repeat(1, self.count)
        return still if shared is None else still | (torch.tensor(self.lasts)[:, None] < shared.cpu())

    def batches(self, todo: Tensor, room: int, *, joined: bool, whole: bool) -> Iterator[Tensor]:
        """Rows (R, 2) of patch and example that go through a pass together, of those ``todo`` (P, N).

        Those that begin at the earliest position come first; in a pass, those that begin at the first block.
        A row that begins at a later position than others of its pass runs some that it does not need; as soon
        as these cost more than a pass by itself, one begins.

        Args:
            todo: which rows are to be run.
            room: tokens in a pass.
            joined: rows may enter a pass at their blocks; otherwise all begin at one.
            whole: every position runs in each.
        """
        kinds: dict[int, list[int]] = {}
        for patch, start in enumerate(self.starts):
            if todo[patch].any():
                kinds.setdefault(-1 if joined and self.inner[patch] else start, []).append(patch)
        for _, some in sorted(kinds.items()):
            waiting = sorted(some, key=lambda patch: self.firsts[patch])
            rows = [(patch, n) for patch in waiting for n in todo[patch].nonzero()[:, 0].tolist()]
            for group in self._groups(rows, room, whole=whole):
                yield torch.tensor(sorted(group, key=lambda row: self.starts[row[0]]))

    def _groups(self, rows: Sequence[Row], room: int, *, whole: bool) -> Iterator[list[Row]]:
        group: list[Row] = []
        spare, most = 0, max(self.blocks - self.starts[patch] for patch, _ in rows) * room // _PASS
        for row in rows:
            first = 0 if whole else self.firsts[(group or [row])[0][0]]
            begins = 0 if whole else (self.firsts[row[0]] - first) * (self.blocks - self.starts[row[0]])
            if group and ((len(group) + 1) * (self.length - first) > room or spare + begins > most):
                yield group
                group, spare, begins = [], 0, 0
            group.append(row)
            spare += begins
        yield group


Row = tuple[int, int]
"""A patch and an example."""
_PASS = 32
"""A forward pass by itself costs about as much as this part of the tokens that it has room for."""


def _within(module: nn.Module, place: Place) -> bool:
    """Whether a place is the first block's, rather than before it."""
    return any(place.path == path or place.path.startswith(f"{path}.") for path in anatomy(module).blocks[:1])


def _may_lift(module: nn.Module) -> bool:
    """Half precision has lost what stood beside a large number: less it, a stream is another one."""
    return next(module.parameters()).dtype in (torch.float32, torch.float64)


def _untouched(module: nn.Module, block: str) -> bool:
    """Whether a block is its own (none of its parts runs elsewhere), and nobody hooks it or a part of it."""
    root = module.get_submodule(block)
    inside = {id(part) for part in root.modules()}
    elsewhere = (
        id(part) in inside
        for path, part in module.named_modules(remove_duplicate=False)
        if path != block and not path.startswith(f"{block}.")
    )
    return not _hooked(root) and not any(elsewhere)


def _hooked(root: nn.Module) -> bool:
    return any(part._forward_hooks or part._forward_pre_hooks for part in root.modules())


def _replaced(root: nn.Module) -> bool:
    """Whether somebody put another forward into a part."""
    return any("forward" in vars(part) for part in root.modules())


def positions(edit: Edit, length: int) -> list[int]:
    """The positions of an edit in prompts of ``length`` tokens, from 0."""
    return [p % length for p in (range(length) if edit.positions is None else edit.positions)]


def shared_start(one: Tensor, other: Tensor) -> Tensor:
    """(N,) how many first tokens ids (N, T) of two runs have in common: activations there are equal."""
    return (one == other).long().cumprod(1).sum(1)
