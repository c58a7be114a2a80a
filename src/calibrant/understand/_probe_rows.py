"""Texts with labels as rows of activations, and what makes a set of them useless."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibrant.core import CapabilityError, InputError, OpenLM, Run
from calibrant.data.rows import LabelledText, LabelledTexts
from calibrant.models.pooled import Pool, pooled

_CHUNK = 64
"""Texts between two looks at budget and progress."""


class Texts(NamedTuple):
    """Rows that can be probed."""

    rows: tuple[LabelledText, ...]
    labels: NDArray[np.bool_]
    """(N,)."""
    kinds: list[list[str]]
    """The names by template and by task, of what is named: none, one or two lists of (N,)."""

    @property
    def replies(self) -> list[str] | None:
        """The replies that are read; None where prompts are."""
        return [row.reply for row in self.rows] if self.rows[0].reply else None


def checked(texts: LabelledTexts, limit: int | None, seed: int = 0) -> Texts:
    """The rows, at most ``limit`` of them, drawn at random: every n-th could be all of one label.

    Raises:
        InputError: too few rows, one label only, a text that comes twice or is empty, replies in some rows
            only, or one template or task for all rows.
    """
    rows = texts.rows
    if limit is not None and len(rows) > limit:
        rows = tuple(rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit)))
    labels = np.array([row.label for row in rows], np.bool_)
    for label in (True, False):
        if (found := int((labels == label).sum())) < 4:
            raise InputError(
                f"{found} of {len(rows)} texts are labelled {'yes' if label else 'no'}",
                hint="a probe needs 4 of either label to say anything; 50 or more say something",
            )
    replied = sum(bool(row.reply) for row in rows)
    if 0 < replied < len(rows):
        raise InputError(
            f"{replied} of {len(rows)} rows have a reply", hint="give all rows a reply to read, or none"
        )
    first: dict[object, str] = {}
    ids: set[str] = set()
    for row in rows:
        if not (row.reply if replied else "".join(turn.content for turn in row.prompt.messages)).strip():
            raise InputError(f"text '{row.id}' is empty", hint="leave it out")
        if row.id in ids:
            raise InputError(f"two texts are called '{row.id}'", hint="give each an id of its own")
        ids.add(row.id)
        other = first.setdefault((row.prompt, row.reply), row.id)
        if other != row.id:
            raise InputError(f"texts '{other}' and '{row.id}' are the same", hint="keep one of them")
    return Texts(rows, labels, _kinds(rows))


def _kinds(rows: Sequence[LabelledText]) -> list[list[str]]:
    kinds = []
    for field, names in (("template", [r.template for r in rows]), ("task", [r.task for r in rows])):
        if not any(names):
            continue
        if len(set(names)) == 1:
            raise InputError(
                f"all rows have the {field} '{names[0]}'", hint=f"leave {field} out where there is only one"
            )
        kinds.append(names)
    return kinds


def states(model: OpenLM, texts: Texts, sites: Sequence[str], pool: Pool, run: Run, note: str) -> Tensor:
    """Activations (L, N, D) float64 at each site, on the CPU.

    Raises:
        InputError: a text that does not fit the context.
        CapabilityError: a site that the model does not have, or sites of different width.
        NumericalError: a state is NaN or infinite.
    """
    found: list[NDArray[np.float64]] = []
    for start in range(0, len(texts.rows), _CHUNK):
        chunk = texts.rows[start : start + _CHUNK]
        run.spend(queries=len(chunk))
        replies = None if texts.replies is None else [row.reply for row in chunk]
        for row, vectors in zip(
            chunk, pooled(model, [row.prompt for row in chunk], replies, sites, pool), strict=True
        ):
            if vectors is None:
                raise InputError(
                    f"text '{row.id}' does not fit the {model.max_length} tokens of the model",
                    hint="shorten it or leave it out; nothing is cut silently",
                )
            if len({len(vector) for vector in vectors}) > 1:
                raise CapabilityError(
                    f"the layers of '{model.identity.name}' differ in width", hint="take another model"
                )
            found.append(np.stack(vectors))
        run.progress(start + len(chunk), len(texts.rows), note)
    return torch.from_numpy(np.stack(found, axis=1))


def shuffled(model: OpenLM, seed: int) -> OpenLM:
    """A copy whose weights are the model's own in random order, tensor by tensor: it has learnt nothing.

    It keeps the size of every weight, which a fresh initialisation does not, in any family.
    """
    twin = model.copy()
    way = torch.Generator().manual_seed(seed)
    for weight in twin.module.parameters():
        flat = weight.detach().flatten()
        order = torch.randperm(flat.numel(), generator=way).to(flat.device)
        weight.data = flat[order].view_as(weight).clone()
    return twin
