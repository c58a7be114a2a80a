"""A store of activations on disk: memory-mapped shards of rows, a header, and the token that each row is of.

``header.json``     whose activations these are, their sums, and the SHA-256 of every shard
``SITE/00000.bin``  raw rows (N, d) in the store's dtype, little-endian; every shard but the last is full
``tokens/00000.bin``  int32 (N, 3): number of the text, position, token id

Every shard but the last of a site holds ``shard`` rows, so that row i lies in shard i // shard: a shuffled
order is a permuted index, and costs nothing a row. Sums are float64, over the rows as they are stored.
``harvest.py`` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor

from calibrant.core import CapabilityError, Frozen, InputError
from calibrant.core.digest import digest_file
from calibrant.core.errors import nearest
from calibrant.ledger.layout import disk, reason

HEADER, TOKENS = "header.json", "tokens"
Stored = Literal["float32", "float16", "bfloat16"]
LeftOut = Literal["first", "bos", "nothing"]
_AGAIN = "remove the folder, and harvest again"


class Source(Frozen):
    """Whose activations they are: a store of another source is not read for this one."""

    model: str
    """Digest of the model's identity: weights, config, tokenizer, template."""
    name: str
    """The model's name, for people."""
    tokenizer: str
    """Digest of the tokenizer; "" where the identity does not tell."""
    data: str
    """Digest of the texts."""
    sites: tuple[str, ...]
    """TransformerLens hook names or module paths."""
    dtype: Stored
    """How rows are stored."""
    left_out: LeftOut
    """Positions without a row: the first of each text and every BOS, every BOS, or none. Padding has none."""
    shard: int
    """Rows of a full shard."""


class Shard(Frozen):
    """One file of rows."""

    file: str
    """Path below the store's folder."""
    rows: int
    """How many."""
    sha256: str
    """Of its bytes."""


class SiteFacts(Frozen):
    """What is known of one site's rows."""

    d: int
    """Width of a row."""
    total: tuple[float, ...]
    """(d,) sum of the rows, float64."""
    square: float
    """Sum of ||x||^2, float64."""


class Header(Frozen):
    """``header.json``."""

    version: int = 1
    """Of this layout."""
    source: Source
    """Whose activations these are."""
    rows: int = 0
    """Rows of each site: the token offset at which an unfinished harvest goes on."""
    complete: bool = False
    """Whether all texts are in."""
    facts: dict[str, SiteFacts] = Field(default_factory=dict)
    """By site."""
    shards: dict[str, tuple[Shard, ...]] = Field(default_factory=dict)
    """By site, and 'tokens'."""
    counts: dict[str, int] = Field(default_factory=dict)
    """Positions that have no row: 'first', 'bos', 'padding'."""

    def mean(self, site: str) -> Tensor:
        """(d,) float64 mean of a site's rows."""
        return torch.tensor(self.facts[site].total, dtype=torch.float64) / max(1, self.rows)

    def second(self, site: str) -> float:
        """E||x||^2 of a site's rows."""
        return self.facts[site].square / max(1, self.rows)


class Store:
    """A finished store, opened for reading."""

    def __init__(self, folder: Path, source: Source | None = None, *, verify: bool = True) -> None:
        """Open it, and check every byte (``verify``) or only the files' sizes.

        Args:
            folder: where ``header.json`` lies.
            source: what it must hold; None: whatever it holds.
            verify: read every shard and compare its digest.

        Raises:
            InputError: no store, an unfinished one, one of another source, or a damaged shard; named.
        """
        self.folder = folder
        header = read_header(folder)
        if header is None:
            raise InputError(f"'{folder}' holds no store of activations", hint="harvest one there first")
        if source is not None:
            check_source(folder, header.source, source)
        if not header.complete:
            raise InputError(f"the store in '{folder}' ends after {header.rows} tokens: it was not finished",
                             hint="run the harvest again: it goes on from there")  # fmt: skip
        check_shards(folder, header, verify)
        self.header = header
        self._dtype: Stored = header.source.dtype
        width = {TOKENS: 3} | {site: facts.d for site, facts in header.facts.items()}
        self._maps = {
            name: [
                np.memmap(folder / one.file, _numpy(name, self._dtype), "r", shape=(one.rows, width[name]))
                for one in shards
            ]
            for name, shards in header.shards.items()
        }  # fmt: skip

    def __len__(self) -> int:
        return self.header.rows

    def rows(self, site: str, index: Tensor) -> Tensor:
        """(n, d) float32: rows by their numbers (n,), in the order given.

        Raises:
            CapabilityError: no such site in the store. InputError: a number out of range.
        """
        if site not in self.header.facts:
            known = self.header.source.sites
            raise CapabilityError(
                f"'{site}' is not in the store{nearest(site, known)}", hint=f"it holds: {', '.join(known)}"
            )
        found = torch.from_numpy(self._taken(site, index))
        return (found if self._dtype == "float32" else found.view(getattr(torch, self._dtype))).float()

    def tokens(self, index: Tensor) -> Tensor:
        """(n, 3) int32: text, position and token id of each of these rows."""
        return torch.from_numpy(self._taken(TOKENS, index))

    def order(self, seed: int, epoch: int = 0, among: Tensor | None = None) -> Tensor:
        """(N,) a shuffled order of all rows, or of those in ``among``, fixed by seed and epoch."""
        generator = torch.Generator().manual_seed(
            int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
        )
        count = len(self) if among is None else len(among)
        order = torch.randperm(count, generator=generator)
        return order if among is None else among[order]

    def chunks(self, site: str, size: int, among: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows in the order of the file, ``size`` at a time: their numbers and the rows."""
        index = torch.arange(len(self)) if among is None else among
        for some in torch.split(index, size):
            yield some, self.rows(site, some)

    def _taken(self, name: str, index: Tensor) -> NDArray[np.generic]:
        numbers = index.detach().cpu().numpy().astype(np.int64)
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(self):
            raise InputError(f"the store has rows 0 to {len(self) - 1}", hint="count from 0")
        maps, size = self._maps[name], self.header.source.shard
        where = numbers // size
        if numbers.size and where.min() == where.max():
            only: NDArray[np.generic] = np.array(maps[where[0]][numbers % size])
            return only
        found = np.empty((numbers.size, maps[0].shape[1] if maps else 0), _numpy(name, self._dtype))
        for shard in np.unique(where):
            here = where == shard
            found[here] = maps[shard][numbers[here] % size]
        return found


def read_header(folder: Path) -> Header | None:
    """The header of a store, or None where there is none.

    Raises:
        InputError: it cannot be read.
    """
    path = folder / HEADER
    if not path.is_file():
        return None
    with disk("reading", path):
        try:
            header = Header.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, ValidationError, RecursionError) as error:
            raise InputError(f"'{path}' is damaged: {reason(error)}", hint=_AGAIN) from None
    if header.version != 1:
        raise InputError(f"'{path}' is of layout {header.version}, this one reads 1", hint=_AGAIN)
    if not _adds_up(header):
        raise InputError(f"'{path}' is damaged: it does not add up", hint=_AGAIN)
    return header


def shard_file(source: Source, name: str, number: int) -> str:
    """Path, below the store's folder, of a shard of a site or of 'tokens'."""
    folder = TOKENS if name == TOKENS else f"site_{source.sites.index(name)}"
    return f"{folder}/{number:05d}.bin"


def _adds_up(header: Header) -> bool:
    """Whether shards are as many, as long and called as the source says."""
    source = header.source
    names = {TOKENS, *source.sites} if header.rows else set()
    if source.shard < 1 or header.rows < 0:
        return False
    whole, rest = divmod(header.rows, source.shard)
    if any(len(shards) != whole + bool(rest) for shards in header.shards.values()):
        return False
    if set(header.shards) != names or set(header.facts) != names - {TOKENS} or (rest and not header.complete):
        return False
    if any(facts.d < 1 or len(facts.total) != facts.d for facts in header.facts.values()):
        return False
    return all(
        [(one.file, one.rows) for one in shards]
        == [
            (shard_file(source, name, number), source.shard if number < whole else rest)
            for number in range(len(shards))
        ]
        for name, shards in header.shards.items()
    )


def check_source(folder: Path, found: Source, wanted: Source) -> None:
    """Refuse a store of something else, saying of what.

    Raises:
        InputError: model, tokenizer, data, sites or policy differ.
    """
    told = {
        "model": f"is of another model ('{found.name}', not '{wanted.name}')",
        "tokenizer": "was made with another tokenizer",
        "data": "is of other texts",
        "sites": f"holds {', '.join(found.sites)}, not {', '.join(wanted.sites)}",
        "dtype": f"is in {found.dtype}, not {wanted.dtype}",
        "left_out": f"leaves out '{found.left_out}', not '{wanted.left_out}'",
        "shard": f"has shards of {found.shard} rows, not {wanted.shard}",
    }
    for field, what in told.items():
        if getattr(found, field) != getattr(wanted, field):
            raise InputError(
                f"the store in '{folder}' {what}", hint="choose another folder, or remove this one"
            )


def check_shards(folder: Path, header: Header, verify: bool) -> None:
    """Refuse a store with a file missing, of another size, or (``verify``) with other bytes.

    Raises:
        InputError: names the shard.
    """
    for name, shards in header.shards.items():
        width = 3 if name == TOKENS else header.facts[name].d
        size = width * _numpy(name, header.source.dtype).itemsize
        for shard in shards:
            path = folder / shard.file
            with disk("reading", path):
                whole = path.is_file() and path.stat().st_size == shard.rows * size
                if not whole or (verify and digest_file(path) != shard.sha256):
                    what = "is damaged" if path.is_file() else "is missing"
                    raise InputError(f"shard '{shard.file}' of the store in '{folder}' {what}", hint=_AGAIN)


def _numpy(name: str, dtype: Stored) -> np.dtype[np.generic]:
    """What numpy reads: halves as the integers that hold their bits."""
    return np.dtype("<i4" if name == TOKENS else "<f4" if dtype == "float32" else "<i2")
