"""Figures: the right numbers, the missing ones said aloud, marks and thresholds where they belong."""

from __future__ import annotations

import re

import pytest

from calibrant.core import Estimate, unknown
from calibrant.core.record import Failure
from calibrant.views.curves import Curve, Fitted, read_curve
from calibrant.views.figures import FigureSpec, Series, describe, legend, peaks, stages, style, table
from calibrant.views.plots import draw
from calibrant.views.scales import extent
from calibrant.views.series import lanes


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
    below = ledger(
        [record("j_before", "t", {"m": share(-v, -1, 0)}, seed=s) for s, v in enumerate((0.2, 0.4))]
    )
    assert lanes(spec(stages=("before",)), below)[0].summary == "−0.400 to −0.200"


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
        "the record holds no metric 'm'; it has other",
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
    assert [m.at for m in lane.marks] == [0, 1, 2, 3, 10]
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


def curve(distances, proxy, gold, peak=None, band=True) -> Curve:
    fit = Fitted(
        sqrt_kl=(0.0, 1.0, 2.0),
        value=(0.0, 0.6, 0.1),
        low=(0.0, 0.5, -5.0) if band else None,
        high=(0.0, 0.7, 0.2) if band else None,
        peak=Estimate(value=peak, low=peak - 0.2, high=peak + 0.1) if peak else unknown("no hump is shown"),
    )
    return Curve(
        sqrt_kl=distances,
        proxy=tuple(Estimate(value=v) for v in proxy),
        gold=tuple(Estimate(value=v, low=v - 0.1, high=v + 0.1) for v in gold),
        fit=fit,
    )


def goodhart() -> FigureSpec:
    return FigureSpec(
        title="A hump",
        kind="goodhart",
        series=tuple(Series(label="run", job_id="j_run", metric=m, stage=m) for m in ("proxy", "gold")),
    )


@pytest.mark.parametrize("narrow", [False, True])
def test_goodhart_shows_points_forms_and_peaks(record, ledger, narrow):
    entries = ledger([record("j_run", "t", {}, seed=s) for s in range(3)])
    stored = {
        entries[0].digest: curve((0.0, 1.0, 2.0), (0, 1, 2), (0, 0.6, 0.1), peak=1.25),
        entries[1].digest: curve((0.0, 2.0, 1.0), (0, 2, 1), (0, 0.2, 0.7), peak=1.5),
        entries[2].digest: curve((0.0, 1.0, 2.0), (0, 1, 2), (0, 0.6, 0.7), band=False),
    }
    given = goodhart()
    found = lanes(given, entries, stored)
    assert [(m.seed, m.at, m.estimate.value) for m in found[1].marks][:3] == [
        (0, 0, 0),
        (0, 1, 0.6),
        (0, 2, 0.1),
    ]
    assert not found[0].fits and len(found[1].fits) == 3
    assert peaks(found[1]) == "peak 1.25–1.50 (1 of 3 show none)"
    svg = str(draw(given, found, stages([given]), "f0", describe(given, found), narrow=narrow))
    assert svg.count("proxy, √KL 2, seed 0") == 1 and svg.count("peak at √KL 1.25, seed 0") == 1
    assert "peak 1.25–1.50 (1 of 3 show none)" in svg and ">√KL<" in svg
    height = float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg).group(1))
    drawn = [
        float(y)
        for path in re.findall(r' d="([^"]*)"', svg)
        for y in re.findall(r"[ML] [-\d.]+ ([-\d.]+)", path)
    ]
    assert min(drawn) >= -height and max(drawn) <= height, "a band that leaves the plot is cut"


def test_goodhart_says_what_it_lacks(record, ledger):
    entries = ledger([record("j_run", "t", {})])
    given = goodhart()
    found = lanes(given, entries)
    assert [reason for _, _, reason in table(found)] == [
        f"the record holds no metric '{m}'" for m in ("proxy", "gold")
    ]
    assert "unknown: no √KL was measured" in render(given, entries)
    flat = lanes(given, entries, {entries[0].digest: curve((0.0, 1.0), (0, 1), (0, 0.4))})
    assert peaks(flat[1]) == "no peak is shown"


def test_a_sweep_stands_at_even_steps_in_the_order_of_its_settings(record, ledger):
    at = {"a": 0.5, "b": 0.0, "c": 2.0}
    entries = ledger(
        [record(f"j_{k}", "t", {"m": share(x / 4, x / 5, x / 3)}) for k, x in at.items() if k != "c"]
    )
    series = tuple(Series(label="row", job_id=f"j_{k}", metric="m", stage="s", at=x) for k, x in at.items())
    given = FigureSpec(title="A sweep", kind="sweep", axis="coefficient", series=series)
    svg = render(given, entries)
    xs = [float(x) for x in re.findall(r"<use [^>]*x=\"([\d.]+)\"", svg)]
    assert len(xs) == 2 and all(f">{t}<" in svg for t in ("0", "0.5", "coefficient"))
    assert legend(given, ("s",)) == [("s", 0, "")], "one entry for all settings"
    assert "row, s at coefficient 0.5: 0.125" in describe(given, lanes(given, entries))
    assert "no record of job 'j_c'" in [reason for _, _, reason in table(lanes(given, entries))]


def test_both_stored_tables_are_read():
    none = {"value": None, "low": None, "high": None, "reason": "no hump is shown"}
    fit = {"sqrt_kl": [0, 1], "value": [0, 1], "low": None, "high": None, "peak_sqrt_kl": none}
    ends = {"value": [0.1, 0.2], "low": [0.0, 0.1], "high": [0.2, 0.3]}
    bon = read_curve(
        {"sqrt_kl": [0, 0.4], "proxy": ends, "gold": ends, "prompts": 9, "fits": {"best-of-n": fit}}
    )
    assert bon.gold[1] == Estimate(value=0.2, low=0.1, high=0.3, n=9) and bon.fit.value == (0, 1)
    look = {"sqrt_kl": 0.3, "proxy": 1.5, "gold": {"value": 0.7, "n": 4}}
    rl = read_curve({"looks": [look], "config": {"form": "rl"}, "fits": {"rl": None, "best-of-n": fit}})
    assert rl.sqrt_kl == (0.3,) and rl.proxy[0].value == 1.5 and rl.gold[0].n == 4 and rl.fit is None


DOSES = {f"addition/x{dose:g}": share(dose / 8, dose / 9, dose / 7) for dose in (4, 0.25, 1)}
RANDOM = {f"addition/x{dose:g}/random_largest": share(0.1, 0.1, 0.1) for dose in (4, 0.25, 1)}


def test_a_sweep_may_be_what_one_job_went_through(record, ledger):
    entries = ledger([record("j", "t", DOSES | RANDOM | {"addition_rate/x1": share(0.9, 0.8, 1.0)})])
    series = tuple(
        Series(label=metric, job_id="j", metric=metric, stage="s")
        for metric in ("addition", "addition/x*/random_largest")
    )
    given = FigureSpec(title="Doses", kind="sweep", axis="dose", series=series)
    one, two = lanes(given, entries)
    assert [mark.at for mark in one.marks] == [mark.at for mark in two.marks] == [0.25, 1, 4]
    assert [mark.estimate.value for mark in one.marks] == [0.25 / 8, 1 / 8, 0.5]
    svg = render(given, entries)
    assert svg.count(", dose ") == 6 and "no dose was measured" not in svg


@pytest.mark.parametrize(
    ("kind", "metric", "near"),
    [
        ("intervals", "additon/x*", r"'additon/x\*' \(did you mean 'addition/x\*'\?\); it has "),
        ("sweep", "additon", r"'additon/x\*' \(did you mean 'addition/x\*'\?\); it has "),
        ("lens", "kl", r"'kl/layer_\*'; it has "),
        ("graph", "exact", r"'exact/\*->\*' \(did you mean 'path/\*->\*'\?\); it has "),
    ],
)
def test_a_metric_that_no_record_gives_is_answered_with_those_that_there_are(
    record, ledger, kind, metric, near
):
    more = {f"path/m{i}->logits": share(0.5, 0.4, 0.6) for i in range(40)}
    entries = ledger([record("j", "t", DOSES | RANDOM | more)])
    given = FigureSpec(
        title="x", kind=kind, axis="dose", series=(Series(label="a", job_id="j", metric=metric, stage=""),)
    )
    (reason,) = [reason for _, _, reason in table(lanes(given, entries))]
    listed = r"addition/x\*, addition/x\*/random_largest, path/\*->\*$"
    assert re.search(f"^the record holds no metric {near}{listed}", reason), reason
    svg = render(given, entries)
    assert "it has" not in svg and ("table below says why" in svg) == (kind in ("sweep", "lens"))
