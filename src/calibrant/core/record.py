"""Record: the outcome of a job, in in-toto Statement shape (contract C3), addressed by content.

Three digests: ``job`` (the resume key: technique, version, config, input digests, seed), ``result``
(metrics and artefact digests, without time, host or path) and the record's own, over all of it.
Field names follow the in-toto convention (lowerCamelCase) when written.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from calibrant.core.config import Frozen
from calibrant.core.digest import digest, plain
from calibrant.core.estimate import Estimate

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:calibrant:record:v1"
Status = Literal["finished", "failed", "crashed", "interrupted"]


class _Camel(Frozen):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Input(_Camel):
    """One input: its reference and what that resolved to."""

    reference: Any
    """The reference as resolved from the study: text, or a behaviour's table."""
    digest: str
    """Digest of what was opened."""
    kind: str = "value"
    """'model', 'data', 'judge', 'guard', 'policy', 'evidence', 'value'."""
    parts: dict[str, str] = Field(default_factory=dict)
    """A model's or behaviour's identity parts: weights, tokenizer, template, guards, calibration."""
    name: str = ""
    """A name for people."""


class Artifact(_Camel):
    """A stored file or folder."""

    name: str
    """Fixed name: 'model', 'attempts.jsonl', ..."""
    digest: str
    """Digest of the bytes, or of the folder's manifest."""
    bytes: int
    """Size."""
    files: dict[str, str] | None = None
    """For a folder: path -> digest of each file."""
    volatile: bool = False
    """True for timings: stored, but not part of the result digest."""


class Failure(_Camel):
    """Why a job did not finish."""

    type: str
    """Error class."""
    message: str
    """What went wrong."""
    hint: str = ""
    """What to do."""


class Record(_Camel):
    """One entry of the ledger."""

    technique: str
    """Catalogue name: 'train.dpo', or 'intent' for the entry that opens a study."""
    version: int
    """The technique's version when it ran."""
    job: str
    """Job digest: the resume key."""
    result: str
    """Result digest: equal results are equal here on every machine."""
    status: Status
    """How it ended."""
    job_id: str = ""
    """Name of the job in its study."""
    study: str = ""
    """Name of the study."""
    intent: str = ""
    """Digest of the study's intent, recorded before the first job; "" when there is none."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The resolved config."""
    inputs: dict[str, Input] = Field(default_factory=dict)
    """Parameter name -> what was opened."""
    seed: int = 0
    """The run's seed."""
    metrics: dict[str, Estimate] = Field(default_factory=dict)
    """n, missing, interval, method and level are in each estimate."""
    limits: tuple[str, ...] = ()
    """Caveats: what the result does not show."""
    artifacts: tuple[Artifact, ...] = ()
    """Stored files and folders."""
    judge: dict[str, str] = Field(default_factory=dict)
    """Judge parameter -> calibration state; {} without a judge."""
    cost: dict[str, float] = Field(default_factory=dict)
    """Queries, tokens, FLOP as spent."""
    parent: str = ""
    """Job digest of the technique that called this one."""
    code: dict[str, str] = Field(default_factory=dict)
    """Versions of Calibrant, Python and the libraries that compute; git commit where known."""
    hardware: str = ""
    """Processor, threads, memory."""
    started_at: str = ""
    """UTC, RFC 3339; of a job that was killed and resumed, its first start."""
    recorded_at: str = ""
    """UTC, RFC 3339."""
    seconds: float | None = None
    """Wall-clock time of the job's last run."""
    failure: Failure | None = None
    """Set when the status is not 'finished'."""

    @property
    def subject(self) -> list[dict[str, Any]]:
        """What the record is about: each model or system that was measured, else the result."""
        models = [i for _, i in sorted(self.inputs.items()) if i.kind == "model"]
        if models:
            return [{"name": m.name or str(m.reference), "digest": {"sha256": m.digest}} for m in models]
        return [{"name": self.technique, "digest": {"sha256": self.result}}]

    def statement(self) -> dict[str, Any]:
        """The in-toto Statement that is written to the ledger."""
        body = plain(self.model_dump(mode="json", by_alias=True))
        return {"_type": STATEMENT, "subject": self.subject, "predicateType": PREDICATE, "predicate": body}

    @property
    def digest(self) -> str:
        """Digest of the whole statement."""
        return digest(self.statement())

    @classmethod
    def from_statement(cls, statement: dict[str, Any]) -> Record:
        """Read back what ``statement`` wrote."""
        return cls.model_validate(statement["predicate"])


def why_nothing(record: Record) -> tuple[str, ...]:
    """Limits of a record without artefacts that say why: they repeat an unknown metric's reason, or what is
    not stored."""
    reasons = [one.reason for one in record.metrics.values() if one.value is None and one.reason]
    told = (limit for limit in record.limits if "stored" in limit or any(r in limit for r in reasons))
    return () if record.artifacts else tuple(told)


class Entry(Frozen):
    """A record with its position in the ledger."""

    seq: int
    """Line of the ledger, from 0: the order of recording."""
    digest: str
    """The record's digest."""
    record: Record
    """The record itself."""
    linked: bool = True
    """False for a line without a hash link: edits of it are not detectable."""


class Evidence(Frozen):
    """All evidence of a ledger, in its order, for a release gate."""

    entries: tuple[Entry, ...] = ()
    """All entries, intents included; failed runs are evidence too."""

    def finished(self, study: str = "") -> dict[str, dict[int, Record]]:
        """Job id -> seed -> its latest run in ``study`` ("": any); one that failed last is none."""
        latest: dict[tuple[str, int], Record] = {}
        for entry in self.entries:
            if study in ("", entry.record.study):
                latest[entry.record.job_id, entry.record.seed] = entry.record
        found: dict[str, dict[int, Record]] = {}
        for (job, seed), record in latest.items():
            if record.status == "finished":
                found.setdefault(job, {})[seed] = record
        return found


def job_digest(
    technique: str, version: int, config: dict[str, Any], inputs: dict[str, str], seed: int
) -> str:
    """The resume key (C3): a finished job with the same digest is not run again."""
    return digest(
        {"technique": technique, "version": version, "config": config, "inputs": inputs, "seed": seed}
    )


def result_digest(metrics: dict[str, Estimate], artifacts: tuple[Artifact, ...]) -> str:
    """Digest of the result: metrics and non-volatile artefacts, no time, host or path (C3)."""
    stored = {a.name: a.digest for a in artifacts if not a.volatile}
    return digest({"metrics": metrics, "artifacts": stored})
