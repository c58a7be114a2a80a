"""The table of schemes: how each kind of reference is checked before a study runs, and opened when it does.

A new scheme is a file beside this one, with a ``Scheme`` in it, and a row in ``SCHEMES``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibrant.app.references import on_disk
from calibrant.app.references.api import API
from calibrant.app.references.behaviours import BEHAVIOUR
from calibrant.app.references.best_of import BEST_OF
from calibrant.app.references.data import DATA
from calibrant.app.references.defended import DEFENDED
from calibrant.app.references.foreign_attempts import FOREIGN, TOOLS
from calibrant.app.references.given import stands_for
from calibrant.app.references.hf import HF
from calibrant.app.references.inspect_file import INSPECT
from calibrant.app.references.locate import check_text
from calibrant.app.references.opened import Opened
from calibrant.app.references.path import PATH, ROWS
from calibrant.app.references.record import EVIDENCE, RECORD
from calibrant.app.references.rows import TABLES
from calibrant.app.references.scheme import Reference, Scheme, found_by
from calibrant.app.references.smoothed import SMOOTHED
from calibrant.app.references.tables import rows
from calibrant.app.references.testbed import TESTBED
from calibrant.app.references.texts import REMINDER, SYSTEM
from calibrant.app.references.variants import PLAIN_MODEL, UNTRAINED
from calibrant.core import ConfigError, digest, resolve
from calibrant.core.errors import nearest
from calibrant.data.references import SUFFIXES
from calibrant.govern.policy import ReleasePolicy


def _policy(reference: Reference) -> ReleasePolicy:
    return resolve(ReleasePolicy, reference.written, where="policy")


def _value(reference: Reference) -> Any:
    return reference.written


def _opened(reference: Reference, value: Any) -> Opened:
    return Opened(digest(value), "value", lambda: value)


SCHEMES: dict[str, Scheme] = {
    "api": API,
    "best_of": BEST_OF,
    "data": DATA,
    "defended": DEFENDED,
    "hf": HF,
    "inspect": INSPECT,
    "plain": PLAIN_MODEL,
    "record": RECORD,
    "reminder": REMINDER,
    "smoothed": SMOOTHED,
    "system": SYSTEM,
    "testbed": TESTBED,
    "untrained": UNTRAINED,
    **dict.fromkeys((suffix.removeprefix(".") for suffix in SUFFIXES), ROWS),
    **dict.fromkeys(TOOLS, FOREIGN),
}
"""What stands before the colon of a reference -> how it is checked and opened."""
PLAIN: tuple[tuple[type, Scheme], ...] = (
    (object, EVIDENCE),
    (str, PATH),
    (Mapping, found_by(_policy, on_disk.read, (ReleasePolicy,))),
    (object, BEHAVIOUR),
    *((kind, found_by(_value, _opened, (kind,))) for kind in (str, int, float, bool)),
)
"""The form of what has no scheme, a text or a table say -> its row; the first that gives what is wanted."""


def scheme(reference: Any) -> str:
    """The scheme of a reference, a key of ``SCHEMES``; "" for a path or a table."""
    name, colon, _ = reference.partition(":") if isinstance(reference, str) else ("", "", "")
    return name if colon and name in SCHEMES else ""


def read(reference: Any, wanted: Any, base: Path, given: Mapping[str, Any]) -> tuple[Scheme, Reference]:
    """The row of the table for a reference, and the reference taken apart.

    Raises:
        ConfigError: it is no reference of a kind that gives a ``wanted``, or names nothing that is given.
    """
    check_text(reference)
    if wanted in TABLES:
        parsed = rows(reference, wanted, base, given)
    else:
        meant = stands_for(reference, given)
        check_text(meant)
        parsed = Reference(meant, wanted, base, meant if isinstance(meant, str) else "")
    name, colon, rest = parsed.text.partition(":")
    row = SCHEMES.get(name) if colon else None
    if row is None:
        known = ["given", *(other for other, one in SCHEMES.items() if wanted in one.gives)]
        return _plain(parsed), parsed._replace(guess=nearest(name, known) if colon else "")
    if wanted not in row.gives:
        return _plain(parsed, path=False), parsed
    if parsed.ignore and not row.columns:
        raise ConfigError(
            f"'{parsed.text}' has no columns to ignore",
            hint="ignore works on files of rows: jsonl:PATH, data:NAME",
        )
    return row, parsed._replace(rest=rest)


def _plain(parsed: Reference, *, path: bool = True) -> Scheme:
    """The row for what is no text with a scheme; ``path``: a text may be a path."""
    for form, row in PLAIN:
        fits = isinstance(parsed.text or parsed.written, form) and parsed.wanted in row.gives
        if fits and (path or row is not PATH):
            return row
    raise ConfigError(
        f"{parsed.written!r} cannot be opened as {getattr(parsed.wanted, '__name__', parsed.wanted)}",
        hint="see 'References' in docs/references.md",
    )
