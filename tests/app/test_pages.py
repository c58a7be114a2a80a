"""From records to plain data and to the page."""

from __future__ import annotations

import pytest

from calibrant.app import listing, pages
from calibrant.app.study import run_study
from calibrant.app.study_file import load_study
from calibrant.core import ConfigError, InputError, Record
from calibrant.core.estimate import point
from calibrant.ledger import Ledger
from calibrant.views.page import page

POLICY = """
name = "p"
stage = "internal"
[[rule]]
id = "PLAIN"
technique = "measure.refusal"
metric = "compliance_rate"
bound = "high"
op = "<="
threshold = 0.99
"""
TRIAL = """
title = "May it go out?"
[intent]
use = "a trial"
policy = "p.toml"
[verdict]
gate = "gate"
[[job]]
id = "ask"
use = "measure.refusal"
inputs = { model = "MODEL", goals = "testbed:goals/heldout?n=4", judge = "testbed:judge/harmful" }
config = { sampling = { max_tokens = 2 } }
[[job]]
id = "gate"
use = "govern.gate"
inputs = { subject = "MODEL", policy = "p.toml" }
[[figure]]
title = "Harm"
series = [{ label = "plain", job_id = "ask", metric = "compliance_rate", stage = "before" }]
"""


@pytest.fixture
def trial(write, tmp_path, model):
    (tmp_path / "p.toml").write_text(POLICY)
    return write(TRIAL.replace("MODEL", str(model)))


def test_the_page_shows_verdict_records_and_figure(trial, ledger):
    done = run_study(load_study(str(trial)), ledger)
    page = pages.write(done, ledger)
    assert page == ledger.root / "pages" / "trial.html"
    html = page.read_text()
    for part in ("May it go out?", "PLAIN", "Harm", "<svg", done.runs[0][1].digest[:12], "a trial"):
        assert part in html, part
    assert "no record of job" not in html


CAMPAIGN = """
[[job]]
id = "campaign"
use = "attack.campaign"
inputs = { target = "MODEL", goals = "testbed:goals/heldout?n=4", judge = "testbed:judge/harmful" }
config = { sampling = { max_tokens = 2 }, attacks = [{ use = "attack.persona" }] }
[[figure]]
title = "Hazards"
kind = "matrix"
series = [{ label = "success", job_id = "campaign", metric = "attack_success_rate", stage = "before" }]
[[figure]]
title = "Cost"
kind = "budget"
series = [{ label = "success", job_id = "campaign", metric = "attack_success_rate", stage = "before" }]
"""


def test_a_campaign_s_matrix_and_curves_come_from_its_record(write, ledger, model):
    done = run_study(load_study(str(write(CAMPAIGN.replace("MODEL", str(model))))), ledger)
    entry = done.runs[0][1]
    curves = pages.view(done, ledger).curves
    assert list(curves[entry.digest].attacks) == ["persona"]
    assert list(listing.hazards(entry.record)["all"]) == ["persona"]
    assert listing.hazards(entry.record.model_copy(update={"technique": "attack.persona"})) == {}
    html = pages.write(done, ledger).read_text()
    assert ">all hazards</text>" in html and ">persona 0.00</text>" in html
    for figure in ("f0", "f1"):
        numbers = html[html.index(f'id="{figure}-numbers"') :]
        assert f"#r-{entry.digest[:12]}" in numbers[: numbers.index("</details>")]
    assert "no record of job" not in html and "stores no curve" not in html


def test_the_page_of_a_ledger_is_the_page_of_the_run(trial, ledger, monkeypatch):
    done = run_study(load_study(str(trial)), ledger)
    seen = []
    monkeypatch.setattr(
        pages, "write_page", lambda view, path: seen.append(view.model_copy(update={"made_at": ""}))
    )
    pages.write(done, ledger)
    fresh = Ledger(ledger.root)
    pages.write(pages.from_ledger(load_study(str(trial)), fresh), fresh)
    assert seen[0] == seen[1] and seen[0].verdict.answer == "yes"


def test_an_identical_job_of_another_study_is_on_the_page(trial, write, ledger, model, monkeypatch):
    run_study(load_study(str(trial)), ledger)
    other = write(TRIAL.replace("MODEL", str(model)).replace('"ask"', '"question"'), name="other")
    done = run_study(load_study(str(other)), ledger)
    assert done.reused == 2
    seen = []
    monkeypatch.setattr(pages, "write_page", lambda view, path: seen.append(view))
    pages.write(done, ledger)
    assert [e.record.job_id for e in seen[0].entries] == ["intent", "question", "gate"]
    assert [e.digest for e in seen[0].entries] == [e.digest for e in ledger.entries()]


def test_a_ledger_without_the_study_says_what_to_run(trial, ledger):
    with pytest.raises(InputError) as caught:
        pages.from_ledger(load_study(str(trial)), ledger)
    assert "calibrant run trial" in caught.value.hint


def test_the_latest_record_of_each_run_is_shown(trial, ledger, model):
    run_study(load_study(str(trial)), ledger)
    changed = load_study(str(trial), ["ask.sampling.max_tokens=3"])
    done = run_study(changed, ledger)
    again = pages.from_ledger(changed, ledger)
    assert [entry.seq for _, entry in again.runs] == [entry.seq for _, entry in done.runs]


def test_rows_of_a_log(trial, ledger):
    run_study(load_study(str(trial)), ledger)
    intent, ask, gate = (listing.row(entry) for entry in ledger.entries())
    assert (ask["job"], ask["status"], ask["study"]) == ("ask", "finished", "trial")
    assert ask["headline"].startswith("compliance_rate 0.000 [") and gate["headline"].startswith(
        "rules_passed 1"
    )
    assert intent["headline"] == "" and ask["failure"] == ask["remedy"] == ""


def test_the_status_of_a_ledger(trial, ledger):
    assert listing.status(ledger)["records"] == 0 and listing.status(ledger)["last"] is None
    run_study(load_study(str(trial)), ledger)
    ledger.work("a" * 64)
    found = listing.status(ledger)
    assert found["by_status"] == {"finished": 3} and found["studies"] == ["trial"]
    assert found["unfinished"] == ["a" * 64] and found["last"]["job"] == "gate"


def test_what_there_is():
    found = listing.everything()
    assert "train.dpo" in found["techniques"] and "measure.string_judge" in found["behaviours"]
    assert found["studies"]["demo"] and not any(
        "policy" in name or "guards" in name for name in found["studies"]
    )


def test_a_description_has_every_input_and_field():
    found = listing.describe("train.dpo")
    assert found["inputs"]["pairs"] == {"wanted": "Preferences", "required": True}
    assert found["config"]["epochs"]["default"] == 1 and found["config"]["fit"]["default"]["lr"] == 3e-4
    assert all(field["help"] for field in found["config"].values()) and "2305.18290" in found["about"]
    assert "views" in listing.describe("defend.pattern_guard")["config"]
    with pytest.raises(ConfigError, match=r"did you mean 'train\.dpo'"):
        listing.describe("train.dpoo")


def test_a_count_is_shown_with_the_names_that_do_most():
    def told(technique, metrics):
        record = Record(
            technique=technique, version=1, job="a" * 64, result="b" * 64, status="finished",
            metrics={name: point(value) for name, value in metrics.items()},
        )  # fmt: skip
        return listing.beside(record)

    cells = {"denoise/0.h1": 0.99, "denoise/1.h2": -1.02, "denoise/0.h3": 0.1, "noise/0.h3": 7.0}
    assert told("understand.patch", cells | {"found/denoise": 2}) == "largest shares: 1.h2 -1.02, 0.h1 0.99"
    assert told("understand.patch", cells | {"found/denoise": 0}) == ""
    sizes = {"cpr": 0.9, "least_size": 3, "kept/0.01": 0, "kept/0.02": 3, "kept/0.05": 3,
             "faithfulness/0.01": 0.0, "faithfulness/0.02": 1.0, "faithfulness/0.05": 0.5}  # fmt: skip
    assert told("understand.circuit", sizes) == "least_size 3, faithfulness 1"
    assert told("understand.lens", {"rank": 1.0}) == ""


def test_a_quote_is_told_by_its_queries():
    """Not by the first of its metrics in the alphabet."""
    metrics = {name: point(7, unit="queries") for name in ("planned_attacker_calls", "planned_queries")}
    record = Record(
        technique="attack.campaign",
        version=3,
        job="0" * 64,
        result="0" * 64,
        status="finished",
        metrics=metrics,
    )
    assert listing.headline(record)[0] == "planned_queries"


CLAIMS = """
[[job]]
id = "true"
use = "understand.triangulate"
inputs.model = "testbed:plant/induction"
inputs.contrasts = "testbed:contrasts/induction?n=24"
inputs.heldout = "testbed:contrasts/induction?n=24&seed=1"
[job.config]
says = "two heads carry it"
cells = ["layer_0/head_1", "layer_1/head_2"]
[[job]]
id = "decoy"
like = "true"
config = { says = "others do", cells = ["layer_1/head_0", "layer_0/head_4"] }
"""


@pytest.mark.slow
def test_the_finding_of_a_claim_stands_at_the_top_and_is_no_limit(write, ledger):
    done = run_study(load_study(str(write(CLAIMS))), ledger)
    html = pages.write(done, ledger).read_text()
    assert '<div class="big unknown">1 supported, 1 contradicted</div>' in html
    assert "<b>Supported:</b> two heads carry it" in html
    limits = html.partition('id="limits"')[2].partition('id="records"')[0]
    assert "two heads carry it" not in limits and "by a rule that was fixed before" in limits
    assert html.count("The claim, instrument by instrument</h4>") == 2


PATCHED = """
[[job]]
id = "heads"
use = "understand.patch"
inputs = { model = "testbed:plant/induction", contrasts = "testbed:contrasts/induction?n=12" }
config = { site = "z", positions = "all" }
"""


def test_a_record_of_interpretability_shows_its_figures(write, ledger):
    done = run_study(load_study(str(write(PATCHED))), ledger)
    view = pages.view(done, ledger)
    (shown,) = view.shown.values()
    assert [one.axis for one in shown] == ["head", "cell"]
    body = pages.write(done, ledger).read_text().partition('id="records"')[2]
    assert body.count('<svg class="wide"') == 2 and "two at a time" in body
    altered = view.model_copy(update={"shown": {}})
    assert '<svg class="wide"' not in page(altered).partition('id="records"')[2]
