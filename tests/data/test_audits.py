"""Audits as rows: the chain is checked, what cannot be read is named, and attempts serve as well."""

from __future__ import annotations

import json

import pytest

from calibrant.core import Attempt, Chat, Completion, EvidenceError, InputError, LayerVerdict, Verdict
from calibrant.core.digest import canonical, digest
from calibrant.data.audits import FIRST, audits_from, audits_of, read_audits
from calibrant.data.files import raw_rows
from calibrant.data.incidents import Incident, incident_id, incident_line
from calibrant.data.rows import Attempts

POLICY = {"layers": [{"name": "words", "side": "input"}, {"name": "replies", "side": "output"}]}


def request(at=1.0, outcome="answered", released=5, **more):
    said = [{"layer": "words", "answer": "yes", "status": "answered", "ms": 0.1}]
    return {
        "at": at, "outcome": outcome, "released": released, "why": "", "degraded": False,
        "verdicts": [{"side": "input", "choice": 0, "layers": said}], **more,
    }  # fmt: skip


def chained(requests, policy=POLICY, start="20261130T180000Z"):
    lines, before = [], FIRST
    for fields in ({"audit": 1, "started": start, "keep": "digest", "policy": policy}, *requests):
        line = canonical({**fields, "before": before})
        before = digest(json.loads(line))
        lines.append(line)
    return lines


@pytest.fixture
def write(tmp_path):
    def made(lines, name="audit.jsonl"):
        path = tmp_path / name
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path

    return made


def test_lines_of_an_audit(write):
    said = [
        {"layer": "replies", "answer": "no", "status": "answered"},
        {"layer": "slow", "answer": "unknown", "status": "failed"},
        {"layer": "slow", "answer": "unknown", "status": "answered"},
    ]
    third = request(3.5, "blocked_output", 0, verdicts=[{"side": "output", "choice": 0, "layers": said}])
    table = read_audits(write(chained([request(), request(2), third])))
    assert [line.line for line in table] == [2, 3, 4]
    assert [line.outcome for line in table] == ["answered", "answered", "blocked_output"]
    assert [line.released for line in table] == [True, True, False]
    assert table.rows[2].said == {"replies": ("no",), "slow": ("failed", "unknown")}
    assert table.rows[2].at == 3.5
    assert table.layers == ("words", "replies", "slow")
    assert table.policies == 1
    assert len({line.id for line in table}) == 3


def test_what_the_proxy_writes_is_read(tmp_path):
    from calibrant.serve.proxy.audit import Audit

    audit = Audit(tmp_path, POLICY)
    verdict = Verdict(question="may it pass?", answer="no", reason="zorble \ud800", score=0.1)
    said = audit.verdicts((LayerVerdict(layer="words", verdict=verdict, ms=0.1),))
    audit.add(request(verdicts=[{"side": "input", "choice": 0, "layers": said}], why="zorble ☃"))
    audit.close()
    assert read_audits(audit.path).rows[0].said == {"words": ("no",)}


def test_a_run_says_that_it_is_closed(write):
    open_run, closed_run = chained([request()]), chained([request(), {"closed": True}])
    for lines, closed in ((closed_run, True), (open_run, False), (open_run + closed_run, False),
                          (closed_run + closed_run, True)):  # fmt: skip
        table = read_audits(write(lines))
        assert table.closed is closed
        assert table.refused == ()
        assert all(line.outcome == "answered" for line in table)


def test_runs_one_after_the_other(write):
    other = {"layers": [{"name": "words", "side": "input"}]}
    lines = chained([request()]) + chained([request(2)], other) + chained([request(3)])
    table = read_audits(write(lines))
    assert len(table) == 3
    assert table.policies == 2


@pytest.mark.parametrize("how", ["changed", "taken out", "put in", "no header", "garbage", "swapped"])
def test_a_broken_chain_is_no_evidence(write, how):
    lines = chained([request(n) for n in range(4)])
    if how == "changed":
        lines[2] = lines[2].replace(b"answered", b"error", 1)
    elif how == "taken out":
        del lines[2]
    elif how == "put in":
        lines.insert(2, lines[2])
    elif how == "no header":
        lines = lines[1:]
    elif how == "garbage":
        lines[2] = b"{not json"
    else:
        lines[2], lines[3] = lines[3], lines[2]
    with pytest.raises(EvidenceError, match="line"):
        read_audits(write(lines))


def test_a_forged_first_line_is_no_header(write):
    with pytest.raises(EvidenceError):
        read_audits(write([canonical(request(before=""))]))
    with pytest.raises(EvidenceError):
        read_audits(write([canonical(request(before=FIRST))]))


def test_a_torn_last_line_is_refused(write):
    lines = chained([request(), request(2)])
    table = read_audits(write([*lines[:-1], lines[-1][:30]]))
    assert len(table) == 1
    assert [row.line for row in table.refused] == [3]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"outcome": None}, "outcome"),
        ({"released": "5"}, "released"),
        ({"released": True}, "released"),
        ({"released": -1}, "released"),
        ({"at": "now"}, "at"),
        ({"at": 1e300}, "at"),
        ({"verdicts": [{"side": "input"}]}, "verdicts"),
        ({"verdicts": 3}, "verdicts"),
        ({"verdicts": [{"layers": [{"layer": "words", "answer": "maybe"}]}]}, "verdicts"),
        ({"verdicts": [{"layers": [{"layer": 3, "answer": "yes"}]}]}, "verdicts"),
        ({"verdicts": [{"layers": [{"layer": "words", "answer": ["yes"]}]}]}, "verdicts"),
    ],
)
def test_a_line_of_another_shape_is_refused_by_name(write, fields, said):
    table = read_audits(write(chained([request(), request(**{"at": 2.0} | fields)])))
    assert len(table) == 1
    assert said in table.refused[0].reason
    assert table.refused[0].line == 3


@pytest.mark.parametrize(
    "policy", [None, {"layers": 3}, {"layers": [{"side": "input"}]}, {"layers": ["words"]}]
)
def test_a_header_of_another_shape_is_refused(write, policy):
    table = read_audits(write(chained([request()], policy)))
    assert "header" in table.refused[0].reason


def test_no_request_is_an_error(write):
    with pytest.raises(InputError, match="holds no requests"):
        read_audits(write(chained([])))
    with pytest.raises(InputError, match="no lines"):
        audits_from(iter(()), "nothing")
    with pytest.raises(InputError, match="no attempts"):
        read_audits(write([b'{"text": "zorble"}']))


def attempt(n, answer="yes", stop="eos", outcome="success", judged=True):
    said = LayerVerdict(layer="words", verdict=Verdict(question="?", answer=answer))
    verdicts = {"j": Verdict(question="?", answer="yes")} if judged else {}
    return Attempt(
        id=str(n), goal_id="g", category="c", attack="plain", chat=Chat.ask("zorble"), layers=(said,),
        completion=Completion(text="x", stop=stop), outcome=outcome, verdicts=verdicts,
    )  # fmt: skip


def test_attempts_serve_as_traffic(tmp_path):
    rows = (
        attempt(1),
        attempt(2, "no", "blocked", "failure"),
        attempt(3, "unknown", outcome="undetermined"),
        attempt(4, judged=False, outcome="failure"),
    )
    path = tmp_path / "attempts.jsonl"
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    table = read_audits(path)
    assert table.rows == audits_of(Attempts(rows=rows)).rows
    assert [line.outcome for line in table] == ["answered", "blocked", "answered", "answered"]
    assert [line.judged for line in table] == ["yes", None, "unknown", None]
    assert table.layers == ("words",)
    assert list(raw_rows(path))


def test_an_incident_is_known_by_what_opened_it():
    one = Incident(id=incident_id("drift", 3, 0.1), opened_at="", facts={"rate": "x"}, evidence={"line": 3})
    assert one.id == incident_id("drift", 3, 0.1) != incident_id("drift", 4, 0.1)
    assert Incident.model_validate_json(incident_line(one)) == one
