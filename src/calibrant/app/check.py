"""Check a job or a study before anything is loaded: all problems at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from calibrant.app.catalog import Signature, find_technique
from calibrant.app.references import behaviours, locate, schemes
from calibrant.app.references.scheme import too_deep
from calibrant.app.study_file import Study, StudyJob
from calibrant.app.verdict import misdirected
from calibrant.core import CalibrantError, ConfigError, Evidence, Frozen, Guard, Job, resolve
from calibrant.core.errors import nearest
from calibrant.defend.defended import StackSpec


def check_config(job: Job | StudyJob, signature: Signature) -> Frozen | None:
    """The job's config with defaults filled in. Raises ConfigError with every problem."""
    if signature.config is None:
        if job.config:
            raise ConfigError(f"job '{job.id}': {job.use} takes no config, got '{min(job.config)}'")
        return None
    return resolve(signature.config, job.config, where=f"job '{job.id}'")


def check_inputs(job: Job | StudyJob, signature: Signature) -> None:
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
        for problem in _input_problems(_Look(study, job, before, allow_python, files, [], {})):
            where.setdefault(problem, []).append(job.id)
        before[job.id] = job
    # One missing thing may be wanted by many jobs: it is told once.
    problems += [f"job {', '.join(dict.fromkeys(ids))}: {problem}" for problem, ids in where.items()]
    try:
        study.opening()
    except CalibrantError as error:
        problems += _lines(error)
    problems += _verdict_problems(study, before)
    problems += _reading_problems(study, before)
    return list(dict.fromkeys(problems))


def stack_file(reference: str) -> Path | None:
    """The file, where it is one of guards (``[[layer]]``) and no study."""
    try:
        path = locate.file(reference if reference.endswith(".toml") else f"{reference}.toml", Path.cwd())
    except CalibrantError:  # told as a study that is not there
        return None
    table = locate.toml(path)
    return path if "layer" in table and "job" not in table else None


def check_guards(path: Path, *, allow_python: bool = False) -> tuple[str, list[str]]:
    """What a stack file holds, in words, and every problem that can be found without loading a model.

    A guard that needs what a study gives (``given:``, ``record:``) is left to the study's own check.
    """
    job = StudyJob.model_construct(id="", use="", inputs={}, config={})
    study = Study.model_construct(name=path.stem, job=(job,), base=path.parent, given={})
    look = _Look(study, job, {}, allow_python, files=True, problems=[], seen={})
    stack = look.check(str(path), StackSpec)
    layers = stack.layer if stack is not None else ()
    alone = [layer for layer in layers if not _of_a_study(layer.guard)]
    for layer in alone:
        where, before = f"layer '{layer.name}': ", len(look.problems)
        look.check(layer.guard, Guard, where=where)
        if len(look.problems) == before:
            look.problems.extend(where + problem for problem in _unmakable(layer.guard))
    left = len(layers) - len(alone)
    rest = f", {left} left to the check of the study that gives what they name" if left else ""
    many = "1 layer" if len(layers) == 1 else f"{len(layers)} layers"
    return f"{many}{rest}", list(dict.fromkeys(look.problems))


def _of_a_study(written: Any) -> bool:
    """Whether a reference in it is to what a study gives."""
    if isinstance(written, Mapping):
        return any(map(_of_a_study, written.values()))
    return isinstance(written, str) and re.search(r"(^|#)(given|record):", written) is not None


def _unmakable(written: Any) -> tuple[str, ...]:
    """Why a guard that asks no model cannot be made: patterns that are none, say."""
    if not isinstance(written, Mapping) or written.get("use") not in _PLAIN:
        return ()
    try:
        plan = behaviours.recipe(written)
        plan.factory(**plan.config)
    except CalibrantError as error:
        return error.problems if isinstance(error, ConfigError) else _lines(error)
    return ()


def _job_problems(job: StudyJob) -> Iterator[str]:
    try:
        signature = find_technique(job.use)
    except CalibrantError as error:
        yield from (f"job '{job.id}': {problem}" for problem in _lines(error))
        return
    for check in (check_config, check_inputs):
        try:
            check(job, signature)
        except CalibrantError as error:
            yield from error.problems if isinstance(error, ConfigError) else _lines(error)


def _input_problems(look: _Look) -> list[str]:
    """What is wrong with the references of a job."""
    try:
        takes = find_technique(look.job.use).inputs
    except CalibrantError:  # noted already
        return []
    for name, value in look.job.inputs.items():
        if name in takes:
            look.check(value, takes[name].wanted)
    return look.problems


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


def _reading_problems(study: Study, jobs: Mapping[str, StudyJob]) -> Iterator[str]:
    """Claims and instruments that read jobs which this study does not have, or too few of their runs."""
    for reader in study.job:
        config = reader.config
        rows = config.get(_READERS.get(reader.use, ""))
        if config.get("study") != study.name or not isinstance(rows, list):
            continue
        for number, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):  # noted already
                continue
            along = row.get("along")
            names = [row.get("job"), row.get("against"), *(along if isinstance(along, Mapping) else ())]
            wanted, where = row.get("seeds"), f"job '{reader.id}': number {number} of {_READERS[reader.use]}"
            for name in map(str, filter(None, names)):
                if name not in jobs:
                    yield f"{where} reads '{name}', no job of '{study.name}'{nearest(name, jobs)}"
                elif isinstance(wanted, int) and wanted > len(jobs[name].runs()):
                    yield f"{where} wants {wanted} seeds of '{name}', which runs {len(jobs[name].runs())}"


_READERS = {"govern.claim": "claims", "measure.audit_game": "instruments"}
"""Techniques that read other jobs' numbers by name -> the rows of their config that name them."""
_LOOKING = object()
_PLAIN = ("defend.pattern_guard", "defend.pii_guard")
"""Guards that ask no model, and are made in no time."""


class _Look(NamedTuple):
    """Looks at the inputs of one job of a study, and notes every problem."""

    study: Study
    job: StudyJob
    before: Mapping[str, StudyJob]
    allow_python: bool
    files: bool
    problems: list[str]
    seen: dict[tuple[str, Any], Any]
    """Reference and what is wanted of it -> what its row found, or that it still looks."""
    where: str = ""
    """What stands before each problem."""

    def check(self, reference: Any, wanted: Any, where: str = "") -> Any:
        """What the reference's row finds, None where it may not look; a problem is noted after ``where``.

        A reference is looked at once, however many others lead to it: their number may double at each step.
        """
        inner, key = self._replace(where=self.where + where), (repr(reference), wanted)
        try:
            if self.seen.get(key) is _LOOKING:
                raise too_deep(reference)
            if key not in self.seen:
                self.seen[key] = _LOOKING
                row, parsed = schemes.read(reference, wanted, self.study.base, self.study.given)
                self.seen[key] = row.check(parsed, inner)
            return self.seen[key]
        except CalibrantError as error:
            self.problems.extend(inner.where + line for line in _lines(error))
        except RecursionError:
            self.problems.append(inner.where + too_deep(reference).message)
        self.seen[key] = None
        return None


def _lines(error: CalibrantError) -> tuple[str, ...]:
    """An error as problems, the remedy with them where there is one problem."""
    if isinstance(error, ConfigError) and len(error.problems) > 1:
        return error.problems
    return (f"{error.message} ({error.hint})" if error.hint else error.message,)
