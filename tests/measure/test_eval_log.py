"""A sample that failed is missing and never good; clusters are named or refused."""

from __future__ import annotations

import json
import math
import random

import pytest

from calibrant.core import ConfigError, InputError, Quiet
from calibrant.core.estimate import impossible
from calibrant.formats.evidence import EvalEvidence, ScoredSample
from calibrant.measure.eval_log import EvalLog, eval_log


def one(name, value=1.0, *, epoch=1, score="hit", **more):
    values = {} if value is None else {score: value}
    return ScoredSample(id=str(name), epoch=epoch, values=values, **more)


def evidence(*samples):
    return EvalEvidence(
        source="log.eval", sha256="0" * 64, eval_id="e", task="quiz", task_version="3", model="m",
        created="2026-01-02", inspect="0.3.285", revision="", dataset="d", fingerprint="f",
        planned=len(samples), samples=samples,
    )  # fmt: skip


def test_of_two_samples_one_failed_is_no_perfect_score():
    """inspect_ai#4412: the mean over what was scored is 1.0, and says nothing of the other half."""
    found = eval_log(evidence(one("a"), one("b", None, error="boom"))).metrics
    score = found["mean_score/hit"]
    assert score.value is None and (score.n, score.missing) == (2, 1)
    assert score.low < 0.1 and score.high == 1.0
    assert found["lost_rate"].value == 0.5 and found["unscored_rate/hit"].value == 0.5


def test_a_score_beside_an_error_is_no_measurement():
    found = eval_log(evidence(*(one(n, 0.0) for n in range(9)), one("b", 1.0, error="boom"))).metrics
    assert found["mean_score/hit"].missing == 1 and not found["mean_score/hit"].value
    assert (
        found["mean_score/hit"].high
        > eval_log(evidence(*(one(n, 0.0) for n in range(10)))).metrics["mean_score/hit"].high
    )
    invalid = eval_log(evidence(one("a"), one("b", invalidated=True))).metrics
    assert invalid["mean_score/hit"].missing == 1


def test_one_cluster_has_no_error_of_its_own():
    """inspect_ai#3906: one cluster gives a standard error of 0.0, where nothing is known."""
    samples = [one(n, float(n % 2), metadata={"topic": "sums"}) for n in range(40)]
    score = eval_log(evidence(*samples), EvalLog(cluster="topic")).metrics["mean_score/hit"]
    assert (score.low, score.high, score.clusters) == (0.0, 1.0, 1)
    free = eval_log(evidence(*samples)).metrics["mean_score/hit"]
    assert free.high - free.low < 0.4


@pytest.mark.parametrize("topic", [None, "", math.nan])
def test_a_missing_cluster_is_refused(topic):
    metadata = {} if topic is None else {"topic": topic}
    log = evidence(one("a", metadata={"topic": "sums"}), one("b", metadata=metadata))
    with pytest.raises(InputError, match="sample 'b' names no cluster: its metadata have no 'topic'"):
        eval_log(log, EvalLog(cluster="topic"))


def test_epochs_of_a_sample_are_not_independent():
    rng = random.Random(0)
    values = {n: float(rng.random() < 0.5) for n in range(20)}
    many = [one(n, values[n], epoch=e) for n in values for e in range(1, 11)]
    once = [one(n, value) for n, value in values.items()]
    wide, same = (eval_log(evidence(*rows)).metrics["mean_score/hit"] for rows in (many, once))
    assert (wide.n, wide.clusters, same.clusters) == (200, 20, None)
    assert wide.value == pytest.approx(same.value)
    assert wide.high - wide.low > 0.8 * (same.high - same.low)


def test_bounds_hold_whatever_the_failed_samples_would_have_scored():
    """What is planted: 100 samples with a known mean; half of those that would have scored 1 are lost."""
    rng = random.Random(1)
    held = 0
    for _ in range(40):
        truth = [float(rng.random() < 0.3) for _ in range(100)]
        lost = [value == 1.0 and rng.random() < 0.5 for value in truth]
        rows = [one(n, None if gone else value, error="x" if gone else "") for n, (value, gone)
                in enumerate(zip(truth, lost, strict=True))]  # fmt: skip
        score = eval_log(evidence(*rows)).metrics["mean_score/hit"]
        held += score.low <= sum(truth) / 100 <= score.high
    assert held == 40  # with a share among the scored alone the truth, .3, would lie above most intervals


def test_scores_on_a_scale_need_its_range():
    log = evidence(*(one(n, float(n % 11)) for n in range(22)))
    with pytest.raises(InputError, match="is 2, outside 0 to 1"):
        eval_log(log)
    found = eval_log(log, EvalLog(highest=10, better={"hit": "lower"})).metrics["mean_score/hit"]
    assert found.value == 5.0 and found.better == "lower" and 0 < found.low < 5 < found.high < 10
    with pytest.raises(ConfigError, match="'lowest' must be below 'highest'"):
        eval_log(log, EvalLog(lowest=1, highest=1))


def test_a_label_is_no_score():
    log = evidence(one("a", odd={"grade": "A"}), one("b", odd={"grade": "B"}))
    with pytest.raises(InputError, match="score 'grade' of sample 'a' is 'A', which is no number"):
        eval_log(log)
    assert "mean_score/grade" not in eval_log(log, EvalLog(better={"hit": "higher"})).metrics
    with pytest.raises(InputError, match=r"no score 'hits' \(did you mean 'hit'\?\)"):
        eval_log(log, EvalLog(better={"hits": "higher"}))


def test_what_each_sample_counted_as_is_kept(tmp_path):
    class Kept(Quiet):
        def artifact(self, name):
            return tmp_path / name

    log = evidence(one("a"), one("b", None, error="boom"), one("c", None, unscored={"hit": "refusal"}))
    result = eval_log(log, run=Kept())
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["scores"]["hit"] for row in rows] == [1.0, None, None]
    assert [row["why"].get("hit") for row in rows] == [None, "it ended in an error", "refusal"]
    assert json.loads((tmp_path / "origin.json").read_text())["task_version"] == "3"
    assert any("1 samples have no 'hit' (refusal 1)" in line for line in result.caveats)


def test_our_own_tasks_name_their_clusters():
    """Ten dialogues about one creature are one cluster, as Inspect's own table of that log has it."""
    rows = [one(n, float(n < 10), metadata={"cluster": f"c{n // 10}"}) for n in range(60)]
    ours = evidence(*rows).model_copy(update={"task": "calibrant/sycophancy"})
    found, plain = (eval_log(log).metrics["mean_score/hit"] for log in (ours, evidence(*rows)))
    assert found.clusters == 6 and found.high > plain.high
    named = eval_log(evidence(*rows), EvalLog(cluster="cluster")).metrics["mean_score/hit"]
    assert (named.low, named.high) == (found.low, found.high)
    with pytest.raises(InputError, match="it has: cluster"):
        eval_log(evidence(*rows), EvalLog(cluster="creature"))


def test_scores_of_another_range_that_all_lie_at_an_end_can_be_recorded():
    rows = [one(n, 10.0 * (n % 2)) for n in range(12)]
    found = eval_log(evidence(*rows), EvalLog(highest=10.0)).metrics["mean_score/hit"]
    assert found.value == 5.0 and impossible("mean_score/hit", found) == []
