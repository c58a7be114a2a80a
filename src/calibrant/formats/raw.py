"""The raw layer: bytes of a foreign file to JSON values with their line, and members taken only as what
they are.

What is wrong with a row is an ``InputError`` that reads "kind: detail"; ``gather`` makes it a refusal.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from calibrant.core import Chat, Frozen, InputError, Message
from calibrant.core.errors import nearest
from calibrant.core.written import parse_json

_RECODE = "save it as UTF-8, for example with: iconv -f ENCODING -t UTF-8"
_SAFE = 2**53
_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


class Refused(Frozen):
    """A row that was not taken, or one whose account does not add up, and why."""

    line: int
    """Line number in the file (1 = first), or row number where a file has no lines."""
    reason: str
    """In words."""


Row: TypeAlias = tuple[int, Any]
"""Line and value; the value is ``Refused`` where the line could not be read."""


def read_bytes(path: Path) -> bytes:
    """The file without a byte order mark.

    Raises:
        InputError: missing, a folder, unreadable, empty, or in UTF-16 or UTF-32.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {(error.strerror or type(error).__name__).lower()}",
            hint="check its name and permissions",
        ) from error
    if not data.strip():
        raise InputError(f"{path} is empty", hint="was it written to the end? Fetch or make it again")
    if data.startswith(_OTHER_MARKS):
        raise InputError(f"{path} is UTF-16 or UTF-32 text, not UTF-8", hint=_RECODE)
    return data.removeprefix(codecs.BOM_UTF8)


def json_lines(path: Path) -> Iterator[Row]:
    """Each object of a file of JSON lines; a line that is none comes as ``Refused``."""
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = parse_json(line.decode())
        except UnicodeDecodeError as error:
            yield number, Refused(line=number, reason=f"not UTF-8: byte {error.start + 1} of the line")
        except ValueError as error:
            yield number, Refused(line=number, reason=f"malformed JSON: {error}")
        else:
            object_of_it = isinstance(value, dict)
            yield number, value if object_of_it else Refused(line=number, reason="not an object")


def json_document(path: Path) -> Any:
    """The value of a file that is one JSON document.

    Raises:
        InputError: not UTF-8, or malformed (cut short, say); the message names the place.
    """
    try:
        return parse_json(read_bytes(path).decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: byte {error.start + 1}", hint=_RECODE) from error
    except ValueError as error:
        raise InputError(
            f"{path}: malformed JSON: {error}", hint="was it written to the end? Fetch or make it again"
        ) from error


def text(value: Any, name: str) -> str:
    """A text that UTF-8 can hold; None is "".

    Raises:
        InputError: it is something else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"wrong type: '{name}' must be text, got {type(value).__name__}")
    return value.encode("utf-8", "replace").decode()  # a reply may hold half of a surrogate pair


def member(row: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """The member ``name`` of an object, which must be there and of this kind."""
    if not isinstance(row, Mapping):
        raise InputError(f"wrong type: expected an object, got {type(row).__name__}")
    if name not in row:
        raise InputError(f"missing: no '{name}'{nearest(name, map(str, row))}")
    if not isinstance(row[name], kind):
        raise InputError(f"wrong type: '{name}' is {type(row[name]).__name__}")
    return row[name]


def part(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object inside a row that may be absent or null: then it is empty."""
    value = row.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"wrong type: '{name}' is {type(value).__name__}, not an object")
    return value


def number(value: Any) -> float | None:
    """A finite number, also one written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        parsed = float(value)
    except (ValueError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) else None


def whole(row: Mapping[str, Any], name: str) -> int:
    """A count that may be absent or null: then it is 0."""
    given = row.get(name)
    parsed = 0.0 if given is None else number(given)
    if parsed is None or not 0 <= parsed < _SAFE:
        raise InputError(f"wrong type: '{name}' is no count: {str(given)[:20]!r}")
    return int(parsed)


def chat_of(turns: Iterable[tuple[Any, Any]]) -> Chat:
    """A chat from (role, content) pairs; 'developer' is a system turn, an unknown role is refused."""
    roles = {"developer": "system", "simulated_assistant": "assistant"}
    messages = []
    for role, content in turns:
        name = roles.get(str(role), str(role))
        messages.append(Message.model_validate({"role": name, "content": text(content, "content")}))
    return Chat(messages=tuple(messages))
