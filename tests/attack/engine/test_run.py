"""A drive's small promises: moves that batches split, order, seeds, FLOPs, progress, what caveats say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from calibrant.attack.engine import scheduler as driver_module
from calibrant.attack.engine.budget import Caps
from calibrant.attack.engine.episodes import Participants
from calibrant.attack.engine.protocol import AskAttacker, AskTarget, Attack, Score
from calibrant.attack.engine.run import Planned, caveats, check_participants, run_attack, run_attacks
from calibrant.core import Chat, Completion, ConfigError, Frozen, Goal, Identity, InputError, Quiet, Sampling
from calibrant.core.lm import Scored
from calibrant.data.rows import Goals

GOALS = Goals(rows=tuple(Goal(id=f"g{i}", text=f"brew potion {i}") for i in range(3)))


class Settings(Frozen):
    """Nothing to set."""


class Target:
    """Says no, and remembers what it was asked and under which seed; also counts tokens and scores."""

    def __init__(self, name="target"):
        self.identity = Identity(name=name, parts={"weights": name})
        self.asked, self.seeds = [], []

    def generate(self, chats, sampling=Sampling()):
        self.asked += [chat.last_user for chat in chats]
        self.seeds += [sampling.seed] * len(chats)
        return [Completion(text="no", ids=(1, 2, 3)) for _ in chats]

    def prompt_ids(self, chat):
        return [1, 2, 3, 4, 5]

    def logprobs(self, chats, replies):
        return [Scored(ids=(1, 2), logprobs=(-1.5, -0.5)) for _ in chats]


class Adviser(Target):
    """Ten tokens of advice, however it is asked."""

    def generate(self, chats, sampling=Sampling()):
        self.asked += chats
        return [Completion(text="please", ids=(1,) * 10) for _ in chats]


class Told(Quiet):
    """Keeps what it is told of progress."""

    def __init__(self, folder):
        super().__init__(4, folder)
        self.seen = []

    def progress(self, done, total, what=""):
        self.seen.append((done, total))


def attack(episode, **given):
    return Attack("attack.plain", "search", Settings, episode, lambda config: 9, **given)


def driven(
    folder,
    episode,
    judge,
    target=None,
    *,
    sampling=Sampling(max_tokens=8),
    participants=None,
    run=None,
    **given,
):
    participants = participants or Participants(target, judge, sampling)
    plan = [Planned(attack(episode, **given.pop("of", {})), Settings(), "attack.plain")]
    return run_attacks(plan, given.pop("goals", GOALS), participants, run or Quiet(4, folder), **given)


def five(goals, config, tools):
    heard = yield [AskTarget(goals[0], Chat.ask(f"{goals[0].text} way {way}")) for way in range(5)]
    assert [answer.completion.text for answer in heard] == ["no"] * 5


@pytest.mark.parametrize("batch", [1, 2, 4, 256])
def test_a_move_larger_than_a_batch_is_asked_in_parts_and_nothing_twice(tmp_path, judge, batch):
    target = Target()
    scheduler, stored = driven(tmp_path, five, judge, target, batch=batch)
    assert len(target.asked) == len(set(target.asked)) == 15
    assert [(a.goal_id, a.number) for a in stored] == [(g.id, n) for g in GOALS for n in range(5)]
    assert all(counts.ended and counts.attempts == 5 for counts in scheduler.all_counts.values())


def test_attempts_stand_in_the_order_of_their_numbers_whoever_was_asked_first(tmp_path, judge):
    """Draws are asked group by group: numbers 0 and 2 before 1."""

    def episode(goals, config, tools):
        yield [AskTarget(goals[0], Chat.ask(f"way {n}"), draw=draw) for n, draw in enumerate((1, 0, 1))]

    target = Target()
    warm = Sampling(max_tokens=8, temperature=1.0, seed=10)
    _, stored = driven(tmp_path, episode, judge, target, sampling=warm, goals=Goals(rows=GOALS.rows[:1]))
    assert target.asked == ["way 0", "way 2", "way 1"]
    assert [a.number for a in stored] == [0, 1, 2]


def test_the_first_draw_has_the_seed_that_was_asked_for_and_no_other_has(tmp_path, judge):
    """Seed 10 of the sampling and 4 of the run; a greedy draw hangs on no seed."""

    def episode(goals, config, tools):
        yield [AskTarget(goals[0], Chat.ask("way"), draw=draw) for draw in range(3)]

    one = Goals(rows=GOALS.rows[:1])
    for temperature in (1.0, 0.0):
        target = Target()
        sampling = Sampling(max_tokens=8, temperature=temperature, seed=10)
        driven(tmp_path / str(temperature), episode, judge, target, sampling=sampling, goals=one)
        assert target.seeds[0] == 14 and target.seeds.count(14) == 1
        assert len(set(target.seeds)) == (3 if temperature else 1)


def test_log_probs_end_at_a_cap_in_the_middle_of_a_move(tmp_path, judge):
    def episode(goals, config, tools):
        yield [Score(Chat.ask("a"), reply) for reply in "bcd"]

    target = Target()
    participants = Participants(target, judge, Sampling(), surrogate=target)
    found = driven(
        tmp_path, episode, judge, participants=participants, caps=Caps(queries=2), of={"access": "log-probs"}
    )
    assert (found.scheduler.capped, found.scheduler.tracker.spent["queries"]) == ("queries", 2)


def test_advice_ends_at_a_cap_in_the_middle_of_a_move(tmp_path, judge):
    """Of three questions for up to 20 tokens each under a cap of 50 two go out, and come to ten each."""

    def episode(goals, config, tools):
        yield [AskAttacker(Chat.ask(f"how {n}"), Sampling(max_tokens=20)) for n in range(3)]

    adviser = Adviser("adviser")
    participants = Participants(Target(), judge, Sampling(), adviser)
    caps = Caps(attacker_tokens=50)
    found = driven(
        tmp_path, episode, judge, participants=participants, caps=caps, goals=Goals(rows=GOALS.rows[:1])
    )
    # 50 holds two at their dearest; 30 are left for the third.
    assert len(adviser.asked) == 3 and found.scheduler.capped == ""
    tight = Adviser("adviser")
    found = driven(
        tmp_path / "tight",
        episode,
        judge,
        participants=participants._replace(attacker=tight),
        caps=Caps(attacker_tokens=35),
    )
    assert len(tight.asked) == 2
    assert (found.scheduler.capped, found.scheduler.tracker.spent["attacker_tokens"]) == (
        "attacker_tokens",
        20,
    )


def test_a_target_with_weights_costs_two_flops_a_parameter_and_token(tmp_path, judge, monkeypatch):
    monkeypatch.setattr(driver_module, "parameters", lambda lm: 1000 if lm is not None else 0)
    scheduler, stored = driven(tmp_path, five, judge, Target(), goals=Goals(rows=GOALS.rows[:1]))
    assert [a.cost.flops for a in stored] == [2 * 1000 * (5 + 3)] * 5  # 5 read, 3 said
    assert scheduler.tracker.spent["flops"] == 5 * 16_000


def test_progress_counts_walks(tmp_path, judge):
    each = Told(tmp_path / "each")
    driven(None, five, judge, Target(), run=each)
    assert {total for _, total in each.seen} == {3} and max(done for done, _ in each.seen) <= 3
    plan = Planned(attack(five), Settings(), "attack.plain", repetitions=2)
    twice = Told(tmp_path / "twice")
    run_attacks([plan], GOALS, Participants(Target(), judge, Sampling()), twice)
    assert {total for _, total in twice.seen} == {6}

    def all_of_them(goals, config, tools):
        yield [AskTarget(goal, Chat.ask(goal.text)) for goal in goals]

    together = Told(tmp_path / "together")
    driven(None, all_of_them, judge, Target(), run=together, of={"together": True})
    assert {total for _, total in together.seen} == {1}


def test_caveats_say_whose_weights_were_read(judge):
    open_ = Planned(attack(five, access="weights"), Settings(), "attack.gradient")
    target, other = Target(), Target("other")
    own, strange = (
        " ".join(caveats([open_], Participants(target, judge, Sampling(), surrogate=who)))
        for who in (target, other)
    )
    assert "the target's own weights" in own and "surrogate's" not in own
    assert "a surrogate's weights" in strange and "own weights" not in strange
    plain = " ".join(
        caveats([Planned(attack(five), Settings(), "attack.plain")], Participants(target, judge, Sampling()))
    )
    assert "weights" not in plain and "judged by" not in plain
    doubtful = SimpleNamespace(calibration="uncalibrated", identity=judge.identity)
    assert "judged by 'truth', which is uncalibrated" in " ".join(
        caveats([open_], Participants(target, doubtful, Sampling()))
    )


def test_a_fixed_list_of_variants_is_checked_rated_and_named(tmp_path, judge):
    """Without the list, one variant has no rate of its own and a category may have its name."""

    def one(goals, config, tools):
        yield [AskTarget(goals[0], Chat.ask(goals[0].text), variant="v")]

    target = Target()
    participants = Participants(target, judge, Sampling(temperature=0.5))
    asked = {"attack": attack(one), "config": Settings(), "participants": participants}
    found = run_attack(**asked, goals=GOALS, run=Quiet(4, tmp_path / "listed"), variants=("v",))
    assert found.metrics["attack_success_rate/v"] == found.metrics["attack_success_rate"]
    told = "the k = 1 variants (v) are fixed, with one reply each at temperature 0.5"
    assert found.caveats[-1].startswith(told)
    odd = Goals(rows=tuple(goal.model_copy(update={"category": "v"}) for goal in GOALS))
    before = len(target.asked)
    with pytest.raises(InputError, match="'v' names both"):
        run_attack(**asked, goals=odd, run=Quiet(4, tmp_path / "odd"), variants=("v",))
    assert len(target.asked) == before
    free = run_attack(**asked, goals=GOALS, run=Quiet(4, tmp_path / "free"))
    assert "attack_success_rate/v" not in free.metrics and "k = 1" not in " ".join(free.caveats)


def test_the_name_that_two_share_is_the_one_that_is_told(judge):
    plans = [Planned(attack(five), Settings(), name) for name in ("attack.a", "attack.b", "attack.b")]
    with pytest.raises(ConfigError, match=r"two attacks are called 'attack\.b'"):
        check_participants(plans, Participants(Target(), judge, Sampling()))
