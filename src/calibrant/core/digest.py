"""Digests (contract C3): SHA-256 over RFC 8785 canonical JSON, and over files and folders.

Integers of 2^53 and more become decimal strings; NaN and infinities become null (with the reason stored next
to it). The same value has the same digest on every machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rfc8785
from pydantic import BaseModel

_SAFE = 2**53


def plain(value: Any) -> Any:
    """Return ``value`` as JSON-ready data: models become dicts, big integers strings, NaN null."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, str):
        # A lone surrogate has no UTF-8 form; a reply may hold one.
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return str(value) if abs(value) >= _SAFE else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"no canonical form for {type(value).__name__}")


def canonical(value: Any) -> bytes:
    """RFC 8785 bytes of ``value``."""
    return rfc8785.dumps(plain(value))


def digest(value: Any) -> str:
    """SHA-256 of the canonical bytes, 64 hex digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def digest_bytes(data: bytes) -> str:
    """SHA-256 of raw bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(folder: Path) -> dict[str, str]:
    """Map each file under ``folder`` (POSIX path, sorted) to the digest of its bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): digest_file(p) for p in files}


def digest_path(path: Path) -> str:
    """Digest of a file's bytes, or of a folder's manifest."""
    return digest(manifest(path)) if path.is_dir() else digest_file(path)
