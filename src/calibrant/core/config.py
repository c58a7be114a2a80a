"""Frozen configs: every field has a docstring, an unknown key is an error with the nearest name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from calibrant.core.errors import ConfigError, nearest

T = TypeVar("T", bound="Frozen")


class Frozen(BaseModel):
    """A value that never changes: configs, results, records and rows are all of this kind.

    The docstring under each field is its help text, form label and documentation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=True)


def resolve(kind: type[T], given: Mapping[str, Any], *, where: str = "config") -> T:
    """Build ``kind`` from ``given``, with defaults filled in.

    Raises:
        ConfigError: lists every unknown key (with the nearest name) and every wrong value.
    """
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        raise ConfigError(_problems(kind, error, where)) from None


def _problems(kind: type[Frozen], error: ValidationError, where: str) -> list[str]:
    """Translate pydantic's report into one plain sentence a problem."""
    problems = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = nearest(str(item["loc"][-1]), kind.model_fields)
            problems.append(f"{where}: unknown key '{path}'{near}")
        elif item["type"] == "missing":
            problems.append(f"{where}: '{path}' is required and was not given")
        else:
            got = repr(item.get("input"))[:60]
            problems.append(f"{where}: '{path}': {item['msg'].lower()}, got {got}")
    return problems
