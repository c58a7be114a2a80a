"""Where a suffix stands in a prompt: the tokens round it, the tokens that it may have, and its text.

``in_context`` reads the prompt as the model will: suffix and request are tokenised together, and a candidate
counts only if its text, put back into the whole prompt, gives the same ids again. So every string that is
found is one that a user can send. ``alone`` is nanoGCG's way, for comparison with it: what precedes the
suffix, the suffix and what follows are tokenised apart, and candidates are checked by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from calibrant.attack.suffix.scorer import Frame, check_length
from calibrant.core.errors import InputError
from calibrant.core.lm import Chat, OpenLM
from calibrant.models.templates import chat_text

_ROWS = 4096  # tokens spelt out at once
_HINT = "try another 'suffix': plain words with a space before each are safe"


class Slot(NamedTuple):
    """A suffix in its prompt."""

    frame: Frame
    """Ids before, after, and of the wished-for reply."""
    ids: list[int]
    """Ids of the suffix to begin with."""
    forbidden: Tensor
    """(F,) ids that the suffix may not have."""
    text: Callable[[Sequence[int]], str]
    """What ids of the suffix spell."""
    survives: Callable[[Tensor], Tensor]
    """Which (B,) of the rows (B, n) are the ids of their own text."""


def with_suffix(chat: Chat, suffix: str) -> Chat:
    """``chat`` with the suffix at the end of its last turn."""
    last = chat.messages[-1]
    return Chat(messages=(*chat.messages[:-1], last.model_copy(update={"content": last.content + suffix})))


def in_context(model: OpenLM, chat: Chat, suffix: str, reply: str, *, ascii_only: bool = True) -> Slot:
    """The slot behind the last turn of ``chat``, everything tokenised as the model reads it.

    Raises:
        InputError: the tokenizer merges the suffix with its neighbours or does not give it back, or
            the prompt does not fit into the context.
    """
    pieces = _pieces(model)
    bare, whole = _rows(model, [chat, with_suffix(chat, suffix)])
    start = _common(bare, whole)
    end = len(whole) - _common(bare[start:][::-1], whole[start:][::-1])
    ids, before, after = whole[start:end], whole[:start], whole[end:]
    if not ids or "".join(pieces[i] for i in ids) != suffix:
        raise InputError(
            f"the suffix {suffix[:40]!r} does not stand in the prompt as tokens of its own", hint=_HINT
        )
    frame = Frame(before, after, model.reply_ids(reply))
    check_length(frame, len(ids), model.max_length)

    def text(some: Sequence[int]) -> str:
        return "".join(pieces[i] for i in some)

    def survives(rows: Tensor) -> Tensor:
        retokenised = _rows(model, [with_suffix(chat, text(row)) for row in rows.tolist()])
        same = [got == [*before, *row, *after] for got, row in zip(retokenised, rows.tolist(), strict=True)]
        return torch.tensor(same, dtype=torch.bool, device=rows.device)

    special = {*model.tokenizer.all_special_ids, *model.tokenizer.get_added_vocab().values()}
    fine = [bool(p) and ((p.isascii() and p.isprintable()) or not ascii_only) for p in pieces]
    return Slot(frame, ids, _forbidden(model, fine, special), text, survives)


def alone(model: OpenLM, chat: Chat, suffix: str, reply: str, *, ascii_only: bool = True) -> Slot:
    """The slot as nanoGCG 0.3.0 cuts it: three pieces, tokenised apart.

    Raises:
        InputError: the prompt does not fit into the context.
    """
    tokenizer: Any = model.tokenizer
    mark = "{optim_str}"
    rendered = _rendered(tokenizer, with_suffix(chat, mark))
    if tokenizer.bos_token and rendered.startswith(tokenizer.bos_token):
        rendered = rendered.replace(tokenizer.bos_token, "")
    first, _, rest = rendered.partition(mark)
    before = tokenizer(first)["input_ids"]
    ids, after, target = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (suffix, rest, reply))
    frame = Frame(before, after, target)
    check_length(frame, len(ids), model.max_length)

    def text(some: Sequence[int]) -> str:
        return str(tokenizer.decode(list(some)))

    def survives(rows: Tensor) -> Tensor:
        texts = tokenizer.batch_decode(rows)
        retokenised = tokenizer(texts, add_special_tokens=False)["input_ids"]
        same = [got == row for got, row in zip(retokenised, rows.tolist(), strict=True)]
        return torch.tensor(same, dtype=torch.bool, device=rows.device)

    fine = [True] * _size(model)
    special = set[int]()
    if ascii_only:
        spelt = tokenizer.batch_decode([[i] for i in range(tokenizer.vocab_size)])
        fine[: len(spelt)] = [piece.isascii() and piece.isprintable() for piece in spelt]
        roles = (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
            tokenizer.unk_token_id,
        )
        special = {i for i in roles if i is not None}
    return Slot(frame, ids, _forbidden(model, fine, special), text, survives)


def _forbidden(model: OpenLM, fine: Sequence[bool], special: set[int]) -> Tensor:
    """Ids that may not be drawn: not fine, special, or rows of the embedding that no token has."""
    size = _size(model)
    bad = [i for i in range(size) if i in special or i >= len(fine) or not fine[i]]
    if len(bad) == size:
        raise InputError(
            "no token of the vocabulary may be used", hint="set ascii = false, or use another model"
        )
    return torch.tensor(bad, dtype=torch.long, device=next(model.module.parameters()).device)


def _size(model: OpenLM) -> int:
    return int(model.module.get_input_embeddings().num_embeddings)  # type: ignore[operator]


def _rows(model: OpenLM, chats: Sequence[Chat]) -> list[list[int]]:
    """Prompt ids of each chat."""
    batch = model.encode(chats)
    lengths = batch.mask.sum(1).tolist()
    return [row[:length] for row, length in zip(batch.ids.tolist(), lengths, strict=True)]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids at their beginnings are the same."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _rendered(tokenizer: Any, chat: Chat) -> str:
    if not tokenizer.chat_template:
        return "".join(message.content for message in chat.messages)
    turns = [{"role": m.role, "content": m.content} for m in chat.messages]
    return chat_text(tokenizer, turns, add_generation_prompt=True)


_PIECES: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()


def _pieces(model: OpenLM) -> list[str]:
    """What each token spells inside of a text; worked out once a tokenizer."""
    tokenizer: Any = model.tokenizer
    if tokenizer not in _PIECES:
        anchor = model.reply_ids("a")[-1]
        spelt = _decoded(tokenizer, [[anchor]])[0]
        pieces = list[str]()
        for start in range(0, len(tokenizer), _ROWS):
            pairs = [[anchor, i] for i in range(start, min(start + _ROWS, len(tokenizer)))]
            pieces += [text.removeprefix(spelt) for text in _decoded(tokenizer, pairs)]
        _PIECES[tokenizer] = pieces
    return _PIECES[tokenizer]


def _decoded(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    texts: list[str] = tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
    return texts
