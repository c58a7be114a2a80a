"""The page: every number leads to its record, nothing is fetched, nothing hostile gets through."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from calibrant.core import Estimate, Record, Verdict, digest, unknown
from calibrant.core.record import Artifact, Failure, Input
from calibrant.govern.gate import RuleOutcome
from calibrant.views import formatting
from calibrant.views.figures import FigureSpec, Series
from calibrant.views.page import GateView, RuleView, StudyView, page, strip, write_page

VOID = {"meta", "br", "line", "rect", "circle", "path", "use", "col"}
CLAIMS = re.compile(r"\b(safe|compliant|certified|tamper-proof)\b", re.IGNORECASE)


class Reader(HTMLParser):
    """Collects ids, links and tags; checks that tags nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"])
        self.links += [found[name] for name in ("href", "src") if name in found]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


def empty(**more: object) -> StudyView:
    return StudyView.model_validate({"name": "s", "title": "t"} | more)


def test_every_link_resolves_and_every_id_is_unique(html):
    reader = Reader(html)
    assert len(reader.ids) == len(set(reader.ids))
    assert reader.links and all(link.startswith("#") for link in reader.links)
    assert {link[1:] for link in reader.links} <= set(reader.ids)


def test_every_metric_is_shown_as_a_link_to_its_record(study, html):
    for entry in study.entries:
        for estimate in entry.record.metrics.values():
            if estimate.value is not None:
                link = f'<a class="n" href="#r-{entry.digest[:12]}">{formatting.number(estimate.value)}</a>'
                assert link in html


def test_rule_numbers_link_to_the_record_that_was_judged(study, html):
    table = html[html.index('id="gates"') : html.index('id="limits"')]
    for gate in study.gates:
        for rule in gate.rules:
            if rule.value is not None:
                assert (
                    f'href="#r-{rule.evidence[0][:12]}">{formatting.number(rule.value, rule.threshold)}<'
                    in table
                )


def test_nothing_is_fetched_and_nothing_runs(study, html):
    reader = Reader(html)
    names = {tag for tag, _ in reader.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert not re.search(r"https?://|url\(|@import|xmlns", html)
    assert "default-src 'none'" in html
    assert not any(name.startswith("on") for _, attrs in reader.tags for name in attrs)


def test_hostile_text_stays_text(record, ledger):
    evil = '"><script>alert(1)</script>\x00<img src=x onerror=alert(1)>{{ 7*7 }} $\\frac{ #010a01'
    bad = record(
        evil,
        evil,
        {evil: Estimate(value=0.5, low=0.4, high=0.6, n=9, reason=evil, method=evil, unit=evil)},
        config={evil: [evil, {evil: evil}]},
        limits=(evil,),
        hardware=evil,
        code={evil: evil},
        cost={evil: 1.0},
        inputs={evil: Input(reference={"use": evil}, digest=evil, kind=evil, name=evil, parts={evil: evil})},
        status="failed",
        failure=Failure(type=evil, message=evil, hint=evil),
        judge={evil: evil},
        parent=evil,
    )
    entry = ledger([record("x", "y", {})])[0].model_copy(update={"record": bad, "digest": evil})
    verdict = Verdict(question=evil, answer="no", reason=evil)
    rule = RuleView(
        id=evil, technique=evil, metric=evil, op=evil, bound=evil, reason=evil, evidence=(evil,), note=evil
    )
    kinds = ("intervals", "lens", "sweep", "goodhart", "matrix", "budget")
    study = StudyView(
        name=evil,
        title=evil,
        story=evil,
        intent={evil: [{evil: evil}]},
        entries=(entry,),
        verdict=verdict,
        gates=(GateView(job_id=evil, seed=0, subject=evil, digest=evil, verdict=verdict, rules=(rule,)),),
        figures=tuple(
            FigureSpec(
                title=evil,
                caption=evil,
                kind=kind,
                threshold=0.5,
                series=(Series(label=evil, job_id=evil, metric=evil, stage=evil),),
            )
            for kind in kinds
        ),
        ledger=evil,
        made_at=evil,
    )
    html = page(study)
    reader = Reader(html)
    assert not {tag for tag, _ in reader.tags} & {"script", "img"}
    assert not any(name.startswith("on") for _, attrs in reader.tags for name in attrs)
    assert "&lt;script&gt;" in html and "{{ 7*7 }}" in html
    html.encode("utf-8")


def test_equal_studies_give_equal_bytes(study, html, tmp_path: Path):
    again = StudyView.model_validate_json(study.model_dump_json())
    assert page(again) == html
    assert write_page(study, tmp_path / "deep" / "a.html").read_bytes() == html.encode()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.html"]


def test_a_page_that_cannot_be_made_leaves_the_old_one(
    study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a.html"
    path.write_text("old")

    def fail(_: StudyView) -> str:
        raise ValueError("no")

    monkeypatch.setattr("calibrant.views.page.page", fail)
    with pytest.raises(ValueError, match="no"):
        write_page(study, path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_an_empty_study_says_so_and_does_not_pass():
    text = Reader(page(empty())).text
    assert "Inconclusive" in text and "Pass" not in text
    for said in (
        "no gate ran",
        "Nothing was written down",
        "That is not a pass",
        "holds no record",
        "That is a gap",
    ):
        assert said in text


@pytest.mark.parametrize(("answer", "word"), [("yes", "Pass"), ("no", "Fail"), ("unknown", "Inconclusive")])
def test_the_banner_is_in_words_and_claims_no_more(answer, word):
    gates = tuple(
        GateView(job_id="g", seed=seed, subject="m", digest="0" * 64, verdict=Verdict(question="q", answer=a))
        for seed, a in enumerate(["yes", answer])
    )
    html = page(empty(verdict=Verdict(question="q", answer=answer, reason="because"), gates=gates))
    assert f'<div class="big {answer}">{word}</div>' in html and "because" in html
    assert f"<b>{2 if answer == 'yes' else 1} of 2</b>" in html
    assert not CLAIMS.search(Reader(html).text)


def test_a_pass_that_the_gates_do_not_bear_out_is_contradicted():
    verdict = Verdict(question="q", answer="yes")
    assert "does not follow" in page(empty(verdict=verdict, needed=1))
    unsure = GateView(
        job_id="g", seed=0, subject="m", digest="0", verdict=Verdict(question="q", answer="unknown")
    )
    sure = unsure.model_copy(update={"verdict": verdict})
    assert "does not follow" in page(empty(verdict=verdict, gates=(sure, unsure)))
    assert "does not follow" not in page(empty(verdict=verdict, gates=(sure,)))
    other = sure.model_copy(update={"seed": 1})
    assert "does not follow" not in page(empty(verdict=verdict, gates=(other, unsure), needed=1))


def test_a_study_without_a_gate_is_done_and_has_passed_nothing():
    html = page(empty(verdict=Verdict(question="q", answer="yes")))
    assert ">Done</div>" in html and ">Pass</div>" not in html and "does not follow" not in html


def test_a_study_that_asks_no_gate_says_so_calmly(record, ledger):
    calm, alarm = "it measures, and decides nothing", "That is not a pass"
    job = record("a", "understand.patch", {})
    html = page(empty(entries=ledger([job])))
    assert calm in html and alarm not in html and "A pass says" not in html
    gate = record("g", "govern.gate", {}).model_copy(update={"status": "failed"})
    entries = ledger([job])
    asked = (
        {"entries": ledger([job, gate])},
        {"entries": entries, "needed": 1},
        {"entries": entries, "intent": {"policy": {"name": "p"}}},
    )
    for more in asked:
        html = page(empty(**more))
        assert alarm in html and calm not in html


def test_the_page_says_how_to_have_the_files(record, ledger):
    kept = record("a", "understand.sae", {}).model_copy(
        update={"artifacts": (Artifact(name="features.html", digest="a" * 64, bytes=3),)}
    )
    bare = record("b", "understand.lens", {}).model_copy(update={"artifacts": ()})
    entries = ledger([kept, bare])
    html = page(empty(entries=entries))
    command = f"calibrant log {formatting.short(entries[0].digest)} --files FOLDER"
    assert html.count("--files") == 1 and f"{command}</code>" in html
    assert f"{command} --ledger ./mine</code>" in page(empty(entries=entries, ledger="./mine"))


def test_the_intent_says_whether_it_came_first(record, ledger):
    opening = Record(technique="intent", version=1, job="i", result="i", status="finished")
    job = record("a", "attack.plain", {})
    asked = {"tax_margin": 0.03}
    first, late = ledger([opening, job]), ledger([job, opening])
    assert "before the first job" in page(empty(intent=asked, entries=first))
    assert "fitted to the results" in page(empty(intent=asked, entries=late))
    assert "is unknown" in page(empty(intent=asked, entries=ledger([job])))
    assert f'<a class="n" href="#r-{first[0].digest[:12]}">0.03</a>' in page(
        empty(intent=asked, entries=first)
    )


def test_a_missing_number_is_unknown_with_its_reason(record, ledger):
    metrics = {
        "a": unknown("the judge could not read it", n=5),
        "b": Estimate(value=float("nan")),
        "c": Estimate(value=None),
    }
    text = Reader(page(empty(entries=ledger([record("j", "measure.x", metrics)])))).text
    for reason in ("the judge could not read it", "not a finite number", "no reason was recorded"):
        assert re.search(rf"unknown\s+{reason}", text)
    assert "nan" not in text.lower()


def test_limits_are_said_once_with_where_they_come_from(record, ledger):
    entries = ledger(
        [record("a", "x", {}, limits=("one  thing", "two")), record("b", "x", {}, limits=("one thing",))]
    )
    html = page(empty(entries=entries))
    section = html[html.index('id="limits"') : html.index('id="records"')]
    assert section.count("one thing") == 1
    assert all(f'href="#r-{e.digest[:12]}"' in section for e in entries)


def test_a_failed_job_is_as_plain_as_a_finished_one(study, html):
    failed = [e for e in study.entries if e.record.status == "failed"]
    assert len(failed) == 3 and "3 jobs did not finish" in html
    for entry in failed:
        start = html.index(f'id="r-{entry.digest[:12]}"')
        body = html[start : html.index("</details>", start)]
        assert "BudgetError" in body and "raise budget.queries" in body and "Inputs" in body


def test_evidence_that_is_not_on_the_page_is_named_without_a_dead_link():
    rule = RuleView(
        id="r", value=0.1, low=0.0, high=0.2, threshold=0.3, answer="yes", evidence=(digest("x"),)
    )
    gate = GateView(
        job_id="g", seed=0, subject="m", digest="0", verdict=Verdict(question="q", answer="no"), rules=(rule,)
    )
    html = page(empty(gates=(gate,)))
    assert digest("x")[:12] in html and f"#r-{digest('x')[:12]}" not in html


def test_tables_have_headers_and_figures_have_text(study, html):
    for table in re.findall(r"<table.*?</table>", html, re.DOTALL):
        assert '<th scope="col"' in table
    labels = [a["aria-label"] for tag, a in Reader(html).tags if tag == "svg" and a.get("role") == "img"]
    assert len(labels) == 2 * len(study.figures) and all("behind guards" in x for x in labels[:2])


def test_strip_puts_interval_threshold_and_allowed_side_in_order():
    """<= 0.05 with [0.01, 0.03]: spread 0.04, room 0.016, so 0 to 0.066; 0.05 stands at 75.76 %."""
    s = strip(RuleView(id="r", op="<=", threshold=0.05, value=0.02, low=0.01, high=0.03))
    assert s is not None and s.threshold == pytest.approx(75.76) and s.allowed == (0.0, s.threshold)
    assert s.low < (s.value or 0) < s.high < s.threshold
    up = strip(RuleView(id="r", op=">=", threshold=0.7, low=0.8, high=0.9))
    assert (
        up is not None and up.threshold < up.low and up.allowed == (up.threshold, 100.0) and up.value is None
    )
    assert strip(RuleView(id="r", threshold=0.7, low=None, high=0.9)) is None


def test_a_rule_links_to_the_worst_record_and_shows_the_tightened_limit(record, ledger):
    fine, worst = (share_of(0.1), share_of(0.2))
    entries = ledger([record("a", "t", {"m": fine}), record("a", "t", {"m": worst}, seed=1)])
    rule = RuleView(
        id="r",
        metric="m",
        threshold=0.3,
        line=0.25,
        value=0.2,
        low=0.15,
        high=0.26,
        evidence=tuple(e.digest for e in entries),
        failed_runs=2,
    )
    gate = GateView(
        job_id="g", seed=0, subject="m", digest="0", verdict=Verdict(question="q", answer="no"), rules=(rule,)
    )
    html = page(empty(entries=entries, gates=(gate,)))
    table = html[html.index('id="gates"') : html.index('id="limits"')]
    assert f'<a class="n" href="#r-{entries[1].digest[:12]}">0.200</a>' in table
    assert "≤&nbsp;0.25" in table and "0.3 and a margin" in table and "2 runs did not finish" in table


def share_of(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.05, high=value + 0.06, n=50)


def test_the_gate_and_the_page_agree_on_the_shape_of_a_rule():
    outcome = RuleOutcome(
        id="r",
        technique="t",
        metric="m",
        threshold=0.1,
        line=0.1,
        op="<=",
        bound="high",
        answer="no",
        reason="w",
    )
    assert RuleView.model_validate(outcome.model_dump()).model_dump() == outcome.model_dump()


@pytest.mark.parametrize(
    "odd",
    [
        {"policy": {"rules": 3}},
        {"policy": {"rules": [{"id": "r"}, 4]}},
        {"policy": {"rules": [{"id": [], "metric": {}, "op": ["x"], "threshold": "high", "margin": [1]}]}},
        {"policy": None, "notes": "", "items": {"keys": {}, "values": []}, "deep": [[1, [2.5]], True]},
        {},
    ],
)
def test_an_intent_of_any_shape_is_shown(odd):
    Reader(page(empty(intent=odd)))


@pytest.mark.parametrize(
    ("findings", "answer", "tone"),
    [
        (["supported"], "Supported", "yes"),
        (["suggestive"], "Suggestive", "unknown"),
        (["contradicted"], "Contradicted", "no"),
        (["contradicted", "supported", "contradicted"], "1 supported, 2 contradicted", "unknown"),
        ([], "Done", "yes"),
    ],
)
def test_claims_give_the_answer_where_no_gate_does(findings, answer, tone):
    claims = [
        {"job_id": f"j{at}", "seed": 0, "digest": digest([at]), "says": "<b>it</b> is so", "finding": one}
        for at, one in enumerate(findings)
    ]
    done = {"question": "did every job finish?", "answer": "yes", "reason": "all jobs finished"}
    html = page(empty(claims=claims, verdict=done))
    assert f'<div class="big {tone}">{answer}</div>' in html
    assert "<b>it</b>" not in html
    assert html.count("&lt;b&gt;it&lt;/b&gt; is so") == len(findings)
    short = page(empty(claims=claims, verdict=done | {"answer": "unknown", "reason": "not measured: a null"}))
    count = ", ".join(f"{findings.count(one)} {one}" for one in sorted(set(findings), reverse=True))
    said = f"{count}, the rest incomplete" if findings else "Inconclusive"
    assert f'<div class="big unknown">{said}</div>' in short and "not measured: a null" in short
