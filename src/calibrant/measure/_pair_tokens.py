"""Faults of preference pairs that only show in their token ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from calibrant.core import OpenLM, Run
from calibrant.data.faults import Finding
from calibrant.data.rows import Pair, Preferences
from calibrant.models.chat_tokens import ChatTokens


class Sides(NamedTuple):
    """Ids of one pair, as training joins them: the prompt's, and those of both replies with the end token."""

    row: Pair
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def tokenised(model: OpenLM, pairs: Preferences, run: Run) -> list[Sides]:
    """Ids of every pair; the tokens are charged to the budget."""
    end = ChatTokens(model.tokenizer).end_id
    rows = []
    for at, row in enumerate(pairs.rows):
        replies = [[*model.reply_ids(text), end] for text in (row.chosen, row.rejected)]
        sides = Sides(row, model.prompt_ids(row.prompt), *replies)
        run.spend(tokens=2 * len(sides.prompt) + len(sides.chosen) + len(sides.rejected))
        run.progress(at + 1, len(pairs.rows), "tokenising")
        rows.append(sides)
    return rows


def merges(model: OpenLM, sides: list[Sides]) -> Iterator[Finding]:
    """Pairs where prompt and reply as one text tokenise differently from the two joined.

    A trainer or a server that tokenises the whole text then has another boundary than one that joins ids.
    """
    tokens = ChatTokens(model.tokenizer)
    specials = [mark for mark in model.tokenizer.all_special_tokens if mark]
    for one in sides:
        text = tokens.prompt_text(one.row.prompt)
        replies = (("chosen", one.row.chosen, one.chosen), ("rejected", one.row.rejected, one.rejected))
        # A special token spelt out in a reply differs for another reason, which has its own finding.
        plain = [reply for reply in replies if not any(mark in reply[1] for mark in specials)]
        whole = tokens.prompts([text + reply for _, reply, _ in plain])
        merged = [
            name
            for (name, _, ids), joined in zip(plain, whole, strict=True)
            if joined != one.prompt + ids[:-1]
        ]
        if merged:
            detail = f"prompt and {' and '.join(merged)} reply as one text have other token ids"
            yield Finding(id=one.row.id, kind="boundary merge", detail=detail)


def too_long(sides: list[Sides], limit: int) -> Iterator[Finding]:
    """Pairs with a side of more than ``limit`` tokens: Calibrant's trainers leave them out."""
    for one in sides:
        longest = len(one.prompt) + max(len(one.chosen), len(one.rejected))
        if longest > limit:
            detail = f"{longest} tokens of prompt and reply, {limit} fit"
            yield Finding(id=one.row.id, kind="too long", detail=detail)


def same_when_cut(sides: list[Sides], limit: int) -> Iterator[Finding]:
    """Pairs whose sides are equal when truncated at ``limit`` tokens."""
    for one in sides:
        if one.chosen != one.rejected and _cut(one, one.chosen, limit) == _cut(one, one.rejected, limit):
            detail = f"the first {limit} tokens of both sides are the same"
            yield Finding(id=one.row.id, kind="same when cut", detail=detail)


def _cut(one: Sides, reply: list[int], limit: int) -> list[int]:
    return (one.prompt + reply)[:limit]
