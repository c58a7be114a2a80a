"""``given:NAME``: an entry of the study's [given] table, set on the command line by given.NAME=..."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibrant.core import ConfigError
from calibrant.core.errors import nearest


def named(reference: Any) -> str | None:
    """NAME of 'given:NAME'; None for any other reference."""
    scheme, colon, name = reference.partition(":") if isinstance(reference, str) else ("", "", "")
    return name if colon and scheme == "given" else None


def stands_for(reference: Any, given: Mapping[str, Any]) -> Any:
    """The reference that a study gives under the name of this one; one that names none as it is.

    Raises:
        ConfigError: nothing of that name is given, or only an empty text or another name.
    """
    name = named(reference)
    if name is None:
        return reference
    if name not in given:
        raise ConfigError(
            f"'{reference}': nothing of that name is given{nearest(name, given)}",
            hint=f"the study's [given] table holds: {', '.join(given) or 'nothing'}",
        )
    if given[name] == "" or named(given[name]) is not None:
        raise ConfigError(f"given.{name} has no value", hint=f"write given.{name}=... after the study's name")
    return given[name]
