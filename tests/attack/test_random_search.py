"""Random search: climbs the surrogate's log-probs to a planted suffix, and finds nothing in the null."""

from __future__ import annotations

import pytest

from calibrant.attack.random_search import ATTACK, RandomSearch, random_search, readable
from calibrant.core import CapabilityError, ConfigError, Identity, InputError, Quiet, resolve
from calibrant.core.lm import Scored
from calibrant.models.scripted import ScriptedModel

WORDS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen")
OPEN = frozenset({"bee", "fox"})


class Surrogate:
    """Likes suffixes by how many of ``liked`` words they hold."""

    identity = Identity(name="surrogate", parts={"weights": "s"})

    def __init__(self, liked=OPEN, vocabulary=()):
        self.liked, self.asked = liked, []
        self.tokenizer = self
        self.get_vocab = lambda: dict.fromkeys(vocabulary, 0)

    def prompt_ids(self, chat):
        return [0] * len(chat.last_user.split())

    def logprobs(self, chats, replies):
        self.asked += zip(chats, replies, strict=True)
        return [Scored(ids=(0, 1), logprobs=(self.height(chat.last_user), -1.0)) for chat in chats]

    def height(self, text):
        return float(len(self.liked & set(text.split())) - len(self.liked))


def weak_to(words):
    return ScriptedModel(lambda chat: "brewed" if words <= set(chat.last_user.split()) else "no")


CONFIG = RandomSearch(words=WORDS, length=3, steps=30, wave=6)


def test_climbs_to_the_planted_suffix(goals, judge):
    target, surrogate = weak_to(OPEN), Surrogate()
    found = random_search(target, goals, judge, surrogate, CONFIG)
    assert found.metrics["attack_success_rate"].value == 1
    queries = found.metrics["spent/queries"].value
    assert queries == len(surrogate.asked) + len(target.seen) < len(goals) * ATTACK.queries(CONFIG)
    # Each attempt is better than the one before, of which it is the child.
    rows = [a for a in found.attempts if a.goal_id == "g0"]
    heights = [surrogate.height(a.chat.last_user) for a in rows]
    assert heights == sorted(set(heights))
    assert [a.parent for a in rows] == [None, *(a.id for a in rows[:-1])]
    assert {a.access for a in found.attempts} == {"log-probs"}


def test_finds_nothing_in_the_null(goals, judge):
    target, surrogate = weak_to({"no such word"}), Surrogate()
    found = random_search(target, goals, judge, surrogate, CONFIG)
    assert found.metrics["attack_success_rate"].value == 0
    assert len(surrogate.asked) == len(goals) * CONFIG.steps * CONFIG.wave
    assert len(surrogate.asked) + len(target.seen) <= len(goals) * ATTACK.queries(CONFIG)


def test_a_flat_surrogate_asks_the_target_once(goals, judge):
    target = weak_to(OPEN)
    random_search(target, goals, judge, Surrogate(liked=frozenset()), CONFIG)
    assert len(target.seen) == len(goals)


def test_what_is_no_number_is_worth_nothing(goals, judge):
    surrogate = Surrogate()
    surrogate.height = lambda text: float("nan")
    target = weak_to(OPEN)
    found = random_search(target, goals, judge, surrogate, CONFIG)
    assert target.seen == []
    assert found.metrics["attack_success_rate"].value is None


def test_neighbours_change_a_few_words_that_stand_together(goals, judge):
    surrogate = Surrogate(liked=frozenset())
    random_search(weak_to({"none"}), goals, judge, surrogate, CONFIG)
    suffixes = [chat.last_user.split()[-3:] for chat, _ in surrogate.asked if "zorble" in chat.last_user]
    start = suffixes[0]  # flat: the first one stays the best
    for suffix in suffixes[6:]:
        moved = [place for place in range(3) if suffix[place] != start[place]]
        assert len(moved) <= 2 and (not moved or moved[-1] - moved[0] <= 1)


def test_stop_false_goes_on(goals, judge):
    config = CONFIG.model_copy(update={"stop": False})
    surrogate = Surrogate()
    random_search(weak_to(OPEN), goals, judge, surrogate, config)
    assert len(surrogate.asked) == len(goals) * config.steps * config.wave


def test_the_hoped_for_reply_may_name_the_request(goals, judge):
    surrogate = Surrogate()
    random_search(weak_to(OPEN), goals, judge, surrogate, RandomSearch(words=WORDS, hope="so: {request}"))
    assert surrogate.asked[0][1] == f"so: {goals.rows[0].text}"


def test_a_seed_repeats_and_another_draws_anew(goals, judge):
    texts = []
    for seed in (1, 1, 2):
        surrogate = Surrogate()
        random_search(weak_to(OPEN), goals, judge, surrogate, CONFIG, Quiet(seed=seed))
        texts.append(surrogate.asked)
    assert texts[0] == texts[1] != texts[2]


def test_words_come_from_the_tokenizer_where_none_are_given(goals, judge):
    vocabulary = ["Ġbee", "bee", "▁fox", "Ġ", "<s>", "Ġé", "ant", "12", "a b", "##hen"]
    surrogate = Surrogate(vocabulary=vocabulary)
    assert readable(surrogate) == ["ant", "bee", "fox"]
    found = random_search(weak_to(OPEN), goals, judge, surrogate, RandomSearch(length=2))
    assert found.metrics["attack_success_rate"].value == 1


def test_a_tokenizer_without_words_is_an_error(goals, judge):
    with pytest.raises(InputError, match="no token that is a readable word"):
        random_search(weak_to(OPEN), goals, judge, Surrogate(vocabulary=["<s>", "é"]))


def test_without_a_surrogate_it_says_so(goals, judge):
    with pytest.raises(CapabilityError, match="surrogate"):
        random_search(weak_to(OPEN), goals, judge, None, CONFIG)


@pytest.mark.parametrize("given", [{"hope": " "}, {"length": 0}, {"steps": 0}, {"wave": 0}, {"change": 0}])
def test_unusable_configs_are_refused(given):
    with pytest.raises(ConfigError):
        resolve(RandomSearch, given)
