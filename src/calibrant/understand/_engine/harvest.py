"""Write a store of activations: several sites from one forward pass, which ends after the last of them.

A kill loses at most one shard: the header names what is on the disk, and a harvest of the same source goes on
at that token.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calibrant.core import Chat, InputError, NumericalError, OpenLM
from calibrant.core.digest import canonical, digest_bytes
from calibrant.core.lm import Batch
from calibrant.ledger.layout import disk
from calibrant.models.batching import batching
from calibrant.models.generate import buckets
from calibrant.models.hooks import edited
from calibrant.models.model_facts import accepted
from calibrant.models.sites import located
from calibrant.understand._engine.patches import check_still
from calibrant.understand._engine.store import (
    HEADER,
    TOKENS,
    Header,
    LeftOut,
    Shard,
    SiteFacts,
    Source,
    Store,
    Stored,
    check_shards,
    check_source,
    read_header,
    shard_file,
)

_TOKENS = {"cpu": 2048}  # of one forward pass; elsewhere 16,384
SHARD = 65_536


class Texts(NamedTuple):
    """Texts as a model reads them."""

    chats: tuple[Chat, ...]
    """What is written in the model's own template."""
    ids: tuple[tuple[int, ...], ...]
    """Token ids of each."""
    digest: str
    """Of the rows that they are from."""


def source_of(
    model: OpenLM,
    texts: Texts,
    sites: Sequence[str],
    *,
    dtype: Stored = "float16",
    left_out: LeftOut = "first",
    shard: int = SHARD,
) -> Source:
    """What a harvest of these would hold.

    Raises:
        InputError: no texts, no sites or one twice. CapabilityError: an unknown site.
    """
    if not texts.ids:
        raise InputError("there are no texts to read", hint="give some, each of two tokens or more")
    if not sites or len(set(sites)) < len(sites):
        raise InputError("no site is named, or one twice", hint="name each site once")
    if shard < 1:
        raise InputError(f"a shard of {shard} rows is none", hint=f"the default is {SHARD}")
    located(model.module, sites)
    return Source(
        model=model.identity.digest,
        name=model.identity.name,
        tokenizer=model.identity.parts.get("tokenizer", ""),
        data=texts.digest,
        sites=tuple(sites),
        dtype=dtype,
        left_out=left_out,
        shard=shard,
    )


def harvest(
    model: OpenLM,
    texts: Texts,
    source: Source,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """The activations of every text at every site of ``source``, written to ``folder`` unless they are there.

    Raises:
        InputError: the folder holds a store of another source, or damaged; the disk is full.
        CapabilityError: a model in training mode, not causal, or a site that never runs or has no width.
        NumericalError: an activation is NaN, infinite, or too large for ``source.dtype``.
    """
    check_still(model.module)
    header = read_header(folder) or Header(source=source)
    check_source(folder, header.source, source)
    if header.complete:
        return Store(folder, source)
    check_shards(folder, header, verify=True)
    with disk("writing", folder):
        folder.mkdir(parents=True, exist_ok=True)
    writer = _Writer(folder, header)
    plan = list(batches(model, texts.ids))
    kept = [[keep(model, texts.ids[row], source.left_out) for row in rows] for rows in plan]
    sizes = [sum(map(sum, some)) for some in kept]
    done, total = 0, sum(sizes)
    for rows, flags, size in zip(plan, kept, sizes, strict=True):
        begins, done = done, done + size
        if done <= header.rows or not size:
            continue
        batch = model.encode([texts.chats[row] for row in rows])
        mask = torch.zeros_like(batch.mask)
        for row, some in enumerate(flags):
            mask[row, : len(some)] = torch.tensor(some)
        skip = max(0, header.rows - begins)
        streams = at_sites(model, batch, source.sites)
        writer.add(_origins(batch, mask, rows)[skip:], {s: v[mask][skip:] for s, v in streams.items()})
        if progress is not None:
            progress(done, total)
    writer.close(_counted(model, texts, source.left_out))
    return Store(folder, source, verify=False)


def batches(model: OpenLM, ids: Sequence[Sequence[int]], most: int | None = None) -> Iterator[list[int]]:
    """Numbers of the texts that are read together, the shortest first; the same for the same texts.

    ``most``: tokens of one pass, where it needs less than usual.
    """
    how = batching(model.module)
    lengths = [len(row) for row in ids]
    budget = _TOKENS.get(next(model.module.parameters()).device.type, 16_384)
    budget = budget if most is None else min(budget, most)
    yield from buckets(lengths, budget, [how.reads(n) for n in lengths])


def keep(model: OpenLM, ids: Sequence[int], left_out: LeftOut) -> list[bool]:
    """Which positions of a text have a row. A BOS of id 0 is one like any other."""
    bos = model.tokenizer.bos_token_id
    special = [left_out != "nothing" and bos is not None and token == bos for token in ids]
    return [not (bad or (left_out == "first" and at == 0)) for at, bad in enumerate(special)]


class _SeenAllError(Exception):
    """The last site has been seen."""


def at_sites(model: OpenLM, batch: Batch, sites: Sequence[str]) -> dict[str, Tensor]:
    """Activations (B, T, d) at each site; what lies behind the last of them does not run.

    Heads are laid side by side: (B, T, heads * d_head).

    Raises:
        InputError: a site without a vector a token. CapabilityError: see ``hooks.edited``.
    """
    seen: dict[str, Tensor] = {}

    def note(site: str, value: Tensor) -> Tensor:
        if value.ndim < 3 or value.shape[:2] != batch.ids.shape:
            raise InputError(
                f"'{site}' gives a tensor of shape {tuple(value.shape)} for ids of {tuple(batch.ids.shape)}",
                hint="choose a site that has a vector for every token",
            )
        seen[site] = value.flatten(2) if value.ndim > 3 else value
        if len(seen) == len(sites):
            raise _SeenAllError
        return value

    module: Any = model.module
    options = accepted(module, logits_to_keep=1, use_cache=False)
    changes = {site: partial(note, site) for site in sites}
    with torch.inference_mode(), edited(module, changes), suppress(_SeenAllError):
        module(input_ids=batch.ids, attention_mask=batch.mask.long(), **options)
    return seen


def _origins(batch: Batch, mask: Tensor, rows: Sequence[int]) -> Tensor:
    """(n, 3) int32: text, position and token of every kept position."""
    where = mask.nonzero()
    texts = torch.tensor(rows, device=where.device)[where[:, 0]]
    return torch.stack([texts, where[:, 1], batch.ids[mask]], 1).int()


def _counted(model: OpenLM, texts: Texts, left_out: LeftOut) -> dict[str, int]:
    """How many positions have no row, by reason; padding is never read."""
    bos = model.tokenizer.bos_token_id
    firsts = len(texts.ids) if left_out == "first" else 0
    special = sum(
        token == bos and bos is not None and left_out != "nothing" and not (left_out == "first" and at == 0)
        for row in texts.ids
        for at, token in enumerate(row)
    )
    width = {row: max(len(texts.ids[r]) for r in rows) for rows in batches(model, texts.ids) for row in rows}
    padding = sum(width[row] - len(ids) for row, ids in enumerate(texts.ids))
    return {"first": firsts, "bos": special, "padding": padding}


class _Writer:
    """Cuts rows into shards; the header is written after every one, so that a kill loses no more."""

    def __init__(self, folder: Path, header: Header) -> None:
        self.folder, self.header = folder, header
        self.waiting: list[tuple[Tensor, dict[str, Tensor]]] = []
        self.count = 0

    def add(self, origins: Tensor, streams: dict[str, Tensor]) -> None:
        """Rows of one batch, as many at every site."""
        kind = getattr(torch, self.header.source.dtype)
        stored = {site: value.to(kind).cpu() for site, value in streams.items()}
        for site, value in stored.items():
            if not value.isfinite().all():
                bad = "NaN or infinite" if not streams[site].isfinite().all() else f"too large for {kind}"
                raise NumericalError(
                    f"activations at '{site}' are {bad}",
                    hint="store them in bfloat16 or float32, and check the model",
                )
        self.waiting.append((origins.cpu(), stored))
        self.count += len(origins)
        while self.count >= self.header.source.shard:
            self._flush(self.header.source.shard)

    def close(self, counts: dict[str, int]) -> None:
        """The last, shorter shard, and the word that all is there."""
        if self.count:
            self._flush(self.count)
        self.header = self.header.model_copy(update={"complete": True, "counts": counts})
        self._write_header()

    def _flush(self, size: int) -> None:
        origins = torch.cat([one for one, _ in self.waiting])
        sites = {
            site: torch.cat([some[site] for _, some in self.waiting]) for site in self.header.source.sites
        }
        self.waiting = [(origins[size:], {site: value[size:] for site, value in sites.items()})]
        self.count -= size
        number = len(self.header.shards.get(TOKENS, ()))
        shards, facts = dict(self.header.shards), dict(self.header.facts)
        for name, value in {TOKENS: origins, **sites}.items():
            shard = self._write(shard_file(self.header.source, name, number), value[:size])
            shards[name] = (*shards.get(name, ()), shard)
            if name != TOKENS:
                facts[name] = _added(facts.get(name), value[:size])
        self.header = self.header.model_copy(
            update={"rows": self.header.rows + size, "shards": shards, "facts": facts}
        )
        self._write_header()

    def _write(self, file: str, rows: Tensor) -> Shard:
        whole = rows.contiguous()
        bits = whole.view(torch.int16) if whole.dtype in (torch.float16, torch.bfloat16) else whole
        data = bits.numpy().astype(bits.numpy().dtype.newbyteorder("<"), copy=False).tobytes()
        self._replace(file, data)
        return Shard(file=file, rows=len(rows), sha256=digest_bytes(data))

    def _write_header(self) -> None:
        self._replace(HEADER, canonical(self.header.model_dump(mode="json")))

    def _replace(self, name: str, data: bytes) -> None:
        """Write a whole file, or leave what was there."""
        path = self.folder / name
        draft = path.with_suffix(".draft")
        with disk("writing", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with draft.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
            except OSError:
                draft.unlink(missing_ok=True)
                raise


def _added(before: SiteFacts | None, rows: Tensor) -> SiteFacts:
    """Sums with these rows added, in float64."""
    exact = rows.double()
    total, square = exact.sum(0), float(exact.square().sum())
    if before is not None:
        total, square = total + torch.tensor(before.total, dtype=torch.float64), square + before.square
    return SiteFacts(d=rows.shape[1], total=tuple(total.tolist()), square=square)
