"""Figures from Python: what is drawn follows from the names of the metrics, and every number is in it."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from calibrant.app.figures import figure
from calibrant.core import Entry, Estimate, InputError, Record, Result, unknown


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
            {f"x/layer_{i}/head_{j}": estimate(0.1) for i in range(30) for j in range(30)},
            {},
            "900 cells are too many",
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
