"""What a model says at the last token of many prompts, and what its stream holds there, under many edits.

Prompts of one length share a forward pass, so nothing is padded; only the last position is unembedded. Many
directions are tried at once: each row of a batch has one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from calibrant.core import Chat, InputError, NumericalError, OpenLM, Run
from calibrant.models.batching import batching
from calibrant.models.hooks import captured
from calibrant.understand._engine.patches import check_still
from calibrant.understand._engine.readers import Reader
from calibrant.understand._engine.skip import last_logits

Act = Callable[[OpenLM, Tensor], AbstractContextManager[None]]
"""``ablated``, or ``steer`` at a site: a model and directions (B, D), one a row."""
_TOKENS = {"cpu": 2048}  # in one forward pass; elsewhere 16,384
_LOGITS = 2**25


@dataclass(frozen=True)
class Asked:
    """Prompts as ids."""

    ids: tuple[tuple[int, ...], ...]
    """One row a prompt."""
    clusters: tuple[str, ...]
    """What each hangs together with; "" stands alone."""

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, places: Sequence[int]) -> Asked:
        """Some of them."""
        return Asked(tuple(self.ids[i] for i in places), tuple(self.clusters[i] for i in places))

    @property
    def named(self) -> list[str] | None:
        """Clusters, where there are some."""
        return list(self.clusters) if any(self.clusters) else None

    def lengths(self) -> Iterator[tuple[list[int], list[tuple[int, ...]]]]:
        """Places and ids of the prompts of each length."""
        for _, group in groupby(sorted(range(len(self)), key=self._length), key=self._length):
            places = list(group)
            yield places, [self.ids[i] for i in places]

    def _length(self, place: int) -> int:
        return len(self.ids[place])


def asked(model: OpenLM, chats: Sequence[Chat], clusters: Sequence[str]) -> Asked:
    """Tokenise the prompts.

    Raises:
        InputError: a prompt without a token, or longer than the context.
        CapabilityError: the model is in training mode, or is not causal.
    """
    check_still(model.module)
    batching(model.module)  # raises where the model is not causal
    ids = tuple(tuple(model.prompt_ids(chat)) for chat in chats)
    for row in ids:
        if not row or (model.max_length is not None and len(row) > model.max_length):
            raise InputError(
                f"a prompt has {len(row)} tokens, the model's context holds {model.max_length}",
                hint="leave it out; nothing is cut silently",
            )
    return Asked(ids, tuple(clusters))


def read_plain(
    model: OpenLM, prompts: Asked, run: Run, sites: Sequence[str] = (), positions: int = 1
) -> tuple[Tensor, Tensor]:
    """Logits (N, V) of the last position, and activations (N, S, P, D) at the last ``positions``, float32."""
    logits, found = [torch.empty(0)] * len(prompts), [torch.empty(0)] * len(prompts)
    for places, rows in prompts.lengths():
        for start in range(0, len(rows), _room(model, len(rows[0]))):
            some = places[start : start + _room(model, len(rows[0]))]
            ids = _tensor(model, [prompts.ids[i] for i in some])
            run.spend(queries=len(some))
            with torch.inference_mode(), captured(model.module, sites) as kept:
                last = last_logits(model.module, ids, None).cpu()
            for row, place in enumerate(some):
                logits[place] = last[row].clone()
                if sites:
                    parts = [kept[site][row, -positions:].float().cpu() for site in sites]
                    found[place] = torch.stack(parts).clone()
    return _finite(torch.stack(logits)), _finite(torch.stack(found))


def readings(model: OpenLM, prompts: Asked, read: Reader, act: Act, directions: Tensor, run: Run) -> Tensor:
    """(R, N) float64: what is read off the last position of each prompt, under each of R directions (R, D).

    Raises:
        NumericalError: a reading is NaN or infinite.
    """
    values = torch.full((len(directions), len(prompts)), torch.nan, dtype=torch.float64)
    device = next(model.module.parameters()).device
    directions = directions.to(device)
    for places, rows in prompts.lengths():
        ids, where = _tensor(model, rows), torch.tensor(places)
        pairs = torch.cartesian_prod(torch.arange(len(directions)), torch.arange(len(places)))
        for some in torch.split(pairs, _room(model, len(rows[0]))):
            which, members = some.T
            run.spend(queries=len(some))
            with torch.inference_mode(), act(model, directions[which.to(device)]):
                logits = last_logits(model.module, ids[members.to(device)], read.columns)
            values[which, where[members]] = read(logits.cpu(), where[members]).double()
    return _finite(values)


def _room(model: OpenLM, length: int) -> int:
    """Rows of one forward pass."""
    device, config = next(model.module.parameters()).device.type, model.module.config
    words = int(getattr(config, "vocab_size", 1))
    return max(1, min(_TOKENS.get(device, 16_384) // length, _LOGITS // words))


def _tensor(model: OpenLM, rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([list(row) for row in rows], device=next(model.module.parameters()).device)


def _finite(values: Tensor) -> Tensor:
    if not values.isfinite().all():
        raise NumericalError("logits or activations are NaN or infinite", hint="load the model in float32")
    return values
