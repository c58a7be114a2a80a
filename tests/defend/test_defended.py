"""Defended: only a yes passes, whatever breaks; every verdict is kept; nobody walks round."""

from __future__ import annotations

import asyncio
import itertools
import tomllib

import pytest

from calibrant.core import LM, Chat, Completion, ConfigError, Identity, Sampling, ScoringLM, Verdict
from calibrant.defend._by_list import by_list
from calibrant.defend.defended import REFUSAL, Defended, Layer, defended_from
from calibrant.defend.pattern_guard import PatternGuard, pattern_guard
from calibrant.models.scripted import ScriptedModel

ANSWERS = ("yes", "no", "unknown", "crash", "nonsense")


class Says:
    """A guard with one answer; 'crash' raises, 'nonsense' returns a text."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []
        self.identity = Identity(name=answer, kind="guard", parts={"answer": answer})

    def ask(self, chat, side):
        self.asked.append((chat, side))
        if self.answer == "crash":
            raise RuntimeError("the fuse is gone")
        if self.answer == "nonsense":
            return "yes"
        return Verdict(question="?", answer=self.answer, reason="told so")


def echo():
    return ScriptedModel(lambda chat: f"echo {chat.last_user}")


def one(defended, text="hello"):
    return defended.generate([Chat.ask(text)])[0]


@pytest.mark.parametrize("shadow", [False, True])
@pytest.mark.parametrize(("first", "second", "last"), list(itertools.product(ANSWERS, repeat=3)))
def test_only_three_times_yes_passes(first, second, last, shadow):
    """Fault matrix: {yes, no, unknown, exception, malformed} at each of three layers, 125 cells."""
    stack = [
        Layer("a", "input", Says(first)),
        Layer("b", "input", Says(second)),
        Layer("c", "output", Says(last)),
    ]
    reply = one(Defended(echo(), stack, "blocked here", shadow=shadow))
    if (first, second, last) == ("yes", "yes", "yes"):
        assert (reply.text, reply.stop) == ("echo hello", "eos")
    else:
        assert (reply.text, reply.stop) == ("blocked here", "blocked")
        blocker = next(n for n, answer in zip("abc", (first, second, last), strict=True) if answer != "yes")
        assert reply.error.startswith(f"blocked by layer '{blocker}'")
    if shadow:
        assert [layer.layer for layer in reply.layers] == ["a", "b", "c"]
    read = {"crash": "unknown", "nonsense": "unknown"}
    told = {"a": first, "b": second, "c": last}
    for layer in reply.layers:
        assert layer.verdict.answer == read.get(told[layer.layer], told[layer.layer])
        assert layer.ms >= 0


def test_a_crash_is_unknown_with_the_reason():
    reply = one(Defended(echo(), [Layer("fuse", "input", Says("crash"))]))
    assert reply.layers[0].verdict.answer == "unknown"
    assert "RuntimeError: the fuse is gone" in reply.layers[0].verdict.reason


def test_a_blocked_request_never_reaches_the_model_or_later_layers():
    model, later = echo(), Says("yes")
    reply = one(Defended(model, [Layer("a", "input", Says("no")), Layer("b", "input", later)]))
    assert (model.seen, later.asked) == ([], [])
    assert [layer.layer for layer in reply.layers] == ["a"]


def test_shadow_asks_everyone_and_hides_the_reply_all_the_same():
    model, later, last = echo(), Says("yes"), Says("yes")
    stack = [Layer("a", "input", Says("no")), Layer("b", "input", later), Layer("c", "output", last)]
    reply = one(Defended(model, stack, shadow=True))
    assert (reply.text, reply.stop, reply.ids) == (REFUSAL, "blocked", None)
    assert [len(x) for x in (model.seen, later.asked, last.asked)] == [1, 1, 1]
    assert Defended(model, stack, shadow=True).identity == Defended(model, stack).identity


def test_output_layers_see_the_chat_with_the_reply():
    last = Says("yes")
    one(Defended(echo(), [Layer("c", "output", last)]), "hi")
    assert last.asked == [(Chat.ask("hi").then("assistant", "echo hi"), "output")]


def test_a_blocked_reply_takes_its_ids_and_logprobs_with_it():
    secret = Completion(text="zorble", ids=(1, 2), logprobs=(-0.1, -0.2))
    reply = one(Defended(ScriptedModel([secret]), [Layer("c", "output", Says("unknown"))]))
    assert (reply.text, reply.ids, reply.logprobs) == (REFUSAL, None, None)


@pytest.mark.parametrize("stop", ["error", "blocked"])
def test_text_of_a_broken_reply_does_not_leave_unread(stop):
    leak = Completion(text="take the zorble", stop=stop, error="half way")
    guard = pattern_guard(PatternGuard(words=("zorble",)))
    assert one(Defended(ScriptedModel([leak]), [Layer("c", "output", guard)])).text == REFUSAL


def test_an_error_of_the_model_stays_an_error():
    lost = Completion(text="", stop="error", error="no line")
    last = Says("yes")
    reply = one(
        Defended(ScriptedModel([lost]), [Layer("a", "input", Says("yes")), Layer("c", "output", last)])
    )
    assert (reply.stop, reply.error) == ("error", "no line")
    assert [layer.layer for layer in reply.layers] == ["a"]
    assert last.asked == []


def test_a_batch_keeps_its_order_and_its_sampling():
    calls = []

    class Noting:
        identity = Identity(name="noting", parts={"x": "y"})

        def generate(self, chats, sampling=Sampling()):
            calls.append(([c.last_user for c in chats], sampling))
            return [Completion(text=c.last_user.upper()) for c in chats]

    model = Noting()
    guard = pattern_guard(PatternGuard(words=("zorble",)))
    texts = ["a", "zorble", "b", "a zorble", "c"]
    sampling = Sampling(max_tokens=3, temperature=1.0, seed=9)
    replies = Defended(model, [Layer("words", "input", guard)]).generate(
        [Chat.ask(t) for t in texts], sampling
    )
    assert [r.text for r in replies] == ["A", REFUSAL, "B", REFUSAL, "C"]
    assert calls == [(["a", "b", "c"], sampling)]


def test_all_blocked_asks_the_model_nothing():
    model = echo()
    replies = Defended(model, [Layer("a", "input", Says("no"))]).generate([Chat.ask("x")] * 3)
    assert [r.stop for r in replies] == ["blocked"] * 3
    assert model.seen == []
    assert Defended(model, []).generate([]) == []


def test_without_layers_the_model_speaks_as_it_is():
    assert one(Defended(echo(), [])) == Completion(text="echo hello")


def test_two_equal_guards_are_two_layers():
    """llm-guard keyed its verdicts by class, so the second of two overwrote the first."""
    stack = [Layer("first", "input", Says("no")), Layer("second", "input", Says("yes"))]
    reply = one(Defended(echo(), stack, shadow=True))
    assert [(x.layer, x.verdict.answer) for x in reply.layers] == [("first", "no"), ("second", "yes")]
    assert reply.stop == "blocked"


def test_a_system_inside_a_system_keeps_all_verdicts():
    inner = Defended(echo(), [Layer("inner", "input", Says("no"))], "inner refusal")
    outer = Defended(inner, [Layer("outer", "input", Says("yes"))], "outer refusal")
    reply = one(outer)
    assert (reply.text, reply.stop) == ("inner refusal", "blocked")
    assert "inner" in reply.error
    assert [x.layer for x in reply.layers] == ["outer", "inner"]


def test_bad_stacks_are_refused_with_every_problem():
    stack = [
        Layer("a", "input", Says("yes")),
        Layer("a", "output", Says("yes")),
        Layer("b", "in", Says("yes")),
        Layer(" ", "input", Says("yes")),
    ]
    with pytest.raises(ConfigError) as caught:
        Defended(echo(), stack)
    assert len(caught.value.problems) == 3
    assert "2 layers are named 'a'" in str(caught.value)
    assert "side 'in'" in str(caught.value)


def test_identity_changes_with_whatever_changes_an_answer():
    yes, no = Layer("a", "input", Says("yes")), Layer("b", "input", Says("no"))
    base = Defended(echo(), [yes, no]).identity
    assert base.kind == "defended"
    others = [
        Defended(ScriptedModel([], name="another"), [yes, no]),
        Defended(echo(), [no, yes]),
        Defended(echo(), [yes]),
        Defended(echo(), [yes, no], "another refusal"),
        Defended(echo(), [yes, Layer("b", "output", Says("no"))]),
        Defended(echo(), [yes, Layer("b", "input", Says("yes"))]),
    ]
    digests = {d.identity.digest for d in others} | {base.digest, echo().identity.digest}
    assert len(digests) == len(others) + 2
    assert Defended(echo(), [yes, no]).identity.digest == base.digest


def test_no_public_way_round_the_guards():
    defended = Defended(echo(), [Layer("a", "input", Says("no"))])
    offered = {name for name in dir(defended) if not name.startswith("_")}
    # The guards may be looked at, and left out by name; the model behind them may not be had.
    assert offered == {
        *("identity", "generate", "template_differences", "caveats", "layers", "with_reply"),
        *("layer_names", "with_layers", "lets_pass"),
    }
    assert isinstance(defended, LM)
    assert not isinstance(defended, ScoringLM)


def test_layers_that_are_left_out_leave_a_system_that_only_talks():
    no, yes = Layer("no", "input", Says("no")), Layer("yes", "output", Says("yes"))
    whole = Defended(echo(), [no, yes])
    bare, one = whole.with_layers(()), whole.with_layers(("yes",))
    assert bare.layer_names == () and one.layer_names == ("yes",) and not isinstance(bare, ScoringLM)
    assert whole.with_layers(("yes", "no")).identity.digest == whole.identity.digest != one.identity.digest
    assert [system.generate([Chat.ask("hello")])[0].stop for system in (whole, one, bare)] == [
        "blocked", "eos", "eos",
    ]  # fmt: skip
    reply = Completion(text="hello")
    passes = [system.lets_pass([Chat.ask("hello")], [reply]) for system in (whole, one, bare)]
    assert passes == [[False], [True], [True]]
    with pytest.raises(ConfigError, match="has no layer 'yet'"):
        whole.with_layers(("yet",))


def test_inputs_are_left_as_they_are():
    stack = [Layer("a", "input", Says("yes"))]
    chats = [Chat.ask("x")]
    Defended(echo(), stack).generate(chats)
    assert chats == [Chat.ask("x")]
    assert len(stack) == 1


STACK = """
refusal = "no ."
shadow = true
[[layer]]
name = "words"
side = "input"
guard = {use = "defend.pattern_guard", config = {words = ["zorble"]}}
[[layer]]
name = "again"
side = "output"
guard = {use = "defend.pattern_guard", config = {words = ["quib"]}}
"""


def behaviour(table):
    return pattern_guard(PatternGuard(**table["config"])) if "config" in table else table


def test_a_stack_file_becomes_the_system_that_it_describes():
    defended = defended_from(echo(), tomllib.loads(STACK), behaviour)
    by_hand = [
        Layer("words", "input", pattern_guard(PatternGuard(words=("zorble",)))),
        Layer("again", "output", pattern_guard(PatternGuard(words=("quib",)))),
    ]
    assert defended.identity.digest == Defended(echo(), by_hand, "no .").identity.digest
    reply = one(defended, "zorble quib")
    assert (reply.text, [x.verdict.answer for x in reply.layers]) == ("no .", ["no", "no"])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[[layer]]", "[[layers]]", "did you mean 'layer'?"),
        ('"output"', '"outptu"', "layer.1.side"),
        ('"again"', '"words"', "2 layers are named 'words'"),
        (', config = {words = ["quib"]}', "", "layer 'again': 'defend.pattern_guard' is not a guard"),
        (STACK, 'refusal = "no ."', "'layer' is required"),
        (STACK, "layer = []", "layer"),
    ],
)
def test_a_stack_file_that_does_not_hold_is_refused(old, new, words):
    with pytest.raises(ConfigError) as caught:
        defended_from(echo(), tomllib.loads(STACK.replace(old, new)), behaviour)
    assert words in str(caught.value)


def test_what_a_model_says_of_itself_is_said_behind_guards_too():
    model = echo()
    assert (Defended(model, []).caveats, Defended(model, []).template_differences) == ((), None)
    model.caveats = ("one row at a time",)
    assert Defended(model, []).caveats == ("one row at a time",)


THINKS = "<think>about zorble</think>nothing to see"


def words():
    return [Layer("words", "output", pattern_guard(PatternGuard(words=("zorble",))))]


def test_output_layers_read_the_reasoning_that_users_see():
    spoken = one(Defended(ScriptedModel([THINKS]), [Layer("all", "output", guard := Says("yes"))]))
    assert (spoken.reasoning, spoken.text) == ("about zorble", "nothing to see")
    assert guard.asked[0][0].messages[-1].content == "about zorble\n\nnothing to see"
    blocked = one(Defended(ScriptedModel([THINKS]), words()))
    assert (blocked.text, blocked.reasoning, blocked.stop) == (REFUSAL, None, "blocked")


def test_reasoning_that_users_do_not_see_is_not_read_and_goes_no_further():
    hidden = Defended(ScriptedModel([THINKS, "<think>zorble"]), words(), show_reasoning=False)
    spoken, cut = hidden.generate([Chat.ask("a"), Chat.ask("b")])
    assert (spoken.text, spoken.reasoning, spoken.stop) == ("nothing to see", "", "eos")
    assert cut.unanswered and cut.text == ""
    shown = Defended(ScriptedModel([THINKS, "<think>zorble"]), words())
    assert hidden.identity.digest != shown.identity.digest
    spec = {"layer": [{"name": "a", "side": "output", "guard": {}}], "show_reasoning": False}
    made = defended_from(ScriptedModel([THINKS]), spec, lambda _: Says("yes"))
    assert one(made).reasoning == ""


class Batch:
    """A guard of the contract: lists of chats; what it does is a function of them."""

    identity = Identity(name="batch", kind="guard", parts={})

    def __init__(self, answer):
        self.answer, self.sizes = answer, []

    def ask(self, chats, side):
        self.sizes.append(len(chats))
        return self.answer(chats)


def yes(chats):
    return [Verdict(question="?", answer="yes") for _ in chats]


def stumbles(chats):
    if any("breakdown" in chat.last_user for chat in chats):
        raise RuntimeError("the fuse is gone")
    return yes(chats)


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        (yes, "1111"),
        (stumbles, "1101"),
        (lambda chats: yes(chats)[:-1], "0000"),
        (lambda chats: yes([*chats, chats[0]]), "0000"),
        (lambda chats: [*yes(chats[:-1]), "yes"], "1110"),
        (lambda chats: "y" * len(chats), "0000"),
        (lambda chats: None, "0000"),
    ],
)
def test_a_batch_is_asked_at_once_and_each_chat_has_its_own_verdict(answer, passes, side):
    """A crash or a wrong number costs the chats that it happens on, alone; none is let pass by it."""
    chats = [Chat.ask(text) for text in ("a", "b", "breakdown", "d")]
    guard = Batch(answer)
    replies = Defended(echo(), [Layer("all", side, guard)]).generate(chats)
    assert "".join("01"[reply.stop == "eos"] for reply in replies) == passes
    assert guard.sizes[0] == len(chats)
    assert len(guard.sizes) == (1 if passes in ("1111", "1110") else 1 + len(chats))


def test_later_layers_read_only_what_earlier_ones_let_pass():
    first = Batch(
        lambda chats: [Verdict(question="?", answer="no" if "b" in c.last_user else "yes") for c in chats]
    )
    for shadow, sizes in ((False, [2]), (True, [3])):
        second = Batch(yes)
        system = Defended(echo(), [Layer("a", "input", first), Layer("b", "input", second)], shadow=shadow)
        system.generate([Chat.ask(text) for text in "abc"])
        assert second.sizes == sizes
    assert Defended(echo(), [Layer("a", "input", first)]).generate([]) == []


class Old:
    """A guard as users wrote them before: one chat."""

    identity = Identity(name="old", kind="guard", parts={})
    sides = ("input",)

    def ask(self, text, side):
        return Verdict(question="?", answer="no" if "zorble" in text.last_user else "yes")


def test_guards_that_read_one_chat_still_open():
    replies = Defended(echo(), [Layer("old", "input", Old())]).generate(
        [Chat.ask("a zorble"), Chat.ask("tea")]
    )
    assert [reply.stop for reply in replies] == ["blocked", "eos"]
    assert by_list(Old()).sides == ("input",) and not hasattr(by_list(Says("yes")), "sides")
    guard = Batch(yes)
    assert by_list(guard) is guard
    with pytest.raises(ConfigError, match="is on side 'output'"):
        Defended(echo(), [Layer("old", "output", Old())])


class UnprintableError(Exception):
    """Its own text fails."""

    def __str__(self):
        raise RuntimeError("no words")


def raises(error):
    def answer(chats):
        raise error

    return answer


def sorts(chats):
    chats.sort(key=lambda chat: chat.last_user, reverse=True)
    return yes(chats)


def empties(chats):
    found = yes(chats)
    chats.clear()
    return found


@pytest.mark.parametrize(
    "answer",
    [
        sorts, empties, raises(UnprintableError()), raises(asyncio.CancelledError()), raises(SystemExit(0)),
        lambda chats: [Verdict.model_construct()] * len(chats),
        lambda chats: (verdict for verdict in yes(chats)),
        lambda chats: True,
    ],
)  # fmt: skip
@pytest.mark.parametrize("side", ["input", "output"])
def test_whatever_a_guard_does_to_its_list_blocks_and_never_escapes(answer, side):
    """What it is given can not be changed, so no verdict lands on another chat."""
    system = Defended(echo(), [Layer("odd", side, Batch(answer))])
    replies = system.generate([Chat.ask(text) for text in "abc"])
    assert [reply.stop for reply in replies] == ["blocked"] * 3


def test_a_guard_that_is_stopped_by_hand_stops():
    system = Defended(echo(), [Layer("odd", "input", Batch(raises(KeyboardInterrupt())))])
    with pytest.raises(KeyboardInterrupt):
        system.generate([Chat.ask("a")])


def test_sides_that_are_no_list_are_refused():
    guard = Batch(yes)
    guard.sides = None
    with pytest.raises(ConfigError, match="has sides None, which is no list"):
        Defended(echo(), [Layer("odd", "input", guard)])
