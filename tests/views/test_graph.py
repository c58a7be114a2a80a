"""Graphs of edges: what is read first stands above, and every number is there without colour."""

from __future__ import annotations

import random
import re
from xml.etree import ElementTree

import pytest

from calibrant.core import Estimate, unknown
from calibrant.core.figure_data import Datum, FigureData
from calibrant.views.drawn import drawn_data
from calibrant.views.figures import FigureSpec, Series
from calibrant.views.graph import MOST, rank
from calibrant.views.series import lanes


def data(edges, **others):
    values = [Datum(label="patched", estimate=one, column=name) for name, one in edges.items()]
    for label, more in others.items():
        values += [Datum(label=label, estimate=one, column=name) for name, one in more.items()]
    return FigureData(kind="graph", values=tuple(values), title="Edges")


def estimate(value):
    return Estimate(value=value, low=value - 0.1, high=value + 0.1, n=20, unit="pair")


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


PLAIN = {"input->a0.h1<v>": estimate(0.9), "a0.h1->m0": estimate(-0.3), "m0->logits": estimate(0.2)}


def test_parts_stand_in_the_order_in_which_they_run():
    names = ["logits", "m0", "a1.h0", "input", "a0.h2", "a0.h1", "m1"]
    assert sorted(names, key=rank) == ["input", "a0.h1", "a0.h2", "m0", "a1.h0", "m1", "logits"]


@pytest.mark.parametrize("narrow", [False, True])
def test_every_edge_has_its_number_and_negative_ones_are_dashed(narrow):
    drawn = drawn_data(data(PLAIN, gradient={"m0->logits": estimate(0.5)}), "t", "f0")
    svg = str(drawn.narrow if narrow else drawn.wide)
    ElementTree.fromstring(svg)
    shown = texts(svg)
    assert {"input", "a0.h1", "m0", "logits", "0.900", "\N{MINUS SIGN}0.300", "0.200"} <= set(shown)
    assert {"q", "k", "v"} <= set(shown)
    assert "0.500" not in shown
    assert "gradient" in svg  # told when the edge is pointed at
    assert svg.count("stroke-dasharray") == 2  # the edge against the answer, and the key
    assert len(drawn.rows) == 4


def test_only_the_strongest_are_drawn_and_the_rest_is_counted():
    rng = random.Random(0)
    many = {f"a0.h{i}->a{1 + i % 3}.h{i}<q>": estimate(rng.uniform(0.1, 1)) for i in range(MOST + 7)}
    svg = str(drawn_data(data(many), "t", "f0").wide)
    assert "7 weaker edges not drawn" in svg
    weakest = min(many, key=lambda name: many[name].value)
    assert weakest.partition("->")[0] not in texts(svg)


def test_what_is_unknown_is_said():
    svg = str(drawn_data(data({"m0->logits": unknown("not testable: nothing changes")}), "t", "f0").wide)
    assert "unknown: not testable: nothing changes" in texts(svg)


def test_a_study_can_ask_for_one(record, ledger):
    metrics = {f"removal/{name}": one for name, one in PLAIN.items()} | {"cpr": estimate(0.5)}
    entries = ledger([record("j", "understand.circuit", metrics)])
    series = Series(label="lost", job_id="j", metric="removal", stage="without it")
    (lane,) = lanes(FigureSpec(title="Edges", kind="graph", series=(series,)), entries)
    assert [mark.column for mark in lane.marks] == list(PLAIN)
    other = series.model_copy(update={"metric": "exact/denoise"})
    (lane,) = lanes(FigureSpec(title="Edges", kind="graph", series=(other,)), entries)
    assert "holds no metric 'exact/denoise/*->*'" in lane.marks[0].estimate.reason
