"""Read attempts: one JSON object a line, as a campaign, a console or an export wrote it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from calibrant.core.attempt import Attempt
from calibrant.core.errors import InputError
from calibrant.data.rows import Attempts, Refused


def attempts_from(rows: Iterable[tuple[int, Mapping[str, Any] | Refused]], source: str) -> Attempts:
    """Shape raw rows into attempts; of two with one id the later counts, as in the files that we append to.

    Raises:
        InputError: there are no rows, or none is an attempt; the first reason is given.
    """
    taken: dict[str, Attempt] = {}
    refused: list[Refused] = []
    for line, row in rows:
        if isinstance(row, Refused):
            refused.append(row)
            continue
        try:
            attempt = Attempt.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            refused.append(Refused(line=line, reason=f"no attempt: '{where}': {first['msg'].lower()}"))
            continue
        taken[attempt.id] = attempt
    if not taken:
        why = f"; line {refused[0].line}: {refused[0].reason}" if refused else ""
        raise InputError(
            f"{source} holds no attempts{why}",
            hint="give the attempts.jsonl of a campaign or a console, or another tool's file as garak:PATH",
        )
    return Attempts(rows=tuple(taken.values()), source=source, refused=tuple(refused))
