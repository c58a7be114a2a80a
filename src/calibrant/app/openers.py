"""Openers (contract C1): from a reference to an object, with its digest known before anything is loaded.

``Openers.open(reference, wanted)`` looks at the kind of thing wanted (a model, rows, a judge, ...) and at
the reference's scheme. Opening is in two steps so that a finished job can be recognised by its input
digests without loading weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calibrant.app import catalog, places
from calibrant.core import (
    LM,
    CapabilityError,
    ConfigError,
    Entry,
    Evidence,
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
from calibrant.core.record import Artifact
from calibrant.data.rows import Examples, Goals, Items, LabelledReplies, Preferences, Table
from calibrant.govern.policy import ReleasePolicy, load_policy
from calibrant.ledger import Ledger

MODELS = (LM, ScoringLM, OpenLM)
TABLES = (Preferences, Examples, Goals, Items, LabelledReplies)
BEHAVIOURS = (Judge, Guard, Reward, Watcher)


@dataclass(frozen=True)
class Opened:
    """Something found: its digest is known, ``load`` makes the object."""

    digest: str
    kind: str
    load: Callable[[], Any]
    reference: Any = None
    name: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    identity: Identity | None = None


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
        if isinstance(reference, str) and reference.startswith("given:"):
            return self.open(self._given(reference), wanted)
        found = self._find(reference, wanted)
        return replace(found, reference=reference)

    def _find(self, reference: Any, wanted: Any) -> Opened:
        if wanted is Evidence:
            return self._evidence()
        if wanted is ReleasePolicy:
            return self._policy(reference)
        if wanted in BEHAVIOURS:
            return self._behaviour(reference)
        if isinstance(reference, str):
            if wanted in MODELS or wanted is Identity:
                return self._model(reference, identity_only=wanted is Identity)
            if wanted in TABLES:
                return self._table(reference, wanted)
        if wanted in (str, int, float, bool) and isinstance(reference, wanted):
            return Opened(digest(reference), "value", lambda: reference)
        raise ConfigError(
            f"{reference!r} cannot be opened as {getattr(wanted, '__name__', wanted)}",
            hint="see 'References' in docs/references.md",
        )

    def _given(self, reference: str) -> Any:
        name = reference.removeprefix("given:")
        if name not in self.given or self.given[name] == "":
            raise ConfigError(
                f"'{reference}': the study's [given] table has no value for '{name}'",
                hint=f"give one on the command line: given.{name}=...",
            )
        return self.given[name]

    def _evidence(self) -> Opened:
        entries = tuple(e for e in self.ledger.entries() if e.record.technique != "govern.gate")
        # The order matters (what was known before what); times and repeats of one result do not.
        seen = list(dict.fromkeys((e.record.job, e.record.result, e.record.status) for e in entries))
        return Opened(digest(seen), "evidence", lambda: Evidence(entries=entries), name="ledger")

    def _policy(self, reference: Any) -> Opened:
        if isinstance(reference, Mapping):
            policy = resolve(ReleasePolicy, reference, where="policy")
        else:
            policy = load_policy(places.file(str(reference), self.base))
        return Opened(policy.digest, "policy", lambda: policy, name=policy.name)

    def _behaviour(self, reference: Any) -> Opened:
        if isinstance(reference, str) and reference.startswith("testbed:"):
            made = places.testbed_behaviour(reference)
        else:
            made = self.behaviour(reference)
        identity = made.identity
        parts = dict(identity.parts)
        if isinstance(made, Judge):
            parts["calibration"] = made.calibration
        return Opened(identity.digest, identity.kind, lambda: made, name=identity.name, parts=parts)

    def behaviour(self, table: Any) -> Any:
        """Make a judge, guard, reward or watcher from ``{use, config, inputs}``."""
        if not isinstance(table, Mapping) or "use" not in table:
            raise ConfigError(f"a behaviour is a table {{use = ..., config = ...}}, got {table!r}")
        unknown = set(table) - {"use", "config", "inputs"}
        if unknown:
            raise ConfigError(f"behaviour '{table['use']}': unknown key '{min(unknown)}'")
        signature = self._factory(str(table["use"]))
        given = dict(table.get("inputs", {}))
        arguments: dict[str, Any] = {}
        for name, parameter in signature.inputs.items():
            if name in given:
                arguments[name] = self.open(given.pop(name), parameter.wanted).load()
            elif parameter.required:
                raise ConfigError(f"behaviour '{table['use']}' needs the input '{name}'")
        if given:
            raise ConfigError(f"behaviour '{table['use']}' has no input '{min(given)}'")
        if signature.config is not None:
            arguments["config"] = resolve(signature.config, table.get("config", {}), where=table["use"])
        return signature.function(**arguments)

    def _factory(self, use: str) -> catalog.Signature:
        if not use.startswith("python:"):
            return catalog.find_behaviour(use)
        if not self.allow_python:
            raise ConfigError(
                f"'{use}' runs code from outside the catalogue",
                hint="read that code, then run again with --allow-python",
            )
        return catalog.signature_of(catalog.load(use.removeprefix("python:")))

    def _model(self, reference: str, *, identity_only: bool) -> Opened:
        if reference.startswith("defended:"):
            return self._defended(reference, identity_only=identity_only)
        if reference.startswith("record:"):
            _, artifact = self.artifact(reference)
            identity, load = places.folder_model(self.ledger.open(artifact), reference)
        else:
            identity, load = places.model(reference, self.base)
        return _opened_model(identity, load, identity_only)

    def _defended(self, reference: str, *, identity_only: bool) -> Opened:
        file, _, inner = reference.removeprefix("defended:").partition("#")
        if not inner:
            raise ConfigError(
                f"'{reference}' names no model", hint="write defended:FILE.toml#MODEL, as in docs/defended.md"
            )
        spec = places.toml(places.file(file, self.base))
        undefended = self.open(inner, LM)
        behind = catalog.load("calibrant.defend.defended:defended_from")
        # Guards are made at once, since they are part of the identity; the model behind them on demand.
        identity = behind(_Named(undefended.identity), spec, self.behaviour).identity
        return _opened_model(identity, lambda: behind(undefended.load(), spec, self.behaviour), identity_only)

    def artifact(self, reference: str) -> tuple[Entry, Artifact]:
        """What ``record:JOB/PATH`` or ``record:DIGEST/PATH`` names."""
        job, _, path = reference.removeprefix("record:").partition("/")
        path = path.rstrip("/")
        job, _, seed = job.partition("#")
        entry = self.jobs.get((job, int(seed) if seed.isdigit() else self.seed)) or self.jobs.get((job, None))
        if entry is None:
            entry = self.ledger.get(job)
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

    def _table(self, reference: str, wanted: type[Table[Any]]) -> Opened:
        if reference.startswith("testbed:"):
            table = places.testbed_rows(reference, wanted)
            return Opened(table.digest, "data", lambda: table, name=reference)
        if reference.startswith("record:"):
            path = self.ledger.open(self.artifact(reference)[1])
        else:
            path = places.rows(reference, self.base)
        return Opened(digest_path(path), "data", lambda: places.read(wanted, path, reference), name=reference)


@dataclass(frozen=True)
class _Named:
    """Stands for a model of which only the identity is needed."""

    identity: Identity | None

    def generate(self, chats: object, sampling: object = None) -> list[Any]:
        raise CapabilityError(f"{self.identity} was opened by name only")


def _opened_model(identity: Identity, load: Callable[[], Any], identity_only: bool) -> Opened:
    return Opened(
        digest=identity.digest,
        kind="system" if identity_only else "model",
        load=(lambda: identity) if identity_only else load,
        name=identity.name,
        parts=identity.parts,
        identity=identity,
    )
