"""Figures: the right numbers, the missing ones said aloud, marks and thresholds where they belong."""

from __future__ import annotations

import re

import pytest

from calibrant.core import Estimate, unknown
from calibrant.core.record import Failure
from calibrant.views.figures import FigureSpec, Series, describe, lanes, legend, stages, style, table
from calibrant.views.plots import draw, extent


def spec(kind="intervals", threshold=None, stages=("before", "after"), metric="m", **more) -> FigureSpec:
    series = tuple(Series(label="row", job_id=f"j_{s}", metric=metric, stage=s, **more) for s in stages)
    return FigureSpec(title="A figure", kind=kind, threshold=threshold, series=series)


def render(given: FigureSpec, entries, *, narrow=False) -> str:
    found = lanes(given, entries)
    return str(draw(given, found, stages([given]), "f0", describe(given, found), narrow=narrow))


def share(value, low, high) -> Estimate:
    return Estimate(value=value, low=low, high=high, n=50)


def test_a_lane_spans_all_seeds_and_keeps_each_value(record, ledger):
    entries = ledger(
        [
            record("j_before", "t", {"m": share(0.2, 0.1, 0.3)}, seed=1),
            record("j_before", "t", {"m": share(0.4, 0.25, 0.6)}, seed=0),
            record("other", "t", {"m": share(0.9, 0.8, 1.0)}),
        ]
    )
    lane = lanes(spec(stages=("before",)), entries)[0]
    assert [(m.seed, m.estimate.value) for m in lane.marks] == [(0, 0.4), (1, 0.2)]
    assert lane.bounds == (0.1, 0.6) and lane.summary == "0.200–0.400"


def test_what_is_missing_is_said_with_the_reason(record, ledger):
    failure = Failure(type="BudgetError", message="queries spent")
    entries = ledger(
        [
            record("j_a", "t", {}, status="failed", failure=failure),
            record("j_b", "t", {"other": share(0.1, 0, 0.2)}),
            record("j_c", "t", {"m": unknown("judge silent", n=3)}),
            record("j_d", "t", {"m": share(0.5, 0.4, 0.6)}),
            record("j_d", "t", {}, seed=1, status="crashed"),
        ]
    )
    found = lanes(spec(stages=("a", "b", "c", "d", "e")), entries)
    assert [lane.summary for lane in found] == ["unknown"] * 3 + ["0.500 (1 unknown)", "no record"]
    reasons = [reason for _, _, reason in table(found)]
    assert reasons == [
        "the job failed: queries spent",
        "the record holds no metric 'm'",
        "judge silent",
        "",
        "the job crashed",
        "no record of job 'j_e'",
    ]
    svg = render(spec(stages=("a", "b", "c", "d", "e")), entries)
    assert svg.count(">unknown<") == 3 and "no record" in svg


def test_a_killed_try_gives_way_to_the_job_that_finished(record, ledger):
    killed = record("j_before", "t", {}, status="interrupted")
    done = record("j_before", "t", {"m": share(0.2, 0.1, 0.3)})
    assert killed.job == done.job
    assert lanes(spec(stages=("before",)), ledger([killed, done]))[0].summary == "0.200"
    assert lanes(spec(stages=("before",)), ledger([killed]))[0].summary == "unknown"


@pytest.mark.parametrize("narrow", [False, True])
def test_each_record_is_one_mark_that_links_to_it(record, ledger, narrow):
    entries = ledger(
        [record("j_before", "t", {"m": share(0.2 + s / 10, 0.1, 0.6)}, seed=s) for s in range(3)]
    )
    svg = render(spec(stages=("before",)), entries, narrow=narrow)
    for entry in entries:
        assert svg.count(f'href="#r-{entry.digest[:12]}"') == 1
    assert [f"seed {s}: {0.2 + s / 10:.3f} [0.100, 0.600] n = 50" in svg for s in range(3)] == [True] * 3


def _mark_x(svg: str) -> float:
    return float(re.search(r"<use [^>]*x=\"([\d.]+)\"", svg).group(1))


def _threshold_x(svg: str) -> float:
    return float(re.search(r'd="M ([\d.]+) [^"]*" style="[^"]*var\(--limit\)', svg).group(1))


@pytest.mark.parametrize("kind", ["row", "figure"])
def test_the_threshold_line_is_dashed_and_stands_on_the_scale(record, ledger, kind):
    """A mark at exactly the threshold lies on the line; without a threshold there is no line."""
    entries = ledger([record("j_before", "t", {"m": share(0.35, 0.2, 0.5)})])
    more = {"threshold": 0.35} if kind == "figure" else {}
    given = spec(stages=("before",), **more)
    if kind == "row":
        given = given.model_copy(update={"series": (given.series[0].model_copy(update={"threshold": 0.35}),)})
    svg = render(given, entries)
    assert re.search(r"stroke-dasharray[^\"]*var\(--limit\)", svg)
    assert _threshold_x(svg) == pytest.approx(_mark_x(svg), abs=0.01)
    assert "0.35" in svg and "--limit" not in render(spec(stages=("before",)), entries)


def test_the_page_takes_thresholds_from_the_gate_that_read_the_record(study, html):
    figure = html[html.index('id="fig-1"') : html.index('id="f0-numbers"')]
    wide = figure[figure.index('<svg class="wide"') : figure.index('<svg class="narrow"')]
    lines = re.findall(r'<path d="[^"]*" style="[^"]*stroke-dasharray[^"]*var\(--limit\)[^"]*"', wide)
    assert len(lines) == 6
    assert all(f">{limit}</text>" in wide for limit in ("0.05", "0.06", "0.0601", "0.1", "0.2", "0.75"))


def test_lens_reads_layers_in_order_and_leaves_a_gap(record, ledger):
    metrics = {f"kl/layer_{n}": share(n / 20, n / 25, n / 15) for n in (10, 2, 0, 1)} | {
        "kl/layer_3": unknown("NaN")
    }
    entries = ledger([record("j_before", "t", metrics | {"klx/layer_7": share(0.5, 0.4, 0.6)})])
    given = spec(kind="lens", stages=("before",), metric="kl", threshold=0.3)
    lane = lanes(given, entries)[0]
    assert [m.layer for m in lane.marks] == [0, 1, 2, 3, 10]
    svg = render(given, entries)
    assert svg.count(f'href="#r-{entries[0].digest[:12]}"') == 4
    assert "layer 10, seed 0: 0.500" in svg and "threshold 0.3" in svg
    assert "unknown: no layer was measured" in render(given, [])


def test_colours_are_variables_and_a_stage_keeps_its_own(record, ledger):
    entries = ledger([record(f"j_{s}", "t", {"m": share(0.5, 0.4, 0.6)}) for s in ("before", "after")])
    svg = render(spec(), entries)
    assert "var(--s0)" in svg and "var(--s1)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r'(href|id)="[^"]*"', "", svg))
    order = stages([spec(), spec(stages=("after", "guarded"))])
    assert order == ("before", "after", "guarded") and style("after", order) == 1
    assert legend(spec(), order) == [("before", 0, ""), ("after", 1, "")]


def test_extent():
    assert extent([0.1, 0.2]) == (0.0, 1.0)
    assert extent([0.1, 0.2], whole=False) == (0.0, pytest.approx(0.206))
    assert extent([-1.0, 3.0]) == (pytest.approx(-1.24), pytest.approx(3.24))
    assert extent([]) == (0.0, 1.0) and extent([2.0, 2.0]) == (0.0, 2.5)
