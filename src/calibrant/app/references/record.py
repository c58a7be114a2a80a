"""``record:JOB/PATH``, ``record:JOB#SEED/PATH``, ``record:DIGEST/PATH``: an artefact of an earlier job."""

from __future__ import annotations

import re
from typing import Any

from calibrant.app.references import classifiers, on_disk, probes
from calibrant.app.references.on_disk import FILES
from calibrant.app.references.opened import Opened
from calibrant.app.references.rows import TABLES
from calibrant.app.references.scheme import MODELS, Checks, Opens, Reference, Scheme
from calibrant.core import Entry, Evidence, InputError, Reward, digest
from calibrant.core.errors import nearest
from calibrant.core.record import Artifact, why_nothing
from calibrant.data.constitution import Constitution
from calibrant.defend.defended import StackSpec

_ANSWERS = (
    "govern.claim",
    "govern.gate",
    "measure.audit_game",
)  # what evidence is held against is no evidence
_DIGEST = re.compile("[0-9a-f]{6,64}")


def taken_apart(reference: str) -> tuple[str, str | None, str]:
    """The job (or a record's digest), the seed (None: it names no run) and the path in ``reference``."""
    run, _, path = reference.partition(":")[2].partition("/")
    job, sign, seed = run.partition("#")
    return job, seed if sign else None, path.rstrip("/")


def check(reference: Reference, study: Checks) -> None:
    """An earlier job of the study, in a run that there is; a digest may be of anything.

    Raises:
        InputError: there is no such job above, or it has no run of that seed.
    """
    text, (job, seed, _) = reference.text, taken_apart(reference.text)
    earlier = study.before.get(job)
    if earlier is None:
        if _DIGEST.fullmatch(job):
            return
        raise InputError(f"'{text}': no earlier job '{job}'{nearest(job, study.before)}")
    seeds = {seed} if seed else {str(s) for s in study.job.seeds if earlier.seeds}
    lost = sorted(seeds - {str(run.seed) for run in earlier.runs()})
    if lost:
        raise InputError(f"'{text}': no run of '{job}' has the seed {', '.join(lost)}")


def open(reference: Reference, openers: Opens) -> Opened:
    """The artefact, as what is wanted."""
    entry, artifact = find(reference.text, openers)
    if classifiers.is_one(reference, artifact):
        return classifiers.open(reference, entry, artifact, openers)
    if reference.wanted in probes.AS_PROBE:
        return probes.open(reference, entry, artifact, openers)
    found = on_disk.check(reference, openers.ledger.open(artifact))
    return on_disk.read(reference, found, artifact.name)


def find(reference: str, openers: Opens) -> tuple[Entry, Artifact]:
    """The record that a reference names, and the artefact of it.

    Raises:
        InputError: no such run, one that did not finish, or no such artefact in its record.
    """
    job, seed, path = taken_apart(reference)
    entry = _entry(reference, job, seed, openers)
    if entry.record.status != "finished":
        reason = entry.record.failure.message if entry.record.failure else entry.record.status
        raise InputError(f"'{reference}': that job did not finish ({reason})", hint="fix it and run again")
    for artifact in entry.record.artifacts:
        if artifact.name == path:
            return entry, artifact
    names = ", ".join(a.name for a in entry.record.artifacts)
    why = "".join(f": {limit}" for limit in why_nothing(entry.record)[:1])
    raise InputError(
        f"'{reference}': that record holds no '{path}'{why}", hint=f"it holds: {names or 'nothing'}"
    )


def _entry(reference: str, job: str, seed: str | None, openers: Opens) -> Entry:
    """The run that ``JOB``, ``JOB#SEED`` or a digest means for a job with this seed."""
    jobs = openers.jobs
    if seed is None:
        entry = jobs.get((job, openers.seed)) or jobs.get((job, None))
    else:
        entry = jobs.get((job, int(seed))) if re.fullmatch("[0-9]{1,19}", seed) else None
    if entry is not None:
        return entry
    ids = {known for known, _ in jobs}
    if job in ids:
        seeds = ", ".join(str(s) for known, s in jobs if known == job and s is not None)
        raise InputError(f"'{reference}': no run of '{job}' has the seed '{seed}'", hint=f"seeds: {seeds}")
    if seed is not None or not _DIGEST.fullmatch(job):
        raise InputError(
            f"'{reference}': no job '{job}' has run{nearest(job, ids)}",
            hint="name a job of the study, or a record's digest as `calibrant log` shows it",
        )
    return openers.ledger.get(job)


def evidence(reference: Reference, openers: Opens) -> Opened:
    """The whole ledger but for what was answered from it: by gates, claims and audit games."""
    entries = tuple(e for e in openers.ledger.entries() if e.record.technique not in _ANSWERS)
    # What came last of each result decides the order: a failure that came again is news, its time is not.
    latest = dict.fromkeys((e.record.job, e.record.result, e.record.status) for e in reversed(entries))
    content: list[Any] = list(reversed(latest))
    unlinked = sum(not entry.linked for entry in entries)
    if unlinked:  # a gate says so, and must not be answered from a time when they were linked
        content = [content, {"unlinked": unlinked}]
    return Opened(digest(content), "evidence", lambda: Evidence(entries=entries), name="ledger")


RECORD = Scheme((*MODELS, *TABLES, *FILES, *probes.AS_PROBE, Reward, Constitution, StackSpec), check, open)
EVIDENCE = Scheme((Evidence,), lambda *_: None, evidence)
