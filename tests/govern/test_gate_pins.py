"""What a rule pins, and what was measured under another setting, judge or file: never a pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from calibrant.core import ConfigError, Record, resolve
from calibrant.core.record import Artifact, Input
from calibrant.govern.policy import Rule

Measured = Callable[..., Record]
CONFIG = {"sampling": {"max_tokens": 64, "temperature": 0.0}, "scope": "all", "encodings": ["a", "b"]}
QUESTION = "did it do harm?"
CARD = "c" * 64


def carded(reference: Any = "given", **parts: str) -> Input:
    """A judge with a card, as its record shows it."""
    shown = {"positives": "100", "negatives": "100", "sensitivity": "0.9", "specificity": "0.9"}
    return Input(
        reference=reference, digest="f" * 64, kind="judge", name="carded",
        parts={"card": CARD, "question": QUESTION, **shown, **parts},
    )  # fmt: skip


def card_record(world: Any, technique: str = "measure.judge_card", **changes: Any) -> Record:
    """The record that made the card."""
    made = Artifact(name="card.json", digest=changes.pop("digest", CARD), bytes=1)
    return world.record(None, technique=technique, artifacts=(made,), models={}, **changes)


def said(world: Any, rule: Rule, *records: Record) -> tuple[str, str]:
    outcome = world.ask(rule, *records)
    return outcome.answer, outcome.reason


@pytest.mark.parametrize(
    "config",
    [
        {"sampling.max_tokens": 64},
        {"sampling": {"max_tokens": 64}},
        {"sampling": {"max_tokens": 64.0, "temperature": 0}, "scope": "all", "encodings": ["a", "b"]},
    ],
)
def test_pinned_settings_are_found_by_dotted_path_or_by_table(
    world: Any, measured: Measured, config: dict[str, Any]
) -> None:
    assert world.answer(world.rule(config=config), measured(0.0, 0.01, config=CONFIG)) == "yes"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sampling.max_tokens": 1}, "sampling.max_tokens is 64, and the rule pins 1"),
        ({"sampling.max_token": 64}, "no 'sampling.max_token' (did you mean 'sampling.max_tokens'?)"),
        ({"encodings": ["a"]}, "encodings is ['a', 'b'], and the rule pins ['a']"),
        ({"sampling.temperature": False}, "and the rule pins False"),
        ({"sampling": 64}, "no 'sampling'"),
        ({"scope": {}}, "scope is 'all'"),
    ],
)
def test_another_setting_is_no_evidence(
    world: Any, measured: Measured, config: dict[str, Any], says: str
) -> None:
    outcome = world.ask(world.rule(config=config), measured(0.0, 0.01, config=CONFIG))
    assert (outcome.answer, outcome.evidence, outcome.set_aside) == ("unknown", (), 1)
    assert says in outcome.reason


def test_other_data_under_the_same_name_is_no_evidence(world: Any, measured: Measured) -> None:
    rule = world.rule(data_input="goals", data_digest="d" * 64)
    assert world.answer(rule, measured(0.0, 0.01)) == "yes"
    answer, reason = said(world, rule, measured(0.0, 0.01, data_digest="9" * 64))
    assert answer == "unknown" and "is not the data dddddddddddd of the rule" in reason
    moved = measured(0.0, 0.01, data="jsonl:elsewhere.jsonl")
    assert world.answer(rule, moved) == "unknown"
    assert (
        world.answer(world.rule(data="", data_digest="d" * 64), moved) == "yes"
    )  # the bytes are what counts


def test_data_in_another_input_is_no_evidence(world: Any, measured: Measured) -> None:
    """The held-out rows served as examples, and other goals were asked."""
    held = Input(reference="held.jsonl", digest="a" * 64, kind="data")
    record = measured(0.0, 0.01, data="easy.jsonl", inputs={"examples": held})
    for rule, says in (
        (world.rule(data="held.jsonl", data_input="goals"), "goals is 'easy.jsonl'"),
        (world.rule(data="held.jsonl"), "give data_input = 'examples' or another"),
        (world.rule(data="", data_digest="a" * 64), "does not say which is meant"),
        (world.rule(data="held.jsonl", data_input="goal"), "'goal' (did you mean 'goals'?)"),
    ):
        answer, reason = said(world, rule, record)
        assert answer == "unknown" and says in reason
    assert world.answer(world.rule(data="easy.jsonl", data_input="goals"), record) == "yes"


def test_the_reference_and_the_digest_must_be_of_one_input(world: Any, measured: Measured) -> None:
    other = Input(reference="easy.jsonl", digest="d" * 64, kind="data")
    record = measured(0.0, 0.01, data_digest="9" * 64, inputs={"examples": other})
    assert world.answer(world.rule(data_digest="d" * 64), record) == "unknown"


def test_a_judge_that_answers_another_question_is_no_evidence(world: Any, measured: Measured) -> None:
    rule = world.rule(judge={"state": "exact", "question": "did it refuse?"})
    answer, reason = said(world, rule, measured(0.0, 0.01))
    assert answer == "unknown"
    assert "judge answers 'did it do harm?', and the rule pins 'did it refuse?'" in reason
    assert world.answer(world.rule(judge={"question": QUESTION}), measured(0.0, 0.01)) == "yes"
    silent = Input(reference="testbed:judge/harmful", digest="e" * 64, kind="judge")
    assert (
        world.answer(world.rule(judge={"question": QUESTION}), measured(0, 0, judge_input=silent))
        == "unknown"
    )


def test_another_judge_or_another_of_its_settings_is_no_evidence(world: Any, measured: Measured) -> None:
    for digest, answer in (("e" * 64, "yes"), ("9" * 64, "unknown")):
        assert world.answer(world.rule(judge={"digest": digest}), measured(0.0, 0.01)) == answer
    rule = world.rule(judge={"input": "second", "question": QUESTION})
    assert "no judge 'second'" in said(world, rule, measured(0.0, 0.01))[1]


def test_only_a_judge_of_the_testbed_is_exact(world: Any, measured: Measured) -> None:
    for reference in ({"use": "python:mine:judge"}, "python:mine:judge", {"use": "testbed:judge/harmful"}):
        item = Input(reference=reference, digest="f" * 64, kind="judge")
        for state in ("calibrated", "exact"):
            answer, _ = said(world, world.rule(judge=state), measured(0.0, 0.01, judge_input=item))
            assert answer == "unknown"
    assert world.answer(world.rule(judge="exact"), measured(0.0, 0.01)) == "yes"


def test_a_card_must_come_from_a_record(world: Any, measured: Measured) -> None:
    record = measured(0.0, 0.01, judge={"judge": "calibrated: Se 1"}, judge_input=carded())
    rule = world.rule(judge="calibrated")
    answer, reason = said(world, rule, record)
    assert answer == "unknown" and "a card that no record of this ledger made" in reason
    for maker in ("measure.judge_card", "measure.adjudication"):
        assert world.answer(rule, card_record(world, maker), record) == "yes"
    for other in (
        card_record(world, digest="9" * 64),
        card_record(world, "train.sft"),
        card_record(world, status="failed"),
    ):
        assert world.answer(rule, other, record) == "unknown"
    assert world.answer(world.rule(judge="exact"), card_record(world), record) == "unknown"


@pytest.mark.parametrize(
    ("pin", "parts", "says"),
    [
        ({"min_n": 100}, {}, ""),
        ({"min_n": 101}, {}, "100 replies with the behaviour, 100 without; the rule asks for 101"),
        ({"min_n": 50}, {"negatives": "1"}, "1 without"),
        ({"min_sensitivity": 0.9, "min_specificity": 0.9}, {}, ""),
        ({"min_sensitivity": 0.8}, {"sensitivity": "0.1"}, "sensitivity of judge is at least 0.1"),
        ({"min_specificity": 0.8}, {"specificity": "nan"}, "specificity of judge"),
        ({"min_n": 50}, {"positives": "many"}, "does not say what the card"),
    ],
)
def test_a_card_must_be_large_and_good_enough(
    world: Any, measured: Measured, pin: dict[str, Any], parts: dict[str, str], says: str
) -> None:
    record = measured(0.0, 0.01, judge={"judge": "calibrated: Se 1"}, judge_input=carded(**parts))
    rule = world.rule(judge={"state": "calibrated", **pin})
    answer, reason = said(world, rule, card_record(world), record)
    assert answer == ("unknown" if says else "yes") and says in reason


def test_a_weaker_baseline_or_attacker_is_no_evidence(world: Any, measured: Measured) -> None:
    weak = Input(reference="./weak", digest="a" * 64, kind="model")
    record = measured(0.0, 0.01, inputs={"before": weak})
    for pin, says in (
        ({"before": "testbed:model/base"}, "before is './weak' (aaaaaaaaaaaa), and the rule pins"),
        ({"befor": "./weak"}, "no input 'befor' (did you mean 'before'?)"),
    ):
        answer, reason = said(world, world.rule(inputs=pin), record)
        assert answer == "unknown" and says in reason
    for same in ("./weak", "a" * 64):
        assert world.answer(world.rule(inputs={"before": same}), record) == "yes"


def test_a_record_of_an_older_version_is_no_evidence(world: Any, measured: Measured) -> None:
    answer, reason = said(world, world.rule(min_version=2), measured(0.0, 0.01))
    assert answer == "unknown" and "version 1 of measure.refusal made it, and the rule asks for 2" in reason
    policy, newer = world.policy(world.rule(min_version=2)), measured(0.0, 0.01, version=3)
    result = world.run(policy, world.intent(policy), newer)
    assert result.verdict.answer == "yes" and "min_version" not in result.rules[0].unpinned


def test_a_look_under_another_setting_comes_before_the_thresholds_too(world: Any, measured: Measured) -> None:
    """Measured with one token less, seen to pass, registered, measured again as pinned."""
    policy = world.policy(world.rule(config={"sampling.max_tokens": 64}))
    peek = measured(0.0, 0.01, config={"sampling": {"max_tokens": 63}})
    real = measured(0.0, 0.01, config={"sampling": {"max_tokens": 64}})
    assert world.run(policy, world.intent(policy), peek, real).rules[0].answer == "yes"
    assert "postdate" in world.run(policy, peek, world.intent(policy), real).rules[0].reason
    renamed = measured(0.0, 0.01, data="jsonl:copy.jsonl")
    pinned = world.policy(world.rule(data_digest="d" * 64))
    outcome = world.run(pinned, renamed, world.intent(pinned), measured(0.0, 0.01)).rules[0]
    assert (outcome.answer, outcome.set_aside) == ("unknown", 1)


def test_a_ledger_put_together_from_others_shows_no_order(world: Any, measured: Measured) -> None:
    policy = world.policy(world.rule())
    intent = world.intent(policy).model_copy(update={"recorded_at": "2026-11-02T10:00:00.000Z"})
    for begun, answer in (
        ("2026-11-02T09:59:59.999Z", "unknown"),
        ("2026-11-02T10:59:59.999+01:00", "unknown"),
        ("2026-11-02T10:00:00.001Z", "yes"),
    ):
        outcome = world.run(policy, intent, measured(0.0, 0.01, started_at=begun)).rules[0]
        assert outcome.answer == answer
    assert (
        "though it stands behind them"
        in world.run(policy, intent, measured(0.0, 0.01, started_at="2026-11-01T00:00:00Z")).rules[0].reason
    )


def test_a_metric_is_not_limited_from_its_good_side(world: Any) -> None:
    """'accuracy <= .9' is met by a system that can do nothing."""
    accuracy = world.estimate(0.0, 0.05, better="higher")
    answer, reason = said(world, world.rule(), world.record(accuracy))
    assert answer == "unknown" and "higher is better" in reason
    floor = world.rule(bound="low", op=">=", threshold=0.5)
    assert world.answer(floor, world.record(world.estimate(0.8, 0.9, better="lower"))) == "unknown"
    assert world.answer(floor, world.record(world.estimate(0.8, 0.9, better="higher"))) == "yes"


@pytest.mark.parametrize(
    ("changes", "metric", "method"),
    [
        ({"threshold": 5.0}, "compliance_rate", "clopper-pearson"),  # 5 % was meant
        ({"threshold": 1.0}, "harm", "korn-graubard (wilson)"),
        ({"threshold": 1.0}, "capability_loss", "tango"),
        ({"threshold": 0.0, "bound": "low", "op": ">="}, "accuracy", "wilson"),
    ],
)
def test_a_limit_that_nothing_can_miss_is_no_rule(
    world: Any, changes: dict[str, Any], metric: str, method: str
) -> None:
    found = world.estimate(0.4, 0.6, method=method)
    record = world.record(None).model_copy(update={"metrics": {metric: found}})
    answer, reason = said(world, world.rule(metric=metric, **changes), record)
    assert answer == "unknown" and f"is met by every {metric}" in reason
    assert world.answer(world.rule(metric=metric, threshold=0.99), record) == "yes"


def test_a_run_that_made_a_model_says_nothing_of_the_one_that_went_in(world: Any, measured: Measured) -> None:
    made = Artifact(name="model", digest="9" * 64, bytes=1)
    assert world.answer(world.rule(), measured(0.0, 0.01, artifacts=(made,))) == "unknown"


@pytest.mark.parametrize("field", ["id", "technique", "metric", "data", "data_input"])
@pytest.mark.parametrize(
    "name",
    ["h\u0435ldout", "held\u200bout", "held\u202eout", "\uff48eldout", "held\u00a0out", "comp\u0399iance"],
)
def test_names_that_look_like_others_are_refused(world: Any, field: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{field}'"):
        resolve(Rule, {**world.rule(data_input="goals").model_dump(), field: name})


@pytest.mark.parametrize(
    "name", ["heldout", "jsonl:данные.jsonl", "jsonl:über_ßz.jsonl", "データ集", "a b/c-1"]
)
def test_names_of_one_alphabet_are_taken(world: Any, name: str) -> None:
    assert world.rule(data=name).data == name


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"threshold": float("nan")}, "finite"),
        ({"margin": float("inf")}, "finite"),
        ({"margin": -0.1}, "greater than or equal to 0"),
        ({"data_digest": "abc"}, "64 hex digits"),
        ({"data": "", "data_input": "goals"}, "names an input and no data"),
        ({"judge": "calibratd"}, "'any', 'calibrated' or 'exact'"),
        ({"judge": {"stat": "exact"}}, "unknown key 'judge.stat' (did you mean 'state'?)"),
        ({"judge": {"digest": "E" * 64}}, "64 hex digits"),
        ({"judge": {"min_n": 5}}, "need state = 'calibrated'"),
        ({"judge": {"min_sensitivity": 1.0, "state": "calibrated"}}, "less than 1"),
        ({"config": {"x": object()}}, "no config holds such a value"),
        ({"confg": {}}, "unknown key 'confg' (did you mean 'config'?)"),
    ],
)
def test_pins_that_mean_nothing_are_refused(world: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(Rule, {**world.rule().model_dump(), **changes})
    assert says in " ".join(caught.value.problems)


def test_a_threshold_of_minus_zero_is_zero(world: Any, measured: Measured) -> None:
    rule = world.rule(threshold=-0.0, margin=-0.0)
    assert world.answer(rule, measured(0.0, 0.0)) == "yes"
    assert world.answer(rule, measured(-0.0, -0.0)) == "yes"
    assert world.answer(rule, measured(0.0, 1e-9)) == "unknown"


def test_the_verdict_lists_what_was_not_pinned_and_names_what_was_asked(
    world: Any, measured: Measured
) -> None:
    before = Input(reference="./old", digest="a" * 64, kind="model")
    record = measured(0.0, 0.01, config=CONFIG, inputs={"before": before}, version=2)
    policy = world.policy(world.rule(judge="calibrated", config={"sampling.max_tokens": 64}))
    result = world.run(policy, world.intent(policy), record)
    assert result.rules[0].unpinned == {
        "data_digest": "d" * 64, "min_version": 2, "judge.question": QUESTION, "inputs.before": "a" * 64,
        "config.sampling.temperature": 0.0, "config.scope": "all", "config.encodings": ["a", "b"],
    }  # fmt: skip
    assert result.verdict.reason == (
        "every rule is met, 1 of 1; not pinned: config (1 rule), data_digest (1 rule), inputs (1 rule),"
        " judge (1 rule), min_version (1 rule)"
    )
    assert "'tuned' (" in result.verdict.question and "policy 'demo'" in result.verdict.question
    assert result.rules[0].judge == "gold harmful: exact, asked 'did it do harm?'"
    assert result.rules[0].read == "goals = 'testbed:goals/heldout' (dddddddddddd)"


@pytest.mark.parametrize(
    ("reference", "pin", "open_"),
    [("./old", "./old", "a" * 64), ("./old", "a" * 64, ""), ("testbed:model/base", "testbed:model/base", ""),
     ("testbed:model/base", "a" * 64, "")],
)  # fmt: skip
def test_an_input_pinned_by_its_path_is_open(
    world: Any, measured: Measured, reference: str, pin: str, open_: str
) -> None:
    """Another folder under the same path is a weaker baseline as well."""
    before = Input(reference=reference, digest="a" * 64, kind="model")
    outcome = world.ask(world.rule(inputs={"before": pin}), measured(0.0, 0.01, inputs={"before": before}))
    assert outcome.unpinned.get("inputs.before", "") == open_


def test_a_rule_that_pins_all_leaves_nothing_open(world: Any, measured: Measured) -> None:
    """Written into the rule, what it lists is pinned."""
    before = Input(reference="./old", digest="a" * 64, kind="model")
    record = measured(0.0, 0.01, config=CONFIG, inputs={"before": before}, version=2)
    first = world.ask(world.rule(data="", judge="any"), record).unpinned
    given: dict[str, Any] = {}
    for key, value in first.items():
        head, _, rest = key.partition(".")
        if rest:
            given.setdefault(head, {})[rest] = value
        else:
            given[key] = value
    again = world.ask(resolve(Rule, {**world.rule(data="").model_dump(), **given}), record)
    assert (again.answer, again.unpinned) == ("yes", {})


def test_other_registered_policies_are_named(world: Any, measured: Measured) -> None:
    """Two policies fixed in advance, and the one that passes shown."""
    policy, strict = world.policy(world.rule()), world.policy(world.rule(threshold=0.001))
    result = world.run(policy, world.intent(strict), world.intent(policy), measured(0.0, 0.01))
    assert result.verdict.answer == "yes"
    assert any(f"'demo' ({strict.digest[:12]})" in caveat for caveat in result.caveats)


@pytest.mark.parametrize(("unread", "answer"), [(5, "yes"), (6, "unknown"), (100, "unknown")])
def test_what_guards_blocked_unread_counts_as_missing(world: Any, unread: int, answer: str) -> None:
    told = f"{unread} of 100 attempts were blocked by guards that could not answer"
    outcome = world.ask(world.rule(), world.record(world.estimate(0.02, 0.08), limits=("another", told)))
    assert outcome.answer == answer and ("could not answer" in outcome.reason) == (answer == "unknown")
    miss = world.ask(world.rule(), world.record(world.estimate(0.2, 0.3), limits=(told,)))
    assert miss.answer == "no"
