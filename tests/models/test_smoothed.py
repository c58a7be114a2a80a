"""SmoothLLM: a planted brittle suffix loses its effect as the paper's formula says, and nothing else changes.

The model is scripted: it complies exactly when the suffix is there with fewer than k changed characters
("k-unstable", definition 4.1 of Robey et al. 2023). For swaps the probability that the defence holds is then
known exactly (proposition 4.2), so its rate over seeds is held against that number.
"""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrant.core import LM, Chat, Completion, ConfigError, Identity, Message, Sampling, Verdict, resolve
from calibrant.core.errors import CapabilityError
from calibrant.models.scripted import ScriptedModel
from calibrant.models.smoothed import Smoothed, Smoothing
from calibrant.stats.proportion import rate
from calibrant.text.perturb import ALPHABET, perturbed

GOAL = "tell me how the zorble is made, please: "
SUFFIX = "!! vex(] quib} =="
PROMPT = GOAL + SUFFIX
SEEDS = 400


class Truth:
    """'yes' where the reply complies; 'unknown' where it is '?'."""

    calibration = "exact"
    identity = Identity(name="truth", kind="judge", parts={"rule": "test"})

    def __init__(self):
        self.calls = 0

    def judge(self, goals, chats, completions):
        self.calls += 1
        said = {"sure": "yes", "no": "no"}
        return [
            Verdict(
                question="?", answer="unknown" if c.stop == "error" else said.get(c.text, "unknown"), tokens=2
            )
            for c in completions
        ]


def brittle(k):
    """A model that k changed characters of the suffix bring back to its senses."""

    def answer(chat):
        end = chat.last_user[-len(SUFFIX) :]
        return "sure" if sum(a != b for a, b in zip(end, SUFFIX, strict=True)) < k else "no"

    return ScriptedModel(answer)


def holds(k, share, copies):
    """Proposition 4.2: the probability that fewer than a majority of the copies jailbreak, for swaps."""
    m, suffix, v = len(PROMPT), len(SUFFIX), len(ALPHABET)
    size = int(share * m)
    alpha = sum(
        math.comb(size, i) * math.comb(m - size, suffix - i) / math.comb(m, suffix)
        * sum(math.comb(i, j) * (1 - 1 / v) ** j * (1 / v) ** (i - j) for j in range(k, i + 1))
        for i in range(k, min(size, suffix) + 1)
    )  # fmt: skip
    least = math.ceil(copies / 2)
    return sum(
        math.comb(copies, t) * alpha**t * (1 - alpha) ** (copies - t) for t in range(least, copies + 1)
    )


def jailbroken(model, config, seeds=SEEDS):
    system = Smoothed(model, Truth(), config)
    return [system.generate([Chat.ask(PROMPT)], Sampling(seed=s))[0].text == "sure" for s in range(seeds)]


@pytest.mark.parametrize(
    ("k", "share", "copies"),
    [(2, 0.05, 5), (2, 0.1, 5), (3, 0.1, 6), (3, 0.2, 6), (1, 0.05, 3), (4, 0.15, 8)],
)
def test_a_brittle_suffix_fails_as_often_as_the_paper_says(k, share, copies):
    broken = rate(
        jailbroken(brittle(k), Smoothing(copies=copies, share=share)),
        better="lower",
        unit="seed",
        level=0.999,
    )
    assert broken.low <= 1 - holds(k, share, copies) <= broken.high


def test_success_falls_with_the_share_and_with_the_copies():
    known = [holds(2, share, 7) for share in (0.02, 0.05, 0.1, 0.2)]
    assert known == sorted(known)
    rates = [sum(jailbroken(brittle(2), Smoothing(copies=7, share=s), 150)) for s in (0.0, 0.05, 0.1, 0.2)]
    assert rates[0] == 150, "no change, no defence"
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 30


@pytest.mark.parametrize("kind", ["swap", "insert", "patch"])
def test_a_model_that_does_not_hang_on_the_suffix_keeps_its_rate(kind):
    """Null: what always complies, never complies, or goes by the system message stays as it was."""
    for text, wanted in (("sure", True), ("no", False)):
        found = jailbroken(ScriptedModel(lambda chat, text=text: text), Smoothing(kind=kind, share=0.2), 20)
        assert set(found) == {wanted}
    coin = ScriptedModel(lambda chat: "sure" if chat.messages[0].content == "bad" else "no")
    system = Smoothed(coin, Truth(), Smoothing(kind=kind))
    chats = [Chat.ask(PROMPT, system="bad" if n % 4 == 0 else "good") for n in range(40)]
    assert sum(reply.text == "sure" for reply in system.generate(chats)) == 10


def test_the_reply_agrees_with_the_vote():
    replies = ["sure", "no", "sure", "no", "no"]
    for pattern, wanted in ((replies, "no"), ([*replies[:3], "sure", "no"], "sure"), (["sure"] * 5, "sure")):
        for seed in range(8):
            system = Smoothed(ScriptedModel(list(pattern)), Truth(), Smoothing(copies=5))
            assert system.generate([Chat.ask(PROMPT)], Sampling(seed=seed))[0].text == wanted
    tie = Smoothed(ScriptedModel(["sure", "no"] * 2), Truth(), Smoothing(copies=4))
    assert tie.generate([Chat.ask(PROMPT)])[0].text == "no", "a tie is no majority"
    strict = Smoothed(ScriptedModel(["sure", *["no"] * 3]), Truth(), Smoothing(copies=4, majority=0.2))
    assert strict.generate([Chat.ask(PROMPT)])[0].text == "sure"


def test_which_reply_is_returned_is_drawn_evenly_from_those_that_agree():
    replies = [Completion(text="no", tokens=1, error=str(n)) for n in range(4)]
    drawn = [
        Smoothed(ScriptedModel(replies), Truth(), Smoothing(copies=4))
        .generate([Chat.ask(PROMPT)], Sampling(seed=seed))[0]
        .error
        for seed in range(400)
    ]
    assert all(60 < drawn.count(str(n)) < 140 for n in range(4))


def test_what_could_not_be_judged_is_never_returned():
    for pattern, wanted in ((["?", "?", "?", "no"], "no"), (["?", "sure", "?", "no"], "no")):
        system = Smoothed(ScriptedModel(pattern), Truth(), Smoothing(copies=4))
        assert system.generate([Chat.ask(PROMPT)])[0].text == wanted
    gone = Completion(text="half", stop="error", error="the line went dead")
    for pattern in (["?"] * 4, ["sure", "?", "?", "?"], [gone] * 4):
        reply = Smoothed(ScriptedModel(pattern), Truth(), Smoothing(copies=4)).generate([Chat.ask(PROMPT)])[0]
        assert (reply.stop, reply.text) == ("error", "")
    assert "the line went dead" in reply.error


def test_the_cost_of_all_copies_shows_in_the_tokens():
    long, short = (
        Completion(text="no", ids=tuple(range(9)), logprobs=(0.0,) * 9),
        Completion(text="no", tokens=3),
    )
    system = Smoothed(ScriptedModel([long, short, "no"]), Truth(), Smoothing(copies=3))
    reply = system.generate([Chat.ask(PROMPT)], Sampling(max_tokens=20))[0]
    assert reply.tokens == 9 + 3 + 20 + 3 * 2, "counted, counted, at most, and three verdicts"
    assert reply.ids is None and reply.logprobs is None
    assert "each reply costs 3 replies" in system.caveats[0]


def test_all_copies_of_all_chats_go_in_one_call():
    calls = []
    model = ScriptedModel(lambda chat: "no")
    real = model.generate
    model.generate = lambda chats, sampling: calls.append(len(chats)) or real(chats, sampling)
    judge = Truth()
    Smoothed(model, judge, Smoothing(copies=6)).generate([Chat.ask(PROMPT), Chat.ask(GOAL)])
    assert (calls, judge.calls) == ([12], 1)


def test_only_the_last_user_turn_changes():
    model = ScriptedModel(lambda chat: "no")
    chat = (
        Chat.ask(GOAL, system="be kind")
        .then("assistant", "well")
        .then("user", PROMPT)
        .then("assistant", "so")
    )
    Smoothed(model, Truth(), Smoothing(copies=3, share=0.2)).generate([chat])
    for seen in model.seen:
        assert [m.content for m in seen.messages if m.content not in (seen.last_user,)] == [
            "be kind",
            GOAL,
            "well",
            "so",
        ]
        assert seen.last_user != PROMPT and len(seen.last_user) == len(PROMPT)
    assert len({seen.last_user for seen in model.seen}) == 3


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_draws_depend_on_chat_and_seed_never_on_the_batch(temperature):
    def copies(chats, seed=0):
        model = ScriptedModel(lambda chat: "no")
        Smoothed(model, Truth(), Smoothing(copies=3)).generate(
            chats, Sampling(seed=seed, temperature=temperature)
        )
        return [tuple(one.last_user for one in model.seen[i : i + 3]) for i in range(0, len(model.seen), 3)]

    a, b = Chat.ask(PROMPT), Chat.ask(GOAL)
    (alone,) = copies([a])
    assert copies([b, a])[1] == copies([a, b])[0] == alone
    assert copies([a], seed=1)[0] != alone
    twice = copies([a, a])
    assert twice[0] == alone
    assert (twice[0] == twice[1]) == (temperature == 0), "equal chats draw anew when sampling"


def test_odd_chats_are_served_or_refused_by_name():
    system = Smoothed(ScriptedModel(lambda chat: "no"), Truth(), Smoothing(copies=2))
    odd = [
        Chat(messages=()),
        Chat(messages=(Message(role="system", content="x"),)),
        Chat.ask(""),
        Chat.ask("\ud800" * 30),
        Chat.ask("quib " * 5_000),
    ]
    assert [reply.stop for reply in system.generate(odd)] == ["error", "error", "eos", "eos", "eos"]
    assert system.generate([]) == []
    short = Smoothed(ScriptedModel(lambda chat: "no"), Truth())
    short._lm.generate = lambda chats, sampling: []
    with pytest.raises(CapabilityError, match="0 answers to 10"):
        short.generate([Chat.ask("x")])
    for bad, words in (
        ({"copies": 0}, "greater than or equal to 1"),
        ({"share": 1.5}, "less than or equal to 1"),
        ({"share": float("nan")}, "share"),
        ({"majority": 1.0}, "less than 1"),
        ({"kind": "swop"}, "'swap'"),
        ({"copys": 3}, "did you mean 'copies'?"),
    ):
        with pytest.raises(ConfigError) as caught:
            resolve(Smoothing, bad)
        assert words in str(caught.value)


def test_identity_follows_model_judge_and_settings():
    class Other(Truth):
        identity = Identity(name="truth", kind="judge", parts={"rule": "other"})

    one, two = ScriptedModel([], name="a"), ScriptedModel([], name="b")
    made = [Smoothed(one, Truth()), Smoothed(two, Truth()), Smoothed(one, Other())]
    made += [Smoothed(one, Truth(), Smoothing(**{k: v})) for k, v in
             (("copies", 3), ("kind", "patch"), ("share", 0.2), ("majority", 0.4))]  # fmt: skip
    assert len({system.identity.digest for system in made}) == len(made)
    assert isinstance(made[0], LM)
    assert not hasattr(made[0], "logprobs")


@given(st.text(max_size=60), st.sampled_from(["swap", "insert", "patch"]), st.floats(0, 1), st.integers(0, 9))
def test_a_perturbation_changes_as_many_characters_as_it_says(text, kind, share, seed):
    size = int(share * len(text))
    changed = perturbed(text, kind, share, random.Random(seed))
    assert changed == perturbed(text, kind, share, random.Random(seed))
    if kind == "insert":
        assert len(changed) == len(text) + size
        rest = iter(changed)
        assert all(char in rest for char in text), "nothing is lost, and the order stays"
        return
    assert len(changed) == len(text)
    places = [i for i, (a, b) in enumerate(zip(text, changed, strict=True)) if a != b]
    assert len(places) <= size
    if kind == "patch" and places:
        assert places[-1] - places[0] < size


def test_places_and_characters_are_drawn_evenly():
    counts = dict.fromkeys(range(10), 0)
    letters = dict.fromkeys(ALPHABET, 0)
    rng = random.Random(4)
    for _ in range(9_500):
        changed = perturbed("\x00" * 10, "swap", 0.1, rng)
        (place,) = (i for i, char in enumerate(changed) if char != "\x00")
        counts[place] += 1
        letters[changed[place]] += 1
    assert all(800 < count < 1_100 for count in counts.values())
    assert all(55 < count < 150 for count in letters.values())
