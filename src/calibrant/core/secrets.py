"""Redaction of secrets in everything that is stored or shown: keys by value, passwords by their place in a
URL.

A key is the value of an environment variable whose name begins with ``CALIBRANT_API_KEY``, or of one of the
hub's. It is redacted as written and in the forms of servers, logs and pages: percent-encoded, escaped for
JSON or HTML, in capitals, in Base64 at any offset. What is shorter than eight characters is a placeholder
("EMPTY", "ollama") and no secret: redacting it would change a model's reply.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

API_KEY = "CALIBRANT_API_KEY"
"""Beginning of the names of the variables that hold keys; see ``models.keys``."""
_HUB = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SHORTEST = 8
_STRUCK = "[key]"
_TEXTS = (".json", ".jsonl", ".txt", ".md", ".toml", ".csv", ".html", ".xml", ".jinja", ".log")

# Every run is bounded, so that a long text costs time in proportion to its length.
_SCHEME = r"([A-Za-z][A-Za-z0-9+.-]{0,20}://)"
# A user with a password may hold any character but a line end, an '@' too; HOST:PORT/... is no such pair.
_NO_PORT = r"(?!\d{1,5}(?:[/?#\s'\",;)]|$))"
_PASSWORD = re.compile(_SCHEME + r"[^/?#:@'\"\n\[\]]{0,200}:" + _NO_PORT + r"[^\n]{0,1000}@(?=[\w\[.%-]|$)")
_USER = re.compile(_SCHEME + r"[^/@\s'\"#?]{1,1000}@")
_QUERY = re.compile(r"((?:https?|wss?)://[^?#\s'\"]{0,2000})\?[^#\s'\"]*", re.IGNORECASE)


def without_secrets(value: Any) -> Any:
    """``value`` without keys, and without the user part and the query of every URL: keys hide in both."""
    return _each(value, lambda text: strike(_QUERY.sub(r"\1", _USER.sub(r"\1", _PASSWORD.sub(r"\1", text)))))


def strike(value: Any, *keys: str) -> Any:
    """``value``, text or texts in lists and tables, with '[key]' for every key and for ``keys``."""
    forms = [form for key in {*_known(), *keys} if len(key) >= _SHORTEST for form in _forms(key)]
    if not forms:
        return value
    forms.sort(key=len, reverse=True)
    found = re.compile("|".join(map(re.escape, forms)), re.IGNORECASE)  # %2f is %2F
    return _each(value, lambda text: found.sub(_STRUCK, text))


def strike_files(path: Path) -> None:
    """Strike every key in a text file, or in those of a folder; links and other kinds of files stay."""
    if not any(len(key) >= _SHORTEST for key in _known()):
        return
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.suffix in _TEXTS and file.is_file() and not file.is_symlink():
            written = file.read_bytes().decode("utf-8", "surrogateescape")
            if (struck := strike(written)) != written:
                file.write_bytes(struck.encode("utf-8", "surrogateescape"))


def _known() -> Iterator[str]:
    """The keys that the environment holds now."""
    for name, value in os.environ.items():
        if name.startswith(API_KEY) or name in _HUB:
            yield value.strip()


@cache
def _forms(key: str) -> tuple[str, ...]:
    """The ways in which the key is written."""
    ways = {key, quote(key), quote(key, safe=""), quote_plus(key), json.dumps(key)[1:-1], html.escape(key)}
    for lead in range(3):  # Base64 of a text that holds the key depends on where in three bytes it begins
        coded = base64.b64encode(b"\0" * lead + key.encode())
        # The first characters also hold what stands before the key, the last ones what stands behind it.
        whole = coded[(0, 2, 3)[lead] : (lead + len(key.encode())) * 8 // 6].decode()
        ways |= {whole, whole.translate(str.maketrans("+/", "-_"))}
    return tuple(way for way in ways if len(way) >= _SHORTEST)


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """``value`` with every text in it changed, the names of a table too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_each(key, change): _each(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_each(inner, change) for inner in value]
    return value
