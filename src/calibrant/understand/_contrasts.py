"""Clean and corrupted prompts as token ids, with the token that each example's answer begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.core import InputError, OpenLM
from calibrant.data.rows import Contrast, Contrasts
from calibrant.models.chat_tokens import ChatTokens


class Encoded(NamedTuple):
    """Pairs of one length."""

    rows: tuple[Contrast, ...]
    clean: Tensor
    """(N, T) ids."""
    corrupt: Tensor
    """(N, T) ids."""
    answers: list[int]
    """First token of each answer."""
    foils: list[int]
    """First token of each foil."""
    clusters: list[str] | None = None
    """A name a pair: pairs of one name are not independent; None where all are."""
    repeats: int = 0
    """Pairs with the prompts of an earlier one, in whichever order, and of another cluster in the table."""

    @property
    def notes(self) -> list[str]:
        """Caveats of these pairs."""
        if not self.repeats:
            return []
        units = len(set(self.clusters or ()))
        return [
            f"{self.repeats} of {len(self.rows)} pairs have the prompts of an earlier pair, swapped or not: "
            f"such pairs count as one, which leaves {units} for intervals and 'found'"
        ]


def encode(model: OpenLM, contrasts: Contrasts, limit: int | None = None) -> Encoded:
    """Tokenise the pairs; at most ``limit`` of them, evenly spread.

    Raises:
        InputError: no pairs, one only, prompts of different lengths, a pair without a difference, an answer
            or foil without a token, or two that begin with the same token.
    """
    rows = contrasts.rows
    if limit is not None and len(rows) > limit:
        rows = tuple(rows[i * len(rows) // limit] for i in range(limit))
    if len(rows) < 2:
        raise InputError(f"an interval needs two pairs, got {len(rows)}", hint="20 or more say something")
    if len({row.id for row in rows}) < len(rows):
        twice = next(row.id for at, row in enumerate(rows) if row.id in {one.id for one in rows[:at]})
        raise InputError(f"two pairs are called '{twice}'", hint="give each an id of its own")
    clean, corrupt = (
        [model.prompt_ids(chat) for chat in chats]
        for chats in zip(*((r.clean, r.corrupt) for r in rows), strict=True)
    )
    lengths = sorted({len(ids) for ids in (*clean, *corrupt)})
    for row, one, other in zip(rows, clean, corrupt, strict=True):
        if len(one) != len(other):
            raise InputError(
                f"pair '{row.id}': the clean prompt has {len(one)} tokens, the corrupted one {len(other)}",
                hint="swap words of as many tokens: a patch goes to the position that it comes from",
            )
        if one == other:
            raise InputError(f"pair '{row.id}': both prompts are the same tokens", hint="corrupt one of them")
    if model.max_length is not None and lengths[-1] > model.max_length:
        raise InputError(
            f"a prompt has {lengths[-1]} tokens, but the model's context holds {model.max_length}",
            hint="shorten the prompts; nothing is cut silently",
        )
    if len(lengths) > 1:
        raise InputError(
            f"prompts of {lengths[0]} to {lengths[-1]} tokens: one position does not mean the same in all",
            hint="split the file by length or template",
        )
    answers, foils = (
        [first_token(model, f"pair '{row.id}'", text) for row, text in texts]
        for texts in ([(row, row.answer) for row in rows], [(row, row.foil) for row in rows])
    )
    for row, answer, foil in zip(rows, answers, foils, strict=True):
        if answer == foil:
            token = model.tokenizer.decode([answer])
            raise InputError(
                f"pair '{row.id}': answer and foil begin with the same token, {token!r}",
                hint="choose a foil that differs in its first token",
            )
    device = next(model.module.parameters()).device
    clusters, repeats = _clusters(rows, clean, corrupt)
    return Encoded(
        rows, torch.tensor(clean, device=device), torch.tensor(corrupt, device=device), answers, foils,
        clusters, repeats,
    )  # fmt: skip


def _clusters(
    rows: Sequence[Contrast], clean: Sequence[Sequence[int]], corrupt: Sequence[Sequence[int]]
) -> tuple[list[str] | None, int]:
    """Names of clusters, and how many pairs repeat the prompts of one outside their own cluster.

    A pair and its swap have the same total effect, and each one's denoising is the other's noising: counted
    twice, they would make a chance effect look like a sure one.
    """
    names = [row.cluster or f"\0{number}" for number, row in enumerate(rows)]
    joined: dict[str, str] = {}
    first: dict[frozenset[tuple[int, ...]], str] = {}
    repeats = 0

    def root(name: str) -> str:
        while name in joined:
            name = joined[name]
        return name

    for name, one, other in zip(names, clean, corrupt, strict=True):
        earlier = first.setdefault(frozenset((tuple(one), tuple(other))), name)
        repeats += earlier != name
        if root(earlier) != root(name):
            joined[root(name)] = root(earlier)
    if not repeats and not any(row.cluster for row in rows):
        return None, 0
    return [root(name) for name in names], repeats


def first_token(model: OpenLM, whose: str, text: str) -> int:
    """The first token of a text that follows the prompt; what it says must be how the text begins.

    Raises:
        InputError: it has no token, the tokenizer changes it, or it is a blank alone; ``whose`` is named.
    """
    ids = model.reply_ids(text)
    if not ids:
        raise InputError(f"{whose}: {text!r} has no token", hint="give a word")
    begins = model.tokenizer.decode(ids[:1])
    if not (begins and text.startswith(begins)):  # SentencePiece: a token by itself loses its blank
        begins = ChatTokens(model.tokenizer).text(ids[:1]) or begins
    if not text.startswith(begins) and "\ufffd" not in begins:
        raise InputError(
            f"{whose}: the first token of {text!r} reads {begins!r} for this model",
            hint="its tokenizer changes blanks or unknown words: write the answer as the model would",
        )
    if text.strip() and not begins.strip():
        raise InputError(
            f"{whose}: the first token of {text!r} is a blank alone, which tells no answer from another",
            hint="end the prompts with the blank, and begin the answers with the word",
        )
    return ids[0]
