"""Release policies: what must have been measured, and how well, before a system goes out.

A policy is a small closed vocabulary and not a programming language: engines for general
expressions disagree on the same text and answer "true" for all of nothing. In TOML::

    name = "limited release"
    stage = "limited"

    [[rule]]
    id = "REFUSE-1"
    technique = "measure.refusal"
    metric = "harmful_answered"
    data = "testbed:goals/heldout"
    bound = "high"
    op = "<="
    threshold = 0.10
    min_n = 100
    judge = "calibrated"
    note = "harmful requests stay unanswered"
"""

from __future__ import annotations

import operator
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from calibrant.core import ConfigError, Frozen, InputError, digest, resolve
from calibrant.core.errors import nearest

Stage = Literal["research", "internal", "trusted", "limited", "general", "open_weights"]
Bound = Literal["low", "high"]
Op = Literal["<=", "<", ">=", ">"]

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}
_PESSIMISTIC: dict[str, Bound] = {"<=": "high", "<": "high", ">=": "low", ">": "low"}


class Rule(Frozen):
    """One requirement on one metric. Raises ConfigError when ``op`` and ``bound`` point apart."""

    id: str = Field(min_length=1)
    """Short name, unique in its policy."""
    technique: str = Field(min_length=1)
    """Catalogue name of the technique whose records are evidence: 'measure.refusal'."""
    metric: str = Field(min_length=1)
    """Name of the metric in those records."""
    data: str = ""
    """Exact reference of the data that was measured on; "" takes any."""
    bound: Bound
    """Which end of the interval must meet the threshold: the pessimistic one."""
    op: Op
    """How that end must compare with the threshold."""
    threshold: float = Field(strict=True, allow_inf_nan=False)
    """The limit, in the metric's own unit."""
    margin: float = Field(default=0.0, strict=True, ge=0.0, allow_inf_nan=False)
    """Tightens the threshold by this much, in the same unit."""
    min_n: int = Field(default=1, strict=True, ge=1)
    """Fewest units that a record must have asked."""
    max_missing: float = Field(default=0.05, strict=True, ge=0.0, le=1.0)
    """Largest share of units without an answer; the interval carries them at their worst as well."""
    judge: Literal["any", "calibrated"] = "any"
    """'calibrated' takes only records whose every judge is exact or calibrated."""
    preregistered: bool = True
    """True: the policy must have been recorded in an intent before the first evidence."""
    note: str = ""
    """What the rule protects."""

    @model_validator(mode="after")
    def _points_the_pessimistic_way(self) -> Rule:
        needed = _PESSIMISTIC[self.op]
        if self.bound != needed:
            raise ConfigError(
                f"rule '{self.id}': op '{self.op}' needs bound '{needed}', got '{self.bound}'",
                hint="a gate reads the pessimistic end of the interval: high for a limit, low for a floor",
            )
        return self

    @property
    def line(self) -> float:
        """The threshold tightened by the margin, in decimal arithmetic: 0.3 less 0.1 is 0.2."""
        threshold, margin = Decimal(repr(self.threshold)), Decimal(repr(self.margin))
        return float(threshold - margin if self.bound == "high" else threshold + margin)

    def meets(self, value: float) -> bool:
        """Whether ``value`` lies on the accepted side of ``line``; NaN never does."""
        return _COMPARE[self.op](value, self.line)


class ReleasePolicy(Frozen):
    """The rules for one stage of release. Raises ConfigError when two rules share an id."""

    name: str = Field(min_length=1)
    """A name for people."""
    stage: Stage
    """How far the release goes; 'open_weights' cannot be taken back."""
    rules: tuple[Rule, ...] = ()
    """All must be met. A policy without rules never passes."""

    @model_validator(mode="after")
    def _ids_are_unique(self) -> ReleasePolicy:
        counts = Counter(rule.id for rule in self.rules)
        twice = [f"rule id '{name}' is used {count} times" for name, count in counts.items() if count > 1]
        if twice:
            raise ConfigError(twice, hint="give each rule its own id")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 over name, stage and rules: what an intent registers before the first evidence."""
        return digest(self)


def policy_of(table: Mapping[str, Any], *, where: str = "policy") -> ReleasePolicy:
    """Build a policy from a TOML table with ``name``, ``stage`` and ``[[rule]]``.

    Raises:
        ConfigError: lists every problem of every rule; unknown keys come with the nearest name.
    """
    known = ("name", "stage", "rule")
    problems = [f"{where}: unknown key '{key}'{nearest(key, known)}" for key in table if key not in known]
    written = table.get("rule", [])
    if not isinstance(written, list):
        problems.append(f"{where}: 'rule' must be a list of tables: write [[rule]]")
        written = []
    rules = []
    for number, given in enumerate(written, start=1):
        if not isinstance(given, Mapping):
            problems.append(f"{where}: rule {number} must be a table, got {given!r:.60}")
            continue
        try:
            rules.append(resolve(Rule, given, where=_place(where, number, given)))
        except ConfigError as error:
            problems += _located(error, where)
    head = {key: table[key] for key in ("name", "stage") if key in table}
    try:
        policy = resolve(ReleasePolicy, {**head, "rules": tuple(rules)}, where=where)
    except ConfigError as error:
        problems += _located(error, where)
    if problems:
        raise ConfigError(problems, hint="correct the policy; nothing was checked against it")
    return policy


def load_policy(path: Path | str) -> ReleasePolicy:
    """Read a policy from a TOML file.

    Raises:
        InputError: the file cannot be read.
        ConfigError: it is not TOML, or not a policy; every problem is listed.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read policy {path}: {error.strerror}", hint="give the path of a TOML file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    return policy_of(table, where=str(path))


def _place(where: str, number: int, given: Mapping[str, Any]) -> str:
    """Where a rule stands, by its number and, where it has one, its id."""
    return f"{where}: rule {number}" + (f" '{given['id']}'" if "id" in given else "")


def _located(error: ConfigError, where: str) -> list[str]:
    """Problems of a cross-check do not know their file yet; those of ``resolve`` do."""
    return [text if text.startswith(where) else f"{where}: {text}" for text in error.problems]
