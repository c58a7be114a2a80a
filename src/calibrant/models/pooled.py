"""One row of hidden states a text: what judges and probes read, as float64."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from calibrant.core import CapabilityError, Chat, NumericalError, OpenLM
from calibrant.maths.logistic import Floats
from calibrant.models.fitting import length
from calibrant.models.generate import buckets

Pool = Literal["mean", "last"]
_BUDGET = 4096  # tokens in one forward pass


def stream_sites(model: OpenLM) -> list[str]:
    """The residual stream after each block, first to last.

    Raises:
        CapabilityError: the model's blocks are not known by name.
    """
    blocks = [site for site in model.sites() if re.fullmatch(r"blocks\.\d+\.hook_resid_post", site)]
    if not blocks:
        raise CapabilityError(
            f"'{model.identity.name}' has no blocks that are known by name",
            hint="set 'site' to one of its module paths",
        )
    return blocks


def middle_site(model: OpenLM) -> str:
    """The residual stream after the middle block, the usual site of semantic probes.

    Raises:
        CapabilityError: the model's blocks are not known by name.
    """
    blocks = stream_sites(model)
    return blocks[(len(blocks) - 1) // 2]


def pooled(
    model: OpenLM, chats: Sequence[Chat], replies: Sequence[str] | None, sites: Sequence[str], pool: Pool
) -> list[list[Floats] | None]:
    """For each text a row (D,) a site: the mean over its tokens, or the last one; in order.

    The tokens are the reply's, its end token included; without replies, the prompt's. None where a text does
    not fit the context: nothing is truncated.

    Raises:
        CapabilityError: the model has no such site.
        InputError: a chat that the template refuses.
        NumericalError: a state is NaN or infinite.
    """
    if replies is None:
        sizes = [len(model.prompt_ids(chat)) for chat in chats]
    else:
        sizes = [length(model, chat, reply) for chat, reply in zip(chats, replies, strict=True)]
    fits = [i for i, size in enumerate(sizes) if model.max_length is None or size <= model.max_length]
    vectors: list[list[Floats] | None] = [None] * len(sizes)
    for bucket in buckets([sizes[i] for i in fits], _BUDGET):
        rows = [fits[place] for place in bucket]
        batch = model.encode(
            [chats[i] for i in rows], None if replies is None else [replies[i] for i in rows]
        )
        with torch.inference_mode():
            traced = model.trace(batch, list(dict.fromkeys(sites)))
        states = {site: value.double().cpu() for site, value in traced.items()}
        read = (batch.mask if replies is None else batch.reply).cpu()
        for place, i in enumerate(rows):
            parts = [states[site][place, : read.shape[1]][read[place]].numpy() for site in sites]
            for site, part in zip(sites, parts, strict=True):
                if not np.isfinite(part if pool == "mean" else part[-1]).all():
                    raise NumericalError(
                        f"row {i}: the states at '{site}' are not finite", hint="use float32"
                    )
            vectors[i] = [part.mean(axis=0) if pool == "mean" else part[-1] for part in parts]
    return vectors


def features(
    model: OpenLM, chats: Sequence[Chat], replies: Sequence[str] | None, site: str, pool: Pool
) -> list[Floats | None]:
    """``pooled`` at one site."""
    return [None if row is None else row[0] for row in pooled(model, chats, replies, [site], pool)]
