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
            name: Estimate(value=value, reason="none" if value is None else "")
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
