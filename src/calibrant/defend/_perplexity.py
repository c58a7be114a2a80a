"""How surprised a model is at a text: the negative log-probability of each token, and perplexities of them.

The text stands where a user's turn stands, so a chat template is read as in use: the tokens of a text are
those that its prompt has beyond the prompt of an empty turn. A text longer than the context is read in chunks
that overlap by half; every token is scored once, after at least half a chunk where so much stands before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from calibrant.core import Chat, InputError, NumericalError, OpenLM
from calibrant.maths.logprobs import token_logprobs
from calibrant.models.prompts import as_batch

_CHUNK = 512
"""Most tokens in one forward pass, however long the context is: logits of more fill the memory, and models
are often surprised at the far end of a context, which training seldom reached."""


def surprisals(model: OpenLM, text: str) -> list[float]:
    """-log p of each token of ``text`` in nats; [] for a text without tokens.

    One text at a time: a number then has no rounding of a batch.

    Raises:
        InputError: the model cannot read the text, or its context has no room for it.
        NumericalError: a log-probability is not finite.
    """
    head, ids = _parted(model, text)
    found: list[float] = []
    for chunk, first in _chunks(ids, _room(model, head)):
        with torch.inference_mode():
            row = [*head, *chunk]
            batch = as_batch(model, [row])
            values = token_logprobs(model.forward(batch), batch.ids)
        found += [-value for value in values[0].tolist()[len(head) - 1 + first :]]
    if not all(map(math.isfinite, found)):
        raise NumericalError("a log-probability is not finite", hint="load the model in float32")
    return found


def perplexity(surprised: Sequence[float], window: int | None = None) -> float:
    """exp of the mean of all (n,), or of the highest ``window`` consecutive ones (of all where n is less)."""
    width = len(surprised) if window is None else min(window, len(surprised))
    sums = [0.0]
    for value in surprised:
        sums.append(sums[-1] + value)
    mean = max(sums[end] - sums[end - width] for end in range(width, len(sums))) / width
    return math.exp(min(mean, 700.0))


def _parted(model: OpenLM, text: str) -> tuple[list[int], list[int]]:
    """The ids before a text, at least one, and its own."""
    empty, whole = (model.prompt_ids(Chat.ask(one)) for one in ("", text))
    start = next((i for i, (a, b) in enumerate(zip(empty, whole, strict=False)) if a != b), len(empty))
    start = min(start, len(whole))
    behind = 0
    while behind < min(len(empty), len(whole)) - start and empty[-1 - behind] == whole[-1 - behind]:
        behind += 1
    ids = whole[start : len(whole) - behind]
    return whole[:start] or empty[:1], ids


def _room(model: OpenLM, head: Sequence[int]) -> int:
    """Tokens of text in one pass."""
    most = _CHUNK if model.max_length is None else min(_CHUNK, model.max_length)
    if most - len(head) < 2:
        raise InputError(
            f"the context of {model.max_length} tokens has no room behind the {len(head)} of the template",
            hint="give a model with a longer context",
        )
    return most - len(head)


def _chunks(ids: Sequence[int], room: int) -> Iterator[tuple[Sequence[int], int]]:
    """Parts of the ids, and from which of its ids on each is scored: together every id once."""
    scored = 0
    while scored < len(ids):
        start = max(0, scored - room // 2) if scored else 0
        yield ids[start : start + room], scored - start
        scored = min(len(ids), start + room)
