"""The ``Run`` a technique receives (work folder, log, budget, child calls), its ``Job`` and its ``Result``.

A technique is a function ``f(<inputs>, config, run) -> Result``; inputs are named as in the study.
"""

from __future__ import annotations

import inspect
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from pydantic import Field

from calibrant.core.config import Frozen
from calibrant.core.errors import CapabilityError
from calibrant.core.estimate import Estimate
from calibrant.core.figure_data import FigureData, by_names

if TYPE_CHECKING:
    from calibrant.core.record import Record

F = TypeVar("F", bound=Callable[..., Any])


class Budget(Frozen):
    """Limits that stop a job with a clear error before they are exceeded. None is no limit."""

    queries: int | None = None
    """Most calls to a target model."""
    tokens: int | None = None
    """Most tokens generated or trained on."""
    seconds: float | None = None
    """Most wall-clock seconds."""


class Job(Frozen):
    """A technique with its inputs, config and seed."""

    id: str
    """Name of the job in its study."""
    use: str
    """Technique name: 'train.dpo'."""
    inputs: dict[str, Any] = Field(default_factory=dict)
    """Parameter name -> reference (contract C1)."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields that differ from the technique's defaults."""
    seed: int = 0
    """The run's seed."""
    budget: Budget = Budget()
    """Limits for this job."""


_COLUMNS, _UNKNOWN = ("metric", "value", "low", "high", "n", "unit"), "unknown: "


class Result(Frozen):
    """What a technique returns; subclasses add live objects with ``exclude=True``."""

    metrics: dict[str, Estimate] = Field(default_factory=dict)
    """Name -> estimate with its interval."""
    caveats: tuple[str, ...] = ()
    """What this result does not show."""

    def figure_data(self) -> tuple[FigureData, ...]:
        """What to draw of it, the most telling figure first; from ``metrics`` alone, as a record has them."""
        return by_names(self.metrics)

    def __str__(self) -> str:
        """Metrics as a table, and caveats: what ``print`` shows; ``repr`` has every field."""
        rows = [_COLUMNS, *self._rows()]
        longest = max(len(name) for name, *_ in rows)
        numbers = [row[1:-1] for row in rows if not row[1].startswith(_UNKNOWN)]
        widths = [max(map(len, column)) for column in zip(*numbers, strict=True)]
        lines = []
        for name, *cells, unit in rows:
            known = not cells[0].startswith(_UNKNOWN)
            shown = [*map(str.rjust, cells, widths), unit] if known else cells[:1]
            lines.append("  ".join([name.ljust(longest), *shown]).rstrip())
        return "\n".join([*lines, *(f"- {caveat}" for caveat in self.caveats)])

    def _repr_html_(self) -> str:
        """Metrics and caveats as a notebook shows them; an unknown one with its reason."""
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in self._rows())
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        notes = "".join(f"<li>{escape(caveat)}</li>" for caveat in self.caveats)
        return f"<table><tr>{head}</tr>{body}</table><ul>{notes}</ul>"

    def _rows(self) -> Iterator[tuple[str, ...]]:
        """The cells of each metric, under ``_COLUMNS``."""
        for name, one in self.metrics.items():
            value = (
                f"{_UNKNOWN}{one.reason or 'no reason given'}" if one.value is None else f"{one.value:.4g}"
            )
            ends = ("" if end is None else f"{end:.4g}" for end in (one.low, one.high))
            yield name, value, *ends, str(one.n or ""), one.unit


class Run(Protocol):
    """What a technique receives: work folder, log, artefacts, budget, progress, child calls."""

    seed: int
    """Seed for everything random in the technique."""

    @property
    def work(self) -> Path:
        """A folder that survives a kill, keyed by the job digest; a resuming technique looks there first."""
        ...

    @property
    def cache(self) -> Path:
        """A cache folder shared by all jobs of a ledger; it may be deleted at any time."""
        ...

    @property
    def references(self) -> Mapping[str, Any]:
        """Input name -> its reference, to pass on with ``call``; {} without a ledger."""
        ...

    def log(self, step: int, **metrics: float) -> None:
        """Log the metrics of a loop at ``step``."""
        ...

    def artifact(self, name: str) -> Path:
        """A path to write an artefact to; the file is stored by digest when the job ends.

        Names that start with 'timing' are stored but stay out of the result digest.
        """
        ...

    def spend(self, *, tokens: int = 0, queries: int = 0, flops: float = 0.0) -> None:
        """Charge the budget. Raises BudgetError when a limit would be exceeded."""
        ...

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Report progress."""
        ...

    def call(
        self, technique: str, inputs: Mapping[str, Any], config: Mapping[str, Any] | None = None
    ) -> Record:
        """Call another technique (contract C2): own record, lineage, budget, resume."""
        ...


class Quiet:
    """The run of a technique called from plain Python: no record; files go to a temporary folder.

    Pass a ``work`` folder to keep what the technique saves.
    """

    def __init__(self, seed: int = 0, work: Path | None = None) -> None:
        self.seed = seed
        self._work = work

    @property
    def work(self) -> Path:
        """The given folder, or a temporary one that is deleted with this object; created on first use."""
        if self._work is None:
            self._work = Path(tempfile.mkdtemp(prefix="calibrant-"))
            weakref.finalize(self, shutil.rmtree, self._work, ignore_errors=True)
        self._work.mkdir(parents=True, exist_ok=True)
        return self._work

    @property
    def cache(self) -> Path:
        """A folder inside ``work``."""
        path = self.work / "cache"
        path.mkdir(exist_ok=True)
        return path

    @property
    def references(self) -> Mapping[str, Any]:
        """None: the inputs of a direct call are objects."""
        return {}

    def log(self, step: int, **metrics: float) -> None:
        """Discards the log."""

    def artifact(self, name: str) -> Path:
        """A path in the work folder; its parent exists."""
        path = self.work / "artifacts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def spend(self, *, tokens: int = 0, queries: int = 0, flops: float = 0.0) -> None:
        """No limits."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Does nothing."""

    def call(
        self, technique: str, inputs: Mapping[str, Any], config: Mapping[str, Any] | None = None
    ) -> Record:
        """Raise: calling another technique needs a ledger."""
        raise CapabilityError(
            f"a quiet run cannot call '{technique}'",
            hint="run the technique through calibrant.app.execute, which keeps a ledger",
        )


def technique(version: int) -> Callable[[F], F]:
    """Mark a function as a technique. Raise ``version`` whenever its code can change a result (C3)."""

    def mark(function: F) -> F:
        shape = inspect.signature(function)

        @wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            # A default is one object for all calls; a run must not be, for it holds what a call may resume.
            if "run" not in shape.bind(*args, **kwargs).arguments:
                kwargs["run"] = Quiet()
            return function(*args, **kwargs)

        called.version = version  # type: ignore[attr-defined]
        return cast(F, called)

    return mark
