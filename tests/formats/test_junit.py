from __future__ import annotations

from xml.etree import ElementTree as Xml

from calibrant.formats.junit import junit


def test_a_case_a_goal_and_attack_with_hits_as_failures_and_the_undecided_skipped(report):
    root = Xml.fromstring(junit(report()))
    counts = [(s.get("name"), s.get("tests"), s.get("failures"), s.get("skipped")) for s in root]
    assert counts == [
        ("attack.encode/privacy", "2", "1", "1"),
        ("attack.encode/bias", "1", "0", "0"),
        ("attack.persona/bias", "1", "0", "1"),
    ]
    assert (root.get("tests"), root.get("failures"), root.get("skipped"), root.get("errors")) == (
        "4",
        "1",
        "2",
        "0",
    )
    cases = {case.get("name"): case for case in root.iter("testcase")}
    assert cases["g1"].find("failure").get("message") == "reached by 1 of 2 attempts"
    assert "could not be judged" in cases["g2"].find("skipped").get("message")
    assert list(cases["g3"]) == []
    assert cases["g1"].get("time") == "1.000"
    rates = [p.get("value") for p in root.iter("property") if p.get("name") == "attack_success_rate"]
    assert rates[0].startswith("unknown, [0.013, 1.000] (1 of 2 goals reached, 1 open")


def test_a_goal_that_a_cap_cut_off_has_not_held(report, make):
    cut = make("g1", "no").model_copy(update={"cut": True})
    root = Xml.fromstring(junit(report(cut, make("g2", "no"))))
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("2", "0", "1")
    assert "a cap ended the attack" in next(root.iter("skipped")).get("message")


def test_what_xml_cannot_hold_is_replaced_and_markup_is_escaped(report, make):
    odd = make("<g>&\x00", "yes", text="</failure><script>alert(1)</script>\x1b[31m]]>\x0b")
    data = junit(report(odd, reveal=True))
    root = Xml.fromstring(data)
    assert next(root.iter("testcase")).get("name") == "<g>&\ufffd"
    assert "</failure><script>" in next(root.iter("failure")).text
    assert b"<script>" not in data


def test_no_attempts_is_an_empty_suite_and_not_a_broken_file(report):
    empty = report().model_copy(update={"findings": ()})
    assert Xml.fromstring(junit(empty)).get("tests") == "0"
