"""Records: in-toto shape, three digests and what each depends on, and the way back."""

from __future__ import annotations

import json
import math

import pytest

from calibrant.core import Estimate, Record, digest, point
from calibrant.core.digest import canonical
from calibrant.core.record import (
    PREDICATE,
    STATEMENT,
    Artifact,
    Failure,
    Input,
    job_digest,
    result_digest,
    why_nothing,
)

METRICS = {"rate": Estimate(value=0.25, low=0.1, high=0.5, n=8, better="lower"), "loss": point(1.5)}
FILES = {"config.json": "c" * 64}
MODEL = Artifact(name="model", digest=digest(FILES), bytes=12, files=FILES)
TIMES = Artifact(name="timing.jsonl", digest="d" * 64, bytes=3, volatile=True)
JOB = ("train.dpo", 1, {"beta": 0.1, "fit": {"lr": 0.0003}}, {"model": "a" * 64}, 7)


def record(**changes):
    base = {
        "technique": "train.dpo",
        "version": 1,
        "job": job_digest(*JOB),
        "result": result_digest(METRICS, (MODEL, TIMES)),
        "status": "finished",
        "job_id": "tune",
        "config": JOB[2],
        "inputs": {"model": Input(reference="hf:x@1", digest="a" * 64, kind="model", name="x")},
        "seed": 7,
        "metrics": METRICS,
        "artifacts": (MODEL, TIMES),
        "cost": {"tokens": 100.0},
        "started_at": "2026-01-01T00:00:00Z",
        "seconds": 2.5,
    }
    return Record(**base | changes)


def test_statement_shape():
    """https://github.com/in-toto/attestation, spec v1: four keys; ours are lowerCamelCase."""
    statement = record().statement()
    assert list(statement) == ["_type", "subject", "predicateType", "predicate"]
    assert statement["_type"] == STATEMENT == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == PREDICATE == "urn:calibrant:record:v1"
    assert statement["subject"] == [{"name": "x", "digest": {"sha256": "a" * 64}}]
    body = statement["predicate"]
    assert {"jobId", "startedAt", "recordedAt", "technique", "failure"} <= body.keys()
    assert not any("_" in key for key in body)
    assert body["metrics"]["rate"]["null_value"] is None  # an Estimate keeps its own names


def test_subject():
    """The models measured; the reference where they have no name; the result where there is none."""
    two = {
        "model": Input(reference="hf:x", digest="a" * 64, kind="model"),
        "judge": Input(reference="j", digest="b" * 64, kind="judge"),
        "reference": Input(reference="hf:y", digest="c" * 64, kind="model", name="y"),
    }
    for inputs in (two, dict(reversed(two.items()))):  # an order that reading back cannot lose
        assert [s["name"] for s in record(inputs=inputs).subject] == ["hf:x", "y"]
    alone = record(inputs={"judge": two["judge"]})
    assert alone.subject == [{"name": "train.dpo", "digest": {"sha256": alone.result}}]


def test_golden_digests():
    """A moved literal means that no job resumes and equal results look different."""
    assert job_digest(*JOB) == "3dd5ca73db323aecca2c5c124ed618630023787a3d7a3eb78b1b0bb3a67a460e"
    assert (
        result_digest(METRICS, (MODEL, TIMES))
        == "67b85b678738c16ca62404d4cd030171bf5e9827e4fa62ac490060c164f4cae8"
    )


@pytest.mark.parametrize(
    ("place", "other"), [(0, "train.sft"), (1, 2), (2, {"beta": 0.2}), (3, {"model": "b" * 64}), (4, 8)]
)
def test_the_job_digest_depends_on_each_of_its_parts(place, other):
    changed = (*JOB[:place], other, *JOB[place + 1 :])
    assert job_digest(*changed) != job_digest(*JOB)


def test_the_result_digest_knows_no_time_host_or_path():
    """Timings, order of artefacts, sizes on disk: none of it is what was found."""
    whole = result_digest(METRICS, (MODEL, TIMES))
    assert whole == result_digest(METRICS, (MODEL,))
    slower = TIMES.model_copy(update={"digest": "e" * 64})
    assert whole == result_digest(dict(reversed(METRICS.items())), (slower, MODEL))
    assert whole != result_digest({**METRICS, "loss": point(1.6)}, (MODEL,))
    assert whole != result_digest(METRICS, (MODEL.model_copy(update={"digest": "e" * 64}),))
    assert whole != result_digest(METRICS, ())


@pytest.mark.parametrize(
    "change", [{"seconds": 3.0}, {"hardware": "other"}, {"started_at": "x"}, {"seed": 8}]
)
def test_the_record_digest_covers_all_of_it(change):
    assert record(**change).digest != record().digest


def test_round_trip():
    whole = record(failure=Failure(type="InputError", message="no", hint="yes"), status="failed")
    again = Record.from_statement(json.loads(canonical(whole.statement())))
    assert again == whole
    assert again.digest == whole.digest


def test_round_trip_of_what_json_cannot_say():
    """NaN reads back as None, a big seed as itself, and the digest stays."""
    odd = record(seed=2**60, metrics={"rate": Estimate(value=math.nan, reason="0 / 0")}, cost={"flops": 1e17})
    again = Record.from_statement(json.loads(canonical(odd.statement())))
    assert again.seed == 2**60
    assert again.metrics["rate"].value is None
    assert again.digest == odd.digest


def test_a_statement_with_an_unknown_field_is_refused():
    statement = record().statement()
    statement["predicate"]["mood"] = "good"
    with pytest.raises(ValueError, match="mood"):
        Record.from_statement(statement)


def test_what_stores_nothing_says_why():
    metrics = {"auroc": point(1.0), "false_alarm_rate": Estimate(value=None, reason="57 cannot: 99 can")}
    limits = ("probes read", "no threshold: 57 cannot: 99 can", "no stored probe")
    empty = record(metrics=metrics, limits=limits, artifacts=())
    assert why_nothing(empty) == limits[1:]
    assert why_nothing(record(metrics=metrics, limits=limits)) == ()
    assert why_nothing(record(limits=limits[:1], artifacts=())) == ()
