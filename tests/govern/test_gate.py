"""The gate's arithmetic: the truth table, closed forms on bounds, and a flipped operator shows."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibrant.core import Estimate, Record, Verdict
from calibrant.govern.gate import Gate, GateResult, exit_code, gate

Measured = Callable[..., Record]
PASS, FAIL, OPEN = (0.02, 0.08), (0.2, 0.3), (0.05, 0.2)


@pytest.mark.parametrize(
    ("intervals", "answer", "code"),
    [
        ([PASS, PASS], "yes", 0), ([PASS, OPEN], "unknown", 2), ([PASS, FAIL], "no", 1),
        ([OPEN, PASS], "unknown", 2), ([OPEN, OPEN], "unknown", 2), ([OPEN, FAIL], "no", 1),
        ([FAIL, PASS], "no", 1), ([FAIL, OPEN], "no", 1), ([FAIL, FAIL], "no", 1),
    ],
)  # fmt: skip
def test_truth_table_over_two_rules(world: Any, intervals: Any, answer: str, code: int) -> None:
    """Kleene's conjunction: no beats unknown beats yes."""
    rules = [world.rule(id=f"R{i}", data=f"data:{i}") for i in range(2)]
    policy = world.policy(*rules)
    records = [world.record(world.estimate(*ends), data=f"data:{i}") for i, ends in enumerate(intervals)]
    result = world.run(policy, world.intent(policy), *records)
    assert result.verdict.answer == answer
    assert exit_code(result.verdict) == code
    said = {
        "yes": "every rule is met, 2 of 2",
        "no": "of 2 rules, failed: R",
        "unknown": "of 2 rules, inconclusive: R",
    }
    assert result.verdict.reason.startswith(said[answer])
    kinds = [rule.answer for rule in result.rules]
    counted = [result.metrics[f"rules_{name}"].value for name in ("passed", "failed", "unknown")]
    assert counted == [kinds.count("yes"), kinds.count("no"), kinds.count("unknown")]
    assert all(estimate.method == "point" for estimate in result.metrics.values())


@pytest.mark.parametrize(
    ("op", "bound", "low", "high", "answer"),
    [
        # line 0.5; an end that lies exactly on it tells <= from < and >= from >
        ("<=", "high", 0.1, 0.5, "yes"), ("<", "high", 0.1, 0.5, "unknown"),
        ("<=", "high", 0.5, 0.9, "unknown"), ("<", "high", 0.5, 0.9, "no"),
        (">=", "low", 0.5, 0.9, "yes"), (">", "low", 0.5, 0.9, "unknown"),
        (">=", "low", 0.1, 0.5, "unknown"), (">", "low", 0.1, 0.5, "no"),
        ("<=", "high", 0.6, 0.9, "no"), (">=", "low", 0.6, 0.9, "yes"),
        ("<=", "high", 0.1, 0.4, "yes"), (">=", "low", 0.1, 0.4, "no"),
        ("<=", "high", 0.5, 0.5, "yes"), ("<", "high", 0.5, 0.5, "no"),
        (">=", "low", 0.5, 0.5, "yes"), (">", "low", 0.5, 0.5, "no"),
    ],
)  # fmt: skip
def test_ends_on_the_line(
    world: Any, measured: Measured, op: str, bound: str, low: float, high: float, answer: str
) -> None:
    rule = world.rule(op=op, bound=bound, threshold=0.5)
    assert world.answer(rule, measured(low, high)) == answer


ends = st.floats(-1, 1).map(lambda x: round(x, 2))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(ends, ends).map(sorted), min_size=1, max_size=4), ends, st.sampled_from([0.0, 0.1]))
def test_against_a_slow_reference(
    world: Any, intervals: list[list[float]], threshold: float, margin: float
) -> None:
    """yes: the largest high meets the line. no: some low is beyond it. And mirrored, on -metric."""
    records = [world.record(world.estimate(low, high, method="student-t")) for low, high in intervals]
    line = round(threshold - margin, 2)
    if max(high for _, high in intervals) <= line:
        expected = "yes"
    else:
        expected = "no" if max(low for low, _ in intervals) > line else "unknown"
    outcome = world.ask(world.rule(threshold=threshold, margin=margin), *records)
    assert outcome.answer == expected
    mirrored = [world.record(world.estimate(-high, -low, method="student-t")) for low, high in intervals]
    floor = world.rule(op=">=", bound="low", threshold=-threshold, margin=margin)
    assert world.answer(floor, *mirrored) == expected


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(ends, ends).map(sorted), min_size=2, max_size=5), st.randoms())
def test_more_evidence_never_helps_and_order_never_matters(world: Any, intervals: Any, random: Any) -> None:
    severity = {"no": 0, "unknown": 1, "yes": 2}
    records = [world.record(world.estimate(low, high)) for low, high in intervals]
    answers = [world.answer(world.rule(), *records[:k]) for k in range(1, len(records) + 1)]
    ranks = [severity[answer] for answer in answers]
    assert ranks == sorted(ranks, reverse=True)
    random.shuffle(records)
    assert world.answer(world.rule(), *records) == answers[-1]


def test_the_margin_moves_the_line_and_the_outcome_shows_both(world: Any, measured: Measured) -> None:
    record = measured(0.1, 0.2)
    assert world.answer(world.rule(threshold=0.2), record) == "yes"
    outcome = world.ask(world.rule(threshold=0.2, margin=0.05), record)
    assert (outcome.answer, outcome.threshold, outcome.line) == ("unknown", 0.2, 0.15)
    assert world.answer(world.rule(threshold=0.2, margin=0.15), record) == "no"


def test_n_needed_agrees_with_the_wald_formula(world: Any) -> None:
    """p = .1, n = 100: half-width 1.96 sqrt(.09 / 100) = .0588. To clear .15 it must be .05, which
    Wald reaches at n = 1.96^2 x .09 / .05^2 = 138.3, so 139."""
    half = 1.96 * math.sqrt(0.1 * 0.9 / 100)
    estimate = Estimate(value=0.1, low=0.1 - half, high=0.1 + half, n=100, method="wald")
    outcome = world.ask(world.rule(threshold=0.15), world.record(estimate))
    assert outcome.answer == "unknown"
    assert "inconclusive: the interval [0.0412, 0.1588] straddles <= 0.15" in outcome.reason
    assert "about 139 at the same estimate" in outcome.reason


def test_n_needed_is_not_promised_when_it_would_not_help(world: Any) -> None:
    beyond = Estimate(value=0.12, low=0.05, high=0.2, n=100, method="wald")
    assert "does not clear the line itself" in world.ask(world.rule(), world.record(beyond)).reason
    missing = Estimate(value=0.0, low=0.0, high=0.25, n=100, missing=20, method="clopper-pearson")
    assert (
        "20 missing answers at the worst case"
        in world.ask(world.rule(max_missing=1.0), world.record(missing)).reason
    )
    touching = Estimate(value=0.05, low=0.0, high=0.1, n=100, method="wald")
    assert "about 101" in world.ask(world.rule(op="<"), world.record(touching)).reason


def test_the_outcome_holds_the_deciding_numbers_and_every_job(world: Any, measured: Measured) -> None:
    intervals = [(0.01, 0.05), (0.02, 0.09), (0.06, 0.07)]
    records = [measured(*ends, job=str(i) * 64) for i, ends in enumerate(intervals)]
    outcome = world.ask(world.rule(note="quiet"), *records)
    assert (outcome.value, outcome.low, outcome.high, outcome.n) == (0.055, 0.02, 0.09, 200)
    assert outcome.evidence == tuple(record.job for record in records)
    assert "worst of 3 records" in outcome.reason
    assert outcome.note == "quiet"


def test_the_artefact_is_the_result_and_the_same_every_time(
    world: Any, tmp_path: Path, measured: Measured
) -> None:
    policy = world.policy(world.rule(), world.rule(id="R2", metric="nothing"))
    entries = (world.intent(policy), measured(*PASS))
    result = world.run(policy, *entries)
    path = tmp_path / "artifacts" / "gate.json"
    first = path.read_bytes()
    assert GateResult.model_validate(json.loads(first)) == result
    elsewhere = [
        e.model_copy(update={"recorded_at": "2031-01-01T00:00:00Z", "hardware": "x"}) for e in entries
    ]
    world.run(policy, *elsewhere)
    assert path.read_bytes() == first
    assert (result.subject, result.policy) == (world.tuned.digest, policy.digest)


def test_no_word_of_ours_promises_too_much(world: Any, measured: Measured) -> None:
    rules = [world.rule(id=f"R{i}", data=d) for i, d in enumerate(("a", "b", "c", "d"))]
    policy = world.policy(*rules, world.rule(id="R9", judge="calibrated", preregistered=False))
    records = [measured(*ends, data=d) for ends, d in ((PASS, "a"), (FAIL, "b"), (OPEN, "c"))]
    spoken = world.run(policy, world.intent(policy), *records).model_dump_json().lower()
    for word in ("compliant", "certified", "safe", "tamper-proof"):
        assert word not in spoken
    for answer in ("yes", "no", "unknown"):
        assert f'"answer":"{answer}"' in spoken


def test_exit_codes() -> None:
    codes = [exit_code(Verdict(question="?", answer=a)) for a in ("yes", "no", "unknown")]  # type: ignore[arg-type]
    assert codes == [0, 1, 2]


def test_gate_is_a_technique_with_nothing_to_loosen() -> None:
    assert gate.version == 5  # type: ignore[attr-defined]
    assert Gate.model_fields == {}


def test_importing_the_gate_loads_no_heavy_library() -> None:
    heavy = "('torch', 'scipy', 'numpy', 'transformers')"
    code = f"import sys, calibrant.govern.gate; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
