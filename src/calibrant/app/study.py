"""Studies: a TOML file with a list of jobs, what is given, and what was intended.

    [given]   what a user swaps on the command line: given.model=./mine
    [intent]  use, hazards, tax_margin, policy: recorded before the first job
    [[job]]   id, use, inputs, config, seed or seeds, budget
    [verdict] gate = a job id, passes = how many of its seeds must pass
    [[figure]] what the page compares

A study resumes: a job whose finished record is in the ledger is not run again.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from calibrant.app import places
from calibrant.app.catalog import find_technique
from calibrant.app.execute import Context, Progress, check_config, check_inputs, execute
from calibrant.app.openers import Openers
from calibrant.core import Budget, CalibrantError, ConfigError, Entry, Frozen, Job, Verdict, resolve
from calibrant.core.errors import nearest
from calibrant.govern.intent import Intent, intent_record
from calibrant.govern.policy import ReleasePolicy, load_policy, policy_of
from calibrant.ledger import Ledger
from calibrant.views.figures import FigureSpec


class StudyJob(Frozen):
    """A job of a study; with ``seeds`` it runs once a seed, and refers to others of that seed."""

    id: str
    """Name of the job in the study."""
    use: str
    """Technique name."""
    inputs: dict[str, Any] = Field(default_factory=dict)
    """Parameter name -> reference."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields that differ from the defaults."""
    seed: int = 0
    """Seed of a job that runs once."""
    seeds: tuple[int, ...] = ()
    """Seeds of a job that runs several times; "" of these and ``seed`` is used."""
    budget: Budget = Budget()
    """Limits for each run of the job."""

    def runs(self) -> list[Job]:
        """One Job a seed."""
        given = self.model_dump(exclude={"seed", "seeds", "budget"})
        return [Job(**given, seed=seed, budget=self.budget) for seed in self.seeds or (self.seed,)]


class Pass(Frozen):
    """When the study as a whole passes."""

    gate: str
    """Id of the gate's job."""
    passes: int = Field(default=1, ge=1)
    """How many of its seeds must pass; declared before the first job."""


class Study(Frozen):
    """A study as it is in its file, with the command line's changes applied."""

    name: str
    """Short name; also the page's."""
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


class Outcome(NamedTuple):
    """What a study came to."""

    study: Study
    entries: tuple[Entry, ...]
    verdict: Verdict
    reused: int
    """Runs that were found finished."""


def load_study(reference: str, changes: Sequence[str] = ()) -> Study:
    """Read a packaged study by name, or a TOML file, and apply ``key=value`` changes.

    Raises:
        InputError: no such file. ConfigError: lists every problem of the file.
    """
    name = reference if reference.endswith(".toml") else f"{reference}.toml"
    known = [p.stem for p in sorted(places.STUDIES.glob("*.toml")) if "[[job]]" in p.read_text("utf-8")]
    try:
        path = places.file(name, Path.cwd())
    except CalibrantError as error:
        raise ConfigError(
            f"no study '{reference}'{nearest(reference, known)}",
            hint=f"packaged studies: {', '.join(known)}; or give the path of a TOML file",
        ) from error
    table = places.toml(path)
    for change in changes:
        _apply(table, change)
    return resolve(Study, {**table, "base": path.parent}, where=str(path))


def _apply(table: dict[str, Any], change: str) -> None:
    """Apply 'given.NAME=VALUE' or 'JOB.FIELD[.FIELD]=VALUE', where FIELD is one of the job's config."""
    key, equals, text = change.partition("=")
    if not equals:
        raise ConfigError(f"'{change}' is no change", hint="write KEY=VALUE, as in given.model=./mine")
    value = _value(text)
    first, *rest = key.split(".")
    jobs = {job.get("id"): job for job in table.get("job", [])}
    if first == "given" and len(rest) == 1:
        if rest[0] not in table.get("given", {}):
            raise ConfigError(
                f"'{key}': the study has no given '{rest[0]}'{nearest(rest[0], table.get('given', {}))}",
                hint=f"given: {', '.join(table.get('given', {})) or 'nothing'}",
            )
        table["given"][rest[0]] = value
        return
    if first not in jobs or not rest:
        raise ConfigError(
            f"'{key}': no job '{first}'{nearest(first, [str(j) for j in jobs])}",
            hint="write given.NAME=VALUE, or JOB.FIELD=VALUE for a field of a job's config",
        )
    own = rest[0] in ("seed", "seeds", "budget", "inputs")
    target = jobs[first] if own else jobs[first].setdefault("config", {})
    for part in rest[:-1]:
        target = target.setdefault(part, {})
    target[rest[-1]] = value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def policy_for(study: Study) -> ReleasePolicy | None:
    """The policy that the study's intent registers."""
    given = (study.intent or {}).get("policy")
    if given is None:
        return None
    return policy_of(given) if isinstance(given, dict) else load_policy(places.file(given, study.base))


def intent_of(study: Study) -> Intent | None:
    """The study's intent with its policy read."""
    if study.intent is None:
        return None
    return resolve(Intent, {**study.intent, "policy": policy_for(study)}, where="[intent]")


def check_study(study: Study) -> list[str]:
    """Every problem that can be found without loading a model or a row; [] when there is none."""
    problems: list[str] = []
    seen: set[str] = set()

    def note(error: CalibrantError) -> None:
        problems.extend(error.problems if isinstance(error, ConfigError) else [error.message])

    for job in study.job:
        if job.id in seen:
            problems.append(f"two jobs are called '{job.id}'")
        try:
            signature = find_technique(job.use)
        except CalibrantError as error:
            note(error)
            seen.add(job.id)
            continue
        for check in (check_config, check_inputs):
            try:
                check(job.runs()[0], signature)
            except CalibrantError as error:
                note(error)
        problems += [f"job '{job.id}': {p}" for p in _references(study, job, seen)]
        seen.add(job.id)
    try:
        intent_of(study)
    except CalibrantError as error:
        note(error)
    if study.verdict is not None and study.verdict.gate not in seen:
        problems.append(f"[verdict] names no job: '{study.verdict.gate}'{nearest(study.verdict.gate, seen)}")
    return problems


def _references(study: Study, job: StudyJob, before: set[str]) -> Iterator[str]:
    """Problems of references to given values and to earlier jobs."""
    for text in _texts(job.inputs):
        reference = text.rpartition("#record:")[2] if "#record:" in text else text
        if text.startswith("given:") and text.removeprefix("given:") not in study.given:
            name = text.removeprefix("given:")
            yield f"'{text}': nothing of that name is given{nearest(name, study.given)}"
        elif text.startswith("record:") or "#record:" in text:
            name = reference.removeprefix("record:").partition("/")[0].partition("#")[0]
            digest_like = len(name) >= 6 and all(c in "0123456789abcdef" for c in name)
            if name not in before and not digest_like:
                yield f"'{text}': no earlier job '{name}'{nearest(name, before)}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)


def run_study(
    study: Study, ledger: Ledger, progress: Progress | None = None, *, allow_python: bool = False
) -> Outcome:
    """Record the intent, run every job that is not finished, and read the verdict off the gates.

    A job that fails does not stop the others; what depends on it fails with that reason.

    Raises:
        ConfigError: lists every problem of the study; nothing was run.
    """
    problems = check_study(study)
    if problems:
        raise ConfigError(problems, hint="nothing was run")
    intent = intent_of(study)
    registered = ""
    if intent is not None:
        record = intent_record(intent, study.name)
        registered = record.job
        if ledger.find(record.job) is None:
            ledger.append(record)
    context = Context(study.name, registered)
    openers = Openers(ledger, given=study.given, base=study.base, allow_python=allow_python)
    reused = 0
    entries: list[Entry] = []
    for spec in study.job:
        for job in spec.runs():
            length = len(ledger.entries())
            record = execute(job, openers, context, progress)
            reused += len(ledger.entries()) == length
            entry = next(e for e in reversed(ledger.entries()) if e.record.job == record.job)
            openers.jobs[job.id, job.seed] = entry
            openers.jobs.setdefault((job.id, None), entry)
            entries.append(entry)
    return Outcome(study, tuple(entries), verdict_of(study, entries, ledger), reused)


def verdict_of(study: Study, entries: Sequence[Entry], ledger: Ledger) -> Verdict:
    """Pass when enough seeds' gates pass; fail when so many fail that it cannot; else unknown."""
    question = f"does '{study.name}' meet its release policy?"
    if study.verdict is None:
        failed = [e.record.job_id for e in entries if e.record.status != "finished"]
        if failed:
            return Verdict(question=question, answer="unknown", reason=f"did not finish: {', '.join(failed)}")
        return Verdict(question=question, answer="yes", reason="all jobs finished; the study has no gate")
    gates = [e for e in entries if e.record.job_id == study.verdict.gate]
    answers = [gate_table(e, ledger)["verdict"]["answer"] for e in gates if e.record.status == "finished"]
    passed, failed_gates = answers.count("yes"), answers.count("no")
    needed = study.verdict.passes
    said = f"{passed} of {len(gates)} seeds pass, {failed_gates} fail; {needed} were asked for in advance"
    if passed >= needed:
        return Verdict(question=question, answer="yes", reason=said)
    answer = "no" if len(gates) - failed_gates < needed else "unknown"
    return Verdict(question=question, answer=answer, reason=said)


def gate_table(entry: Entry, ledger: Ledger) -> dict[str, Any]:
    """What a gate wrote: verdict and rules, from its artefact 'gate.json'."""
    artifact = next(a for a in entry.record.artifacts if a.name == "gate.json")
    table: dict[str, Any] = json.loads(ledger.open(artifact).read_text(encoding="utf-8"))
    return table
