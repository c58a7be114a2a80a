"""The shipped policies pin what the shipped studies do: data by digest, settings, judges, versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibrant.app.catalog import find_technique
from calibrant.app.check import check_config
from calibrant.app.references.openers import Openers
from calibrant.app.study_file import Study, load_study
from calibrant.core import Record
from calibrant.core.digest import plain
from calibrant.core.record import Input
from calibrant.govern._pins import differs, unpinned
from calibrant.govern.policy import Rule
from calibrant.ledger import Ledger


def as_recorded(study: Study, rule: Rule, openers: Openers) -> list[Record]:
    """What the study's jobs on the gated system will record, as far as it is known before they run."""
    gate = next(job for job in study.job if job.use == "govern.gate")
    found = []
    for job in study.job:
        subject = job.inputs.get("model", job.inputs.get("target"))
        if job.use != rule.technique or subject != gate.inputs["subject"]:
            continue
        signature = find_technique(job.use)
        inputs = {}
        for name, reference in job.inputs.items():
            given = reference
            if isinstance(reference, str) and reference.startswith("given:"):
                given = study.given[reference.removeprefix("given:")]
            if reference == subject or name == "before":
                inputs[name] = Input(reference=given, digest="0" * 64, kind="model")
                continue
            opened = openers.open(given, signature.inputs[name].wanted)
            inputs[name] = Input(
                reference=given, digest=opened.digest, kind=opened.kind, parts=dict(opened.parts)
            )
        config = plain(check_config(job.runs()[0], signature))
        given_record = {
            "technique": job.use,
            "version": signature.version,
            "config": config,
            "inputs": inputs,
        }
        judge = {n: i.parts["calibration"] for n, i in inputs.items() if i.kind == "judge"}
        found.append(Record(**given_record, judge=judge, job="0" * 64, result="0" * 64, status="finished"))
    return found


@pytest.mark.parametrize("name", ["demo", "own_model"])
def test_every_rule_takes_what_its_study_measures(name: str, tmp_path: Path) -> None:
    """A pin that drifted from its study would leave the gate without evidence for ever."""
    study = load_study(name, ["given.model=testbed:model/base"])
    intent = study.opening()
    assert intent is not None and intent.policy is not None
    openers = Openers(Ledger(tmp_path / "ledger"), given=study.given, base=study.base)
    for rule in intent.policy.rules:
        records = as_recorded(study, rule, openers)
        assert records, f"{rule.id}: no job of {name} measures it"
        for record in records:
            assert differs(rule, record) == "", rule.id


def test_the_demo_leaves_nothing_open(tmp_path: Path) -> None:
    study = load_study("demo")
    intent = study.opening()
    assert intent is not None and intent.policy is not None
    openers = Openers(Ledger(tmp_path / "ledger"), given=study.given, base=study.base)
    for rule in intent.policy.rules:
        for record in as_recorded(study, rule, openers):
            assert unpinned(rule, record).keys() <= {"min_version"}, rule.id
