"""What can be said about a job or a study before anything is loaded: every problem at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from calibrant.app import catalog
from calibrant.app.catalog import Signature, find_technique
from calibrant.app.references import behaviours, locate
from calibrant.app.references.foreign_attempts import foreign, is_foreign
from calibrant.app.references.openers import BEHAVIOURS, MODELS, TABLES
from calibrant.app.references.paths import check_text
from calibrant.app.references.tables import asked
from calibrant.app.study_file import Study, StudyJob
from calibrant.app.verdict import misdirected
from calibrant.core import (
    LM,
    CalibrantError,
    ConfigError,
    Evidence,
    Frozen,
    Guard,
    Identity,
    Job,
    Reward,
    resolve,
)
from calibrant.core.errors import nearest
from calibrant.data.rows import Attempts
from calibrant.govern.policy import ReleasePolicy, load_policy


def check_config(job: Job, signature: Signature) -> Frozen | None:
    """The job's config with defaults filled in. Raises ConfigError with every problem."""
    if signature.config is None:
        if job.config:
            raise ConfigError(f"job '{job.id}': {job.use} takes no config, got '{min(job.config)}'")
        return None
    return resolve(signature.config, job.config, where=f"job '{job.id}'")


def check_inputs(job: Job, signature: Signature) -> None:
    """Every required input is there and no other. Raises ConfigError with every problem."""
    # Evidence needs no reference: it is always the ledger that the job runs in.
    needed = [n for n, p in signature.inputs.items() if p.required and p.wanted is not Evidence]
    problems = [f"job '{job.id}': {job.use} needs the input '{n}'" for n in needed if n not in job.inputs]
    problems += [
        f"job '{job.id}': {job.use} has no input '{name}'{nearest(name, signature.inputs)}"
        for name in job.inputs
        if name not in signature.inputs
    ]
    if problems:
        raise ConfigError(problems, hint=f"`calibrant show {job.use}` lists the inputs")


def check_study(study: Study, *, allow_python: bool = False, files: bool = False) -> list[str]:
    """Every problem that can be found without loading a model or a row; [] when there is none.

    ``files``: also look whether the files, folders and names are there that the inputs refer to.
    """
    problems: list[str] = []
    before: dict[str, StudyJob] = {}
    where: dict[str, list[str]] = {}
    for job in study.job:
        if job.id in before:
            problems.append(f"two jobs are called '{job.id}'")
        problems += _job_problems(job)
        for problem in _input_problems(job, _Look(study, job, before, allow_python, files)):
            where.setdefault(problem, []).append(job.id)
        before[job.id] = job
    # One missing thing may be wanted by many jobs: it is told once.
    problems += [f"job {', '.join(dict.fromkeys(ids))}: {problem}" for problem, ids in where.items()]
    try:
        study.opening()
    except CalibrantError as error:
        problems += _told(error)
    problems += _verdict_problems(study, before)
    return list(dict.fromkeys(problems))


def _job_problems(job: StudyJob) -> Iterator[str]:
    try:
        signature = find_technique(job.use)
    except CalibrantError as error:
        yield from (f"job '{job.id}': {problem}" for problem in _told(error))
        return
    for check in (check_config, check_inputs):
        try:
            check(job.runs()[0], signature)
        except CalibrantError as error:
            yield from error.problems if isinstance(error, ConfigError) else _told(error)


def _input_problems(job: StudyJob, look: _Look) -> Iterator[str]:
    try:
        takes = find_technique(job.use).inputs
    except CalibrantError:  # told already
        return
    for name, value in job.inputs.items():
        if name in takes:
            yield from look.problems(value, takes[name].wanted)


def _verdict_problems(study: Study, jobs: Mapping[str, StudyJob]) -> Iterator[str]:
    if study.verdict is None:
        return
    gate, passes = study.verdict.gate, study.verdict.passes
    job = jobs.get(gate)
    if job is None:
        yield f"[verdict] names no job: '{gate}'{nearest(gate, jobs)}"
    elif job.use != "govern.gate":
        yield f"[verdict] names job '{gate}', which uses {job.use}, not govern.gate"
    elif passes > len(job.runs()):
        yield f"[verdict] asks for {passes} passes of '{gate}', which runs {len(job.runs())} times"
    else:
        yield from misdirected(study)


class _Look(NamedTuple):
    """Looks at the inputs of one job of a study."""

    study: Study
    job: StudyJob
    before: Mapping[str, StudyJob]
    allow_python: bool
    files: bool

    def problems(self, value: Any, wanted: Any) -> Iterator[str]:
        """What is wrong with a reference or a behaviour's table."""
        if isinstance(value, str) and value.startswith("given:"):
            name = value.removeprefix("given:")
            if name not in self.study.given:
                yield f"'{value}': nothing of that name is given{nearest(name, self.study.given)}"
                return
            value = self.study.given[name]
            if value == "" or str(value).startswith("given:"):
                yield f"given.{name} has no value: write given.{name}=... after the study's name"
                return
        try:
            check_text(value)
            if isinstance(value, Mapping) and wanted in BEHAVIOURS:
                recipe = behaviours.check(value, allow_python=self.allow_python)
                for reference, inner in recipe.inputs.values():
                    yield from self.problems(reference, inner)
            elif isinstance(value, Mapping) and wanted in TABLES:
                yield from self.problems(asked(value).whole, wanted)
            elif isinstance(value, str) and value.startswith("defended:"):
                yield from self._stack(value)
            elif isinstance(value, str) and value.startswith("record:"):
                yield from self._record(value)
            elif self.files:
                _find(value, wanted, self.study.base)
        except CalibrantError as error:
            yield from _told(error)
        except RecursionError:
            yield f"{str(value)[:60]!r}: too many references inside one another"

    def _stack(self, reference: str) -> Iterator[str]:
        """A model behind guards: the model, and where files are looked at, each guard."""
        file, inner = locate.stack(reference)
        yield from self.problems(inner, LM)
        if file.startswith("record:"):
            yield from self._record(file)
        elif self.files:
            table = locate.toml(locate.file(file, self.study.base))
            spec = resolve(catalog.load("calibrant.defend.defended:StackSpec"), table, where=file)
            for layer in spec.layer:
                for problem in self.problems(layer.guard, Guard):
                    yield f"{file}, layer '{layer.name}': {problem}"

    def _record(self, reference: str) -> Iterator[str]:
        """An earlier job of the study, in a run that there is."""
        name, _, seed = reference.removeprefix("record:").partition("/")[0].partition("#")
        if name not in self.before:
            if not (len(name) >= 6 and set(name) <= set("0123456789abcdef")):
                yield f"'{reference}': no earlier job '{name}'{nearest(name, self.before)}"
            return
        there = {run.seed for run in self.before[name].runs()}
        asked = {seed} if seed else {str(s) for s in self.job.seeds if self.before[name].seeds}
        lost = sorted(asked - {str(s) for s in there})
        if lost:
            yield f"'{reference}': no run of '{name}' has the seed {', '.join(lost)}"


def _find(value: Any, wanted: Any, base: Path) -> None:
    """Raise what opening ``value`` would raise, as far as can be told without weights and rows."""
    if wanted is ReleasePolicy:
        if isinstance(value, str):
            load_policy(locate.file(value, base))
    elif not isinstance(value, str):
        return
    elif wanted is Reward and not value.startswith("testbed:"):
        locate.reward_folder(value, base)
    elif wanted in BEHAVIOURS:
        locate.testbed_behaviour(value)
    elif wanted in MODELS or wanted is Identity:
        if value.startswith("hf:"):
            locate.hub_name(value)  # to open it may take a download
        elif locate.model_folder(value, base) is None:
            locate.model(value, base)
    elif wanted in TABLES:
        rows = asked(value).whole
        if rows.startswith("testbed:"):
            locate.testbed_rows(rows, wanted)
        elif wanted is Attempts and is_foreign(rows):
            foreign(rows, base)
        else:
            locate.rows(rows, base)


def _told(error: CalibrantError) -> tuple[str, ...]:
    """An error as problems, the remedy with them where there is one problem."""
    if isinstance(error, ConfigError) and len(error.problems) > 1:
        return error.problems
    return (f"{error.message} ({error.hint})" if error.hint else error.message,)
