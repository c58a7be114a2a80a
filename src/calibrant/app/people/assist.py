"""Find the advice that ``calibrant annotate --assist`` shows: in a file, or in what an earlier job left."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from calibrant.app.references.openers import Openers
from calibrant.app.references.record import find
from calibrant.app.references.rows import named
from calibrant.app.study import finished_jobs
from calibrant.core import Entry, InputError
from calibrant.core.record import Artifact
from calibrant.data.advice import Advised, advice_from
from calibrant.data.files import raw_rows
from calibrant.data.rows import Pair
from calibrant.ledger import Ledger

LEFT = ("advice.jsonl", "attempts.jsonl", "critiques.jsonl", "pairs.jsonl")
"""Where a job's advice is looked for, in this order."""


def assisting(
    source: str, answers: tuple[str, ...], pairs: Iterable[Pair], ledger: Ledger, study: str = ""
) -> dict[str, Advised]:
    """Row -> advice of ``source``: a file, 'record:JOB/FILE', or the name of a job.

    Raises:
        InputError: there is no such file or job, a job that left no advice, or a file that holds none.
    """
    if Path(source).is_file():
        return advice_from(raw_rows(Path(source)), source, answers, pairs)
    reference = source if source.startswith("record:") else f"record:{source}"
    openers = Openers(ledger, jobs=finished_jobs(ledger, reference, study))
    artifact = _artifact(reference, openers)
    with named(ledger.open(artifact), artifact.name) as path:
        return advice_from(raw_rows(path), source, answers, pairs)


def _artifact(reference: str, openers: Openers) -> Artifact:
    if "/" in reference:
        return find(reference, openers)[1]
    problem: InputError | None = None
    for name in LEFT:
        try:
            found: tuple[Entry, Artifact] = find(f"{reference}/{name}", openers)
            return found[1]
        except InputError as error:
            problem = problem or error
    job = reference.partition(":")[2]
    if problem is not None and "holds no" not in problem.message:
        raise problem
    raise InputError(
        f"the job '{job}' left no advice: none of {', '.join(LEFT)}",
        hint=f"name the file: --assist record:{job}/FILE",
    )
