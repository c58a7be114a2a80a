"""Parse untrusted TOML and JSON within limits: any text gives a value or one of our errors."""

from __future__ import annotations

import datetime
import json
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from calibrant.core.errors import ConfigError, InputError

LONGEST = 4_000_000
"""Characters of TOML beyond which it is no study, policy or stack."""
DEEPEST = 32
"""Deepest nesting of tables and lists; studies need fewer than ten."""
_PARTS = 32
_LONG_KEY = re.compile(
    r"""(?<![\w"'-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){%d}""" % _PARTS  # noqa: UP031
)
"""A key with this many parts: parsing time is quadratic in their number."""
_MOST = 2**63
_DATES = (datetime.date, datetime.time)


def read_toml(path: Path, called: str) -> dict[str, Any]:
    """The table in a TOML file; ``called`` is what it should hold: 'policy'.

    Raises:
        InputError: the file cannot be read. ConfigError: it is not UTF-8, or see ``parse_toml``.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"cannot read {called} {path}: {error.strerror}", hint="give the path of a TOML file"
        ) from None
    except ValueError as error:  # bytes that are not UTF-8, or a name that no file has
        raise ConfigError(f"{str(path)[-60:]!r}: not a TOML file: {error}", hint="save it as UTF-8") from None
    return parse_toml(text, str(path))


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """``text`` as a table.

    Raises:
        ConfigError: it is not TOML (the error names the place), or it is too deep, long or large, or it has a
        date: write that as text.
    """
    hint = "fix the TOML at that place"
    if len(text) > LONGEST:
        raise ConfigError(
            f"{where}: {len(text):,} characters, more than {LONGEST:,}", hint="keep rows in files"
        )
    if _LONG_KEY.search(text):
        raise ConfigError(f"{where}: a key of more than {_PARTS} parts", hint=hint)
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply", hint=hint) from None
    except ValueError as error:  # TOMLDecodeError among them; also a number of thousands of digits
        raise ConfigError(f"{where}: not TOML: {str(error)[:300]}", hint=hint) from None
    problem = _beyond(table)
    if problem:
        raise ConfigError(f"{where}: {problem}", hint=hint)
    return table


def _beyond(table: dict[str, Any]) -> str:
    """What no config accepts: too deep, integers beyond TOML's, dates."""
    waiting: list[tuple[int, Any]] = [(0, table)]
    while waiting:
        depth, value = waiting.pop()
        if depth > DEEPEST:
            return f"tables and lists are nested more than {DEEPEST} deep"
        if isinstance(value, dict):
            waiting += [(depth + 1, inner) for inner in value.values()]
        elif isinstance(value, list):
            waiting += [(depth + 1, inner) for inner in value]
        elif isinstance(value, int) and not -_MOST <= value < _MOST:
            return f"a whole number of {value.bit_length()} bits; TOML has 64"
        elif isinstance(value, _DATES):
            return f"{value.isoformat()} is a date or time: write it as text, in quotes"
    return ""


def parse_json(text: str) -> Any:
    """``text`` as a value.

    Raises:
        ValueError: it is not JSON, or an object repeats a key: most readers silently keep the last one. A
        JSONDecodeError where the place is known.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice[:40]!r} twice in one object")
    return made
