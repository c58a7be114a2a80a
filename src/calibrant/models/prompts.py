"""What stands for prompts where activations are read: texts, chats, ids, or a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calibrant.core.errors import InputError
from calibrant.core.lm import Batch, Chat, OpenLM

Asked = str | Chat | Sequence[str | Chat]
"""One chat or several; a text is a user's turn: ``Chat.ask(text)``."""
Prompts = Asked | Tensor | Sequence[int] | Sequence[Sequence[int]] | Batch
"""Chats, ids of a row or of several, or a batch of ``model.encode``."""
_KINDS = "give a text, a Chat, several of these, ids (B, T) as whole numbers, or model.encode(chats)"


class _Rows(NamedTuple):
    """See ``core.lm.Batch``."""

    ids: Tensor
    mask: Tensor
    reply: Tensor


def as_chats(asked: Asked) -> list[Chat]:
    """Chats, where a text is a user's turn.

    Raises:
        InputError: something else.
    """
    some = [asked] if isinstance(asked, (str, Chat)) else asked
    if not isinstance(some, Sequence):
        raise InputError(f"a value of type {type(asked).__name__} is no chat", hint=_KINDS)
    return only_chats([Chat.ask(one) if isinstance(one, str) else one for one in some])


def only_chats(chats: Sequence[Chat]) -> list[Chat]:
    """The chats of a list.

    Raises:
        InputError: one chat, a text, or a list of something else.
    """
    some: Sequence[Any] = [chats] if isinstance(chats, str) else chats
    wrong = [one for one in some if not isinstance(one, Chat)] if not isinstance(chats, Chat) else [chats]
    if wrong:
        what = "one chat" if isinstance(wrong[0], Chat) else f"a {type(wrong[0]).__name__}"
        raise InputError(f"{what} is no list of chats", hint="give a list: [Chat.ask('Who are you?')]")
    return list(chats)


def as_batch(model: OpenLM, prompts: Prompts) -> Batch:
    """Prompts as the model reads them; a batch as it stands.

    Raises:
        InputError: no prompts, ids outside of the vocabulary, or more than the context holds.
    """
    given: Any = prompts
    if hasattr(given, "mask"):
        batch: Batch = given
        return batch
    if isinstance(given, Tensor):
        table = whole_rows(given[None] if given.ndim == 1 else given)
    elif _are_ids(given):
        table = _padded([given] if isinstance(given[0], int) else given)
    else:
        return model.encode(as_chats(given))
    check_ids(model, table)
    device = next(model.module.parameters()).device
    return _Rows(*(part.to(device) for part in (table.ids, table.mask, table.reply)))


def whole_rows(ids: Tensor) -> Batch:
    """A batch of rows (B, T) without padding.

    Raises:
        InputError: ids that are no table of whole numbers.
    """
    if ids.ndim != 2 or not ids.numel() or ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputError(f"ids of shape {tuple(ids.shape)} and type {ids.dtype}", hint=_KINDS)
    whole = torch.ones_like(ids, dtype=torch.bool)
    return _Rows(ids, whole, ~whole)


def check_ids(model: OpenLM, batch: Batch) -> None:
    """Raise InputError where an id is not in the vocabulary, or a row is longer than the context."""
    config: Any = model.module.config
    if not batch.ids.numel():
        raise InputError("there are no prompts", hint=_KINDS)
    words, length = int(config.vocab_size), batch.ids.shape[1]
    if int(batch.ids.min()) < 0 or int(batch.ids.max()) >= words:
        raise InputError(f"an id is not in the vocabulary of {words}", hint="take the model's own tokenizer")
    if model.max_length is not None and length > model.max_length:
        raise InputError(f"{length} tokens, but the context holds {model.max_length}", hint="shorten them")


def _are_ids(prompts: object) -> bool:
    """Whether these are ids, of one row or of several."""
    if not isinstance(prompts, Sequence) or not prompts:
        return False
    rows = prompts if isinstance(prompts[0], (list, tuple)) else [prompts]
    return all(isinstance(row, (list, tuple)) and row and all(type(i) is int for i in row) for row in rows)


def _padded(rows: Sequence[Sequence[int]]) -> Batch:
    """Rows of ids, padded on the right; the mask hides what fills the gaps."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]
    return _Rows(ids, mask, torch.zeros_like(mask))
