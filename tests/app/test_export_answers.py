"""Answers of a capability job go to Inspect with their questions; without an answer they are unscored."""

from __future__ import annotations

import math

import pytest

log_module = pytest.importorskip("inspect_ai.log", reason="needs the extra 'inspect'")

from calibrant.app.export import export  # noqa: E402
from calibrant.core import Completion, ConfigError, InputError, Quiet  # noqa: E402
from calibrant.core.record import Input, Record, job_digest, result_digest  # noqa: E402
from calibrant.formats.eval_log import read_eval  # noqa: E402
from calibrant.ledger import Ledger  # noqa: E402
from calibrant.measure.capability import Capability, capability  # noqa: E402
from calibrant.models.scripted import ScriptedModel  # noqa: E402
from calibrant.testbed.serve import open_items  # noqa: E402


def reply(chat):
    question = chat.last_user
    if question.startswith("what is 1 plus"):
        return Completion(text="", stop="error", error="down")
    return "4"


@pytest.fixture
def measured(tmp_path):
    """A ledger with a capability job on the testbed's sums, and its result."""

    class Kept(Quiet):
        def artifact(self, name):
            return tmp_path / name

    items = open_items("sums", {})
    result = capability(ScriptedModel(reply, name="four"), items, None, Capability(), Kept())
    ledger = Ledger(tmp_path / "ledger")

    def record(technique="measure.capability", digest=items.digest):
        artifact = ledger.store(tmp_path / "answers.jsonl", "answers.jsonl")
        inputs = {
            "model": Input(reference="testbed:model/tiny", digest="0" * 64, kind="model", name="four"),
            "items": Input(reference="testbed:items/sums", digest=digest, kind="data"),
        }
        digests = {name: one.digest for name, one in inputs.items()}
        return ledger, ledger.append(
            Record(
                technique=technique, version=3, status="finished", study="trial", job_id=technique[-8:],
                job=job_digest(technique, 3, {}, digests, 0),
                result=result_digest(result.metrics, (artifact,)),
                inputs=inputs, artifacts=(artifact,), metrics=result.metrics, limits=result.caveats,
            )
        ).digest[:12]  # fmt: skip

    return record, result, items


def test_every_answer_is_a_sample_with_its_question(measured, tmp_path):
    record, result, items = measured
    ledger, name = record()
    out = tmp_path / "answers.eval"
    done = export(f"record:{name}/answers.jsonl", "eval", out, ledger=ledger, reveal=True)
    marks = list(result.correct.values())
    assert (done.what, done.attempts, done.successes, done.undetermined) == (
        "answers", len(items), marks.count(True), marks.count(None),
    )  # fmt: skip
    assert marks.count(None) == 12
    log = log_module.read_eval_log(str(out))
    assert (log.eval.model, log.eval.metadata["target"]) == ("none/none", "four")
    assert log.eval.metadata["items_digest"] == items.digest
    assert log.results.scores[0].metrics["value"].value == result.metrics["accuracy"].value
    asked = {item.id: item for item in items}
    for sample in log.samples:
        right = result.correct[sample.id]
        assert sample.input[0].text == asked[sample.id].chat.last_user
        value = sample.scores["correct"].value
        assert (math.isnan(value) and sample.error) if right is None else value == float(right)
    assert log_module.read_eval_log_sample(str(out), "sum/2+2").scores["correct"].value == 1.0


def test_it_comes_back_as_evidence(measured, tmp_path):
    record, result, _ = measured
    ledger, name = record()
    out = tmp_path / "answers.eval"
    export(f"record:{name}/answers.jsonl", "eval", out, ledger=ledger)
    found = read_eval(out)
    assert found.model == "four" and found.planned == len(result.correct)
    came = {row.id: None if row.lost else bool(row.values["correct"]) for row in found.samples}
    assert came == result.correct


def test_texts_are_covered_unless_revealed(measured, tmp_path):
    record, _, _ = measured
    ledger, name = record()
    for reveal in (False, True):
        out = tmp_path / f"{reveal}.eval"
        export(f"record:{name}/answers.jsonl", "eval", out, ledger=ledger, reveal=reveal)
        text = "".join(one.model_dump_json() for one in log_module.read_eval_log(str(out)).samples)
        assert ("what is 2 plus 2?" in text) == reveal


def test_what_is_no_answer_is_refused(measured, tmp_path):
    record, _, _ = measured
    ledger, name = record()
    with pytest.raises(ConfigError, match="are no attempts for 'sarif'"):
        export(f"record:{name}/answers.jsonl", "sarif", tmp_path / "x", ledger=ledger)
    _, other = record(technique="attack.campaign")
    with pytest.raises(InputError, match=r"is of attack\.campaign"):
        export(f"record:{other}/answers.jsonl", "eval", tmp_path / "x", ledger=ledger)
    _, changed = record(digest="1" * 64)
    with pytest.raises(InputError, match="have changed since they were asked"):
        export(f"record:{changed}/answers.jsonl", "eval", tmp_path / "x", ledger=ledger)
