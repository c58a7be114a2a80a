"""Which rows fit the context: shared by every technique that trains on replies or scores them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from calibrant.core import Chat, Estimate, InputError, OpenLM
from calibrant.core.estimate import point
from calibrant.data.rows import Example, Labelled, Pair, Table

R = TypeVar("R", Pair, Example, Labelled)


def fitting(
    model: OpenLM, table: Table[R], replies: Callable[[R], Sequence[str]], limit: int | None
) -> list[R]:
    """The rows whose prompt, longest reply and end token take at most ``limit`` tokens (None: the context).

    Rows are left out, never truncated: a truncated reply looks finished and a truncated prompt asks something
    else.

    Raises:
        InputError: there are no rows, or none fits.
    """
    if not table.rows:
        raise InputError(
            f"{table.source or 'the input'}: there are no rows", hint="check the data, or what was skipped"
        )
    limits = [most for most in (limit, model.max_length) if most is not None]
    most = min(limits, default=None)
    if most is None:
        return list(table.rows)
    rows = [row for row in table.rows if all(length(model, row.prompt, r) <= most for r in replies(row))]
    if not rows:
        raise InputError(
            f"{table.source or 'the input'}: none of {len(table.rows)} rows fits {most} tokens",
            hint="raise max_length, take a model with a longer context, or check the data",
        )
    return rows


def length(model: OpenLM, prompt: Chat, reply: str) -> int:
    """Tokens of prompt, reply and end token."""
    return len(model.prompt_ids(prompt)) + len(model.reply_ids(reply)) + 1


def dropped(table: Table[R], kept: Sequence[R]) -> Estimate:
    """The share of rows left out for their length."""
    return point(1 - len(kept) / len(table.rows), unit="share of rows", n=len(table.rows))
