"""Success against queries: the steps that were stored, marked and named, as far as they were watched."""

from __future__ import annotations

import re

import pytest

from calibrant.core import Estimate
from calibrant.views.curves import Budget, Steps, read_budget
from calibrant.views.figures import FigureSpec, Series, describe, legend, stages, table
from calibrant.views.page import StudyView, page
from calibrant.views.plots import draw
from calibrant.views.scales import Scale, rounds
from calibrant.views.series import lanes


def steps(costs, value, width=0.1, after=()) -> Steps:
    low, high = ([min(1.0, max(0.0, v + d)) for v in value] for d in (-width, width))
    return Steps(costs=tuple(costs), value=tuple(value), low=tuple(low), high=tuple(high), after=tuple(after))


def spec(*series: tuple[str, str, str], threshold: float | None = None) -> FigureSpec:
    rows = tuple(
        Series(label="success", job_id=job, metric=metric, stage=stage) for job, metric, stage in series
    )
    return FigureSpec(title="What it costs", kind="budget", series=rows, threshold=threshold)


ALL = spec(("j", "attack_success_rate", "after"))


def render(given: FigureSpec, entries, curves, *, narrow=False) -> str:
    found = lanes(given, entries, curves)
    return str(draw(given, found, stages([given]), "f0", describe(given, found), narrow=narrow))


def test_a_campaign_s_curves_are_read_and_looked_up():
    column = {"costs": [1.0, 3.0], "value": [0.2, 0.5], "low": [0.1, 0.4], "high": [0.3, 0.6]}
    nothing = {name: [] for name in column}
    found = read_budget({"pair": column, "quiet": nothing, "tap": {**column, "after": [0.35, 0.65]}})
    assert list(found.attacks) == ["pair", "tap"]
    between = found.attacks["pair"].at(2.0)
    assert (between.value, between.low, between.high) == (0.2, 0.1, 0.3)
    tap = found.attacks["tap"]
    assert [tap.at(budget).high for budget in (1.0, 2.0, 3.0)] == [0.3, 0.35, 0.6]


def test_marks_stand_at_round_numbers_and_where_a_curve_ends(record, ledger):
    entries = ledger([record("j", "attack.campaign", {})])
    curves = {entries[0].digest: Budget(attacks={"pair": steps((1, 4, 18), (0.2, 0.5, 0.9))})}
    (lane,) = lanes(ALL, entries, curves)
    assert [(m.at, m.estimate.value) for m in lane.marks] == [
        (1, 0.2),
        (2, 0.2),
        (5, 0.5),
        (10, 0.5),
        (18, 0.9),
    ]
    assert "pair, after: 0.900 within 18 queries" in describe(ALL, [lane])
    assert legend(ALL, ("after",)) == [], "lines are named where they end"
    svg = render(ALL, entries, curves)
    assert svg.count(f'href="#r-{entries[0].digest[:12]}"') == 5
    assert "pair, after, queries 10, seed 0: 0.500 [0.400, 0.600]" in svg and ">pair 0.90</text>" in svg


def _path(svg: str, colour: str) -> list[tuple[float, float]]:
    """Corners of the first line in a colour."""
    path = re.search(rf'<path d="([^"]*)" style="fill: none; stroke: var\(--{colour}\)', svg).group(1)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]


def test_a_line_goes_by_steps_from_nothing_to_its_last_query(record, ledger):
    entries = ledger([record("j", "t", {})])
    curves = {entries[0].digest: Budget(attacks={"pair": steps((2, 4, 8), (0.25, 0.5, 1.0))})}
    x, y = Scale(0, 8, 46, 650), Scale(0, 1, 306, 16)
    wanted = [(0, 0), (2, 0), (2, 0.25), (4, 0.25), (4, 0.5), (8, 0.5), (8, 1)]
    drawn = _path(render(ALL, entries, curves), "s0")
    assert drawn == [pytest.approx((x(a), y(b)), abs=0.01) for a, b in wanted]


@pytest.mark.parametrize(("last", "log"), [(30, False), (31, True), (5000, True)])
def test_costs_that_spread_far_stand_on_a_logarithmic_axis(record, ledger, last, log):
    entries = ledger([record("j", "t", {})])
    curves = {entries[0].digest: Budget(attacks={"pair": steps((1, last), (0.25, 0.5))})}
    svg = render(ALL, entries, curves)
    assert ("logarithmic" in svg) == log
    assert _path(svg, "s0")[0][0] == 46 and max(x for x, _ in _path(svg, "s0")) == pytest.approx(650)


def test_equal_factors_are_equally_far_apart():
    scale = Scale(1, 100, 0, 200, log=True)
    assert (scale(1), scale(10), scale(100)) == (0, pytest.approx(100), 200) and scale(0) == 0
    assert scale.ticks() == [1, 2, 5, 10, 20, 50, 100]
    assert Scale(1, 5000, 0, 1, log=True).ticks() == [1, 10, 100, 1000]
    assert rounds(3, 60) == [5, 10, 20, 50] and rounds(0, 2) == [1, 2] and rounds(0, 0) == []


@pytest.mark.parametrize("narrow", [False, True])
def test_at_most_six_lines_and_the_rest_is_said(record, ledger, narrow):
    entries = ledger([record("j", "t", {})])
    attacks = {f"attack {i}": steps((1, 20), (0.1, 0.2 + i / 1000)) for i in range(9)}
    svg = render(ALL, entries, {entries[0].digest: Budget(attacks=attacks)}, narrow=narrow)
    names = re.findall(r">(attack \d) 0\.2[01]</text>", svg)
    assert sorted(names) == [f"attack {i}" for i in range(3, 9)], "those that came farthest"
    assert ">3 more attacks in the table</text>" in svg
    places = [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>attack \d 0', svg)]
    gaps = [b - a for a, b in zip(sorted(places), sorted(places)[1:], strict=False)]
    assert len(gaps) == 5 and min(gaps) > 10, "names do not cover each other"
    assert "stroke-dasharray" in svg, "a colour that comes again is dashed"


def test_stages_share_a_colour_and_differ_in_dashes(record, ledger):
    entries = ledger([record(job, "t", {}) for job in ("a", "b")])
    curves = {
        e.digest: Budget(attacks={n: steps((1, 9), (0.1, 0.4)) for n in ("pair", "tap")}) for e in entries
    }
    given = spec(
        ("a", "attack_success_rate/pair", "before"), ("b", "attack_success_rate/pair", "after"), threshold=0.3
    )
    found = lanes(given, entries, curves)
    assert [(lane.label, lane.series.stage) for lane in found] == [("pair", "before"), ("pair", "after")]
    svg = render(given, entries, curves)
    assert ">pair, before 0.40</text>" in svg and ">pair, after 0.40</text>" in svg and "threshold 0.3" in svg
    assert "var(--s1)" not in svg and re.search(r"stroke-dasharray[^\"]*var\(--s0\)", svg)


def test_what_is_missing_is_said(record, ledger):
    entries = ledger([record("j", "t", {"attack_success_rate": Estimate(value=0.5)}), record("k", "t", {})])
    curves = {entries[1].digest: Budget(attacks={"pair": steps((1,), (0.5,))})}
    given = spec(
        ("j", "attack_success_rate", "a"),
        ("k", "attack_success_rate/tap", "b"),
        ("none", "attack_success_rate", "c"),
    )
    reasons = [reason for _, _, reason in table(lanes(given, entries, curves))]
    assert reasons == [
        "the record stores no curve of success against queries",
        "the record stores no curve of success against queries of tap",
        "no record of job 'none'",
    ]
    svg = render(given, entries, curves)
    for said in ("success, a: unknown", "tap, b: unknown", "success, c: no record"):
        assert f">{said}</text>" in svg


def test_several_records_are_lines_of_their_own(record, ledger):
    entries = ledger([record("j", "t", {}, seed=s) for s in range(2)])
    curves = {
        e.digest: Budget(attacks={"pair": steps((1, last), (0.1, end))})
        for e, last, end in zip(entries, (9, 12), (0.4, 0.6), strict=True)
    }
    (lane,) = lanes(ALL, entries, curves)
    assert len(lane.steps) == 2 and "pair, after: 0.400–0.600 within 9–12 queries" in describe(ALL, [lane])
    assert ">pair 0.40–0.60</text>" in render(ALL, entries, curves)


def test_hostile_names_stay_text_and_the_table_holds_every_mark(record, ledger):
    evil = '"><script>alert(1)</script>$\\frac{'
    entries = ledger([record("j", "t", {})])
    curves = {
        entries[0].digest: Budget(attacks={evil: steps((1, 4), (0.125, 0.5)), "pair": steps((1,), (0.25,))})
    }
    study = StudyView(name="s", title="t", entries=entries, figures=(ALL,), curves=curves)
    html = page(study)
    assert "<script" not in html and "&lt;script&gt;" in html
    rows = html[html.index('id="f0-numbers"') : html.index('id="gates"')]
    assert rows.count(f'href="#r-{entries[0].digest[:12]}">0.125<') == 2 and ">queries</th>" in rows
    assert page(StudyView.model_validate_json(study.model_dump_json())) == html
