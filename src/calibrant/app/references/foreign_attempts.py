"""Attempts that another tool wrote, by reference: ``garak:PATH``, ``promptfoo:PATH#TARGET``, ...

``PATH#TARGET`` names one target where a file holds attempts on several.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from calibrant.app import catalog
from calibrant.app.references import locate
from calibrant.app.references.opened import Opened
from calibrant.app.references.scheme import Reference, found_by
from calibrant.core import InputError, digest
from calibrant.core.digest import digest_path
from calibrant.data.rows import Attempts, Refused
from calibrant.formats.reading import Reading
from calibrant.ledger.layout import disk

TOOLS: dict[str, str] = {
    "garak": "calibrant.formats.garak:read_garak",
    "harmbench": "calibrant.formats.harmbench:read_harmbench",
    "jbb": "calibrant.formats.jbb:read_jbb",
    "promptfoo": "calibrant.formats.promptfoo:read_promptfoo",
    "pyrit": "calibrant.formats.pyrit:read_pyrit",
}
"""Scheme of a reference -> the reader of that tool's files."""
VERSION = 2
"""Of these readers, raised when a file comes to mean something else: older results are then no answer."""


def foreign_file(reference: str, base: Path) -> Path:
    """The file that a reference names. Raises InputError when it is not there."""
    return locate.file(_parts(reference)[1], base)


def read_foreign(reference: str, base: Path) -> Reading:
    """Attempts, goals and target of another tool's file.

    Raises:
        InputError: it is not there, or nothing in it can be read as attempts on one target.
    """
    tool, _, target = _parts(reference)
    path = foreign_file(reference, base)
    try:
        reading: Reading = catalog.load(TOOLS[tool])(path, target)
    except InputError as error:
        if error.message.startswith(("missing:", "wrong type:")):  # before any row was read
            error.message = f"{path}: no results of {tool}: {error.message}"
            error.hint = error.hint or f"is it {tool}'s file of results? docs/formats.md says what is read"
        raise
    return reading


def attempts_of(reading: Reading, reference: str) -> Attempts:
    """The same as a table, for techniques that take attempts."""
    refused = tuple(Refused(line=row.line, reason=row.reason) for row in reading.refused)
    return Attempts(rows=reading.attempts, source=reference, refused=refused)


def attempts_from(reference: str, base: Path) -> Attempts:
    """Attempts of another tool's file as a table. Raises InputError, see ``read_foreign``."""
    return attempts_of(read_foreign(reference, base), reference)


def _parts(reference: str) -> tuple[str, str, str]:
    """Tool, path and target."""
    tool, _, rest = reference.partition(":")
    path, _, target = rest.partition("#")
    return tool, path, target


def _opened(reference: Reference, path: Path) -> Opened:
    """The digest is of what the reference means: the file, the tool, its reader, and whose attempts."""
    tool, _, target = _parts(reference.text)
    with disk("reading", path):
        key = digest([tool, VERSION, digest_path(path), target])
    load = partial(attempts_from, reference.text, reference.base)
    return Opened(key, "data", load, name=reference.text)


FOREIGN = found_by(
    lambda reference: foreign_file(reference.text, reference.base), _opened, (Attempts,), columns=False
)
