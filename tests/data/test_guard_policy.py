"""A guard's policy as a file: read, and refused with every problem named."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from calibrant.core import ConfigError, InputError
from calibrant.data.guard_policy import Rule, guard_policy_of, read_guard_policy
from calibrant.data.taxonomy import hazard_of

STARTER = Path(__file__).parents[2] / "src/calibrant/studies/starter_policy.toml"


def one(name="a", definition="It says a.", **rest):
    return {"id": name, "title": "A", "definition": definition, **rest}


def made(*rules, **head):
    return guard_policy_of({"name": "n", "version": "1", "rule": list(rules), **head}, where="p.toml")


def test_the_starter_has_a_rule_for_each_hazard_with_examples_of_both_kinds():
    starter = read_guard_policy(STARTER)
    assert (starter.name, starter.version) == ("starter", "1")
    assert starter.ids == ("harmful_content", "bias", "privacy", "deception", "manipulation")
    assert [hazard_of(name).name for name in starter.ids] == list(starter.ids)
    assert all(len(rule.violating) >= 2 and rule.allowed and rule.exceptions for rule in starter.rules)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({}, "holds no"),
        ({"rule": []}, "holds no"),
        ({"rule": {"id": "a"}}, "write \\[\\[rule\\]\\]"),
        ({"rule": ["a"]}, "rule 1 must be a table"),
        ({"rules": [one()]}, "did you mean 'rule'"),
        ({"rule": [one()], "verson": "1"}, "did you mean 'version'"),
        ({"rule": [one()], "name": " . "}, "says nothing"),
        ({"rule": [one()], "name": ""}, "name"),
        ({"rule": [one()], "version": 2}, "version"),
        ({"rule": [one()], "version": "x" * 41}, "version"),
        ({"rule": [one(exception=["x"])]}, "did you mean 'exceptions'"),
        ({"rule": [one(exceptions="x")]}, "should be a list"),
        ({"rule": [{"id": "a", "title": "A"}]}, "'definition' is required"),
        ({"rule": [one("A b")]}, "small letters"),
        ({"rule": [one("a: allowed")]}, "small letters"),
        ({"rule": [one("x" * 41)]}, "small letters"),
        ({"rule": [one(definition=" \n")]}, "says nothing"),
        ({"rule": [one(violating=["?"])]}, "says nothing"),
        ({"rule": [one(allowed=["x" * 2001])]}, "more than 2,000"),
        ({"rule": [one(violating=[f"v {n}" for n in range(31)])]}, "30"),
        ({"rule": [one(definition="half \ud800 a pair")]}, "unicode"),
        ({"rule": [one(violating=["half \ud800 a pair"])]}, "no Unicode text"),
        ({"rule": [one(), one(definition="b")]}, "'a' is used 2 times"),
        ({"rule": [one(), one("b", "it says  A")]}, "rules 'a' and 'b' have one definition"),
        (
            {"rule": [one(violating=["Brew it!"], allowed=["brew  it."])]},
            "contradictory examples: 'brew  it.' violates 'a' and is allowed in 'a'",
        ),
        (
            {"rule": [one(allowed=["x y"]), one("b", "b", violating=["x y"])]},
            "violates 'b' and is allowed in 'a'",
        ),
        ({"rule": [one(f"r{n}", f"d {n}") for n in range(51)]}, "50"),
        (
            {
                "rule": [
                    one(f"r{n}", f"d {n}", allowed=[f"{n} {k}" + "x" * 1900 for k in range(9)])
                    for n in range(4)
                ]
            },
            "more than 60,000",
        ),
    ],
)
def test_every_fault_is_named(table, says):
    with pytest.raises(ConfigError, match=says):
        guard_policy_of({"name": "n", "version": "1", **table}, where="p.toml")


@pytest.mark.parametrize("missing", ["name", "version"])
def test_name_and_version_are_required(missing):
    table = {"name": "n", "version": "1", "rule": [one()]}
    del table[missing]
    with pytest.raises(ConfigError, match=f"'{missing}' is required"):
        guard_policy_of(table)


def test_all_problems_come_at_once():
    with pytest.raises(ConfigError) as caught:
        made(one("A"), one("b", ""), one("c"), one("c", "x", allowd=["y"]), one("c", "z"))
    text = "\n".join(caught.value.problems)
    assert "rule 1 'A'" in text and "rule 2 'b'" in text
    assert "did you mean 'allowed'" in text and "'c' is used 2 times" in text


def test_the_digest_covers_every_field():
    base = made(one(exceptions=["e"], violating=["v"], allowed=["w"]))
    changes = [
        {"id": "z"}, {"title": "z"}, {"definition": "z"},
        {"exceptions": ()}, {"violating": ()}, {"allowed": ()},
    ]  # fmt: skip
    assert {name for change in changes for name in change} == set(Rule.model_fields)
    seen = {base.digest, made(base.rules[0].model_dump(), version="2").digest}
    seen.add(made(base.rules[0].model_dump(), name="m").digest)
    for change in changes:
        seen.add(base.model_copy(update={"rules": (base.rules[0].model_copy(update=change),)}).digest)
    assert len(seen) == len(changes) + 3


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_guard_policy(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes("name = 'ü'".encode("latin-1"))
    with pytest.raises(ConfigError, match="UTF-8"):
        read_guard_policy(tmp_path / "latin.toml")
    (tmp_path / "cut.toml").write_text("name = 'a")
    with pytest.raises(ConfigError, match="not TOML"):
        read_guard_policy(tmp_path / "cut.toml")


def test_a_policy_can_not_be_changed():
    with pytest.raises(ValidationError):
        made(one()).rules[0].id = "b"
