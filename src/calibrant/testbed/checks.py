"""Names and options of testbed references: an unknown one is an error with the nearest."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from calibrant.core import InputError
from calibrant.core.errors import nearest


def check_name(kind: str, name: str, known: Collection[str], what: str = "name") -> None:
    """Raise InputError where ``testbed:kind/name`` is none of ``known``."""
    if name not in known:
        raise InputError(
            f"testbed:{kind}/{name}: no such {what}{nearest(name, known)}", hint=f"one of: {', '.join(known)}"
        )


def check_options(kind: str, name: str, options: Mapping[str, str], allowed: Collection[str]) -> None:
    """Raise InputError for an option that ``testbed:kind/name`` does not have."""
    for key in options:
        if key not in allowed:
            raise InputError(
                f"testbed:{kind}/{name}: unknown option '{key}'{nearest(key, allowed)}",
                hint=f"options: {', '.join(allowed) or 'none'}",
            )


def whole_option(key: str, options: Mapping[str, str], default: int) -> int:
    """A whole number from 0 on. Raises InputError for anything else."""
    text = options.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InputError(f"{key}={text} is not a whole number", hint=f"write ?{key}={default}")
    return int(text)


def choice_option(key: str, options: Mapping[str, str], known: Collection[str], default: str) -> str:
    """One of ``known``. Raises InputError for anything else, with the nearest."""
    text = options.get(key, default)
    if text not in known:
        raise InputError(
            f"{key}={text} is none of its values{nearest(text, known)}", hint=f"one of: {', '.join(known)}"
        )
    return text
