"""Reading a card that a technique wrote as one JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from calibrant.core.config import Frozen
from calibrant.core.errors import InputError

C = TypeVar("C", bound=Frozen)


def read_json_card(kind: type[C], path: Path, called: str, hint: str) -> C:
    """The card in ``path``; ``called`` is what a file should be, ``hint`` says who writes one.

    Raises:
        InputError: the file is no such card; the first field that is wrong is named.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{path} is no {called}: {where}: {first['msg'].lower()}", hint=hint) from None
