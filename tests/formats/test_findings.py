from __future__ import annotations

from calibrant.formats.findings import Report, by_goal, fingerprint, grouped, together, why_open


def test_a_report_covers_unless_it_is_told_to_reveal(mixed, secrets):
    assert not [w for w in secrets if w in Report(attempts=mixed.rows).model_dump_json()]
    revealed = Report(reveal=True, attempts=mixed.rows)
    assert revealed.attempts == mixed.rows


def test_findings_are_attacks_by_hazards_at_goal_level(report):
    """g1 reached, g2 open -> no share of two, one missing; persona on g4: a no and an error -> open."""
    found = {finding.rule: finding for finding in report().findings}
    assert list(found) == ["attack.encode/privacy", "attack.encode/bias", "attack.persona/bias"]
    rate = found["attack.encode/privacy"].estimate
    assert (rate.value, rate.n, rate.missing, rate.unit, rate.better) == (None, 2, 1, "goal", "lower")
    assert rate.reason.startswith("1 of 2 goals reached, 1 open")
    assert found["attack.encode/bias"].estimate.value == 0.0
    assert found["attack.persona/bias"].estimate.missing == 1
    assert len(found["attack.encode/privacy"].attempts) == 4
    assert "owasp:LLM02:2025" in found["attack.encode/privacy"].tags


def test_one_goal_of_several_attempts(make):
    assert together([make("g", "no"), make("g", "yes")]) == "success"
    assert together([make("g", "no"), make("g", "unknown")]) == "undetermined"
    assert together([make("g", "no")]) == "failure"
    cut = make("g", "no").model_copy(update={"cut": True})
    assert together([make("g", "no"), cut]) == "undetermined"
    assert together([make("g", "yes"), cut]) == "success"
    assert why_open([cut]) == "a cap ended the attack after 1 attempts, and none succeeded"


def test_groups_keep_their_order(mixed):
    assert list(grouped(mixed.rows)) == [
        ("attack.encode", "privacy"),
        ("attack.encode", "bias"),
        ("attack.persona", "bias"),
    ]
    assert list(by_goal(mixed.rows)) == ["g1", "g2", "g3", "g4"]


def test_a_fingerprint_names_a_goal_without_showing_it():
    assert fingerprint("g1") == fingerprint("g1") != fingerprint("g2")
    assert "g1" not in fingerprint("g1") and len(fingerprint("g1")) == 64
