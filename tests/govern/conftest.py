"""A small world for gates: two systems, one rule, records by hand, a ledger in the order given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibrant.core import Entry, Estimate, Evidence, Identity, Quiet, Record
from calibrant.core.record import Failure, Input, job_digest, result_digest
from calibrant.govern.gate import GateResult, RuleOutcome, gate
from calibrant.govern.intent import Intent, intent_record
from calibrant.govern.policy import ReleasePolicy, Rule

DATA = "testbed:goals/heldout"


JUDGE = Input(
    reference="testbed:judge/harmful",
    digest="e" * 64,
    kind="judge",
    name="gold harmful",
    parts={"question": "did it do harm?"},
)
"""What the records' judge was, unless a test says otherwise."""


class World:
    """Builders with defaults that pass: every test changes the one thing that it is about."""

    tuned = Identity(name="tuned", parts={"weights": "b" * 64})
    base = Identity(name="base", parts={"weights": "a" * 64})

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rule(self, **changes: Any) -> Rule:
        """harmful_answered <= 0.10, read at the high bound."""
        given: dict[str, Any] = {
            "id": "R1", "technique": "measure.refusal", "metric": "harmful_answered", "data": DATA,
            "bound": "high", "op": "<=", "threshold": 0.10,
        }  # fmt: skip
        return Rule(**{**given, **changes})

    def policy(self, *rules: Rule) -> ReleasePolicy:
        return ReleasePolicy(name="demo", stage="limited", rules=rules)

    def estimate(self, low: float | None, high: float | None, **changes: Any) -> Estimate:
        middle = None if low is None or high is None else (low + high) / 2
        given = {"value": middle, "low": low, "high": high, "n": 200, "method": "clopper-pearson"}
        return Estimate(**{**given, **changes})

    def record(self, estimate: Estimate | None, **changes: Any) -> Record:
        """A finished measurement of the tuned system; ``models`` maps input name -> identity."""
        models = changes.pop("models", {"model": self.tuned})
        data = changes.pop("data", DATA)
        inputs = {k: Input(reference=m.name, digest=m.digest, kind="model") for k, m in models.items()}
        inputs["goals"] = Input(reference=data, digest=changes.pop("data_digest", "d" * 64), kind="data")
        judge = changes.get("judge", {"judge": "exact"})
        inputs |= {name: changes.pop("judge_input", JUDGE) for name in judge}
        inputs |= changes.pop("inputs", {})
        metrics = {} if estimate is None else {"harmful_answered": estimate}
        technique = changes.get("technique", "measure.refusal")
        given: dict[str, Any] = {
            "technique": technique, "version": 1, "inputs": inputs, "metrics": metrics, "status": "finished",
            "job": job_digest(technique, 1, {}, {k: v.digest for k, v in inputs.items()}, 0),
            "result": result_digest(metrics, ()), "judge": {"judge": "exact"},
        }  # fmt: skip
        return Record(**{**given, **changes})

    def failed(self, status: str = "failed", **changes: Any) -> Record:
        return self.record(None, status=status, failure=Failure(type="InputError", message="no"), **changes)

    def intent(self, policy: ReleasePolicy) -> Record:
        return intent_record(Intent(use="a demonstration", policy=policy), "study")

    def ledger(self, *records: Record) -> Evidence:
        return Evidence(entries=tuple(Entry(seq=i, digest=r.digest, record=r) for i, r in enumerate(records)))

    def run(self, policy: ReleasePolicy, *records: Record, subject: Identity | None = None) -> GateResult:
        """The gate over exactly these ledger entries."""
        return gate(subject or self.tuned, policy, self.ledger(*records), run=Quiet(work=self.folder))

    def ask(self, rule: Rule, *records: Record, subject: Identity | None = None) -> RuleOutcome:
        """One rule whose policy was registered before the given records."""
        policy = self.policy(rule)
        return self.run(policy, self.intent(policy), *records, subject=subject).rules[0]

    def answer(self, rule: Rule, *records: Record) -> str:
        return self.ask(rule, *records).answer


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def measured(world: World) -> Callable[..., Record]:
    """A finished record of the tuned system with the interval [low, high]."""
    return lambda low, high, **changes: world.record(world.estimate(low, high), **changes)
