"""``Scheme``: a row of the table in ``schemes.py``: how a kind of reference is checked and opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from calibrant.app.references.opened import Opened
from calibrant.app.study_file import StudyJob
from calibrant.core import (
    LM,
    ConfigError,
    Entry,
    Guard,
    Identity,
    Judge,
    Monitor,
    OpenLM,
    Reward,
    ScoringLM,
    Watcher,
)
from calibrant.data.references import Part
from calibrant.ledger import Ledger

MODELS = (LM, ScoringLM, OpenLM, Identity)
_NESTED = 16
"""Most references of one scheme, one inside the other."""
BEHAVIOURS = (Judge, Guard, Reward, Watcher, Monitor)


class Reference(NamedTuple):
    """A reference, taken apart."""

    written: Any
    """As a record shows it: what is given stands in the place of 'given:NAME'."""
    wanted: Any
    """Class or protocol of the object that it is to give."""
    base: Path
    """Folder that relative paths start from."""
    text: str = ""
    """Without slices; "" where it is no text."""
    rest: str = ""
    """What follows the scheme: 'OWNER/NAME@COMMIT' of 'hf:OWNER/NAME@COMMIT'."""
    ignore: tuple[str, ...] = ()
    """Columns of rows to leave out."""
    parts: tuple[Part, ...] = ()
    """Slices of rows, to be taken one after the other."""
    guess: str = ""
    """" (did you mean 'hf'?)" where the scheme is unknown."""


class Checks(Protocol):
    """Looks at the inputs of one ``job`` of a study; ``before`` are the jobs above it, by id.

    ``files``: also at what lies outside the study, as `calibrant check` does; a run finds that out by itself.
    """

    @property
    def allow_python(self) -> bool: ...
    @property
    def files(self) -> bool: ...
    @property
    def job(self) -> StudyJob: ...
    @property
    def before(self) -> Mapping[str, StudyJob]: ...

    def check(self, reference: Any, wanted: Any, where: str = "") -> Any:
        """What the row of an inner reference finds; None where it notes a problem, after ``where``."""


class Opens(Protocol):
    """Opens the inputs of one job: see ``Openers``."""

    @property
    def allow_python(self) -> bool: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def jobs(self) -> Mapping[tuple[str, int | None], Entry]: ...
    @property
    def seed(self) -> int: ...

    def open(self, reference: Any, wanted: Any) -> Opened:
        """What an inner reference leads to."""


class Scheme(NamedTuple):
    """How the references of one scheme are checked and opened."""

    gives: tuple[Any, ...]
    """What may be wanted of it: classes and protocols."""
    check: Callable[[Reference, Checks], Any]
    """Raises what ``open`` would raise, as far as can be told without weights, rows, records and network."""
    open: Callable[[Reference, Opens], Opened]
    """Finds the thing and its digest; nothing is loaded yet."""
    columns: bool = True
    """Whether its rows are read from a file, of which columns can be left out."""


def found_by(
    find: Callable[[Reference], Any],
    make: Callable[[Reference, Any], Opened],
    gives: tuple[Any, ...],
    *,
    columns: bool = True,
) -> Scheme:
    """A scheme that leads out of the study: ``open`` goes on, by ``make``, with what ``check`` finds."""
    return Scheme(
        gives,
        lambda reference, study: find(reference) if study.files else None,
        lambda reference, openers: make(reference, find(reference)),
        columns=columns,
    )


def file_and_model(reference: str, example: str) -> tuple[str, str]:
    """The file and the model of ``SCHEME:FILE#MODEL``; ``example`` is such a reference.

    Raises:
        ConfigError: one of them is missing, or too many stand inside one another.
    """
    scheme, _, rest = reference.partition(":")
    if reference.count(f"{scheme}:") > _NESTED:
        raise too_deep(reference)
    file, _, model = rest.partition("#")
    if not (file and model):
        what = "names no model" if file else "names neither a file nor a model"
        raise ConfigError(f"'{reference}' {what}", hint=f"write {scheme}:FILE#MODEL: {example}")
    return file, model


def too_deep(reference: Any) -> ConfigError:
    """The error for references that lead to references without an end in sight."""
    return ConfigError(f"{str(reference)[:60]!r}: too many references inside one another")
