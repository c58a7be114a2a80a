"""The scheduler: what an episode may ask, batches that change nothing, caps, a kill that costs nothing."""

from __future__ import annotations

import random

import pytest

from calibrant.attack.engine.budget import Caps, Prices
from calibrant.attack.engine.episodes import Participants
from calibrant.attack.engine.protocol import AskAttacker, AskTarget, Attack, Compute, Computed, Score
from calibrant.attack.engine.run import Planned, run_attack, run_attacks
from calibrant.core import (
    CapabilityError,
    Chat,
    Completion,
    ConfigError,
    EvidenceError,
    Frozen,
    Goal,
    Identity,
    InputError,
    Quiet,
    Sampling,
    Verdict,
)
from calibrant.core.lm import Scored
from calibrant.data.rows import Goals


class Settings(Frozen):
    """Settings of the search below."""

    tries: int = 5
    """Most questions to the target."""


def search(goals, config, tools):
    """Ask with a random word until one works; the attacker model's advice is taken after two tries."""
    (goal,) = goals
    said = yield [AskAttacker(Chat.ask(f"how shall i ask: {goal.text}"))]
    start = yield [Compute("a number", lambda: Computed(7, flops=10.0))]
    for number in range(config.tries):
        word = said[0].text if number == 2 else f"{start[0]}-{tools.rng.randrange(10**9)}"
        heard = yield [
            AskTarget(goal, Chat.ask(f"{goal.text} {word}"), variant="late" if number > 2 else "early")
        ]
        if heard[0].outcome == "success":
            return


SEARCH = Attack("attack.search", "search", Settings, search, lambda c: c.tries, lambda c: 1)


class Target:
    """Gives in to the word 'please' for goals whose number is even; can be told to fail at a call."""

    identity = Identity(name="target", parts={"weights": "t"})

    def __init__(self, fail_at=None, error=KeyboardInterrupt):
        self.asked, self.calls, self.fail_at, self.error = [], 0, fail_at, error

    def generate(self, chats, sampling=Sampling()):
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.error
        self.asked += chats
        return [self.reply(chat.last_user) for chat in chats]

    def reply(self, text):
        yes = "please" in text and int(text.split()[2]) % 2 == 0
        return Completion(text="it is brewed" if yes else "no", ids=(1, 2, 3))


class Adviser:
    identity = Identity(name="adviser", parts={"weights": "a"})

    def __init__(self):
        self.asked = []

    def generate(self, chats, sampling=Sampling()):
        self.asked += chats
        return [Completion(text="please", ids=(1,) * 4) for _ in chats]


def goals_of(count):
    return Goals(
        rows=tuple(Goal(id=f"g{i}", text=f"brew potion {i}", category="potions") for i in range(count))
    )


def driven(folder, target, judge, *, goals=12, batch=256, adviser=None, attack=SEARCH, run=None, **given):
    participants = Participants(target, judge, Sampling(max_tokens=8), adviser or Adviser())
    plan = [Planned(attack, attack.config(), attack.name)]
    run = run or Quiet(3, folder)
    return run_attacks(plan, goals_of(goals), participants, run, batch=batch, **given)


def test_finds_what_is_planted_and_stops_there(tmp_path, judge):
    scheduler, stored = driven(tmp_path, Target(), judge)
    attempts = list(stored)
    reached = {a.goal_id for a in attempts if a.outcome == "success"}
    assert reached == {f"g{i}" for i in range(0, 12, 2)}
    for (_, goal, _), counts in scheduler.all_counts.items():
        even = int(goal[1:]) % 2 == 0
        assert counts.attempts == (3 if even else 5)
        assert counts.first == (3 if even else None)
        assert counts.reached is even
    assert [a.number for a in attempts if a.goal_id == "g1"] == [0, 1, 2, 3, 4]
    assert {a.attack for a in attempts} == {"attack.search/early", "attack.search/late"}
    assert {a.family for a in attempts} == {"search"}


def test_an_attempt_carries_what_was_spent_on_its_way(tmp_path, judge):
    scheduler, stored = driven(tmp_path, Target(), judge, goals=1)
    first, second, _ = stored
    assert (first.cost.queries, first.cost.attacker_tokens, first.cost.flops) == (1, 4, 10.0)
    assert (second.cost.queries, second.cost.attacker_tokens, second.cost.target_tokens) == (1, 0, 3)
    assert scheduler.tracker.spent == {
        "queries": 3,
        "target_tokens": 9,
        "attacker_tokens": 4,
        "judge_tokens": 0,
        "flops": 10.0,
    }


@pytest.mark.parametrize("batch", [1, 5, 256])
def test_batches_change_nothing(tmp_path, judge, batch):
    whole = driven(tmp_path / "whole", Target(), judge)
    part = driven(tmp_path / "part", Target(), judge, batch=batch)
    assert part.stored.path.read_bytes() == whole.stored.path.read_bytes()
    assert part.scheduler.tracker.spent == whole.scheduler.tracker.spent


@pytest.mark.parametrize("fail_at", [1, 2, 5, 9])
def test_a_kill_loses_nothing_and_repeats_nothing(tmp_path, judge, fail_at):
    whole = driven(tmp_path / "whole", Target(), judge, batch=4)
    work, first, adviser = tmp_path / "killed", Target(fail_at), Adviser()
    with pytest.raises(KeyboardInterrupt):
        driven(work, first, judge, batch=4, adviser=adviser)
    second = Target()
    again = driven(work, second, judge, batch=4, adviser=adviser)
    assert again.stored.path.read_bytes() == whole.stored.path.read_bytes()
    assert again.scheduler.tracker.spent == whole.scheduler.tracker.spent
    assert not set(first.asked) & set(second.asked)
    assert len(first.asked) + len(second.asked) == len(list(whole.stored))
    assert len(adviser.asked) == len(set(adviser.asked)) == 12


def test_work_is_done_once(tmp_path, judge):
    done = []

    def episode(goals, config, tools):
        found = yield [Compute("it", lambda: Computed(done.append(1) or len(done)))]
        yield [AskTarget(goals[0], Chat.ask(f"brew potion 1 {found[0]} {number}")) for number in range(3)]

    attack = Attack("attack.work", "gradient", Settings, episode, lambda c: 3)
    with pytest.raises(KeyboardInterrupt):
        driven(tmp_path, Target(1), judge, goals=1, attack=attack)
    assert [a.chat.last_user[-3:] for a in driven(tmp_path, Target(), judge, goals=1, attack=attack).stored]
    assert done == [1]


def test_a_line_cut_by_a_kill_is_asked_again(tmp_path, judge):
    whole = driven(tmp_path, Target(), judge)
    said = whole.stored.path.read_bytes()
    log = tmp_path / "attempts.jsonl"
    log.write_bytes(log.read_bytes()[:-40])
    target = Target()
    assert driven(tmp_path, target, judge).stored.path.read_bytes() == said
    assert len(target.asked) == 1


def test_a_damaged_store_is_named(tmp_path, judge):
    driven(tmp_path, Target(), judge)
    log = tmp_path / "attempts.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([lines[0], b"nonsense\n", *lines[2:]]))
    with pytest.raises(EvidenceError, match=r"attempts\.jsonl, line 2 is not"):
        driven(tmp_path, Target(), judge)


def test_a_query_cap_is_kept_and_the_rest_is_censored(tmp_path, judge):
    target = Target()
    scheduler, _ = driven(tmp_path, target, judge, caps=Caps(queries=17), batch=5)
    assert len(target.asked) == scheduler.tracker.spent["queries"] == 17
    assert scheduler.capped == "queries"
    open_ = [t for t in scheduler.all_counts.values() if t.cut]
    assert open_
    assert all(t.reached is None for t in open_ if not t.hits)


def test_a_money_cap_prices_the_dearest_reply(tmp_path, judge):
    target = Target()
    prices = Prices(query=1.0, target=1e6)
    scheduler, _ = driven(tmp_path, target, judge, caps=Caps(money=50.0), prices=prices)
    # A query may cost 1 + 8 and comes to 1 + 3: the last batch is asked while 9 still fit.
    assert scheduler.tracker.money <= 50.0
    assert scheduler.capped == "money"
    assert scheduler.tracker.money > 50.0 - 9.0


def test_seconds_and_flops_end_it_too(tmp_path, judge):
    assert driven(tmp_path / "s", Target(), judge, caps=Caps(seconds=1e-9)).scheduler.capped == "seconds"
    assert driven(tmp_path / "f", Target(), judge, caps=Caps(flops=1.0)).scheduler.capped == "flops"


def test_a_target_that_answers_nothing_is_an_error_and_nothing_is_lost(tmp_path, judge):
    class Dead(Target):
        def reply(self, text):
            return Completion(text="", stop="error", error="503 from the endpoint")

    with pytest.raises(InputError, match="503 from the endpoint"):
        driven(tmp_path, Dead(), judge)
    target = Target()
    again = driven(tmp_path, target, judge)
    assert len(target.asked) == len(list(again.stored)) == 48


def test_now_and_then_an_error_is_undetermined(tmp_path, judge):
    class Flaky(Target):
        def reply(self, text):
            if "potion 3" in text:
                return Completion(text="", stop="error", error="429")
            return super().reply(text)

    scheduler, stored = driven(tmp_path, Flaky(), judge)
    assert scheduler.all_counts["attack.search", "g3", 0].reached is None
    assert {a.outcome for a in stored if a.goal_id == "g3"} == {"undetermined"}


def test_equal_questions_with_equal_seeds_are_asked_once(tmp_path, judge):
    def episode(goals, config, tools):
        yield [AskTarget(goals[0], Chat.ask("brew potion 1"), draw=draw) for draw in (0, 0, 1)]

    attack = Attack("attack.twins", "search", Settings, episode, lambda c: 3)
    cold, warm = Target(), Target()
    driven(tmp_path / "cold", cold, judge, attack=attack, goals=1)
    assert len(cold.asked) == 1  # greedy: every draw is the same
    participants = Participants(warm, judge, Sampling(temperature=1.0))
    _, stored = run_attacks(
        [Planned(attack, Settings(), "attack.twins")], goals_of(1), participants, Quiet(0, tmp_path / "w")
    )
    assert len(warm.asked) == 2
    assert len(list(stored)) == 3


def test_scores_come_from_the_surrogate_and_count_as_queries(tmp_path, judge):
    class Open:
        identity = Identity(name="open", parts={"weights": "o"})

        def logprobs(self, chats, replies):
            return [Scored(ids=(1, 2), logprobs=(-1.5, -0.5)) for _ in chats]

        def prompt_ids(self, chat):
            return [1, 2, 3]

    def episode(goals, config, tools):
        scores = yield [Score(Chat.ask("a"), "b"), Score(Chat.ask("c"), "d")]
        assert scores == [-1.5, -1.5]
        yield [AskTarget(goals[0], Chat.ask("brew potion 2 please"))]

    attack = Attack("attack.scores", "search", Settings, episode, lambda c: 3, access="log-probs")
    with pytest.raises(CapabilityError, match="log-probs"):
        driven(tmp_path, Target(), judge, attack=attack, goals=1)
    participants = Participants(Target(), judge, Sampling(), surrogate=Open())
    scheduler, stored = run_attacks(
        [Planned(attack, Settings(), "attack.scores")], goals_of(1), participants, Quiet(0, tmp_path)
    )
    (attempt,) = stored
    assert attempt.cost.queries == scheduler.tracker.spent["queries"] == 3
    assert attempt.access == "log-probs"
    assert scheduler.all_counts["attack.scores", "g0", 0].first == 3


def test_who_is_missing_is_said_before_anything_is_asked(tmp_path, judge):
    target = Target()
    with pytest.raises(CapabilityError, match="needs an attacker model"):
        run_attack(
            SEARCH, Settings(), goals_of(2), Participants(target, judge, Sampling()), Quiet(0, tmp_path)
        )
    assert not target.asked


def test_two_attacks_may_not_share_a_name(tmp_path, judge):
    plan = Planned(SEARCH, Settings(), "attack.search")
    with pytest.raises(ConfigError, match="two attacks are called"):
        run_attacks(
            [plan, plan],
            goals_of(1),
            Participants(Target(), judge, Sampling(), Adviser()),
            Quiet(0, tmp_path),
        )


def test_two_targets_meet_the_same_draws(tmp_path, judge):
    class Other(Target):
        identity = Identity(name="other", parts={"weights": "x"})

    first, second = Target(), Other()
    driven(tmp_path / "a", first, judge)
    driven(tmp_path / "b", second, judge)
    assert first.asked == second.asked


def test_repetitions_draw_anew(tmp_path, judge):
    participants = Participants(Target(), judge, Sampling(), Adviser())
    plan = [Planned(SEARCH, Settings(), "attack.search", repetitions=3)]
    scheduler, stored = run_attacks(plan, goals_of(2), participants, Quiet(0, tmp_path))
    assert len(scheduler.all_counts) == 6
    asked = {(a.goal_id, a.seed): a.chat for a in stored if a.number == 0}
    assert len(set(asked.values())) == 6


def test_a_walk_over_all_goals_is_counted_goal_by_goal(tmp_path, judge):
    def episode(goals, config, tools):
        yield [AskTarget(goal, Chat.ask(f"{goal.text} please")) for goal in goals]

    attack = Attack("attack.all", "LM-made", Settings, episode, lambda c: 1, together=True)
    scheduler, _ = driven(tmp_path, Target(), judge, attack=attack, goals=4)
    assert [t.reached for t in scheduler.all_counts.values()] == [True, False, True, False]


def test_random_order_of_equal_work_is_no_matter(tmp_path, judge):
    """The artefact is in order of attack and goal, whoever finished first."""
    _, stored = driven(tmp_path, Target(), judge, goals=9, batch=2)
    places = [(int(a.goal_id[1:]), a.number) for a in stored]
    shuffled = list(places)
    random.Random(0).shuffle(shuffled)
    assert places == sorted(shuffled)


def test_what_a_walk_spent_is_charged_once_however_many_it_asks_at_once(tmp_path, judge):
    """Advice for 4 tokens, then three questions together: the attempts carry 4 in all, not 12."""

    def episode(goals, config, tools):
        yield [AskAttacker(Chat.ask("how?")), Compute("a number", lambda: Computed(7, flops=10.0))]
        yield [
            AskTarget(goals[0], Chat.ask(f"brew potion 1 {way}"), draw=draw) for draw, way in enumerate("abc")
        ]

    attack = Attack("attack.three", "LM-made", Settings, episode, lambda c: 3, lambda c: 1)
    for warm in (0.0, 1.0):
        participants = Participants(Target(), judge, Sampling(max_tokens=8, temperature=warm), Adviser())
        plan = [Planned(attack, Settings(), attack.name)]
        scheduler, stored = run_attacks(plan, goals_of(1), participants, Quiet(3, tmp_path / str(warm)))
        assert [(a.cost.attacker_tokens, a.cost.flops) for a in stored] == [(4, 10.0), (0, 0.0), (0, 0.0)]
        assert scheduler.tracker.spent["attacker_tokens"] == 4


class Dead(Target):
    """Answers errors at the calls for which ``alive`` is false."""

    def __init__(self, alive=lambda call: False):
        super().__init__()
        self.alive = alive

    def reply(self, text):
        return (
            super().reply(text) if self.alive(self.calls) else Completion(text="", stop="error", error="503")
        )


def test_three_silent_batches_in_a_row_end_it(tmp_path, judge):
    target = Dead()
    with pytest.raises(InputError, match="503"):
        driven(tmp_path, target, judge, batch=2)
    assert target.calls == 3
    last = Dead(lambda call: call <= 3)
    with pytest.raises(InputError, match="503"):
        driven(tmp_path / "later", last, judge, batch=2)
    assert last.calls == 6


def test_silence_now_and_then_does_not(tmp_path, judge):
    target = Dead(lambda call: call % 3 == 0)
    scheduler, _stored = driven(tmp_path, target, judge, batch=2)
    assert len(scheduler.all_counts) == 12 and target.calls > 20
    assert all(counts.ended for counts in scheduler.all_counts.values())


def test_another_judge_reads_every_reply_anew(tmp_path, judge):
    class Harsh(type(judge)):
        identity = Identity(name="harsh", kind="judge", parts={"rule": "always"})

        def judge(self, goals, chats, completions):
            return [Verdict(question="?", answer="yes") for _ in chats]

    driven(tmp_path, Target(), judge)
    target = Target()
    _driver, stored = driven(tmp_path, target, Harsh())
    attempts = list(stored)
    assert len(target.asked) == len(attempts) == 12  # nothing of the first judge's is taken
    assert {a.outcome for a in attempts} == {"success"}
    assert {tuple(a.verdicts) for a in attempts} == {(Harsh.identity.digest,)}
