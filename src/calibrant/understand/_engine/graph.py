"""A model as a graph of edges: who writes into the stream, and who reads it.

Writers are ``input`` (the stream before the first block), every head ``a{l}.h{h}`` and every MLP ``m{l}``;
readers are the queries, keys and values of heads, MLPs, and ``logits``. What a reader is given is the sum of
what all writers before it wrote, so an edge is one term of one sum:

    a0.h1->a5.h2<q>    a0.h1->m3    m3->logits

These are the names of EAP-IG and MIB. Keys and values count their own heads, where several query heads share
them. Where MLP and attention of a block run side by side, the MLP does not read the block's heads. Where a
norm stands between the heads and the stream (Gemma 2), a head writes its share of what comes out of it, under
the norm's factor in that run; the shares sum to what is added, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.understand._engine.columns import KINDS
from calibrant.understand._engine.wiring import Wiring


class Reader(NamedTuple):
    """Something that is given the stream."""

    name: str
    """'a5.h2<q>', 'm3', 'logits'."""
    layer: int
    """The number of blocks for 'logits'."""
    kind: str
    """'q', 'k', 'v', 'm' or 'logits'."""
    head: int
    """Of its kind; 0 for an MLP and the logits."""
    upstream: int
    """It reads so many of the writers, the first ones."""


SHARED = "keys and values are shared"
"""How that caveat begins."""


@dataclass(frozen=True)
class Graph:
    """Writers and readers, in the order in which they run."""

    layers: tuple[Wiring, ...]
    """Every block's wiring."""
    tail: str
    """The module that reads the stream behind the last block."""
    heads: int
    """Query heads of a block."""

    @cached_property
    def writers(self) -> tuple[str, ...]:
        """Their names."""
        blocks = range(len(self.layers))
        return ("input", *(name for at in blocks for name in (*self._heads(at), f"m{at}")))

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        """All of them; those of a block are q, k, v and the MLP."""
        found = []
        for number, layer in enumerate(self.layers):
            first = self.first(number)
            for kind in KINDS:
                for head in range(len(layer.heads[kind].columns)):
                    found.append(Reader(f"a{number}.h{head}<{kind}>", number, kind, head, first))
            before = first if layer.parallel else first + self.heads
            found.append(Reader(f"m{number}", number, "m", 0, before))
        return (*found, Reader("logits", len(self.layers), "logits", 0, len(self.writers)))

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(writer, reader) numbers of every edge, reader by reader."""
        return tuple((u, r) for r, reader in enumerate(self.readers) for u in range(reader.upstream))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The name of every edge."""
        return tuple(f"{self.writers[u]}->{self.readers[r].name}" for u, r in self.edges)

    @property
    def notes(self) -> list[str]:
        """A caveat where query heads share keys and values, whose heads have numbers of their own."""
        shared = len(self.layers[0].heads["k"].columns)
        per = self.heads // shared
        if per < 2:
            return []
        at = min(1, shared - 1)  # head 0 would look like the reader's own
        readers = f"a0.h{at * per} to a0.h{at * per + per - 1}"
        return [
            f"{SHARED} by {per} query heads each: <k> and <v> are numbered by shared head, so what enters "
            f"a0.h{at}<k> or a0.h{at}<v> serves {readers}, and leaves as theirs"
        ]

    @cached_property
    def number(self) -> dict[str, int]:
        """Edge by name -> its number."""
        return {name: at for at, name in enumerate(self.names)}

    @cached_property
    def index(self) -> tuple[Tensor, Tensor]:
        """Writers and readers of all edges, to take them from a (U, R) table."""
        writers, readers = torch.tensor(self.edges).T
        return writers, readers

    def first(self, layer: int) -> int:
        """How many writers there are before a block."""
        return 1 + layer * (self.heads + 1)

    def numbers(self, layer: int) -> list[int]:
        """The readers of a block; of the logits for the number of blocks."""
        return self._by_layer[layer]

    @cached_property
    def _by_layer(self) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in range(len(self.layers) + 1)]
        for at, reader in enumerate(self.readers):
            found[reader.layer].append(at)
        return found

    def _heads(self, layer: int) -> list[str]:
        return [f"a{layer}.h{head}" for head in range(self.heads)]
