"""Features of a trained judge: a model's hidden states over a reply, as float64 rows."""

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


def middle_site(model: OpenLM) -> str:
    """The residual stream after the middle block, the usual site of semantic probes.

    Raises:
        CapabilityError: the model's blocks are not known by name.
    """
    blocks = [site for site in model.sites() if re.fullmatch(r"blocks\.\d+\.hook_resid_post", site)]
    if not blocks:
        raise CapabilityError(
            f"'{model.identity.name}' has no blocks that are known by name",
            hint="set 'site' to one of its module paths",
        )
    return blocks[(len(blocks) - 1) // 2]


def features(
    model: OpenLM, chats: Sequence[Chat], replies: Sequence[str], site: str, pool: Pool
) -> list[Floats | None]:
    """One row (D,) a reply: the mean over its tokens (end token included), or the last one; in order.

    None where prompt and reply do not fit the context: nothing is truncated.

    Raises:
        CapabilityError: the model has no such site.
        InputError: a chat that the template refuses.
        NumericalError: a state is NaN or infinite.
    """
    sizes = [length(model, chat, reply) for chat, reply in zip(chats, replies, strict=True)]
    fits = [i for i, size in enumerate(sizes) if model.max_length is None or size <= model.max_length]
    vectors: list[Floats | None] = [None] * len(sizes)
    for bucket in buckets([sizes[i] for i in fits], _BUDGET):
        rows = [fits[place] for place in bucket]
        batch = model.encode([chats[i] for i in rows], [replies[i] for i in rows])
        with torch.inference_mode():
            states = model.trace(batch, [site])[site].double().cpu()
        reply = batch.reply.cpu()
        for place, i in enumerate(rows):
            reply_states = states[place, : reply.shape[1]][reply[place]].numpy()
            row: Floats = reply_states.mean(axis=0) if pool == "mean" else reply_states[-1]
            vectors[i] = row
            if not np.isfinite(row).all():
                raise NumericalError(f"row {i}: the states at '{site}' are not finite", hint="use float32")
    return vectors
