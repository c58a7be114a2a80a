"""Find files and folders: in the study's folder, in the working folder, and packaged."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from calibrant.core import ConfigError, InputError
from calibrant.core.written import parse_toml
from calibrant.ledger.layout import disk

STUDIES = Path(str(files("calibrant") / "studies"))
"""The packaged studies and their policies."""
WEIGHTS = Path(str(files("calibrant") / "testbed" / "weights"))
"""The testbed's models, a folder each."""
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


def file(reference: str, base: Path) -> Path:
    """A file in the study's folder, under the working folder, or packaged with Calibrant."""
    tried = [base / reference, Path.cwd() / reference, STUDIES / reference]
    for path in tried:
        if there(path):
            return path
    raise InputError(
        f"no file '{reference}'", hint="looked in " + ", ".join(str(p.parent) for p in dict.fromkeys(tried))
    )


def folder(reference: str, base: Path) -> Path | None:
    """A folder in the study's folder or under the working folder; None: there is none."""
    tried = (base / reference, Path.cwd() / reference)
    return next((path for path in tried if there(path, folder=True)), None)


def toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises ConfigError with the line that cannot be read, InputError if none can."""
    try:
        with disk("reading", path):
            text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start})", hint="save it as UTF-8") from None
    return parse_toml(text, str(path))
