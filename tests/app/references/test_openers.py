"""From a reference to an object: schemes, behaviours, records, and who is asked for what."""

from __future__ import annotations

import dataclasses
import shutil
from functools import partial

import pytest

from calibrant.app import catalog
from calibrant.app.catalog import Listed
from calibrant.app.execute import execute
from calibrant.app.references.openers import Openers
from calibrant.core import (
    LM,
    Attempt,
    CapabilityError,
    Chat,
    Completion,
    ConfigError,
    Estimate,
    Evidence,
    EvidenceError,
    Frozen,
    Guard,
    Identity,
    InputError,
    Job,
    Judge,
    OpenLM,
    Quiet,
    Result,
    Reward,
    Run,
    ScoringLM,
    Verdict,
    point,
)
from calibrant.data.rows import Examples, Goals, Preferences
from calibrant.formats.redact import covered
from calibrant.govern.policy import ReleasePolicy
from calibrant.ledger import Ledger
from calibrant.models.api import ApiConfig
from calibrant.models.open_model import OpenModel

JUDGE = {"use": "measure.string_judge", "config": {"behaviour": "refused"}}
POLICY = {"name": "p", "stage": "internal", "rules": []}
STACK = """
[[layer]]
name = "asked"
side = "input"
guard = {use = "defend.ask_guard", inputs = {model = "given:asked"}}
[[layer]]
name = "words"
side = "output"
guard = {use = "defend.pattern_guard", config = {words = ["zorble"]}}
"""


class Loud(Frozen):
    word: str = "loud"
    """What is loud."""


class Ear:
    """A judge from outside the catalogue, with an input."""

    calibration = "uncalibrated"

    def __init__(self, model, word):
        self.identity = Identity(
            name="ear", kind="judge", parts={"model": model.identity.digest, "word": word}
        )

    def judge(self, goals, chats, completions):
        return [Verdict(question="?", answer="no") for _ in completions]


def ear(model: LM, config: Loud = Loud()) -> Judge:
    """Make an ear."""
    return Ear(model, config.word)


def deaf(config=None):
    """Does not say what its parameter is."""


def write_pairs(run: Run = Quiet()) -> Result:
    """Leave pairs, a folder and a word that shows the seed."""
    line = '{{"prompt": "hello.", "chosen": "hi {0}.", "rejected": "go."}}\n'
    run.artifact("pairs.jsonl").write_text(line.format(run.seed) * 2)
    run.artifact("model/readme.txt").write_text("no model")
    return Result(metrics={"seed": point(run.seed)})


@pytest.fixture
def openers(ledger, tmp_path, model, monkeypatch):
    monkeypatch.setattr(
        catalog, "TECHNIQUES", catalog.TECHNIQUES | {"some.pairs": Listed(f"{__name__}:write_pairs", "")}
    )
    (tmp_path / "stack.toml").write_text(STACK)
    given = {
        "model": str(model),
        "asked": str(model.parent / "other"),
        "judge": JUDGE,
        "empty": "",
        "loop": "given:loop",
    }
    return Openers(ledger, given=given, base=tmp_path)


def run_pairs(openers, *seeds, name="pairs"):
    for seed in seeds:
        record = execute(Job(id=name, use="some.pairs", seed=seed), openers)
        entry = openers.ledger.get(record.digest)
        openers.jobs[name, seed] = entry
        openers.jobs.setdefault((name, None), entry)
    return openers


def failure(openers, reference, wanted):
    with pytest.raises((InputError, ConfigError, CapabilityError)) as caught:
        openers.open(reference, wanted).load()
    return str(caught.value)


def test_given_values_are_resolved_and_recorded_as_what_they_are(openers, model):
    opened = openers.open("given:model", LM)
    assert opened.reference == str(model) and opened.digest == openers.open(str(model), LM).digest
    assert openers.open("given:judge", Judge).reference == JUDGE


@pytest.mark.parametrize(
    ("name", "said"),
    [("empty", "has no value"), ("loop", "has no value"), ("modle", "is given (did you mean 'model'?)")],
)
def test_what_is_not_given(openers, name, said):
    assert said in failure(openers, f"given:{name}", LM)


def test_a_behaviour_carries_its_calibration(openers):
    opened = openers.open(JUDGE, Judge)
    assert opened.kind == "judge" and opened.parts["calibration"] == "uncalibrated"
    assert openers.open("testbed:judge/harmful", Judge).parts["calibration"] == "exact"
    assert openers.open({"use": "measure.string_judge"}, Judge).digest != opened.digest


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"use": "measure.sting_judge"}, "did you mean 'measure.string_judge'"),
        ({"use": "measure.string_judge", "confg": {}}, "unknown key 'confg' (did you mean 'config'?)"),
        ({"use": "measure.string_judge", "config": {"behavior": "x"}}, "did you mean 'behaviour'"),
        ({"use": "measure.string_judge", "inputs": {"model": "x"}}, "has no input 'model'"),
        ({"use": "defend.ask_guard"}, "needs the input 'model'"),
        ({"use": "measure.string_judge", "config": 3}, "are tables"),
        ({"config": {}}, "a behaviour is a table"),
        ("string_judge", "write testbed:KIND/NAME"),
        (3, "a behaviour is a table"),
    ],
)
def test_what_is_no_behaviour(openers, table, said):
    reference = table if table != "string_judge" else "testbed:string_judge"
    assert said in failure(openers, reference, Judge)


def test_all_problems_of_a_behaviour_at_once(openers):
    table = {"use": "defend.ask_guard", "confg": 1, "config": {"alow": [], "max_tokens": 0}}
    with pytest.raises(ConfigError) as caught:
        openers.open(table, Guard)
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("reference", "wanted"),
    [
        ({"use": "defend.pattern_guard", "config": {"words": ["x"]}}, Judge),
        (JUDGE, Guard),
        ("testbed:judge/harmful", Reward),
        ("testbed:reward/gold", Judge),
    ],
)
def test_a_guard_is_no_judge(openers, reference, wanted):
    assert f"is no {wanted.__name__}" in failure(openers, reference, wanted)


def test_code_from_outside_needs_permission_at_every_depth(openers, ledger, tmp_path):
    table = {"use": f"python:{__name__}:ear", "inputs": {"model": "given:model"}, "config": {"word": "hum"}}
    (tmp_path / "stack.toml").write_text(
        '[[layer]]\nname = "code"\nside = "input"\nguard = {use = "python:os:system"}\n'
    )
    for reference, wanted in ((table, Judge), ("defended:stack.toml#given:model", LM)):
        said = failure(openers, reference, wanted)
        assert "runs code from outside" in said and "--allow-python" in said
    allowed = Openers(ledger, given=openers.given, base=tmp_path, allow_python=True)
    made = allowed.open(table, Judge)
    assert made.parts["word"] == "hum" and made.parts["model"] == openers.open("given:model", LM).digest


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ("python:no_such_module:fn", "'no_such_module', which is not installed"),
        (f"python:{__name__}:ea", "has no 'ea' (did you mean 'ear'?)"),
        (f"python:{__name__}:deaf", "does not say what its parameters config are"),
        ("python:", "names no function"),
    ],
)
def test_code_that_cannot_be_used(ledger, use, said):
    assert said in failure(Openers(ledger, allow_python=True), {"use": use}, Judge)


def test_a_defended_model_is_another_system_than_the_model(openers):
    bare, defended = (openers.open(r, LM) for r in ("given:model", "defended:stack.toml#given:model"))
    assert defended.digest != bare.digest
    system = defended.load()
    assert system.identity.digest == defended.digest
    reply = system.generate([Chat.ask("hello.")])[0]
    assert reply.stop == "blocked" and [layer.layer for layer in reply.layers] == ["asked"]


def test_the_models_inside_guards_are_part_of_the_system(openers, tmp_path):
    system = openers.open("defended:stack.toml#given:model", LM)
    other = Openers(openers.ledger, given={**openers.given, "asked": openers.given["model"]}, base=tmp_path)
    assert other.open("defended:stack.toml#given:model", LM).digest != system.digest


def test_an_unreachable_guard_is_an_error_before_anything_is_asked(openers, tmp_path, monkeypatch):
    monkeypatch.setattr("calibrant.models.api.ApiConfig", partial(ApiConfig, max_retries=0))
    given = {**openers.given, "asked": "api:http://127.0.0.1:9/v1#guard"}
    opened = Openers(openers.ledger, given=given, base=tmp_path).open("defended:stack.toml#given:model", LM)
    with pytest.raises(InputError, match="cannot reach"):
        opened.load()


def test_a_defended_model_offers_talk_only(openers):
    for wanted in (ScoringLM, OpenLM):
        said = failure(openers, "defended:stack.toml#given:model", wanted)
        assert wanted.__name__ in said and "only talks" in said
    assert openers.open("given:model", OpenLM).load().module is not None


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("defended:stack.toml", "names no model"),
        ("defended:stak.toml#given:model", "no file 'stak.toml'"),
        ("defended:stack.toml#nowhere", "no such folder"),
        ("defended:stack.toml?layers=#given:model", "names no layers"),
        ("defended:stack.toml?layer=words#given:model", "names no layers"),
        ("defended:?layers=words#given:model", "names no layers"),
        ("defended:stack.toml?layers=wards#given:model", "no layer 'wards'"),
    ],
)
def test_what_is_no_defended_model(openers, reference, said):
    assert said in failure(openers, reference, LM)


def test_a_system_is_named_without_loading_it(openers, monkeypatch):
    monkeypatch.setattr(OpenModel, "from_folder", lambda *_, **__: pytest.fail("loaded"))
    opened = openers.open("defended:stack.toml#given:model", Identity)
    assert opened.kind == "system" and opened.load().digest == opened.digest


def test_policies_by_file_and_by_table(openers, tmp_path):
    (tmp_path / "p.toml").write_text('name = "p"\nstage = "internal"\n')
    assert openers.open("p.toml", ReleasePolicy).digest == openers.open(POLICY, ReleasePolicy).digest
    assert "unknown key 'stag'" in failure(openers, {"name": "p", "stag": "x"}, ReleasePolicy)


def test_evidence_is_the_ledger_without_gates_and_without_times(openers):
    empty = openers.open("ledger:", Evidence)
    run_pairs(openers, 0)
    one = openers.open("ledger:", Evidence)
    assert one.digest != empty.digest and len(one.load().entries) == 1
    execute(Job(id="gate", use="govern.gate", inputs={"subject": "given:model", "policy": POLICY}), openers)
    assert openers.open("ledger:", Evidence).digest == one.digest


def test_a_record_is_named_by_job_by_seed_and_by_digest(openers):
    run_pairs(openers, 0, 1)
    entry = openers.jobs["pairs", 1]
    by_seed = openers.open("record:pairs#1/pairs.jsonl", Preferences).load()
    assert by_seed.rows[0].chosen == "hi 1."
    for reference in (
        f"record:{entry.digest[:12]}/pairs.jsonl",
        f"record:{entry.record.job[:6]}/pairs.jsonl",
    ):
        assert openers.open(reference, Preferences).load().rows == by_seed.rows
    assert openers.open("record:pairs/pairs.jsonl", Examples).load().rows[0].completion == "hi 0."


def test_a_seeded_jobs_references_keep_to_its_seed(openers):
    run_pairs(openers, 3, 4)
    read = {
        seed: openers.at(seed).open("record:pairs/pairs.jsonl", Preferences).load().rows[0].chosen
        for seed in (3, 4, 9)
    }
    assert read == {3: "hi 3.", 4: "hi 4.", 9: "hi 3."}  # a job of another seed means the first


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("record:pears/pairs.jsonl", "no job 'pears' has run (did you mean 'pairs'?)"),
        ("record:pairs#7/pairs.jsonl", "no run of 'pairs' has the seed '7'"),
        ("record:pairs#x/pairs.jsonl", "no run of 'pairs' has the seed 'x'"),
        ("record:pairs/pears.jsonl", "it holds: model, pairs.jsonl"),
        ("record:abcdef0/pairs.jsonl", "no record in"),
    ],
)
def test_records_that_are_not_there(openers, reference, said):
    assert said in failure(run_pairs(openers, 0), reference, Preferences)


def test_a_record_that_holds_nothing_repeats_why(openers):
    run_pairs(openers, 0)
    entry = openers.jobs["pairs", 0]
    reason = Estimate(value=None, reason="3 rows cannot set a rate")
    told = {"artifacts": (), "metrics": {"rate": reason}, "limits": ("no file: 3 rows cannot set a rate",)}
    openers.jobs["pairs", 0] = entry.model_copy(update={"record": entry.record.model_copy(update=told)})
    said = failure(openers, "record:pairs/pairs.jsonl", Preferences)
    assert "holds no 'pairs.jsonl': no file: 3 rows cannot set a rate" in said and "nothing" in said


def test_a_model_that_changed_since_it_was_named_is_refused(openers, tmp_path, model):
    """A record names the digest that was seen first; what is measured must be that."""
    folder = tmp_path / "mine"
    shutil.copytree(model, folder)
    opened = openers.open("mine", LM)
    assert opened.load().identity.digest == opened.digest
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(EvidenceError, match="'mine' has changed since the job named it"):
        opened.load()


def test_rows_that_changed_since_they_were_named_are_refused(openers, tmp_path):
    (tmp_path / "g.jsonl").write_text('{"text": "brew zorble"}\n')
    opened = openers.open("jsonl:g.jsonl", Goals)
    assert len(opened.load()) == 1
    (tmp_path / "g.jsonl").write_text('{"text": "bake bread"}\n')
    with pytest.raises(EvidenceError, match=r"'jsonl:g\.jsonl' has changed since the job named it"):
        opened.load()


def test_a_folder_that_holds_no_model(openers):
    assert "config.json" in failure(run_pairs(openers, 0), "record:pairs/model", LM)


def test_a_failed_job_lends_nothing_but_its_reason(openers):
    failed = execute(
        Job(id="plain", use="measure.refusal", inputs={"model": "x", "goals": "y", "judge": "z"}), openers
    )
    openers.jobs["plain", 0] = openers.ledger.get(failed.digest)
    said = failure(openers, "record:plain/attempts.jsonl", Goals)
    assert "did not finish" in said and failed.failure.message in said


def test_part_of_a_table(openers, tmp_path):
    whole = openers.open("testbed:goals/heldout?n=6", Goals).load()
    part = openers.open("testbed:goals/heldout?n=6[2:4]", Goals)
    assert part.load().rows == whole.rows[2:4]
    assert part.digest != openers.open("testbed:goals/heldout?n=6[2:5]", Goals).digest
    assert "holds no row" in failure(openers, "testbed:goals/heldout?n=6[6:]", Goals)
    named = dataclasses.replace(openers, given={"goals": "testbed:goals/heldout?n=6[2:]"})
    again = named.open("given:goals[:2]", Goals)
    assert (again.reference, again.load().rows) == ("testbed:goals/heldout?n=6[2:][:2]", part.load().rows)


TURNS = '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hey", "weight": 0}]'


def test_rows_without_some_columns_are_other_data(openers, tmp_path):
    line = '{"text": "brew zorble %s", "benign": true, "id": "%s"}\n'
    (tmp_path / "g.jsonl").write_text("".join(line % (n, n) for n in "abc"))
    with pytest.raises(InputError, match="'benign' would change"):
        openers.open("jsonl:g.jsonl", Goals).load()
    whole, less = (
        openers.open(r, Goals) for r in ("jsonl:g.jsonl", {"file": "jsonl:g.jsonl", "ignore": ["benign"]})
    )
    assert less.digest != whole.digest == openers.open({"file": "jsonl:g.jsonl"}, Goals).digest
    assert (len(less.load()), less.load().unused) == (3, ("benign",))
    part = openers.open({"file": "jsonl:g.jsonl[1:][:1]", "ignore": ["benign"]}, Goals).load()
    assert [goal.id for goal in part] == ["b"]
    assert part.unused == ("benign",)
    named = dataclasses.replace(openers, given={"rows": {"file": "g.jsonl[1:]", "ignore": ["benign"]}})
    asked = named.open({"file": "given:rows", "ignore": []}, Goals)
    assert [goal.id for goal in asked.load()] == ["b", "c"]
    assert asked.digest == named.open("given:rows", Goals).digest
    (tmp_path / "e.jsonl").write_text('{"messages": ' + TURNS + "}")
    examples = openers.open({"file": "jsonl:e.jsonl", "ignore": ["messages.weight"]}, Examples).load()
    assert [example.completion for example in examples] == ["Hey"]
    for wrong, said in (
        ({"file": "g.jsonl", "ignored": ["benign"]}, "unknown key 'ignored' (did you mean 'ignore'?)"),
        ({"file": "testbed:goals/heldout", "ignore": ["benign"]}, "has no columns to ignore"),
        ({"file": "g.jsonl", "ignore": ["bening"]}, "no such column (did you mean 'benign'?)"),
    ):
        assert said in failure(openers, wrong, Goals)


@pytest.mark.parametrize(("reference", "wanted"), [(3, LM), ({}, LM), ("x", dict)])
def test_what_cannot_be_opened_as_wanted(openers, reference, wanted):
    assert "cannot be opened as" in failure(openers, reference, wanted)


def test_plain_values_pass_through(openers):
    opened = openers.open(3, int)
    assert opened.load() == 3 and opened.kind == "value"


@pytest.mark.parametrize(
    ("reference", "wanted", "said"),
    [
        ("x" * 300 + ".jsonl", Goals, "cannot be looked up"),
        ("data:" + "x" * 300, Goals, "cannot be looked up"),
        ("x" * 300, LM, "cannot be looked up"),
        ("x" * 300, Reward, "cannot be looked up"),
        ("x" * 300, ReleasePolicy, "cannot be looked up"),
        ("x" * 5_000 + ".jsonl", Goals, "a reference of 5,006 characters, which begins 'xxx"),
        ("g\0.jsonl", Goals, "no file"),
        ("testbed:goals/heldout" + "[:9]" * 1_000, Goals, None),
        ("testbed:goals/heldout" + "[:9]" * 1_100, Goals, "a reference of 4,421 characters"),
        ("testbed:goals/heldout[:" + "9" * 4_000 + "]", Goals, None),
        ("testbed:goals/heldout[:²]", Goals, "no such name"),
        ("testbed:goals/heldout?n=²", Goals, "n=²: not a count"),
        ("testbed:goals/heldout?n=" + "9" * 4_000, Goals, "not a count"),
        ("testbed:null/tiny?seed=²", LM, "is not a whole number"),
        ("testbed:attacker/ruled?seed=²", LM, "is no whole number"),
        ("record:job#²/model", LM, "no job"),
        ("defended:s.toml#" * 200 + "m", LM, "too many references inside one another"),
    ],
)
def test_references_beyond_reason(openers, tmp_path, monkeypatch, reference, wanted, said):
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path))
    (tmp_path / "s.toml").write_text(STACK)
    if said is None:
        assert len(openers.open(reference, wanted).load()) > 0
    else:
        assert said in failure(openers, reference, wanted)
        assert len(failure(openers, reference, wanted)) < 9_000


def test_attempts_serve_as_demonstrations_of_what_succeeded(tmp_path):
    """By human label where there is one; a prefill belongs to the reply; covered ones are refused."""

    def made(name, outcome, human=None, chat=None, text="take the zorble."):
        return Attempt(
            id=name, goal_id="g", category="c", attack="plain", chat=chat or Chat.ask(f"how {name}?"),
            completion=Completion(text=text), outcome=outcome, human=human,
        )  # fmt: skip

    begun = Chat.ask("how?").then("assistant", "sure: ")
    rows = [
        made("hit", "success"), made("miss", "failure"), made("open", "undetermined"),
        made("denied", "success", human=False), made("found", "failure", human=True),
        made("begun", "success", chat=begun),
    ]  # fmt: skip

    def read(rows):
        path = tmp_path / "attempts.jsonl"
        path.write_text("".join(a.model_dump_json() + "\n" for a in rows))
        return Openers(Ledger(tmp_path / "ledger"), base=tmp_path).open("attempts.jsonl", Examples).load()

    found = read(rows)
    assert [row.id for row in found] == ["hit", "found", "begun"]
    assert found.rows[0].completion == "take the zorble."
    assert (found.rows[2].prompt, found.rows[2].completion) == (Chat.ask("how?"), "sure: take the zorble.")
    with pytest.raises(InputError, match="none of 2 attempts succeeded"):
        read(rows[1:3])
    with pytest.raises(InputError, match="1 of 1 successful attempts are redacted"):
        read([covered(rows[0])])
