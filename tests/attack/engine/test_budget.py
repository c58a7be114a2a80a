"""One ledger with hard caps: what still fits, which cap says no, and the run's own budget."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from calibrant.app.ledger_run import LedgerRun
from calibrant.attack.engine import budget
from calibrant.attack.engine.budget import NOTHING, BudgetTracker, Caps, Prices, Spent
from calibrant.core import Budget, BudgetError, Job, Quiet


def made(caps=Caps(), prices=Prices(), run=None):
    return BudgetTracker(caps, prices, run or Quiet())


@pytest.fixture
def lent(tmp_path):
    """A run with a budget, as the door lends it."""

    def run(**budget):
        (tmp_path / "work").mkdir()
        job = Job(id="it", use="attack.campaign", budget=Budget(**budget))
        return LedgerRun(job, tmp_path / "work", tmp_path / "cache", None, lambda job: None)

    return run


def test_without_caps_everything_fits():
    open_ = made(prices=Prices(query=1.0, target=1e6))
    assert open_.affordable(256, queries=1, target_tokens=64) == 256
    assert open_.reached == ""


@pytest.mark.parametrize("name", ["queries", "target_tokens", "attacker_tokens"])
def test_each_cap_trims_a_batch_and_is_named_where_it_refuses(name):
    capped = made(Caps(**{name: 25}))
    asked = {"queries": 1} | ({} if name == "queries" else {name: 4})
    fits = 25 if name == "queries" else 6
    assert capped.affordable(100, **asked) == fits
    assert capped.reached == name
    capped.pay(Spent(**{name: 25}))
    assert capped.affordable(100, **asked) == 0
    capped.pay(Spent(**{name: 1}))
    assert capped.affordable(100, **asked) == 0  # never below


def test_a_cap_on_something_else_does_not_matter():
    capped = made(Caps(attacker_tokens=1))
    capped.pay(Spent(attacker_tokens=1))
    assert capped.affordable(7, queries=1, target_tokens=64) == 7


def test_a_judge_is_expected_to_cost_what_its_dearest_verdict_did():
    capped = made(Caps(judge_tokens=100))
    assert capped.affordable(50, queries=1, target_tokens=9) == 1  # nothing is known yet
    assert capped.affordable(50, queries=1) == 50  # log-probs are not judged
    capped.judged(4)
    capped.judged(10)
    capped.judged(2)
    assert capped.affordable(50, queries=1) == 10
    assert capped.reached == "judge_tokens"
    assert capped.affordable(50, attacker_tokens=5) == 50  # nobody judges those


def test_only_a_cap_that_counts_verdicts_makes_the_first_question_go_alone():
    assert made(Caps(target_tokens=100)).affordable(7, queries=1, target_tokens=9) == 7
    assert made(Caps(money=1.0)).affordable(7, queries=1, target_tokens=9) == 7
    priced = BudgetTracker(Caps(money=1.0), Prices(judge=1.0), Quiet())
    assert priced.affordable(7, queries=1, target_tokens=9) == 1
    priced.judged(0)
    assert priced.affordable(7, queries=1, target_tokens=9) == 7


def test_the_tightest_of_several_caps_is_the_one_that_is_named():
    capped = made(Caps(queries=50, target_tokens=64 * 9, money=20.0), Prices(query=1.0))
    assert capped.affordable(100, queries=1, target_tokens=64) == 9
    assert capped.reached == "target_tokens"


def test_money_is_priced_at_the_dearest():
    prices = Prices(query=0.5, target=1e6, judge=2e6)
    capped = made(Caps(money=20.0), prices)
    capped.judged(1)
    # One query may come to .5 + 3 * 1 + 1 * 2.
    assert capped.affordable(100, queries=1, target_tokens=3) == 3
    assert capped.reached == "money"
    capped.pay(Spent(queries=3, target_tokens=6, judge_tokens=3, flops=1e9))
    assert capped.money == pytest.approx(1.5 + 6 + 6)
    assert capped.affordable(100, queries=1, target_tokens=3) == 1


def test_ten_things_at_a_tenth_fit_into_one():
    assert made(Caps(money=1.0), Prices(query=0.1)).affordable(100, queries=1) == 10
    assert made(Caps(money=0.3), Prices(query=0.1)).affordable(100, queries=1) == 3


def test_flops_end_it_once_they_are_used_up():
    capped = made(Caps(flops=10.0))
    assert capped.affordable(5) == 5
    capped.pay(Spent(flops=10.0))
    assert capped.affordable(5) == 0
    assert capped.reached == "flops"


def test_seconds_end_it_too(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    capped = made(Caps(seconds=5.0))
    now[0] += 4.9
    assert capped.affordable(5, queries=1) == 5
    now[0] += 0.2
    assert capped.affordable(5, queries=1) == 0
    assert capped.reached == "seconds"


@pytest.mark.parametrize("name", Caps.model_fields)
@pytest.mark.parametrize("value", [0, -1])
def test_no_cap_is_zero(name, value):
    with pytest.raises(ValidationError, match="greater than"):
        Caps(**{name: value})


def test_no_price_is_below_zero():
    for name in Prices.model_fields:
        with pytest.raises(ValidationError, match="greater than or equal"):
            Prices(**{name: -1.0})


def test_amounts_add_up():
    one, other = Spent(1, 2, 3, 4, 5.0), Spent(queries=10, flops=0.5)
    assert one.plus(other) == Spent(11, 2, 3, 4, 5.5)
    assert one.plus(NOTHING) == one


def test_what_is_spent_is_charged_to_the_run(lent):
    run = lent(queries=10)
    kept = made(run=run)
    kept.pay(Spent(queries=3, target_tokens=5, attacker_tokens=6, judge_tokens=7, flops=8.0))
    assert run.cost == {"queries": 3, "tokens": 18, "flops": 8.0}
    assert kept.spent["attacker_tokens"] == 6
    with pytest.raises(BudgetError, match="11 queries; its budget is 10"):
        kept.pay(Spent(queries=8))


def test_what_was_held_is_given_back(lent):
    run = lent(queries=10, tokens=100)
    kept = made(run=run)
    with kept.reserved(queries=10, tokens=100):
        assert run.cost == {"queries": 10, "tokens": 100}
    assert run.cost == {"queries": 0, "tokens": 0}
    with pytest.raises(RuntimeError), kept.reserved(queries=4):
        raise RuntimeError
    assert run.cost["queries"] == 0


def test_what_could_pass_the_budget_is_refused_before_it_is_asked(lent):
    kept, asked = made(run=lent(tokens=100)), []
    with pytest.raises(BudgetError, match="101 tokens; its budget is 100"), kept.reserved(tokens=101):
        asked.append("it")
    assert not asked


def test_a_time_limit_that_passes_during_a_batch_does_not_lose_the_batch(lent):
    """What came back is written down first; the next payment says that time is up."""
    run = lent(seconds=1e-9)
    run._started += 3600  # not yet
    kept, heard = made(run=run), []
    with kept.reserved(queries=2, tokens=9):
        run._started -= 7200  # and now it is
        heard.append("a reply")
    assert heard
    assert run.cost == {"queries": 0, "tokens": 0}
    with pytest.raises(BudgetError, match="its budget is"):
        kept.pay(Spent(queries=2))


def test_nothing_costs_anything_unless_it_is_priced_and_then_only_itself():
    assert Prices() == Prices(query=0, target=0, attacker=0, judge=0)
    free = made(Caps(money=1e-9))
    free.pay(Spent(queries=10**6, target_tokens=10**9, attacker_tokens=10**9, judge_tokens=10**9))
    assert free.money == 0 and free.affordable(7, queries=1, target_tokens=64) == 7
    for price, unit in (("query", "queries"), ("target", "target_tokens"), ("attacker", "attacker_tokens")):
        dear = made(Caps(money=1.0), Prices(**{price: 1e6}))
        for asked in ("queries", "target_tokens", "attacker_tokens"):
            assert (dear.affordable(7, **{asked: 10}) == 7) is (asked != unit)
    judged = made(Caps(money=1.0), Prices(judge=1e6))
    assert judged.affordable(7, attacker_tokens=10) == 7  # nobody judges advice


@pytest.mark.parametrize("name", ["flops", "seconds", "money"])
def test_a_cap_may_be_below_one_and_not_nothing(name):
    assert getattr(Caps(**{name: 0.01}), name) == 0.01
    with pytest.raises(ValidationError):
        Caps(**{name: 0})
    assert Prices(target=0.25, judge=0.5, attacker=0.1).judge == 0.5
