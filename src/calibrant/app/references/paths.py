"""Texts that are to be paths: too long for one, or no name that a disk can hold, is an error of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibrant.core import ConfigError, InputError

LONGEST = 4096
"""Most characters of a reference; no path is longer."""


def check_text(reference: Any) -> None:
    """Raise ConfigError for a text that is too long to be a reference, or no Unicode text."""
    if isinstance(reference, str) and any("\ud800" <= char <= "\udfff" for char in reference[:LONGEST]):
        raise ConfigError(f"{reference[:60]!a} is no Unicode text", hint="name files and models in UTF-8")
    if isinstance(reference, str) and len(reference) > LONGEST:
        raise ConfigError(
            f"a reference of {len(reference):,} characters, which begins '{reference[:40]}'",
            hint=f"{LONGEST:,} are the most: name a file or folder",
        )


def there(path: Path, *, folder: bool = False) -> bool:
    """Whether there is such a file, or folder. Raises InputError for a name that no disk can hold."""
    try:
        return path.is_dir() if folder else path.is_file()
    except (OSError, ValueError) as error:
        why = (getattr(error, "strerror", None) or str(error)).lower()
        raise InputError(f"'{str(path)[-60:]}' cannot be looked up: {why}", hint="check the name") from None
