"""Claims: what was to be shown, held against runs; doubt is never a yes."""

from __future__ import annotations

import pytest

from calibrant.core import Entry, Estimate, Evidence, Quiet, Record
from calibrant.govern.claim import Claim, Claims, claim


def entries(*runs, study="s"):
    """``(job id, seed, {metric: value})`` each."""
    found = []
    for seq, (job, seed, values) in enumerate(runs):
        metrics = {
            name: value
            if isinstance(value, Estimate)
            else Estimate(value=value, reason="none" if value is None else "")
            for name, value in values.items()
        }
        record = Record(technique="t", version=1, job=f"{seq:064x}", result="", status="finished", job_id=job,
                        study=study, seed=seed, metrics=metrics)  # fmt: skip
        found.append(Entry(seq=seq, digest=f"{seq:064x}", record=record))
    return tuple(found)


def answer(one, *runs, **more):
    result = claim(Evidence(entries=entries(*runs, **more)), Claims(study="s", claims=(one,)), Quiet())
    held = result.metrics["claims_held"].value
    assert held == (result.verdicts[0].answer == "yes")
    return result.verdicts[0]


ONE = Claim(says="a is above 0", job="a", metric="m")


def test_by_hand():
    """1, 2, 3: mean 2, s = 1, half = 4.303 / sqrt 3 = 2.484: the interval [-.484, 4.484] holds 0."""
    runs = [("a", seed, {"m": float(seed + 1)}) for seed in range(3)]
    found = answer(ONE, *runs)
    assert found.answer == "unknown"
    assert "2 [-0.4841, 4.484]" in found.reason
    assert answer(ONE.model_copy(update={"value": -0.5}), *runs).answer == "yes"
    assert answer(ONE.model_copy(update={"value": 5.0}), *runs).answer == "no"
    assert answer(ONE.model_copy(update={"value": 5.0, "op": "<"}), *runs).answer == "yes"


def test_runs_are_paired_by_seed():
    """Each seed has a level of its own; the difference of 1 is the same in all."""
    runs = [
        (job, seed, {"m": 10.0 * seed + shift}) for seed in range(3) for job, shift in (("a", 1), ("b", 0))
    ]
    assert answer(ONE.model_copy(update={"against": "b"}), *runs).answer == "yes"
    assert answer(ONE, *runs).answer == "unknown"


@pytest.mark.parametrize(
    "runs",
    [
        [("a", 0, {"m": 1.0}), ("a", 1, {"m": 1.0})],
        [("a", 0, {"m": 1.0}), ("a", 1, {"m": 1.0}), ("a", 2, {"m": None})],
        [("a", 0, {"m": 1.0}), ("a", 1, {"m": 1.0}), ("a", 2, {"n": 1.0})],
    ],
    ids=["too few", "one unknown", "one without it"],
)
def test_what_is_missing_makes_it_unknown(runs):
    assert answer(ONE, *runs).answer == "unknown"


def test_the_latest_run_counts_and_other_studies_do_not():
    old = [("a", seed, {"m": -1.0}) for seed in range(3)]
    new = [("a", seed, {"m": 1.0 + seed / 100}) for seed in range(3)]
    assert answer(ONE, *old, *new).answer == "yes"
    assert answer(ONE, *new, study="other").answer == "unknown"


DIAL = {"a": 0.0, "b": 0.5, "c": 1.0}


def dial(*values, seeds=3):
    return [
        (job, seed, {"m": value + 10.0 * seed})
        for seed in range(seeds)
        for job, value in zip(DIAL, values, strict=True)
    ]


def test_a_slope_along_a_dial_is_taken_seed_by_seed():
    """Values 0, 1, 4 at 0, .5, 1: slope ((-.5)(0) + (.5)(4)) / .5 = 4; each seed's level cancels."""
    one = ONE.model_copy(update={"along": DIAL, "value": 3.9})
    assert answer(one, *dial(0.0, 1.0, 4.0)).answer == "yes"
    assert answer(one.model_copy(update={"value": 4.1}), *dial(0.0, 1.0, 4.0)).answer == "no"
    flat = answer(ONE.model_copy(update={"along": DIAL}), *dial(1.0, 5.0, 1.0))
    assert flat.answer != "yes"


def test_a_slope_needs_every_job_at_every_seed():
    one = ONE.model_copy(update={"along": DIAL})
    found = answer(one, *[run for run in dial(0.0, 1.0, 2.0) if run[:2] != ("b", 2)])
    assert found.answer == "unknown" and "2 seeds with a finished run of each of 3 jobs" in found.reason
    lost = [(job, seed, {"m": None} if (job, seed) == ("c", 1) else values) for job, seed, values in
            dial(0.0, 1.0, 2.0)]  # fmt: skip
    found = answer(one, *lost)
    assert found.answer == "unknown" and "seed 1 has no number" in found.reason


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"against": "z"}, "leave out against"),
        ({"along": {"b": 0.0, "c": 1.0, "d": 2.0}}, "along must name 'a'"),
        ({"along": {"a": 0.0, "b": 1.0}}, "three jobs at different places"),
        ({"along": {"a": 0.0, "b": 0.0, "c": 1.0}}, "three jobs at different places"),
    ],
)
def test_a_slope_that_means_nothing_is_refused(change, why):
    with pytest.raises(ValueError, match=why):
        Claim(**{"says": "s", "job": "a", "metric": "m", "along": DIAL} | change)


@pytest.mark.parametrize("level", [0.1, 0.3, 1 / 3, 0.7, 1e-3])
@pytest.mark.parametrize("op", [">", "<"])
def test_what_never_moves_has_no_slope(level, op):
    """Not by a rounding error's breadth, either."""
    runs = [(job, seed, {"m": level}) for job in "abc" for seed in range(3)]
    one = Claim(says="it grows", job="a", metric="m", op=op, along={"a": 0, "b": 0.3, "c": 1})
    assert answer(one, *runs).answer == "no"


@pytest.mark.parametrize("place", [float("nan"), float("inf")])
def test_a_place_on_the_dial_is_a_number(place):
    with pytest.raises(ValueError, match="finite"):
        Claim(says="it grows", job="a", metric="m", along={"a": 0, "b": 0.3, "c": place})


def test_a_run_that_failed_again_is_missing():
    """An earlier success does not stand for it: its settings may be others."""
    held = entries(*[("a", seed, {"m": 1.0 + seed / 10}) for seed in range(3)])
    last = held[-1].record.model_copy(update={"status": "failed", "metrics": {}})
    late = Entry(seq=3, digest=f"{3:064x}", record=last)
    given = Claims(study="s", claims=(ONE,))
    assert claim(Evidence(entries=held), given, Quiet()).verdicts[0].answer == "yes"
    assert claim(Evidence(entries=(*held, late)), given, Quiet()).verdicts[0].answer == "unknown"


def test_seeds_that_change_nothing_are_no_certainty():
    """Three greedy runs on ten items: .9 [.555, .997] each, and no interval of width 0."""
    one = Estimate(value=0.9, low=0.555, high=0.997, level=0.95, n=10)
    runs = [("a", seed, {"m": one}) for seed in range(3)]
    assert answer(ONE.model_copy(update={"value": 0.89}), *runs).answer == "unknown"
    assert answer(ONE.model_copy(update={"value": 0.5}), *runs).answer == "yes"
    both = [*runs, *(("b", seed, {"m": one}) for seed in range(3))]
    assert answer(ONE.model_copy(update={"against": "b"}), *both).answer == "unknown"
    bare = [("a", seed, {"m": 0.9}) for seed in range(3)]
    found = answer(ONE, *bare)
    assert found.answer == "unknown" and "no interval of its own" in found.reason
