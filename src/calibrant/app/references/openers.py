"""Openers (contract C1): from a reference to an object, with its digest known before anything is loaded.

``Openers.open(reference, wanted)`` looks at the kind of thing wanted (a model, rows, a judge, ...) and at
the reference's scheme. Opening is in two steps so that a finished job can be recognised by its input
digests without loading weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from calibrant.app import catalog
from calibrant.app.references import behaviours, locate
from calibrant.app.references.foreign_attempts import foreign, is_foreign
from calibrant.app.references.opened import STAND_INS, Opened
from calibrant.app.references.paths import check_text, there
from calibrant.app.references.plug_ins import plug_in
from calibrant.app.references.tables import asked, sliced
from calibrant.core import (
    LM,
    CapabilityError,
    ConfigError,
    Entry,
    Evidence,
    EvidenceError,
    Guard,
    Identity,
    InputError,
    Judge,
    OpenLM,
    Reward,
    ScoringLM,
    Watcher,
    digest,
    resolve,
)
from calibrant.core.digest import digest_path
from calibrant.core.errors import nearest
from calibrant.core.record import Artifact
from calibrant.data.canaries import Canaries
from calibrant.data.cards import JudgeCard
from calibrant.data.human_labels import HumanLabels
from calibrant.data.judge_head import JudgeHead
from calibrant.data.rows import (
    Attempts,
    Examples,
    Goals,
    GradedReplies,
    Items,
    LabelledReplies,
    Preferences,
    Prompts,
    Table,
)
from calibrant.data.votes import Votes
from calibrant.govern.policy import ReleasePolicy, load_policy
from calibrant.ledger import Ledger
from calibrant.ledger.layout import disk
from calibrant.models.reward_folder import reward_identity

MODELS = (LM, ScoringLM, OpenLM)
TABLES = (
    Preferences,
    Examples,
    Prompts,
    Goals,
    Items,
    LabelledReplies,
    Votes,
    Attempts,
    GradedReplies,
    HumanLabels,
    Canaries,
)
BEHAVIOURS = (Judge, Guard, Reward, Watcher)
FILES = {JudgeCard: "calibrant.data.cards:read_card", JudgeHead: "calibrant.data.judge_folder:read_head"}
"""What a technique left as one file or folder -> what reads it."""
_RUNGS = {
    LM: "an LM (to talk)",
    ScoringLM: "a ScoringLM (log-probs)",
    OpenLM: "an OpenLM (weights, activations)",
}
_ANSWERS = ("govern.gate", "govern.claim")  # what evidence is held against is no evidence


@dataclass(frozen=True)
class Openers:
    """Where references are resolved: a ledger, a study's [given] table and its finished jobs."""

    ledger: Ledger
    given: Mapping[str, Any] = field(default_factory=dict)
    jobs: dict[tuple[str, int | None], Entry] = field(default_factory=dict)
    """(job id, seed) -> entry; seed None is the job's first seed."""
    base: Path = field(default_factory=Path.cwd)
    """Folder that relative paths start from."""
    allow_python: bool = False
    seed: int = 0
    """Seed of the job whose inputs are opened: a reference to a seeded job means this seed's run."""

    def at(self, seed: int) -> Openers:
        """The same, for a job with this seed."""
        return replace(self, seed=seed)

    def open(self, reference: Any, wanted: Any) -> Opened:
        """Find what ``reference`` names as a ``wanted``.

        Raises:
            InputError: it is not there or cannot be read.
            ConfigError: it is no reference of a kind that gives a ``wanted``.
        """
        check_text(reference)
        if isinstance(reference, str) and reference.startswith("given:"):
            return self.open(self._given(reference), wanted)
        if isinstance(reference, Mapping) and wanted in TABLES:
            told = asked(reference)
            if told.whole.startswith("given:"):  # the record names the rows, not what the study called them
                reference = told.of(asked(self._given(told.whole)))
        try:
            found = self._find(reference, wanted)
        except RecursionError:
            raise ConfigError(f"{str(reference)[:60]!r}: too many references inside one another") from None
        return replace(found, reference=reference)

    def _find(self, reference: Any, wanted: Any) -> Opened:
        if wanted is Evidence:
            return self._evidence()
        if wanted is ReleasePolicy:
            return self._policy(reference)
        if wanted in BEHAVIOURS:
            return self._behaviour(reference, wanted)
        if wanted in TABLES and isinstance(reference, (str, Mapping)):
            return self._table(reference, wanted)
        if isinstance(reference, str):
            if wanted in MODELS or wanted is Identity:
                return self._model(reference, wanted)
            if wanted in FILES:
                return self._file(reference, wanted)
        if wanted in (str, int, float, bool) and isinstance(reference, wanted):
            return Opened(digest(reference), "value", lambda: reference)
        raise ConfigError(
            f"{reference!r} cannot be opened as {getattr(wanted, '__name__', wanted)}",
            hint="see 'References' in docs/references.md",
        )

    def _given(self, reference: str) -> Any:
        name = reference.removeprefix("given:")
        value = self.given.get(name, "")
        if value == "" or str(value).startswith("given:"):
            raise ConfigError(
                f"'{reference}': the study's [given] table has no value for '{name}'"
                f"{nearest(name, self.given) if name not in self.given else ''}",
                hint=f"give one on the command line: given.{name}=...",
            )
        return value

    def _evidence(self) -> Opened:
        entries = tuple(e for e in self.ledger.entries() if e.record.technique not in _ANSWERS)
        # What came last of each result decides the order: a failure that came again is news, its time is not.
        latest = dict.fromkeys((e.record.job, e.record.result, e.record.status) for e in reversed(entries))
        seen: list[Any] = list(reversed(latest))
        unlinked = sum(not entry.linked for entry in entries)
        if unlinked:  # a gate says so, and must not be answered from a time when they were linked
            seen = [seen, {"unlinked": unlinked}]
        return Opened(digest(seen), "evidence", lambda: Evidence(entries=entries), name="ledger")

    def _policy(self, reference: Any) -> Opened:
        if isinstance(reference, Mapping):
            policy = resolve(ReleasePolicy, reference, where="policy")
        else:
            policy = load_policy(locate.file(str(reference), self.base))
        return Opened(policy.digest, "policy", lambda: policy, name=policy.name)

    def _behaviour(self, reference: Any, wanted: Any) -> Opened:
        if wanted is Reward and isinstance(reference, str) and not reference.startswith("testbed:"):
            return self._reward(reference)
        if isinstance(reference, str) and reference.startswith("testbed:"):
            made = locate.testbed_behaviour(reference)
            load = lambda: made  # noqa: E731
        else:
            made, load = self.behaviour(reference, named=True), partial(self.behaviour, reference)
        if not isinstance(made, wanted):
            raise CapabilityError(
                f"{reference!r} is no {wanted.__name__}",
                hint="`calibrant ls` lists behaviours and what they are",
            )
        identity = made.identity
        parts = dict(identity.parts)
        if isinstance(made, Judge):
            parts["calibration"] = made.calibration
            parts["question"] = str(getattr(made, "question", ""))
            parts |= getattr(made, "shown", {})
        kind = str(wanted.__name__).lower()  # what it serves as here, whatever it calls itself
        return Opened(identity.digest, kind, load, name=identity.name, parts=parts, identity=identity)

    def _reward(self, reference: str) -> Opened:
        """A reward model's folder: 'record:JOB/reward', or one on this disk."""
        if reference.startswith("record:"):
            folder = self.ledger.open(self.artifact(reference)[1])
        else:
            folder = locate.reward_folder(reference, self.base)
        with disk("reading", folder):
            identity = reward_identity(folder, name=reference)
        opener = partial(catalog.load("calibrant.models.reward_model:open_reward"), folder, name=reference)
        load = lambda: _as_named(opener(), identity, reference)  # noqa: E731
        parts, digest = identity.parts, identity.digest
        return Opened(digest, "reward", load, name=identity.name, parts=parts, identity=identity)

    def behaviour(self, table: Any, *, named: bool = False) -> Any:
        """Make a judge, guard, reward or watcher from ``{use, config, inputs}``.

        ``named``: only its identity is needed, so the models that it asks are not loaded.
        """
        made = behaviours.check(table, allow_python=self.allow_python)
        inputs: dict[str, Any] = {}
        for name, (reference, wanted) in made.inputs.items():
            opened = self.open(reference, wanted)
            stand_in = STAND_INS.get(wanted) if named else None
            inputs[name] = stand_in(opened) if stand_in else opened.load()
        behaviour = made.factory(**inputs, **made.config)
        return plug_in(behaviour, made.module) if made.module else behaviour

    def _model(self, reference: str, wanted: Any) -> Opened:
        if reference.startswith("defended:"):
            return self._defended(reference, wanted)
        if reference.startswith("record:"):
            _, artifact = self.artifact(reference)
            identity, load = locate.folder_model(self.ledger.open(artifact), reference)
        else:
            identity, load = locate.model(reference, self.base)
        return _opened_model(reference, identity, load, wanted)

    def _defended(self, reference: str, wanted: Any) -> Opened:
        file, inner = locate.stack(reference)
        spec = locate.toml(self._stack_file(file))
        undefended = self.open(inner, LM)
        behind = catalog.load("calibrant.defend.defended:defended_from")
        identity = behind(STAND_INS[LM](undefended), spec, partial(self.behaviour, named=True)).identity
        return _opened_model(
            reference, identity, lambda: behind(undefended.load(), spec, self.behaviour), wanted
        )

    def _stack_file(self, file: str) -> Path:
        """A stack file on this disk, or one that a job made: 'record:JOB/stack.toml'."""
        if file.startswith("record:"):
            return self.ledger.open(self.artifact(file)[1])
        return locate.file(file, self.base)

    def _file(self, reference: str, wanted: Any) -> Opened:
        """'record:JOB/PATH', or a file or folder on this disk."""
        if reference.startswith("record:"):
            path = self.ledger.open(self.artifact(reference)[1])
        else:
            folder = self.base / reference
            path = folder if there(folder, folder=True) else locate.file(reference, self.base)
        return _read_once(path, lambda: catalog.load(FILES[wanted])(path), reference)

    def artifact(self, reference: str) -> tuple[Entry, Artifact]:
        """What ``record:JOB/PATH`` or ``record:DIGEST/PATH`` names."""
        job, _, path = reference.removeprefix("record:").partition("/")
        path = path.rstrip("/")
        entry = self._entry(job, reference)
        if entry.record.status != "finished":
            reason = entry.record.failure.message if entry.record.failure else entry.record.status
            raise InputError(
                f"'{reference}': that job did not finish ({reason})", hint="mend it and run again"
            )
        for artifact in entry.record.artifacts:
            if artifact.name == path:
                return entry, artifact
        names = ", ".join(a.name for a in entry.record.artifacts)
        raise InputError(
            f"'{reference}': that record holds no '{path}'", hint=f"it holds: {names or 'nothing'}"
        )

    def _entry(self, job: str, reference: str) -> Entry:
        """The run that ``JOB``, ``JOB#SEED`` or a digest means for a job with this seed."""
        name, hash_sign, seed = job.partition("#")
        if hash_sign:
            entry = self.jobs.get((name, int(seed))) if re.fullmatch("[0-9]{1,19}", seed) else None
        else:
            entry = self.jobs.get((name, self.seed)) or self.jobs.get((name, None))
        if entry is not None:
            return entry
        ids = {known for known, _ in self.jobs}
        if name in ids:
            seeds = ", ".join(str(s) for known, s in self.jobs if known == name and s is not None)
            raise InputError(
                f"'{reference}': no run of '{name}' has the seed '{seed}'", hint=f"seeds: {seeds}"
            )
        if hash_sign or not re.fullmatch("[0-9a-f]{6,64}", name):
            raise InputError(
                f"'{reference}': no job '{name}' has run{nearest(name, ids)}",
                hint="name a job of the study, or a record's digest as `calibrant log` shows it",
            )
        return self.ledger.get(name)

    def _table(self, reference: Any, wanted: type[Table[Any]]) -> Opened:
        """Rows: a reference, or {file, ignore}; a slice of them, or all."""
        told = asked(reference)
        if not told.ignore and not told.parts:
            return self._whole(told.whole, wanted)
        whole = self._whole(told.whole, wanted, told.ignore)
        name = reference if isinstance(reference, str) else reference["file"]
        found = digest([whole.digest, {"ignore": sorted(told.ignore)}]) if told.ignore else whole.digest
        for start, stop in told.parts:
            found = digest([found, start, stop])
        load = lambda: sliced(whole.load(), name, told.parts)  # noqa: E731
        return Opened(found, "data", load, name=name, parts={"whole": whole.digest})

    def _whole(self, reference: str, wanted: type[Table[Any]], ignore: tuple[str, ...] = ()) -> Opened:
        """All rows of a file, or of the testbed, without the columns to ignore."""
        if reference.startswith("testbed:"):
            table = locate.testbed_rows(reference, wanted)
            return Opened(table.digest, "data", lambda: table, name=reference)
        if wanted is Attempts and is_foreign(reference):
            found, load = foreign(reference, self.base)
            return Opened(found, "data", load, name=reference)
        if reference.startswith("record:"):
            artifact = self.artifact(reference)[1]
            path = self.ledger.open(artifact)
            load = partial(locate.read_stored, wanted, path, artifact.name, reference, ignore)
        else:
            path = locate.rows(reference, self.base)
            load = partial(locate.read, wanted, path, reference, ignore)
        return _read_once(path, load, reference)


def _read_once(path: Path, load: Callable[[], Any], reference: str) -> Opened:
    """A file or folder whose bytes are the same when it is read as when it was named."""
    with disk("reading", path):
        named = digest_path(path)

    def loaded() -> Any:
        made = load()
        with disk("reading", path):
            _check_same(named, digest_path(path), reference)
        return made

    return Opened(named, "data", loaded, name=reference)


def _as_named(loaded: Any, identity: Identity, reference: str) -> Any:
    """What was loaded, if it is still what was named."""
    _check_same(identity.digest, loaded.identity.digest, reference)
    return loaded


def _check_same(named: str, found: str, reference: str) -> None:
    """Files may have changed since a job named them: then the record would be of something else."""
    if found != named:
        raise EvidenceError(
            f"'{reference}' has changed since the job named it: {named[:12]} became {found[:12]}",
            hint="let nothing write there while a study runs, and run it again",
        )


def _opened_model(reference: str, identity: Identity, load: Callable[[], Any], wanted: Any) -> Opened:
    def loaded() -> Any:
        model = _as_named(load(), identity, reference)
        if not isinstance(model, wanted):
            raise CapabilityError(
                f"'{reference}' does not offer what {_RUNGS[wanted]} needs",
                hint="it only talks; give local weights: a folder, hf:NAME@COMMIT or record:JOB/model",
            )
        return model

    only_named = wanted is Identity
    return Opened(
        digest=identity.digest,
        kind="system" if only_named else "model",
        load=(lambda: identity) if only_named else loaded,
        name=identity.name,
        parts=identity.parts,
        identity=identity,
    )
