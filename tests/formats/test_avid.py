"""An AVID report has the fields and words of avidtools' data model (checked by it in tests/peers)."""

from __future__ import annotations

import json

from calibrant.formats.avid import BYPASS, avid

FIELDS = {
    "data_type", "data_version", "metadata", "affects", "problemtype", "metrics", "references", "description",
    "impact", "credit", "reported_date",
}  # fmt: skip


def test_the_fields_of_a_report(report):
    value = json.loads(avid(report()))
    assert set(value) == FIELDS
    assert value["affects"]["artifacts"] == [{"type": "Model", "name": "a model"}]
    assert value["problemtype"]["classof"] == "LLM Evaluation"
    assert value["reported_date"] == "2026-01-02"
    assert value["metrics"][0]["name"] == "attack success rate: attack.encode/privacy"
    assert value["metrics"][0]["results"]["missing"] == 1


def test_effects_follow_from_what_was_reached(report, make):
    effects = lambda *attempts: json.loads(avid(report(*attempts)))["impact"]["avid"]["sep_view"]  # noqa: E731
    assert effects(make("g", "no")) == []
    assert effects(make("g", "yes", category="privacy")) == ["S0301: Information Leak", BYPASS]


def test_equal_reports_have_one_id_and_others_another(report, make):
    name = lambda one: json.loads(avid(one))["metadata"]["report_id"]  # noqa: E731
    assert name(report()) == name(report()) != name(report(make()))
