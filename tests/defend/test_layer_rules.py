"""What a layer does when its guard gives no answer: time limits, retries, circuit breaker, on_error."""

from __future__ import annotations

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrant.core import Chat, ConfigError, Identity, LayerVerdict, Verdict
from calibrant.defend._layer import STUCK, Caller, blocker
from calibrant.defend.defended import REFUSAL, Defended, Layer, OnFailure, defended_from
from calibrant.defend.pattern_guard import PatternGuard, pattern_guard
from calibrant.models.scripted import ScriptedModel

CHAT = Chat.ask("hello")


class Plays:
    """Does what its script says, one act a call: 'yes', 'no', 'unknown', 'crash', or 'wait' for ever."""

    def __init__(self, *script):
        self.script, self.asked, self.go = list(script), 0, threading.Event()
        self.identity = Identity(name="plays", kind="guard", parts={"script": " ".join(script)})

    def ask(self, chats, side):
        act = self.script[min(self.asked, len(self.script) - 1)]
        self.asked += 1
        if act == "wait":
            self.go.wait(60)
        if act == "crash":
            raise RuntimeError("the fuse is gone")
        return [Verdict(question="?", answer="yes" if act == "wait" else act) for _ in chats]


def answers(caller, chats=(CHAT,)):
    return [(one.verdict.answer, one.status) for one in caller.verdicts(chats)]


def test_a_call_that_takes_too_long_has_failed():
    guard = Plays("wait", "yes")
    caller = Caller(Layer("a", "input", guard, OnFailure(timeout=0.05)))
    assert answers(caller, [CHAT] * 3) == [("unknown", "failed")] * 3
    assert guard.asked == 1  # the batch is not asked again one by one: each might take as long
    assert answers(caller) == [("yes", "answered")]
    guard.go.set()


def test_a_guard_whose_calls_never_end_is_not_asked_for_ever():
    guard = Plays("wait")
    caller = Caller(Layer("a", "input", guard, OnFailure(timeout=0.01)))
    for _ in range(STUCK + 5):
        assert answers(caller) == [("unknown", "failed")]
    assert guard.asked == STUCK
    assert "still run" in caller.verdicts([CHAT])[0].verdict.reason
    guard.go.set()
    for _ in range(500):
        if answers(caller) == [("yes", "answered")]:
            break
        threading.Event().wait(0.01)
    else:
        pytest.fail("it is not asked again after its calls have ended")


@pytest.mark.parametrize("retries", [0, 1, 2, 5])
def test_a_failure_is_tried_again_as_often_as_it_says(retries):
    guard = Plays("crash", "crash", "yes")
    caller = Caller(Layer("a", "input", guard, OnFailure(retries=retries)))
    expected = ("yes", "answered") if retries >= 2 else ("unknown", "failed")
    assert answers(caller) == [expected]
    assert guard.asked == min(retries, 2) + 1


def test_only_what_failed_is_tried_again():
    class Stumbles(Plays):
        def ask(self, chats, side):
            self.seen.append([chat.last_user for chat in chats])
            if any(chat.last_user == "b" for chat in chats) and len(self.seen) < 5:
                raise RuntimeError("b")
            return [Verdict(question="?", answer="yes") for _ in chats]

    guard = Stumbles("yes")
    guard.seen = []
    caller = Caller(Layer("a", "input", guard, OnFailure(retries=1)))
    assert answers(caller, [Chat.ask(text) for text in "abc"]) == [("yes", "answered")] * 3
    assert guard.seen == [["a", "b", "c"], ["a"], ["b"], ["c"], ["b"]]


@pytest.mark.parametrize("answer", ["no", "unknown"])
def test_an_answer_is_not_tried_again(answer):
    guard = Plays(answer)
    assert answers(Caller(Layer("a", "input", guard, OnFailure(retries=3)))) == [(answer, "answered")]
    assert guard.asked == 1


def test_a_circuit_opens_rests_is_tried_once_and_closes():
    now = [0.0]
    guard = Plays(*["crash"] * 4, "yes")
    caller = Caller(Layer("a", "input", guard, OnFailure(breaker=3, cooldown=10)), clock=lambda: now[0])
    for _ in range(3):
        answers(caller)
    assert (guard.asked, caller.open) == (3, True)
    assert answers(caller) == [("unknown", "failed")]
    assert guard.asked == 3
    now[0] = 10.5
    assert answers(caller) == [("unknown", "failed")]  # tried, and it fails again
    assert guard.asked == 4
    assert answers(caller) == [("unknown", "failed")]
    assert guard.asked == 4
    now[0] = 21.0
    assert answers(caller) == [("yes", "answered")]
    assert not caller.open
    assert answers(caller) == [("yes", "answered")]
    assert guard.asked == 6


def test_failures_that_are_not_in_a_row_open_no_circuit():
    guard = Plays(*["crash", "crash", "yes"] * 5)
    caller = Caller(Layer("a", "input", guard, OnFailure(breaker=3, cooldown=1000)))
    for _ in range(15):
        answers(caller)
    assert guard.asked == 15


def test_while_one_call_tries_others_are_not_let_in():
    now = [0.0]
    guard = Plays("crash", "wait")
    rules = OnFailure(breaker=1, cooldown=1, timeout=20)
    caller = Caller(Layer("a", "input", guard, rules), clock=lambda: now[0])
    answers(caller)
    now[0] = 2.0
    trying = threading.Thread(target=answers, args=(caller,))
    trying.start()
    while guard.asked < 2:
        pass
    assert answers(caller) == [("unknown", "failed")]
    assert guard.asked == 2
    guard.go.set()
    trying.join()
    assert answers(caller) == [("yes", "answered")]


ORDER = {"no": 0, "unknown": 1, "escalated": 2, "yes": 3}


@given(st.lists(st.sampled_from(list(ORDER)), max_size=6), st.booleans())
def test_the_least_verdict_decides(said, ended):
    """The order no < unknown < escalated < yes; what all escalate is read by none."""
    verdicts = [
        LayerVerdict(
            layer=str(at),
            verdict=Verdict(question="?", answer="unknown" if one == "escalated" else one),
            status="escalated" if one == "escalated" else "answered",
        )
        for at, one in enumerate(said)
    ]
    passes = blocker(verdicts, ended=ended) is None
    if any(one in ("no", "unknown") for one in said):
        assert not passes
    elif said and ended:
        assert passes == ("yes" in said)
    else:
        assert passes


@pytest.mark.parametrize(("first", "second"), list(itertools.product(["crash", "yes", "no"], repeat=2)))
@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("shadow", [False, True])
def test_escalating_layers_of_a_defended_system(first, second, side, shadow):
    rules = OnFailure(on_error="escalate")
    stack = [Layer("a", side, Plays(first), rules), Layer("b", side, Plays(second), rules)]
    reply = Defended(ScriptedModel(lambda chat: "well."), stack, shadow=shadow).generate([CHAT])[0]
    passes = "no" not in (first, second) and "yes" in (first, second)
    assert (reply.text == "well.") == passes
    assert reply.text in ("well.", REFUSAL)


def test_escalation_on_one_side_asks_nothing_of_the_other():
    """An input layer that escalates is not made good by an output layer: that reads something else."""
    stack = [
        Layer("a", "input", Plays("crash"), OnFailure(on_error="escalate")),
        Layer("b", "output", Plays("yes")),
    ]
    assert Defended(ScriptedModel(lambda chat: "well."), stack).generate([CHAT])[0].stop == "blocked"


def test_rules_come_from_the_file_and_stand_in_the_identity():
    model = ScriptedModel(lambda chat: "well.")

    def system(**rules):
        layer = {"name": "a", "side": "output", "guard": "x", **rules}
        return defended_from(model, {"layer": [layer]}, lambda _: pattern_guard(PatternGuard(words=("x",))))

    given_rules = {
        "timeout": 2.0, "retries": 1, "breaker": 4, "cooldown": 9.0, "on_error": "escalate", "every": 8,
    }  # fmt: skip
    layer = system(**given_rules).layers[0]
    assert {**layer.failing.model_dump(), "every": layer.every} == given_rules
    plain = system()
    assert plain.identity == system(timeout=None, retries=0, on_error="block").identity
    others = {system(**{key: value}).identity.digest for key, value in given_rules.items()}
    assert len(others | {plain.identity.digest}) == len(given_rules) + 1


@pytest.mark.parametrize(
    "rules",
    [{"timeout": 0}, {"timeout": -1}, {"retries": -1}, {"breaker": 0}, {"cooldown": 0}, {"every": 0},
     {"on_error": "allow"}, {"on_eror": "block"}, {"timeout": float("nan")}],
)  # fmt: skip
def test_bad_rules_are_refused_by_name(rules):
    layer = {"name": "a", "side": "input", "guard": "x", **rules}
    with pytest.raises(ConfigError, match=next(iter(rules))):
        defended_from(ScriptedModel([]), {"layer": [layer]}, lambda _: Plays("yes"))
