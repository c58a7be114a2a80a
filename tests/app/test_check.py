"""`check`: every problem of a study at once, told once, and nothing loaded."""

from __future__ import annotations

import pytest

from calibrant.app import listing
from calibrant.app.check import check_study
from calibrant.app.study_file import load_study
from calibrant.models.open_model import OpenModel

REFUSAL = """
[[job]]
id = "plain"
use = "measure.refusal"
inputs = { model = "given:model", goals = "testbed:goals/heldout?n=3", judge = "testbed:judge/harmful" }
"""
BROKEN = """
[given]
model = ""
judge = { use = "measure.string_judge", config = { behavior = "refused" } }
[intent]
usse = "a trial"
policy = "nowhere.toml"
[verdict]
gate = "gaet"
[[job]]
id = "plain"
use = "measure.refusl"
[[job]]
id = "plain"
use = "measure.refusal"
inputs = { modle = "given:model", goals = "record:plian/goals.jsonl", judge = "given:judge" }
config = { samplin = {} }
[[job]]
id = "gate"
use = "govern.gate"
inputs = { subject = "defended:stack.toml#record:later/model", policy = "p.toml" }
[[job]]
id = "later"
use = "train.sft"
inputs = { model = "given:model", examples = "given:exmples" }
"""


def test_all_problems_are_listed_at_once(study):
    found = check_study(study(BROKEN))
    for part in (
        "no technique 'measure.refusl' (did you mean 'measure.refusal'?)",
        "two jobs are called 'plain'",
        "no input 'modle' (did you mean 'model'?)",
        "needs the input 'model'",
        "unknown key 'samplin' (did you mean 'sampling'?)",
        "unknown key 'behavior' (did you mean 'behaviour'?)",
        "no earlier job 'plian' (did you mean 'plain'?)",
        "no earlier job 'later'",
        "job later: given.model has no value",
        "nothing of that name is given",
        "no file 'nowhere.toml'",
        "[verdict] names no job: 'gaet' (did you mean 'gate'?)",
    ):
        assert sum(part in problem for problem in found) == 1, part
    assert len(found) == 12


def test_a_sound_study_has_no_problem_and_nothing_is_loaded(study, model, monkeypatch):
    monkeypatch.setattr(OpenModel, "from_folder", lambda *_, **__: pytest.fail("loaded"))
    assert check_study(study(f'[given]\nmodel = "{model}"\n{REFUSAL}'), files=True) == []


@pytest.mark.parametrize("name", sorted(listing.studies()))
def test_packaged_studies_are_sound(name):
    assert all("has no value" in problem for problem in check_study(load_study(name)))


def test_one_cause_is_told_once_with_all_who_want_it(study):
    text = f'[given]\nmodel = ""\n{REFUSAL}{REFUSAL.replace("plain", "again")}'
    (problem,) = check_study(study(text))
    assert problem.startswith("job plain, again: given.model has no value")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("jsonl:nowhere.jsonl", "no file 'nowhere.jsonl'"),
        ("testbed:goals/heldouts", "did you mean 'heldout'"),
        ("jsnl:x", "did you mean 'jsonl'"),
        ("data:hh_rlhf[:5]", "github.com/anthropics/hh-rlhf"),
        ("record:abcdef01/pairs.jsonl", None),
    ],
)
def test_files_are_looked_for_only_where_asked(study, model, monkeypatch, reference, said):
    monkeypatch.delenv("CALIBRANT_DATA", raising=False)
    trial = study(f'[given]\nmodel = "{model}"\n{REFUSAL}'.replace("testbed:goals/heldout?n=3", reference))
    assert check_study(trial) == []
    found = check_study(trial, files=True)
    assert (found == []) if said is None else (len(found) == 1 and said in found[0])


@pytest.mark.parametrize("model", ["nowhere", "testbed:model/bas", "testbed:null/tiny?sed=1", "api:x"])
def test_models_are_looked_for(study, model):
    (problem,) = check_study(study(f'[given]\nmodel = "{model}"\n{REFUSAL}'), files=True)
    assert problem.startswith(f"job plain: '{model}'")


def test_guards_of_a_stack_are_looked_at(study, model, tmp_path):
    (tmp_path / "stack.toml").write_text(
        '[[layer]]\nname = "a"\nside = "input"\nguard = {use = "defend.patern_guard"}\n'
        '[[layer]]\nname = "b"\nside = "input"\nguard = {use = "defend.ask_guard", inputs = {model = "no"}}\n'
    )
    trial = study(f'[given]\nmodel = "defended:stack.toml#{model}"\n{REFUSAL}')
    first, second = check_study(trial, files=True)
    assert "layer 'a': no behaviour 'defend.patern_guard' (did you mean 'defend.pattern_guard'?)" in first
    assert "layer 'b': 'no' is no model" in second
    assert "names no model" in check_study(study(f'[given]\nmodel = "defended:stack.toml"\n{REFUSAL}'))[0]


def test_code_from_outside_is_a_problem_unless_allowed(study, model):
    text = f'[given]\nmodel = "{model}"\n{REFUSAL}'.replace(
        '"testbed:judge/harmful"', '{ use = "python:a:b" }'
    )
    assert "--allow-python" in check_study(study(text))[0]
    assert "'a', which is not installed" in check_study(study(text), allow_python=True)[0]


SEEDED = """
[[job]]
id = "sft"
use = "train.sft"
seeds = [0, 1]
inputs = { model = "testbed:null/tiny", examples = "testbed:pairs/tone" }
[[job]]
id = "after"
use = "measure.refusal"
seeds = [SEEDS]
inputs = { model = "record:REFERENCE/model", goals = "testbed:goals/train", judge = "testbed:judge/harmful" }
"""


@pytest.mark.parametrize(
    ("seeds", "reference", "lost"),
    [
        ("0, 1", "sft", ""),
        ("1, 2, 3", "sft", "2, 3"),
        ("5", "sft#1", ""),
        ("0", "sft#7", "7"),
        ("0", "sft#x", "x"),
    ],
)
def test_every_seed_finds_a_run_to_refer_to(study, seeds, reference, lost):
    found = check_study(study(SEEDED.replace("SEEDS", seeds).replace("REFERENCE", reference)))
    assert found == (
        [f"job after: 'record:{reference}/model': no run of 'sft' has the seed {lost}"] if lost else []
    )


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ('gate = "plain"', "uses measure.refusal, not govern.gate"),
        ('gate = "gate"\npasses = 3', "which runs 2 times"),
    ],
)
def test_a_verdict_that_no_run_can_give(study, model, verdict, said):
    gate = """
[[job]]
id = "gate"
use = "govern.gate"
seeds = [0, 1]
inputs = { subject = "given:model", policy = { name = "p", stage = "internal", rules = [] } }
"""
    (problem,) = check_study(study(f'[given]\nmodel = "{model}"\n[verdict]\n{verdict}\n{REFUSAL}{gate}'))
    assert said in problem


@pytest.mark.parametrize("value", ["given:other", "defended:stack.toml#given:model"])
def test_given_things_that_lead_to_each_other_are_a_problem_and_no_end(study, value):
    gate = (
        '[[job]]\nid = "gate"\nuse = "govern.gate"\ninputs = { subject = "given:model", policy = "p.toml" }\n'
    )
    given = f'[given]\nmodel = "{value}"\nother = "given:model"\n[verdict]\ngate = "gate"\n'
    said = " ".join(check_study(study(f"{given}{REFUSAL}{gate}")))
    assert "given.model has no value" in said or "too many references inside one another" in said


STACK = """
[[layer]]
name = "{0}"
side = "input"
guard = {{ use = "defend.ask_guard", inputs = {{ model = "given:{1}" }} }}
"""


def test_references_that_lead_round_or_double_are_looked_at_once(study, tmp_path):
    """Through a guard and through the model behind it: 2^16 ways from the last to the first."""
    (tmp_path / "round.toml").write_text(STACK.format("a", "round"))
    steps = ['round = "defended:round.toml#given:round"', 'm0 = "testbed:model/base"']
    for step in range(1, 17):
        (tmp_path / f"s{step}.toml").write_text(STACK.format("a", f"m{step - 1}"))
        steps.append(f'm{step} = "defended:s{step}.toml#given:m{step - 1}"')
    given = "\n".join(["[given]", *steps])
    assert check_study(study(given + REFUSAL.replace("given:model", "given:m16")), files=True) == []
    [problem] = check_study(study(given + REFUSAL.replace("given:model", "given:round")), files=True)
    assert problem == "job plain: 'given:round': too many references inside one another"


def test_a_behaviour_of_another_kind_is_a_problem_before_anything_runs(study):
    guard = '{ use = "defend.ask_guard", inputs = { model = "given:model" } }'
    given = '[given]\nmodel = "testbed:model/base"\n'
    [problem] = check_study(study(given + REFUSAL.replace('"testbed:judge/harmful"', guard)), files=True)
    assert "is no Judge" in problem


def test_claims_on_jobs_that_the_study_lacks_or_runs_too_seldom(study):
    claims = """
[[job]]
id = "claim"
use = "govern.claim"
[job.config]
study = "NAME"
claims = [
  { says = "a", job = "plian", metric = "harm_rate" },
  { says = "b", job = "plain", metric = "harm_rate", against = "gone" },
  { says = "c", job = "plain", metric = "harm_rate", seeds = 5 },
]
"""
    head = f'[given]\nmodel = "testbed:model/tiny"\n{REFUSAL}'
    name = study(head).name
    first, second, third = check_study(study(head + claims.replace("NAME", name)))
    assert "number 1 of claims reads 'plian'" in first and "did you mean 'plain'" in first
    assert "number 2 of claims reads 'gone'" in second
    assert "number 3 of claims wants 5 seeds of 'plain', which runs 1" in third
    assert check_study(study(head + claims.replace("NAME", "another"))) == []
