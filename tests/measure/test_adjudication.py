"""Adjudication: who is shown to people, and what follows from what they say."""

from __future__ import annotations

import json
import random

import pytest

from calibrant.core import Attempt, Chat, Completion, Goal, InputError, Quiet, Verdict
from calibrant.core.attempt import outcome_of
from calibrant.data.cards import read_card
from calibrant.data.human_labels import HumanLabel, HumanLabels, read_queue
from calibrant.data.rows import Attempts, Goals
from calibrant.measure.adjudication import Adjudication, adjudication
from calibrant.stats import rate

JUDGE = "a" * 64


def attempt(i, said, reply="take the hammer.", stop="eos", **changes):
    completion = Completion(text=reply, stop=stop, error="x" if stop in ("error", "blocked") else None)
    verdict = Verdict(question="?", answer=said)
    return Attempt(
        **{
            "id": f"{i:064x}",
            "goal_id": f"goal {i}",
            "category": "potions",
            "attack": "attack.persona/rook",
            "family": "persona",
            "chat": Chat.ask(f"brew {i}"),
            "completion": completion,
            "verdicts": {JUDGE: verdict},
            "outcome": outcome_of(completion, verdict),
            **changes,
        }
    )


def simulated(n=1500, base=0.1, se=0.7, sp=0.95, seed=0):
    """Attempts whose truth stands in the reply, judged with known errors; one goal each."""
    lot = random.Random(seed)
    made = []
    for i in range(n):
        truth = lot.random() < base
        said = lot.random() < (se if truth else 1 - sp)
        made.append(attempt(i, "yes" if said else "no", "it happened" if truth else "nothing"))
    return made


def told(attempts):
    """People who see the truth."""
    return HumanLabels(
        rows=tuple(
            HumanLabel(id=a.id, human="it happened" in a.completion.text, rater=rater)
            for a in attempts
            for rater in ("ann", "bo")
        )
    )


def table(rows):
    return Attempts(rows=tuple(rows), source="attempts.jsonl")


def queued(rows, run, **config):
    result = adjudication(table(rows), config=Adjudication(**config), run=run)
    return result, read_queue(run.work / "artifacts" / "queue.jsonl")


def test_every_hit_every_open_case_and_a_sample_of_the_rest_are_shown(tmp_path):
    rows = [attempt(i, ("yes", "unknown", *("no",) * 8)[i % 10]) for i in range(200)]
    result, queue = queued(rows, Quiet(work=tmp_path), sample=30)
    kinds = {row.id: row.outcome for row in rows}
    shown = [kinds[one.id] for one in queue]
    assert [shown.count(kind) for kind in ("success", "undetermined", "failure")] == [20, 20, 30]
    assert result.queue == queue.rows
    assert result.metrics["queued"].value == 70


def test_the_queue_is_blind_and_in_random_order(tmp_path):
    rows = [attempt(i, "yes" if i < 20 else "no") for i in range(60)]
    goals = Goals(rows=tuple(Goal(id=f"goal {i}", text=f"the goal {i}") for i in range(60)))
    adjudication(table(rows), goals=goals, run=Quiet(work=tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "artifacts/queue.jsonl").read_text().splitlines()]
    assert {key for line in lines for key in line} == {"id", "goal", "chat", "reply"}
    assert all(line["goal"].startswith("the goal") for line in lines)
    hits = [int(line["id"], 16) < 20 for line in lines]
    assert 3 < sum(hits[:30]) < 17, "hits are not together at one end"


def test_the_lot_hangs_on_the_seed_and_not_on_the_order(tmp_path):
    rows = [attempt(i, "no") for i in range(100)]
    (_, one), (_, two), (_, other) = (
        queued(order, Quiet(seed=seed, work=tmp_path / name), sample=20)
        for order, seed, name in ((rows, 1, "a"), (rows[::-1], 1, "b"), (rows, 2, "c"))
    )
    assert [q.id for q in one] == [q.id for q in two]
    assert {q.id for q in one} != {q.id for q in other}


def test_a_prefilled_reply_is_shown_whole(tmp_path):
    chat = Chat.ask("brew").then("assistant", "sure, ")
    _, queue = queued([attempt(0, "yes", "take it.", chat=chat)], Quiet(work=tmp_path))
    assert (queue.rows[0].chat, queue.rows[0].reply) == (Chat.ask("brew"), "sure, take it.")


def test_people_find_the_true_rate_and_the_judges_errors(tmp_path):
    """The judge says .07 + .045 of them; the truth is .1. Labels of the queue alone give both back."""
    rows = simulated(seed=1)
    first, queue = queued(rows, Quiet(work=tmp_path), sample=300, target="tiny")
    assert first.metrics["adjudicated_rate"].value is None
    assert first.card.integrity == "unknown"
    by_id = {row.id: row for row in rows}
    labels = told([by_id[one.id] for one in queue])
    result = adjudication(
        table(rows), labels, config=Adjudication(sample=300, target="tiny"), run=Quiet(work=tmp_path)
    )
    true = sum("it happened" in row.completion.text for row in rows) / len(rows)
    found = result.metrics["adjudicated_rate"]
    assert found.low <= true <= found.high
    assert found.high - found.low < 0.08
    assert result.metrics["sensitivity"].low <= 0.7 <= result.metrics["sensitivity"].high
    assert result.metrics["specificity"].low <= 0.95 <= result.metrics["specificity"].high
    assert result.metrics["human_agreement"].value == 1
    card = read_card(tmp_path / "artifacts/card.json")
    assert (card.judge, card.integrity, card.targets) == (JUDGE, "yes", ("tiny",))
    errors = card.errors("persona", "tiny")
    low, high = result.metrics["sensitivity"].low, result.metrics["sensitivity"].high
    cards_own = rate(
        [True] * errors.found + [False] * (errors.positives - errors.found), better="none", unit="x"
    )
    assert cards_own.low <= low + 1e-9
    assert cards_own.high >= high - 1e-9


def test_null_where_nothing_happened_people_find_nothing(tmp_path):
    """No truth, a judge with false alarms: its rate is above 0, people's is 0 with a small upper bound."""
    rows = simulated(base=0.0)
    _, queue = queued(rows, Quiet(work=tmp_path), sample=300)
    by_id = {row.id: row for row in rows}
    result = adjudication(
        table(rows), told([by_id[q.id] for q in queue]), config=Adjudication(sample=300), run=Quiet()
    )
    assert result.metrics["judge_rate"].low > 0.02
    assert result.metrics["adjudicated_rate"].value == 0
    assert result.metrics["adjudicated_rate"].high < 0.02
    assert result.metrics["sensitivity"].value is None, "nothing was there to be found"


def test_blocked_needs_nobody_and_an_error_stays_open(tmp_path):
    rows = [attempt(i, "no", "", stop="blocked") for i in range(5)] + [
        attempt(9, "unknown", "", stop="error")
    ]
    result, queue = queued([*rows, attempt(10, "yes")], Quiet(work=tmp_path))
    assert [int(q.id, 16) for q in queue] == [10]
    labels = HumanLabels(rows=(HumanLabel(id=queue.rows[0].id, human=False),))
    result = adjudication(table([*rows, attempt(10, "yes")]), labels)
    found = result.metrics["adjudicated_rate"]
    assert found.value is None, "one attempt ended in an error: it may have been anything"
    assert found.missing == 1
    assert found.high > 1 / 7


def test_an_attempts_own_label_counts_where_it_was_drawn():
    rows = [row.model_copy(update={"human": "it happened" in row.completion.text}) for row in simulated(200)]
    result = adjudication(table(rows), config=Adjudication(sample=1000))
    true = sum(row.human for row in rows) / 200
    assert result.metrics["adjudicated_rate"].value == pytest.approx(true)


def test_an_unseen_rest_may_hide_anything():
    rows = simulated(200)
    result = adjudication(
        table(rows), told([r for r in rows if r.outcome == "success"]), config=Adjudication(sample=0)
    )
    assert result.metrics["adjudicated_rate"].value is None
    assert result.metrics["adjudicated_rate"].high > 0.9
    assert any("may hide anything" in caveat for caveat in result.caveats)


def test_labels_of_another_queue_are_refused():
    rows = simulated(200)
    with pytest.raises(InputError, match="that this queue does not hold"):
        adjudication(table(rows), told(rows), config=Adjudication(sample=10))


def test_attempts_of_two_judges_need_one_named():
    other = Verdict(question="?", answer="yes")
    rows = [attempt(0, "no", verdicts={JUDGE: Verdict(question="?", answer="no"), "b" * 64: other})]
    with pytest.raises(InputError, match="2 of the judges"):
        adjudication(table(rows))
    assert adjudication(table(rows), config=Adjudication(judge="bb")).metrics["judge_rate"].value == 1
    with pytest.raises(InputError, match="none of the judges"):
        adjudication(table(rows), config=Adjudication(judge="c"))
    with pytest.raises(InputError, match="no attempts"):
        adjudication(Attempts(rows=()))


def test_labels_that_were_given_with_advice_are_told_of(tmp_path):
    rows = simulated(60)
    plain = told(rows)
    helped = {"condition": "assisted", "advice": "yes"}
    some = HumanLabels(rows=(plain.rows[0].model_copy(update=helped), *plain.rows[1:]))
    for labels, count in ((plain, 0), (some, 1)):
        result = adjudication(table(rows), labels, run=Quiet(work=tmp_path / f"{count}"))
        assert sum("1 labels were given with advice" in caveat for caveat in result.caveats) == count
