"""Parse a study's TOML file: jobs, [given], [intent], [verdict], figures.

[given]   what a user swaps on the command line: given.model=./mine
[intent]  use, hazards, tax_margin, policy: recorded before the first job
[[job]]   id, use, inputs, config, seed or seeds, budget; or like = an earlier job's id, and what differs
[verdict] gate = a job id, passes = how many of its seeds must pass
[[figure]] what the page compares
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, field_validator

from calibrant.app.references import locate
from calibrant.core import Budget, CalibrantError, ConfigError, Frozen, Job, resolve
from calibrant.core.errors import nearest
from calibrant.core.secrets import strike
from calibrant.core.written import parse_toml
from calibrant.govern.intent import Intent
from calibrant.govern.policy import ReleasePolicy, load_policy, policy_of
from calibrant.views.figures import FigureSpec

T = TypeVar("T", bound=Frozen)


class StudyJob(Frozen):
    """A job of a study; with ``seeds`` it runs once a seed, and refers to others of that seed."""

    id: str = Field(pattern=r"^[\w-]+$")
    """Name of the job in the study: letters, digits, _ and -."""
    use: str
    """Technique name."""
    inputs: dict[str, Any] = Field(default_factory=dict)
    """Parameter name -> reference."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields that differ from the defaults."""
    seed: int = 0
    """Seed of a job that runs once."""
    seeds: tuple[int, ...] = ()
    """Seeds of a job that runs several times; ``seed`` is not used then."""
    budget: Budget = Budget()
    """Limits for each run of the job."""

    @field_validator("seeds")
    @classmethod
    def _once_each(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is listed twice, and one run would count as several")
        return seeds

    def runs(self) -> list[Job]:
        """One Job a seed."""
        fields = self.model_dump(exclude={"seed", "seeds", "budget"})
        return [Job(**fields, seed=seed, budget=self.budget) for seed in self.seeds or (self.seed,)]


class Pass(Frozen):
    """When the study as a whole passes."""

    gate: str
    """Id of the gate's job."""
    passes: int = Field(default=1, ge=1)
    """How many of its seeds must pass; declared before the first job."""


class Study(Frozen):
    """A study as it is in its file, with the command line's changes applied."""

    name: str = Field(pattern=r"^[\w-]+$")
    """Short name; also the page's file name: letters, digits, _ and -."""
    title: str = ""
    """Heading of the page."""
    story: str = ""
    """One paragraph: what is asked and how."""
    given: dict[str, Any] = Field(default_factory=dict)
    """What a user swaps."""
    intent: dict[str, Any] | None = None
    """See ``govern.intent.Intent``; ``policy`` may be a file."""
    verdict: Pass | None = None
    """None: the study only measures."""
    job: tuple[StudyJob, ...]
    """The jobs in order."""
    figure: tuple[FigureSpec, ...] = ()
    """The page's figures."""
    base: Path = Path()
    """Folder of the file; relative paths start here."""

    def opening(self) -> Intent | None:
        """The intent with its policy read: what is recorded before the first job."""
        if self.intent is None:
            return None
        source = self.intent.get("policy")
        policy = None if source is None else self.policy(source)
        criteria: dict[str, Any] = {}
        if self.verdict is not None:
            gates = [run for job in self.job if job.id == self.verdict.gate for run in job.runs()]
            criteria = {"gate": self.verdict.gate, "passes": self.verdict.passes}
            criteria["gate_seeds"] = [run.seed for run in gates]
        return resolve(Intent, {**strike(self.intent), "policy": policy, **criteria}, where="[intent]")

    def policy(self, written: Any) -> ReleasePolicy:
        """The release policy of a table, or of the file of that name. Raises CalibrantError: it is none."""
        if isinstance(written, Mapping):
            return policy_of(written)
        return load_policy(locate.file(str(written), self.base))


def load_study(reference: str, changes: Sequence[str] = ()) -> Study:
    """Read a packaged study by name, or a TOML file, and apply ``key=value`` changes.

    Raises:
        InputError: no such file. ConfigError: lists every problem of the file.
    """
    name = reference if reference.endswith(".toml") else f"{reference}.toml"
    known = [p.stem for p in sorted(locate.STUDIES.glob("*.toml")) if "[[job]]" in p.read_text("utf-8")]
    try:
        path = locate.file(name, Path.cwd())
    except CalibrantError as error:
        raise ConfigError(
            f"no study '{reference}'{nearest(reference, known)}",
            hint=f"packaged studies: {', '.join(known)}; or give the path of a TOML file",
        ) from error
    table = locate.toml(path)
    jobs = table.get("job", [])
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        raise ConfigError(f"{path}: 'job' must be a list of tables", hint="write [[job]] above each job")
    if jobs:
        table["job"] = _filled(jobs, path)
    for change in changes:
        _apply(table, change)
    return _study(table, path)


def _filled(jobs: Sequence[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """The jobs, each that is ``like`` an earlier one filled with what it does not say itself.

    Raises:
        ConfigError: no earlier job has that id.
    """
    filled: list[dict[str, Any]] = []
    for number, job in enumerate(jobs, 1):
        if "like" in job:
            earlier = {str(one.get("id")): one for one in filled}
            name, own = str(job["like"]), str(job.get("id", number))
            if name not in earlier:
                near = nearest(name, earlier)
                raise ConfigError(f"{path}: job '{own}' is like '{name}', but no job before it is{near}")
            job = _merged(earlier[name], job)
        filled.append(job)
    return filled


def _merged(other: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """``job`` over ``other``: whole fields, but ``inputs`` and ``config`` key by key."""
    left_out = {"id", "seeds"} if "seed" in job else {"id"}
    merged = {key: deepcopy(value) for key, value in other.items() if key not in left_out}
    for key, value in job.items():
        tables = key in ("inputs", "config") and isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merged[key] | value if tables else value
    del merged["like"]
    return merged


def _study(table: dict[str, Any], path: Path) -> Study:
    """Read each part by itself, so that a problem names its job or figure."""
    problems: list[str] = []

    def part(kind: type[T], given: Any, where: str) -> T | None:
        try:
            return resolve(kind, given, where=where)
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    parts: dict[str, Any] = {"base": path.parent}
    if "job" in table:
        named = [
            (job, f"{path}: job '{job.get('id', number)}'") for number, job in enumerate(table["job"], 1)
        ]
        parts["job"] = [part(StudyJob, job, where) for job, where in named]
    if "figure" in table:
        parts["figure"] = [
            part(FigureSpec, figure, f"{path}: figure {n}") for n, figure in enumerate(table["figure"], 1)
        ]
    if not problems:
        return resolve(Study, {**table, **parts}, where=str(path))
    part(Study, {**table, "base": path.parent, "job": (), "figure": ()}, str(path))
    raise ConfigError(problems, hint="nothing was run")


def _apply(table: dict[str, Any], change: str) -> None:
    """Apply 'given.NAME=VALUE' or 'JOB.FIELD[.FIELD]=VALUE', where FIELD is one of the job's config."""
    key, equals, text = change.partition("=")
    if not equals:
        raise ConfigError(f"'{change}' is no change", hint="write KEY=VALUE, as in given.model=./mine")
    value = _value(text)
    first, *rest = key.split(".")
    jobs = {str(job.get("id")): job for job in table.get("job", [])}
    given = table.get("given", {})
    if first == "given" and len(rest) == 1 and isinstance(given, dict):
        if rest[0] not in given:
            raise ConfigError(
                f"'{key}': the study has no given '{rest[0]}'{nearest(rest[0], given)}",
                hint=f"given: {', '.join(given) or 'nothing'}",
            )
        given[rest[0]] = value
        return
    if first not in jobs or not rest:
        raise ConfigError(
            f"'{key}': no job '{first}'{nearest(first, jobs)}",
            hint="write given.NAME=VALUE, or JOB.FIELD=VALUE for a field of a job's config",
        )
    own = rest[0] in ("seed", "seeds", "budget", "inputs")
    target, path = jobs[first], rest if own else ["config", *rest]
    for part in path[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigError(f"'{key}': '{part}' has no fields", hint=f"write {first}.{part}=VALUE")
    target[rest[-1]] = value


def _value(text: str) -> Any:
    try:
        return parse_toml(f"value = {text}", "value")["value"]
    except ConfigError:
        return text
