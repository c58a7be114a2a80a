"""Matrices: the right rate in each cell, colour that can be read, and no colour for what is unknown."""

from __future__ import annotations

import itertools
import re
from importlib.resources import files

import pytest

from calibrant.core import Estimate, unknown
from calibrant.core.figure_data import ROLES
from calibrant.core.record import Failure
from calibrant.views.figures import FigureSpec, Lane, Mark, Series, describe, legend, stages, table, tip
from calibrant.views.matrix import heat
from calibrant.views.page import StudyView, page
from calibrant.views.plots import draw
from calibrant.views.series import TOGETHER, lanes

ASR = "attack_success_rate"


def share(value, low=0.0, high=1.0, **more) -> Estimate:
    return Estimate.model_validate(
        {"value": value, "low": low, "high": high, "n": 20, "unit": "goal", "better": "lower"} | more
    )


def campaign(**cells) -> dict[str, Estimate]:
    """Two hazards by two families; a cell of 'privacy' by 'persona' is given as privacy_persona."""
    found = {
        ASR: share(0.9),
        f"{ASR}/pair": share(0.7),
        f"{ASR}/privacy": share(0.8),
        f"{ASR}/bias": share(0.6),
    }
    for family in ("persona", "LM-made"):
        for hazard in ("all", "bias", "privacy"):
            given = cells.get(f"{hazard}_{family.replace('-', '')}", share(0.3, 0.2, 0.4))
            found[f"{ASR}/{hazard}/{family}"] = given
    return found


def spec(*jobs: str, metric: str = ASR) -> FigureSpec:
    series = tuple(Series(label="success", job_id=job, metric=metric, stage=f"of {job}") for job in jobs)
    return FigureSpec(title="A matrix", kind="matrix", series=series)


def render(given: FigureSpec, entries, *, narrow=False) -> str:
    found = lanes(given, entries)
    return str(draw(given, found, stages([given]), "f0", describe(given, found), narrow=narrow))


def boxes(svg: str) -> list[str]:
    """Colours of the cells, row by row, and the six of the key."""
    return re.findall(r'style="fill: var\(--(h\d)\)"', svg)


def test_rows_are_hazards_and_columns_techniques(record, ledger):
    entries = ledger([record("j", "attack.campaign", campaign(privacy_persona=share(0.5, 0.31, 0.69)))])
    found = lanes(spec("j"), entries)
    assert [lane.label for lane in found] == ["all hazards", "bias", "privacy"]
    columns = [[mark.column for mark in lane.marks] for lane in found]
    assert columns == [["persona", "LM-made", TOGETHER]] * 3
    assert [[mark.estimate.value for mark in lane.marks] for lane in found] == [
        [0.3, 0.3, 0.9],
        [0.3, 0.3, 0.6],
        [0.5, 0.3, 0.8],
    ]
    assert legend(spec("j"), ("of j",)) == [], "the key is in the drawing"
    assert "privacy, of j: 0.300–0.800" in describe(spec("j"), found)


@pytest.mark.parametrize("narrow", [False, True])
def test_a_cell_says_its_number_and_leads_to_its_record(record, ledger, narrow):
    entries = ledger([record("j", "attack.campaign", campaign(privacy_persona=share(0.5, 0.31, 0.69)))])
    svg = render(spec("j"), entries, narrow=narrow)
    assert ">0.50</text>" in svg and ">[.31, .69]</text>" in svg
    assert "privacy, of j, technique persona, seed 0: 0.500 [0.310, 0.690] n = 20" in svg
    assert svg.count(f'href="#r-{entries[0].digest[:12]}"') == 9
    assert boxes(svg) == ["h3", "h3", "h5", "h3", "h3", "h4", "h4", "h3", "h5", *(f"h{i}" for i in range(6))]
    assert all(f">{name}</text>" in svg for name in ("persona", "LM-made", "together", "20 goals"))
    assert "url(#" not in svg and not re.search(r"#010", svg)


def test_what_is_unknown_is_hatched_and_named_and_has_no_colour(record, ledger):
    lost = unknown("no goal was attacked", n=20, unit="goal")
    metrics = campaign(privacy_persona=lost)
    del metrics[f"{ASR}/bias/LM-made"]
    entries = ledger([record("j", "attack.campaign", metrics)])
    svg = render(spec("j"), entries)
    assert len(boxes(svg)) == 7 + 6 and svg.count(">unknown</text>") == 2
    assert "technique persona, seed 0: unknown: no goal was attacked" in svg
    reasons = [reason for _, _, reason in table(lanes(spec("j"), entries)) if reason]
    assert reasons == [f"the record holds no metric '{ASR}/bias/LM-made'", "no goal was attacked"]


def _hatched(svg: str) -> list[float]:
    """Widths of the hatched places, the one in the key left out."""
    edges = re.findall(r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^"]*" style="fill: var\(--paper\)"', svg)
    return [float(right) - float(left) for left, right in edges][:-1]


def test_the_foot_of_a_cell_shows_the_share_without_an_outcome(record, ledger):
    entries = ledger([record("j", "attack.campaign", campaign(privacy_persona=share(0.5, missing=5)))])
    svg = render(spec("j"), entries)
    assert _hatched(svg) == [pytest.approx(0.25 * 115)]
    assert "n = 20, 5 of them missing" in svg
    assert _hatched(render(spec("j"), ledger([record("j", "t", campaign())]))) == []


def test_over_seeds_a_cell_spans_all_and_its_worse_end_gives_the_colour(record, ledger):
    entries = ledger(
        [
            record("j", "t", campaign(all_persona=share(v, v - 0.02, v + 0.03)), seed=s)
            for s, v in enumerate((0.02, 0.11))
        ]
    )
    svg = render(spec("j"), entries)
    assert ">.02–.11</text>" in svg and ">[0, .14]</text>" in svg and boxes(svg)[0] == "h2"
    assert f"r-{entries[0].digest[:12]}" not in svg and 'href="#f0-numbers"' in svg
    higher = campaign(all_persona=share(0.02, better="higher"))
    both = ledger(
        [record("j", "t", higher), record("j", "t", {**higher, f"{ASR}/all/persona": share(0.9)}, seed=1)]
    )
    assert boxes(render(spec("j"), both))[0] == "h0"


def test_stages_stand_below_each_other_and_the_missing_ones_say_why(record, ledger):
    failure = Failure(type="BudgetError", message="queries spent")
    entries = ledger(
        [
            record("a", "t", campaign()),
            record("b", "t", {}, status="failed", failure=failure),
            record("c", "t", {}),
        ]
    )
    svg = render(spec("a", "b", "c", "d"), entries)
    for said in ("success, of a", "success, of d", "unknown: the job failed: queries spent", "no record"):
        assert f">{said}</text>" in svg
    assert f"unknown: the record holds no metric '{ASR}/*/*'" in svg
    assert len(boxes(svg)) == 9 + 6
    assert "not measured" in svg


def test_one_technique_needs_no_column_for_all_of_them(record, ledger):
    metrics = {
        ASR: share(0.2),
        f"{ASR}/all/persona": share(0.2),
        f"{ASR}/Fraud/Deception/persona": share(0.3),
    }
    found = lanes(spec("j"), ledger([record("j", "t", metrics)]))
    assert [lane.label for lane in found] == ["all hazards", "Fraud/Deception"]
    assert [mark.column for lane in found for mark in lane.marks] == ["persona"] * 2


@pytest.mark.parametrize("narrow", [False, True])
def test_many_techniques_stand_in_blocks_that_fit(record, ledger, narrow):
    families = [f"family {i}" for i in range(11)]
    metrics = {ASR: share(0.5)} | {f"{ASR}/{h}/{f}": share(0.5) for f in families for h in ("all", "bias")}
    svg = render(spec("j"), ledger([record("j", "t", metrics)]), narrow=narrow)
    assert len(boxes(svg)) == 23 + 6, "the rate of 'bias' by all together is not in the record"
    width = 350 if narrow else 800
    assert max(float(x) for x in re.findall(r"[ML] ([\d.]+) ", svg)) <= width


def test_colours_go_with_the_value():
    assert [heat(v) for v in (0, 0.049, 0.05, 0.1, 0.2, 0.4, 0.8, 1)] == [0, 0, 1, 2, 3, 4, 5, 5]
    assert heat(-0.5) == heat(0.5) == 4  # what works against the answer is as strong as what carries it


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_numbers_can_be_read_on_every_colour_and_colours_go_one_way():
    """Contrast of 4.5 at least (WCAG 2.2, 1.4.3) in light, dark and print; lightness alone orders them."""
    text = (files("calibrant.views") / "page.html.j2").read_text(encoding="utf-8")
    palettes = [
        dict(re.findall(r"--([\w-]+):(#\w+)", part)) for part in re.findall(r":root\{([^}]*)\}", text)
    ]
    assert len(palettes) == 3
    for palette in palettes:
        full = {k: v if len(v) == 7 else "#" + "".join(2 * c for c in v[1:]) for k, v in palette.items()}
        light = {k: _luminance(v) for k, v in full.items()}
        for index in range(6):
            above, below = sorted((light[f"h{index}"], light["ink" if index < 4 else "paper"]), reverse=True)
            assert (above + 0.05) / (below + 0.05) >= 4.5, (index, full)
        ramp = [light["paper"], *(light[f"h{index}"] for index in range(6))]
        assert ramp in (sorted(ramp), sorted(ramp, reverse=True))


def test_a_page_holds_every_number_and_lets_nothing_hostile_through(record, ledger):
    evil = '"><script>alert(1)</script>$\\frac{ #010a01 \u202e'
    metrics = {f"{ASR}/{h}/{f}": share(0.123) for h in ("all", evil) for f in (evil, "persona")} | {
        ASR: share(0.5)
    }
    entries = ledger([record("j", "t", metrics)])
    given = spec("j").model_copy(update={"title": evil, "caption": evil})
    html = page(StudyView(name="s", title="t", entries=entries, figures=(given, spec("none"))))
    assert "<script" not in html and "&lt;script&gt;" in html
    rows = html[html.index('id="f0-numbers"') : html.index('id="f1-numbers"')]
    link = f'<a class="n" href="#r-{entries[0].digest[:12]}">0.123</a>'
    assert rows.count(link) == 4 and ">technique</th>" in rows and "<td>persona</td>" in rows
    assert "no record of job" in html


def test_layers_stand_in_the_order_of_their_numbers(record, ledger):
    """A ledger keeps metrics by the alphabet: layer 10 comes before layer 2 there."""
    names = [f"denoise/layer_{layer}/head_{head}" for layer in range(12) for head in range(11)]
    entries = ledger([record("j", "understand.patch", {name: share(0.1) for name in sorted(names)})])
    given = spec("j", metric="denoise").model_copy(update={"axis": "head"})
    found = lanes(given, entries)
    assert [lane.label for lane in found] == [f"layer {layer}" for layer in range(12)]
    assert [mark.column for mark in found[0].marks] == [f"head {head}" for head in range(11)]


def test_places_of_a_prompt_stand_in_its_order(record, ledger):
    """Not by the alphabet, in which what comes after the subject comes first."""
    names = [f"probability/layer_{layer}/{place}" for layer in (0, 1) for place in sorted(ROLES)]
    entries = ledger([record("j", "understand.causal_trace", {name: share(0.1) for name in names})])
    found = lanes(spec("j", metric="probability").model_copy(update={"axis": "place"}), entries)
    assert [lane.label for lane in found] == ["layer 0", "layer 1"]
    places = ["subject first", "subject middle", "subject last", "after first", "after further", "last"]
    assert [mark.column for mark in found[1].marks] == places


def test_a_patch_sweep_is_a_matrix_of_layers_by_heads(record, ledger):
    metrics = {"total_effect": share(3.0, 2.0, 4.0), "found/denoise": share(1.0)}
    for layer, head in itertools.product((0, 1), (0, 1, 2)):
        value = 0.9 if (layer, head) == (1, 2) else -0.01
        metrics[f"denoise/layer_{layer}/head_{head}"] = share(value, -0.05, 1.05, unit="pair")
        metrics[f"interaction/denoise/layer_{layer}/head_{head}"] = share(0.5)
    given = spec("j", metric="denoise").model_copy(update={"axis": "head"})
    entries = ledger([record("j", "understand.patch", metrics)])
    found = lanes(given, entries)
    assert [lane.label for lane in found] == ["layer 0", "layer 1"]
    assert [[mark.column for mark in lane.marks] for lane in found] == [["head 0", "head 1", "head 2"]] * 2
    nested = lanes(spec("j", metric="interaction/denoise"), entries)
    assert [[mark.estimate.value for mark in lane.marks] for lane in nested] == [[0.5] * 3] * 2
    svg = render(given, entries)
    assert boxes(svg)[:6] == ["h0"] * 5 + ["h5"] and "20 pairs" in svg
    assert "share of units is unknown" in svg and "goals" not in svg and "technique" not in svg


def test_a_hover_names_a_head_once_and_no_empty_stage():
    series = Series(label="denoise", job_id="j", metric="denoise", stage="")
    mark = Mark(0, "", share(0.602), column="head 0")
    assert tip(Lane(series, (), name="layer 0"), mark, "head").startswith("layer 0, head 0, seed 0: 0.602")
    assert tip(Lane(series, (), name="layer 0"), mark._replace(column="pair"), "technique").startswith(
        "layer 0, technique pair, seed 0"
    )
