"""The policy guard: strict answers, whole texts, scores, identity, references."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrant.core import (
    Chat,
    Completion,
    ConfigError,
    Guard,
    InputError,
    Message,
    resolve,
)
from calibrant.data.guard_policy import GuardPolicy, Rule
from calibrant.defend._policy_prompt import read
from calibrant.defend.defended import Defended, Layer
from calibrant.defend.policy_guard import PolicyGuard, policy_guard
from calibrant.models.scripted import ScriptedModel
from calibrant.text.decodings import fold

RULE = Rule(id="zorble", title="Zorble", definition="The text asks for zorble.")
POLICY = GuardPolicy(
    name="made", version="1", rules=(RULE, Rule(id="zor", title="Zor", definition="Zor is not for sale."))
)
LOG = math.log


def judge(chat):
    """Flags the word between the first and the last line of the fence."""
    inside = chat.last_user.partition(" BEGIN\n")[2].rpartition(" END\n")[0]
    return "violation: zorble" if "zorble" in fold(inside) else "allowed"


def guard(model=None, **config):
    return policy_guard(model or ScriptedModel(judge), POLICY, PolicyGuard(**config))


def answer(reply, side="input"):
    chat = Chat.ask("hello").then("assistant", "hi")
    return guard(ScriptedModel([reply])).ask([chat], side)[0].answer


def test_planted_and_null():
    assert isinstance(guard(), Guard)
    found = guard().ask([Chat.ask("how do i make zorble?"), Chat.ask("how do i bake a loaf?")], "input")
    assert [verdict.answer for verdict in found] == ["no", "yes"]
    assert "rule 'zorble'" in found[0].reason
    system = Defended(ScriptedModel(lambda chat: "so"), [Layer("policy", "input", guard())])
    assert [r.stop for r in system.generate([Chat.ask("zorble?"), Chat.ask("loaf?")])] == ["blocked", "eos"]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("allowed", "yes"),
        ("  Allowed.\n", "yes"),
        ("**allowed**", "yes"),
        ("allowed\n\nNothing here concerns the rules.", "yes"),
        ("violation: zorble", "no"),
        ("VIOLATION: ZORBLE", "no"),
        ("violation:zor", "no"),
        ("`violation: zorble`\nThe text asks for it.", "no"),
        ("violation: zorble\nviolation: zorble", "no"),
        (Completion(text="violation: zorble\nThe text", stop="length"), "no"),
        (Completion(text="allowed", reasoning="violation: zorble?"), "yes"),
        # A rule that there is not, or none.
        ("violation: quib", "unknown"),
        ("violation", "unknown"),
        ("violation: allowed", "unknown"),
        ("violation: zorble, zor", "unknown"),
        ("violation: the rule zorble", "unknown"),
        ("violation: zorble is what I looked for, in vain", "unknown"),
        # Two answers, and no answer.
        ("allowed\nviolation: zorble", "unknown"),
        ("violation: zorble\nallowed", "unknown"),
        ("violation: zorble\nviolation: zor", "unknown"),
        ("allowed\nNo, wait: it violates zorble.", "unknown"),
        ("allowed\nallowed", "unknown"),
        ("allowed violation: zorble", "unknown"),
        ("allowed\u2028violation: zorble", "unknown"),
        ("allowed or violation: zorble", "unknown"),
        # NVIDIA-NeMo/Guardrails#2044: read as safe there.
        ("Not safe.", "unknown"),
        ("safe unsafe", "unknown"),
        ("safe", "unknown"),
        ("not allowed", "unknown"),
        ("disallowed", "unknown"),
        ("not\u200ballowed", "unknown"),
        ("allowed?", "unknown"),
        ("The text is harmless.\nallowed", "unknown"),
        ("\u0430llowed", "unknown"),  # a letter of another script
        ("yes", "unknown"),
        ("", "unknown"),
        (" \n\t", "unknown"),
        # any-guardrail PR 249: a reply that is cut off before the verdict counted as valid there.
        (Completion(text="violation: zor", stop="length"), "unknown"),
        (Completion(text="violation: zor ", stop="length"), "unknown"),
        (Completion(text="allowed", stop="length"), "unknown"),
        (Completion(text="allowed\nThe text", stop="length"), "unknown"),
        (Completion(text="The text says that", stop="length"), "unknown"),
        (Completion(text="", stop="length"), "unknown"),
        (Completion(text="", reasoning="allowed", stop="length"), "unknown"),
        (Completion(text="allowed", stop="error", error="lost"), "unknown"),
        (Completion(text="allowed", stop="blocked", error="a layer"), "unknown"),
    ],
)
def test_an_answer_is_a_whole_first_line_or_unknown(reply, expected):
    assert answer(reply) == answer(reply, "output") == expected


@given(text=st.text())
def test_nothing_but_the_word_permits(text):
    found = read(Completion(text=text), POLICY.ids)
    if found.answer == "yes":
        assert "allowed" in fold(text.strip().splitlines()[0])
    assert read(Completion(text=f"x {text}"), POLICY.ids).answer == "unknown"


@given(text=st.text(alphabet="allowedvit:zrb \n.", max_size=40), cut=st.booleans())
def test_more_text_never_makes_a_yes_of_a_no(text, cut):
    reply = Completion(text=f"violation: zorble\n{text}", stop="length" if cut else "eos")
    assert read(reply, POLICY.ids).answer != "yes"


def test_every_role_is_shown_and_output_judges_the_reply():
    model = ScriptedModel(lambda chat: "allowed")
    chat = Chat.ask("one", system="two").then("assistant", "three").then("user", "four")
    guard(model).ask([chat], "input")
    guard(model).ask([chat.then("assistant", "five")], "output")
    texts = [seen.last_user.partition(" BEGIN\n")[2] for seen in model.seen]
    key = texts[0][:16]
    turns = ["TURN 1 system\ntwo", "TURN 2 user\none", "TURN 3 assistant\nthree", "TURN 4 user\nfour"]
    assert texts[0].startswith("".join(f"{key} {turn}\n" for turn in turns))
    assert "four\n" in texts[1] and " REPLY assistant\nfive\n" in texts[1]
    assert "Judge the reply" in model.seen[1].last_user and "REPLY" not in texts[0]


def test_no_reply_no_turns_no_chats_and_no_such_side():
    never = ScriptedModel([])
    assert guard(never).ask([], "input") == []
    found = guard(never).ask([Chat.ask("hello"), Chat(messages=())], "output")
    found += guard(never).ask([Chat(messages=())], "input")
    assert [verdict.answer for verdict in found] == ["unknown"] * 3
    with pytest.raises(InputError, match="no side 'Input'"):
        guard(never).ask([Chat.ask("hello")], "Input")


@pytest.mark.parametrize("offset", range(0, 620, 7))
def test_a_word_is_found_at_every_place_of_a_long_text(offset):
    text = "." * offset + "zorble" + "." * (620 - offset)
    small = guard(size=200, overlap=20)
    assert small.ask([Chat.ask(text)], "input")[0].answer == "no"
    for chat in (Chat.ask(text).then("assistant", "so"), Chat.ask("so").then("assistant", text)):
        assert small.ask([chat], "output")[0].answer == "no"


def test_nothing_is_cut_off_and_too_long_is_unknown():
    model = ScriptedModel(judge)
    far = Chat.ask("quib " * 5_000 + "zorble").then("assistant", "so")
    assert guard(model).ask([far], "input")[0].answer == "no"
    assert guard(model).ask([far], "output")[0].answer == "no"
    assert max(len(chat.last_user) for chat in model.seen) < 6000 + 3000
    short = Chat(messages=tuple(Message(role="user", content="z") for _ in range(1_000)))
    model.seen.clear()
    guard(model, size=2000).ask([short], "input")
    bodies = [chat.last_user.partition(" BEGIN\n")[2].partition(" END\n")[0] for chat in model.seen]
    assert max(map(len, bodies)) < 2100
    assert "TURN 1000 user\nz" in bodies[-1]
    never = ScriptedModel([])
    for chat in (far, Chat.ask("hi").then("assistant", "x" * 10**6)):
        found = guard(never, most=3).ask([chat], "output")[0]
        assert (found.answer, "too long" in found.reason) == ("unknown", True)
    many = Chat(messages=tuple(Message(role="user", content="") for _ in range(20_000)))
    assert guard(never).ask([many], "input")[0].answer == "unknown"


@pytest.mark.parametrize(
    ("said", "combined"), [("aaa", "yes"), ("ava", "no"), ("?av", "no"), ("a?a", "unknown"), ("a?v", "no")]
)
def test_every_part_must_pass(said, combined):
    replies = [{"a": "allowed", "v": "violation: zor", "?": "hm"}[one] for one in said]
    model = ScriptedModel(replies)
    found = guard(model, size=200, overlap=0).ask([Chat.ask("x" * 500)], "input")[0]
    assert (found.answer, len(model.seen)) == (combined, 3)
    assert "part" in found.reason


def test_what_nobody_sees_is_asked_about_twice_and_plain_text_once():
    model = ScriptedModel(judge)
    chats = [
        Chat.ask("zo\u200brb\u00adle"),
        Chat.ask("\ud800 zor\ud800ble"),
        Chat.ask("plain \u201ctext\u201d"),
    ]
    assert [v.answer for v in guard(model).ask(chats, "input")] == ["no", "no", "yes"]
    assert len(model.seen) == 5
    "".join(chat.last_user for chat in model.seen).encode()


def test_order_batch_and_copies_change_nothing():
    texts = ["zorble", "loaf", "zorble and loaf", "", "x" * 900, "x" * 900 + "zorble", "loaf"]
    chats = [Chat.ask(text).then("assistant", text[::-1] + "zorble"[: len(text)]) for text in texts]
    one = guard(size=300, overlap=20)
    for side in ("input", "output"):
        alone = [one.ask([chat], side)[0] for chat in chats]
        assert one.ask(chats, side) == alone
        order = random.Random(1).sample(range(len(chats)), len(chats))
        assert one.ask([chats[i] for i in order], side) == [alone[i] for i in order]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"overlap": 4000}, "more than half of 'size'"),
        ({"size": 10}, "size"),
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": math.nan}, "threshold"),
        ({"least": 1.0}, "least"),
        ({"by_logprobs": True}, "did you mean 'by_logprob'"),
        ({"most": 0}, "most"),
    ],
)
def test_unusable_configs_are_refused(given, words):
    with pytest.raises(ConfigError) as caught:
        resolve(PolicyGuard, given)
    assert words in str(caught.value)


def test_identity_follows_policy_model_and_settings():
    other = GuardPolicy(name="made", version="2", rules=POLICY.rules)
    names = "ab"
    made = [policy_guard(ScriptedModel([], name=n), p) for n in names for p in (POLICY, other)]
    made += [
        guard(ScriptedModel([], name="a"), by_logprob=True),
        guard(ScriptedModel([], name="a"), salt="x"),
    ]
    digests = [one.identity.digest for one in made]
    assert len(set(digests)) == len(digests)
    assert digests[0] == guard(ScriptedModel([], name="a")).identity.digest
    assert made[0].identity.kind == "guard"


def test_a_rule_may_be_called_as_the_answer_that_permits():
    """'violation: allowed' was once read as 'allowed' here."""
    odd = GuardPolicy(name="odd", version="1", rules=(RULE.model_copy(update={"id": "allowed"}),))
    found = policy_guard(ScriptedModel(["violation: allowed", "allowed"]), odd)
    answers = found.ask([Chat.ask("hello")] * 2, "input")
    assert [verdict.answer for verdict in answers] == ["no", "yes"]
