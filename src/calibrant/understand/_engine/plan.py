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
        self.early = [min(self.firsts_of[edit.site] for edit in patch) for patch in patches]
        self.starts = [self._start(patch) for patch in patches]
        """The first block that each patch runs."""
        self.firsts = [min(span) for span in spans]
        """Its first position."""
        self.lasts = [max(span) for span in spans]
        tail = [module.get_submodule(path) for path in anatomy(module).tail]
        self.by_position = not any(_hooked(part) for part in tail)
        """Whether what runs behind the last block takes each position by itself."""

    def _start(self, patch: Patch) -> int:
        start = min(self.firsts_of[edit.site] for edit in patch)
        first = {edit.site for edit in patch if self.firsts_of[edit.site] == start}
        return start + (len(first) == 1 and self.added.get(*first) == start)

    def checked(self, todo: Tensor) -> list[int]:
        """Patches that are tried against a pass in full: of those that run a block the last to begin, and the
        last one that an MLP's change makes begin later; any, where none runs a block."""
        begins = sorted((*one, at) for at, one in enumerate(zip(self.starts, self.firsts, strict=True)))
        able = [at for start, _, at in begins if todo[at].any() and start < self.blocks]
        lifted = [at for at in able if self.starts[at] > self.early[at]]
        found = able[-1:] + lifted[-1:] or [at for _, _, at in begins if todo[at].any()][-1:]
        return list(dict.fromkeys(found))

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

    def batches(self, start: int, todo: Tensor, room: int, *, whole: bool = False) -> Iterator[Tensor]:
        """Rows (R, 2) of patch and example that begin at block ``start``, of those ``todo`` (P, N).

        Those that begin at the earliest position come first. A row that begins later than others of its pass
        runs positions that it does not need; as soon as these cost more than a pass by itself, one begins.

        Args:
            start: the block.
            todo: which rows are to be run.
            room: tokens in a pass.
            whole: every position runs in each.
        """
        waiting = sorted(
            (p for p, s in enumerate(self.starts) if s == start and todo[p].any()),
            key=lambda p: self.firsts[p],
        )
        rows = [(p, n) for p in waiting for n in todo[p].nonzero()[:, 0].tolist()]
        group: list[tuple[int, int]] = []
        spare = 0
        for row in rows:
            begins = 0 if whole or not group else self.firsts[row[0]] - self.firsts[group[0][0]]
            length = self.length - (0 if whole else self.firsts[(group or [row])[0][0]])
            if group and ((len(group) + 1) * length > room or spare + begins > room // _PASS):
                yield torch.tensor(group)
                group, spare, begins = [], 0, 0
            group.append(row)
            spare += begins
        if group:
            yield torch.tensor(group)


_PASS = 16
"""A forward pass by itself costs about as much as this part of the tokens that it has room for."""


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


def positions(edit: Edit, length: int) -> list[int]:
    """The positions of an edit in prompts of ``length`` tokens, from 0."""
    return [p % length for p in (range(length) if edit.positions is None else edit.positions)]


def shared_start(one: Tensor, other: Tensor) -> Tensor:
    """(N,) how many first tokens ids (N, T) of two runs have in common: activations there are equal."""
    return (one == other).long().cumprod(1).sum(1)
