"""What every attack without a model behind it keeps to: the budget it quotes; a kill changes nothing."""

from __future__ import annotations

import random

import pytest

from calibrant.attack import best_of_n, encode, genetic, many_shot, persona, prefill, random_search
from calibrant.attack.engine.episodes import Participants
from calibrant.attack.engine.run import run_attack
from calibrant.core import Completion, Identity, Quiet, Sampling
from calibrant.core.lm import Scored

ATTACKS = {
    "best_of_n": (best_of_n.ATTACK, best_of_n.BestOfN(tries=7, wave=3)),
    "encode": (encode.ATTACK, encode.Encode()),
    "genetic": (genetic.ATTACK, genetic.Genetic(population=4, generations=3)),
    "genetic by log-probs": (genetic.BY_LOGPROBS, genetic.Genetic(population=4, generations=3)),
    "many_shot": (many_shot.ATTACK, many_shot.ManyShot(counts=(1, 3))),
    "persona": (persona.ATTACK, persona.Persona()),
    "prefill": (prefill.ATTACK, prefill.Prefill()),
    "random_search": (
        random_search.ATTACK,
        random_search.RandomSearch(words=("ant", "bee"), steps=3, wave=2),
    ),
}
every = pytest.mark.parametrize("name", ATTACKS)


class Target:
    """Never gives in; what it says hangs on the chat alone. Can be killed at a call."""

    identity = Identity(name="target", parts={"weights": "t"})

    def __init__(self, fail_at=None):
        self.asked, self.calls, self.fail_at = [], 0, fail_at

    def generate(self, chats, sampling=Sampling()):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        self.asked += [(chat, sampling.seed) for chat in chats]
        return [Completion(text=f"no, for {random.Random(str(chat)).random()}") for chat in chats]


class Surrogate:
    identity = Identity(name="surrogate", parts={"weights": "s"})

    def prompt_ids(self, chat):
        return [0]

    def logprobs(self, chats, replies):
        return [Scored(ids=(0, 1), logprobs=(-random.Random(str(chat)).random(), -1.0)) for chat in chats]


def attacked(name, target, goals, judge, work):
    attack, config = ATTACKS[name]
    given = {"surrogate": Surrogate()} if attack.access == "log-probs" else {}
    participants = Participants(target, judge, Sampling(temperature=1.0), **given)
    return run_attack(attack, config, goals, participants, Quiet(3, work))


@every
def test_it_spends_no_more_than_it_quotes(name, goals, judge, tmp_path):
    attack, config = ATTACKS[name]
    found = attacked(name, Target(), goals, judge, tmp_path)
    assert found.metrics["attack_success_rate"].value == 0
    assert found.metrics["spent/queries"].value <= len(goals) * attack.queries(config)
    assert {a.family for a in found.attempts} == {attack.family}


@every
@pytest.mark.parametrize("fail_at", [1, 2])
def test_a_kill_changes_nothing(name, fail_at, goals, judge, tmp_path):
    attacked(name, Target(), goals, judge, tmp_path / "whole")
    first, second = Target(fail_at), Target()
    try:
        attacked(name, first, goals, judge, tmp_path / "killed")
    except KeyboardInterrupt:
        attacked(name, second, goals, judge, tmp_path / "killed")
    whole, resumed = (tmp_path / folder / "artifacts" / "attempts.jsonl" for folder in ("whole", "killed"))
    assert resumed.read_bytes() == whole.read_bytes()
    assert not set(first.asked) & set(second.asked)
