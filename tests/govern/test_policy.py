"""Policies: what is refused, that every problem is listed at once, and arithmetic on the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from calibrant.core import ConfigError, InputError
from calibrant.govern.policy import ReleasePolicy, Rule, load_policy, policy_of

GOOD: dict[str, Any] = {
    "id": "A", "technique": "measure.refusal", "metric": "rate",
    "bound": "high", "op": "<=", "threshold": 0.1,
}  # fmt: skip

TEXT = """
name = "limited release"
stage = "limited"

[[rule]]
id = "A"
technique = "measure.refusal"
metric = "rate"
data = "testbed:goals/heldout"
bound = "high"
op = "<="
threshold = 1
min_n = 100
judge = "calibrated"

[[rule]]
id = "B"
technique = "measure.capability"
metric = "accuracy"
bound = "low"
op = ">="
threshold = 0.6
margin = 0.02
preregistered = false
"""


def test_a_policy_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(TEXT)
    policy = load_policy(path)
    assert (policy.name, policy.stage, [rule.id for rule in policy.rules]) == (
        "limited release",
        "limited",
        ["A", "B"],
    )
    first, second = policy.rules
    assert (first.threshold, first.min_n, first.judge.state, first.preregistered) == (
        1.0,
        100,
        "calibrated",
        True,
    )
    assert (second.line, second.preregistered, second.max_missing) == (0.62, False, 0.05)
    assert ReleasePolicy.model_validate_json(policy.model_dump_json()) == policy


@pytest.mark.parametrize(("op", "bound"), [("<=", "low"), ("<", "low"), (">=", "high"), (">", "high")])
def test_the_optimistic_end_is_refused(op: str, bound: str) -> None:
    with pytest.raises(ConfigError, match="needs bound"):
        Rule(**{**GOOD, "op": op, "bound": bound})


@pytest.mark.parametrize(
    ("op", "bound", "threshold", "margin", "line"),
    [
        ("<=", "high", 0.3, 0.1, 0.2),
        (">=", "low", 0.1, 0.2, 0.3),
        ("<", "high", 0.5, 0.0, 0.5),
        (">", "low", -1.0, 0.25, -0.75),
    ],
)
def test_the_margin_tightens_in_decimal(
    op: str, bound: str, threshold: float, margin: float, line: float
) -> None:
    """In binary 0.3 - 0.1 is 0.19999999999999998, so that a bound of exactly 0.2 would miss it."""
    rule = Rule(**{**GOOD, "op": op, "bound": bound, "threshold": threshold, "margin": margin})
    assert rule.line == line
    assert rule.meets(line) is ("=" in op)
    assert not rule.meets(float("nan"))


def test_every_problem_is_listed_with_the_nearest_name() -> None:
    misspelt = {**GOOD, "metrc": "rate", "margin": -0.1, "min_n": 0, "threshold": True}
    del misspelt["metric"]
    bad = {
        "nam": "x",
        "stage": "limitd",
        "rule": [
            {**GOOD, "bound": "low"},
            3,
            misspelt,
            {**GOOD, "id": "B", "threshold": float("nan")},
        ],
    }
    with pytest.raises(ConfigError) as caught:
        policy_of(bad, where="p.toml")
    text = "\n".join(caught.value.problems)
    for part in (
        "unknown key 'nam' (did you mean 'name'?)",
        "'name' is required",
        "'stage'",
        "rule 'A': op '<='",
        "rule 2 must be a table",
        "rule 3 'A': 'metric' is required",
        "unknown key 'metrc' (did you mean 'metric'?)",
        "'margin'",
        "'min_n'",
        "'threshold': input should be a valid number, got True",
        "rule 4 'B': 'threshold'",
    ):
        assert part in text
    assert len(caught.value.problems) == 11
    assert all(problem.startswith("p.toml: ") for problem in caught.value.problems)


@pytest.mark.parametrize("table", [{"rule": {"id": "A"}}, {"rules": [GOOD]}])
def test_rules_in_the_wrong_shape_are_not_dropped_in_silence(table: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="rule"):
        policy_of({"name": "x", "stage": "general", **table})


def test_two_rules_cannot_share_an_id() -> None:
    with pytest.raises(ConfigError, match="rule id 'A' is used 2 times"):
        ReleasePolicy(name="x", stage="general", rules=(Rule(**GOOD), Rule(**{**GOOD, "threshold": 0.2})))


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read policy"):
        load_policy(tmp_path / "none.toml")
    twice = tmp_path / "twice.toml"
    twice.write_text('name = "a"\nname = "b"\n')
    with pytest.raises(ConfigError, match="not TOML"):
        load_policy(twice)


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 0.11},
        {"margin": 0.01},
        {"min_n": 2},
        {"judge": "calibrated"},
        {"preregistered": False},
        {"data": "x"},
        {"data": "x", "data_input": "goals"},
        {"data_digest": "a" * 64},
        {"config": {"a.b": 1}},
        {"inputs": {"before": "x"}},
        {"min_version": 2},
        {"judge": {"question": "?"}},
        {"judge": {"digest": "a" * 64}},
        {"judge": {"state": "calibrated", "min_n": 2}},
    ],
)
def test_every_change_of_a_rule_is_another_policy(change: dict[str, Any]) -> None:
    """The digest is what an intent registers, so nothing that moves a verdict may escape it."""
    before = ReleasePolicy(name="x", stage="general", rules=(Rule(**GOOD),))
    after = ReleasePolicy(name="x", stage="general", rules=(Rule(**{**GOOD, **change}),))
    assert before.digest != after.digest
    assert before.digest == ReleasePolicy(name="x", stage="general", rules=(Rule(**GOOD),)).digest
    assert before.digest != ReleasePolicy(name="x", stage="internal", rules=(Rule(**GOOD),)).digest
