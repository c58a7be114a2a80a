"""The monitor: planted drift raises one alarm where it is, a null none, and bad input is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError

from calibrant.core import ConfigError, InputError, Quiet, resolve
from calibrant.core.estimate import impossible
from calibrant.data.audits import AuditLine, Audits
from calibrant.data.incidents import Incident
from calibrant.data.rows import Refused
from calibrant.defend.monitor import Monitor, monitor


def line(n, outcome="answered", said=("yes",), layer="words", judged=None, at=True):
    return AuditLine(
        id=f"id{n}", line=n + 2, at=1.8e9 + n if at else None, outcome=outcome,
        released=outcome == "answered", said={layer: said} if said else {}, judged=judged,
    )  # fmt: skip


def traffic(rates, seed=0, layers=("words",), **more):
    """A layer that says no at a rate for so many requests each: ((.05, 1000), (.3, 500))."""
    way = np.random.default_rng(seed)
    rows = []
    for rate, count in rates:
        for _ in range(count):
            no = way.random() < rate
            rows.append(line(len(rows), "blocked_input" if no else "answered", ("no",) if no else ("yes",)))
    return Audits(rows=tuple(rows), source="made", layers=layers, **more)


def value(result, name):
    return result.metrics[name].value


def test_a_planted_drift_is_found_where_it_is(tmp_path):
    run = Quiet(work=tmp_path)
    result = monitor(traffic(((0.05, 2500), (0.25, 600))), Monitor(baseline=1500), run)
    assert value(result, "alarm/block_rate/words") == 1
    assert 2500 < value(result, "alarm_line/block_rate/words") < 2800
    assert value(result, "delay/block_rate/words") < 250
    assert value(result, "alarm/unread_rate/words") == 0
    assert value(result, "alarm/failed_rate") == 0
    assert value(result, "reference_rate/block_rate/words") == pytest.approx(0.05, abs=0.02)
    rung = {name.removeprefix("alarm/") for name in result.metrics if name.startswith("alarm/")
            if value(result, name) == 1}  # fmt: skip
    assert rung == {"block_rate/words", "blocked_rate", "blocked_input_rate", "released_rate"}
    assert value(result, "alarms") == len(rung)
    stored = (tmp_path / "artifacts" / "incidents.jsonl").read_text().splitlines()
    assert [Incident.model_validate_json(one) for one in stored] == list(result.incidents)
    found = next(one for one in result.incidents if one.facts["rate"] == "block_rate/words")
    assert found.evidence == {
        "source": "made",
        "line": value(result, "alarm_line/block_rate/words"),
        "line_id": f"id{found.evidence['line'] - 2}",
    }
    assert found.opened_at.startswith("2027-01-15T08:") and found.opened_at.endswith("Z")
    assert abs(found.facts["since_line"] - 2500) < 120


def test_a_null_raises_none():
    """40 streams, drift nowhere: by chance more than 6 ring once in 100 times where one in 20 does."""
    alarms = [
        value(monitor(traffic(((0.1, 1200),), seed), Monitor(baseline=400)), "alarms") for seed in range(40)
    ]
    assert sum(one > 0 for one in alarms) <= 6


def test_a_declared_reference_needs_no_baseline_and_holds_what_it_says():
    seen = traffic(((0.2, 300),))
    config = Monitor(reference={"block_rate/words": 0.05}, rates=("block_rate/words",))
    result = monitor(seen, config)
    assert value(result, "alarm/block_rate/words") == 1
    assert value(result, "alarm_line/block_rate/words") < 150
    assert value(monitor(seen, Monitor(reference={"block_rate/words": 0.2})), "alarm/block_rate/words") == 0
    down = Monitor(reference={"block_rate/words": 0.05}, direction="down")
    assert value(monitor(seen, down), "alarm/block_rate/words") == 0


def test_more_rates_need_more_evidence():
    seen = traffic(((0.05, 900),))
    alone = monitor(seen, Monitor(rates=("blocked_rate",), baseline=500)).metrics["e_value/blocked_rate"]
    every = monitor(seen, Monitor(baseline=500)).metrics["e_value/blocked_rate"]
    assert "from 40 on" in alone.reason  # 2 / .05
    assert "from 280 on" in every.reason  # 7 rates are watched


def test_the_alarm_stands_when_the_stream_goes_on():
    short = traffic(((0.05, 1500), (0.3, 300)))
    longer = short.model_copy(update={"rows": (*short.rows, *(line(1800 + n) for n in range(3000)))})
    config = Monitor(rates=("block_rate/words",))
    first, later = monitor(short, config), monitor(longer, config)
    assert [one.id for one in first.incidents] == [one.id for one in later.incidents] != []
    assert first.incidents == later.incidents


def test_order_of_rates_and_repeats_change_nothing():
    seen = traffic(((0.05, 1200), (0.2, 300)), layers=("words", "words"))
    names = ("block_rate/words", "failed_rate")
    one = monitor(seen, Monitor(rates=names))
    other = monitor(seen, Monitor(rates=(*names[::-1], names[0])))
    assert dict(one.metrics) == dict(other.metrics)


def test_a_layer_that_fails_is_seen_apart_from_its_blocks():
    rows = [line(n) for n in range(1200)] + [line(1200 + n, "error", ("failed",)) for n in range(60)]
    result = monitor(Audits(rows=tuple(rows), layers=("words",)))
    assert value(result, "alarm/unread_rate/words") == 1
    assert value(result, "alarm/failed_rate") == 1
    assert value(result, "alarm/block_rate/words") == 0
    assert value(result, "unread_rate/words") == pytest.approx(0.3)


def test_attempts_of_a_judge():
    way = np.random.default_rng(2)
    rows = [
        line(
            n,
            judged=str(way.choice(["yes", "no"], p=[p, 1 - p])) if way.random() < 0.9 else "unknown",
            at=False,
        )
        for n, p in enumerate([0.1] * 1500 + [0.5] * 200)
    ]
    result = monitor(Audits(rows=tuple(rows), layers=("words",)))
    assert value(result, "alarm/judged_rate") == 1
    assert value(result, "alarm/unjudged_rate") == 0
    assert "blocked_input_rate" not in result.metrics
    assert result.incidents[0].opened_at == ""
    assert any("unjudged_rate" in one for one in result.caveats)


def test_a_layer_is_counted_where_it_was_asked():
    rows = [line(n, said=("no", "yes") if n % 2 else ()) for n in range(100)]
    result = monitor(Audits(rows=tuple(rows), layers=("words", "never")), Monitor(baseline=10))
    assert result.metrics["block_rate/words"].n == 50
    assert value(result, "block_rate/words") == 1
    assert not any("never" in name for name in result.metrics)


def test_requests_that_reached_nothing_are_in_no_rate():
    rows = [line(n, "refused" if n % 2 else "answered", said=("yes",)) for n in range(100)]
    result = monitor(Audits(rows=tuple(rows), layers=()), Monitor(baseline=10))
    assert result.metrics["released_rate"].n == 50
    with pytest.raises(InputError, match="reached the system"):
        monitor(Audits(rows=(line(0, "client_left"),)))


def test_too_short_a_stream_is_unknown_and_said():
    result = monitor(traffic(((0.1, 50),)))
    assert result.metrics["alarm/blocked_rate"].value is None
    assert "baseline" in result.metrics["alarm/blocked_rate"].reason
    assert result.metrics["alarms"].value is None
    assert any("for want of a baseline" in one for one in result.caveats)
    assert result.incidents == ()


def test_a_baseline_of_zeros_still_finds_a_rise():
    result = monitor(traffic(((0.0, 1200), (0.1, 200))), Monitor(rates=("block_rate/words",)))
    assert value(result, "alarm/block_rate/words") == 1
    down = Monitor(rates=("block_rate/words",), direction="down")
    assert "leaves no rate" in monitor(traffic(((0.0, 1200),)), down).metrics["alarm/block_rate/words"].reason


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"rates": ("block_rate/wrods",)}, "did you mean 'block_rate/words'"),
        ({"reference": {"nothing": 0.1}}, "no 'nothing'"),
        ({"rates": ("failed_rate",), "reference": {"blocked_rate": 0.1}}, "not among 'rates'"),
    ],
)
def test_names_that_are_not_there(config, said):
    with pytest.raises(InputError, match=said):
        monitor(traffic(((0.1, 50),)), Monitor(**config))


@pytest.mark.parametrize(
    "config",
    [
        {"alpha": 0}, {"alpha": 1}, {"alpha": float("nan")}, {"baseline": 0}, {"window": 0},
        {"direction": "left"}, {"reference": {"blocked_rate": 0.0}},
        {"reference": {"blocked_rate": float("nan")}},
    ],
)  # fmt: skip
def test_bad_settings_are_named(config):
    with pytest.raises(ConfigError, match=next(iter(config))):
        resolve(Monitor, config)
    with pytest.raises(ValidationError):
        Monitor(**config)


def test_what_was_lost_and_changed_is_said():
    lost = (Refused(line=9, reason="torn"),)
    result = monitor(traffic(((0.1, 50),), refused=lost, policies=2), Monitor(baseline=20))
    assert any("1 lines could not be read" in one for one in result.caveats)
    assert any("2 policies" in one for one in result.caveats)
    assert any("missing at its end" in one for one in result.caveats)
    whole = monitor(traffic(((0.1, 50),), closed=True), Monitor(baseline=20))
    assert not any("missing at its end" in one for one in whole.caveats)


def test_figures_are_possible_and_drawn_from_the_metrics():
    result = monitor(traffic(((0.05, 1500), (0.3, 300))), Monitor(rates=("block_rate/words", "failed_rate")))
    assert [fault for name, one in result.metrics.items() for fault in impossible(name, one)] == []
    figure = result.figure_data()[0]
    assert [(one.label, one.stage) for one in figure.values] == [
        ("block_rate/words", "now"), ("block_rate/words", "reference"),
        ("failed_rate", "now"), ("failed_rate", "reference"),
    ]  # fmt: skip
    json.dumps(result.model_dump(mode="json"))


def test_odd_names_of_layers_stay_whole():
    name = "a/b ☃ " + "x" * 20_000
    rows = tuple(line(n, layer=name) for n in range(60))
    result = monitor(Audits(rows=rows, layers=(name,)), Monitor(baseline=20))
    assert value(result, f"alarm/block_rate/{name}") == 0
