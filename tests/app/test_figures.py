"""Figures from Python: what is drawn follows from the names of the metrics, and every number is in it."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from calibrant.app.figures import figure, figure_data
from calibrant.core import Entry, Estimate, InputError, Record, Result, unknown
from calibrant.core.figure_data import Datum, FigureData
from calibrant.understand.patch import PatchResult


class SweepResult(Result):
    """Of a made-up sweep."""


def estimate(value):
    return Estimate(value=value, low=value - 0.1, high=value + 0.1, n=20, unit="pair")


CELLS = {
    f"{way}/layer_{i}/head_{j}": estimate(0.11 * i + 0.013 * j)
    for way in ("denoise", "noise") for i in (1, 2) for j in (0, 1)
}  # fmt: skip
LAYERS = {f"kl/layer_{i}": estimate(0.3 + i) for i in range(3)}
PLAIN = {"total_effect": estimate(4.2), "found": unknown("too few pairs")}


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_cells_are_a_matrix_with_a_panel_a_family():
    drawn = texts(figure(SweepResult(metrics=CELLS | PLAIN)).svg)
    assert {"layer 1", "layer 2", "head 0", "head 1", "denoise, sweep", "noise, sweep"} <= set(drawn)
    assert drawn.count("0.11") == 2 and drawn.count("0.23") == 2


def test_one_family_of_cells_can_be_chosen_and_called_something():
    drawn = texts(figure(SweepResult(metrics=CELLS), ["noise"], title="Taken away").svg)
    assert "Taken away" in drawn and drawn.count("0.11") == 1


def test_layers_are_a_curve_and_the_rest_has_intervals():
    assert "layer" in texts(figure(SweepResult(metrics=LAYERS | PLAIN)).svg)
    drawn = texts(
        figure(SweepResult(metrics=LAYERS | PLAIN), kind="intervals", metrics=["total_effect", "found"]).svg
    )
    assert {"total_effect", "found", "4.200"} <= set(drawn) and any("unknown" in text for text in drawn)


def test_records_and_entries_are_drawn_alike(tmp_path):
    record = Record(
        technique="understand.patch", version=1, job="", result="", status="finished", metrics=PLAIN
    )
    entry = Entry(seq=3, digest=record.digest, record=record)
    assert figure(record).svg == figure(entry).svg and "understand.patch" in figure(record).svg
    path = figure(record).save(tmp_path / "a.svg")
    assert path.read_text().startswith("<svg") and figure(record)._repr_html_() == path.read_text()


@pytest.mark.parametrize(
    ("metrics", "options", "words"),
    [
        ({}, {}, "there are no metrics"),
        (PLAIN, {"metrics": ["totl_effect"]}, r"'totl_effect' \(did you mean 'total_effect'"),
        (PLAIN, {"kind": "matrix"}, "no metric to draw as matrix"),
        (PLAIN, {"kind": "matrx"}, r"no kind 'matrx' \(did you mean 'matrix'"),
        (PLAIN, {"metrics": ["total_effect", "typo"]}, "no metric to draw as intervals: 'typo'"),
        (
            {f"x/layer_{i}/head_{j}": estimate(0.1) for i in range(30) for j in range(210)},
            {},
            "6300 cells are too many",
        ),
        (CELLS, {"kind": "matrix", "metrics": ["noises"]}, r"'noises' \(did you mean 'noise'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(metrics, options, words):
    with pytest.raises(InputError, match=words):
        figure(SweepResult(metrics=metrics), **options)


def test_what_is_left_out_is_counted_and_what_is_named_is_drawn():
    many = {f"m{i}": estimate(float(i)) for i in range(60)}
    assert "sweep (24 of 60)" in texts(figure(SweepResult(metrics=many)).svg)
    drawn = texts(figure(SweepResult(metrics=many), [f"m{i}" for i in range(30)]).svg)
    assert {"m0", "m29"} <= set(drawn) and "sweep" in drawn
    assert "m7" in texts(figure(SweepResult(metrics=many), "m7").svg)


def test_hostile_names_are_shown_as_they_are():
    hostile = {"<script>alert(1)</script>": estimate(1.0), "var(--evil)": estimate(2.0), "a&b": estimate(3.0)}
    svg = figure(SweepResult(metrics=hostile), title="var(--none) <b>").svg
    assert "<script" not in svg and "&lt;script&gt;" in svg
    ElementTree.fromstring(svg)


def test_only_svg_is_written_and_a_missing_folder_is_named(tmp_path):
    drawn = figure(SweepResult(metrics=PLAIN))
    with pytest.raises(InputError, match="is written as SVG"):
        drawn.save(tmp_path / "a.png")
    with pytest.raises(InputError, match="writing"):
        drawn.save(tmp_path / "none" / "a.svg")


def test_a_result_says_itself_what_there_is_to_draw():
    class Told(Result):
        def figure_data(self):
            value = Datum(label="kept", estimate=self.metrics["total_effect"], stage="the model")
            null = Datum(label="kept", estimate=self.metrics["found"], stage="random weights")
            return (FigureData(kind="intervals", values=(value, null), title="What is kept"),)

    drawn = texts(figure(Told(metrics=PLAIN)).svg)
    assert {"What is kept", "the model", "random weights", "4.200"} <= set(drawn)
    assert "total_effect" in texts(figure(Told(metrics=PLAIN), ["total_effect"]).svg)


EDGES = {
    f"removal/{name}": estimate(value)
    for name, value in {"input->a0.h1<v>": 1.0, "a0.h1->a1.h2<k>": 0.9, "a1.h2->logits": -0.4}.items()
}


def test_a_record_is_drawn_as_the_result_of_its_technique():
    """The figures of every technique of the wing, from metrics alone."""
    record = Record(
        technique="understand.circuit", version=1, job="", result="", status="finished",
        metrics={"kept/0.02": estimate(3.0), "faithfulness/0.02": estimate(0.99)} | EDGES,
    )  # fmt: skip
    drawn = texts(figure(record).svg)
    assert {"input", "a0.h1", "a1.h2", "logits", "q", "k", "v", "\N{MINUS SIGN}0.400"} <= set(drawn)
    sizes = texts(figure(record, kind="intervals").svg)
    assert {"2 %: 3 edges", "the circuit"} <= set(sizes)
    unknown_technique = record.model_copy(update={"technique": "elsewhere.plug_in"})
    assert "faithfulness/0.02" in texts(figure(unknown_technique).svg)


@pytest.mark.parametrize(
    ("technique", "metrics", "shown"),
    [
        ("understand.lens", {f"{one}/layer_{i}": estimate(0.5) for one in ("top1_agreement", "kl_to_final")
                             for i in (0, 1)}, {"the last layer's first choice", "layer"}),
        ("understand.tuned_lens", {f"{one}/kl_to_final/layer_{i}": estimate(0.5) for one in
                                   ("tuned", "plain", "control") for i in (0, 1)},
         {"tuned lens", "logit lens", "control"}),
        ("understand.probe", {f"auroc/{one}": estimate(0.7) for one in
                              ("layer_0", "layer_1", "text", "random_model")},
         {"the probe", "shuffled weights", "text alone"}),
        ("understand.sae", {name: estimate(0.7) for name in
                            ("explained_variance", "random/explained_variance")},
         {"explained variance", "the model", "random weights"}),
        ("understand.edges", {"exact/denoise/m0->logits": estimate(0.7), "path/m0->logits": estimate(0.6)},
         {"m0", "logits", "0.700"}),
        ("understand.patch", CELLS, {"denoise, understand.patch", "head 1"}),
        ("understand.attribute", CELLS | {"exact/denoise/layer_1/head_0": estimate(0.4)}, {"head 1"}),
        ("understand.triangulate", {"effect/denoise": estimate(0.9), "p_null/denoise": estimate(0.1)},
         {"The claim, instrument by instrument", "denoise"}),
    ],
)  # fmt: skip
def test_each_technique_shows_its_null_beside_it(technique, metrics, shown):
    record = Record(technique=technique, version=1, job="", result="", status="finished", metrics=metrics)
    assert shown <= set(texts(figure(record).svg))
    for data in figure_data(record):
        assert data.values


def test_the_strongest_cells_two_at_a_time_are_a_matrix():
    name = "interaction/denoise/layer_0/head_1+layer_1/head_2"
    result = PatchResult(metrics=CELLS | {name: estimate(-0.5)})
    (data,) = [one for one in result.figure_data() if one.axis == "cell"]
    assert [(one.row, one.column) for one in data.values] == [
        ("layer 0, head 1", "layer 1, head 2"), ("layer 1, head 2", "layer 0, head 1"),
    ]  # fmt: skip


def test_many_cells_have_a_colour_and_no_number(monkeypatch):
    monkeypatch.setattr("calibrant.views.matrix.MANY", 7)
    svg = figure(SweepResult(metrics=CELLS)).svg
    assert "0.11" not in texts(svg)
    assert "a dash: below 0; a slash: unknown" in texts(svg)
    assert svg.count("<title>") == 8
