"""Versions, hardware and time of a run, for its record."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

from calibrant.core import digest
from calibrant.core.digest import digest_file


@cache
def versions() -> dict[str, str]:
    """Versions of what computes, and a digest of Calibrant's own source."""
    result = {"python": platform.python_version()}
    for name in ("calibrant", "torch", "transformers", "tokenizers", "numpy", "scipy"):
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            result[name] = "not installed"
    root = Path(str(files("calibrant")))
    sources = {p.relative_to(root).as_posix(): digest_file(p) for p in sorted(root.rglob("*.py"))}
    return {**result, "source": digest(sources)}


@cache
def hardware() -> str:
    """Processor, cores and system, in one line."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {sys.platform}"


def utc(seconds: float) -> str:
    """Seconds since 1970 as RFC 3339 text."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
