"""``inspect:PATH``: a log of Inspect (.eval), as evidence."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from calibrant.app import catalog
from calibrant.app.references import locate
from calibrant.app.references.opened import Opened, from_bytes
from calibrant.app.references.scheme import Reference, found_by
from calibrant.core import InputError
from calibrant.formats.evidence import EvalEvidence


def _find(reference: Reference) -> Path:
    """The file. Raises InputError when it is not there, or is no .eval."""
    path = locate.file(reference.rest, reference.base)
    if path.suffix != ".eval":
        raise InputError(
            f"'{reference.text}' is no .eval file",
            hint="`inspect log convert --to eval --output-dir FOLDER PATH` writes one",
        )
    return path


def _make(reference: Reference, path: Path) -> Opened:
    return from_bytes(path, partial(_read, path), reference.text)


def _read(path: Path) -> EvalEvidence:
    evidence: EvalEvidence = catalog.load("calibrant.formats.eval_log:read_eval")(path)
    return evidence


INSPECT = found_by(_find, _make, (EvalEvidence,), columns=False)
