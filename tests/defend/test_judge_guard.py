"""A judge as a guard: it blocks what the judge calls harmful, and nothing else; no verdict, no permission."""

from __future__ import annotations

import base64
import math

import pytest

from calibrant.app.guarding import opened_stack
from calibrant.app.references.openers import Openers
from calibrant.core import (
    LM,
    Chat,
    Completion,
    ConfigError,
    Guard,
    Identity,
    InputError,
    Message,
    Verdict,
    resolve,
)
from calibrant.data.cards import CardRow, JudgeCard
from calibrant.defend.defended import Defended, Layer
from calibrant.defend.judge_guard import JudgeGuard, judge_guard
from calibrant.ledger import Ledger
from calibrant.measure.judges.calibrated import calibrated_judge
from calibrant.measure.judges.lm import LMJudge, Trial, lm_judge
from calibrant.measure.judges.rule import RuleJudge, rule_judge
from calibrant.models.scripted import ScriptedModel
from calibrant.testbed.gold import GoldJudge
from calibrant.testbed.world import goals, lookalikes, parse_request, recipe

BOTH = Verdict.model_construct(question="?", answer="yes and no", reason="", score=None, tokens=0)
CHAT = Chat.ask("may i?").then("assistant", "so it is.")


class Told:
    """A judge that does what it is told: one thing, or one a text."""

    question = "is there zorble in it?"
    calibration = "uncalibrated"
    identity = Identity(name="told", kind="judge", parts={"told": "1"})

    def __init__(self, says):
        self.says, self.asked = says, []

    def judge(self, goals, chats, completions):
        self.asked.append([(g.text, c, r.text) for g, c, r in zip(goals, chats, completions, strict=True)])
        if isinstance(self.says, Exception):
            raise self.says
        if callable(self.says):
            return [self.says(reply.text) for reply in completions]
        return self.says


def verdict(answer="no", score=None):
    return Verdict(question="is there zorble in it?", answer=answer, reason="it looked", score=score)


def zorble(text):
    return verdict("yes" if "zorble" in text else "no", 0.9 if "zorble" in text else 0.1)


def answer(says, chat=CHAT, **config):
    return judge_guard(Told(says), JudgeGuard(**config)).ask([chat], "output")[0].answer


def world():
    """Requests of the testbed, harmful and not, each answered in full and refused."""
    asked = [*goals("heldout")[:40], *lookalikes("heldout")[:40]]
    full = [recipe(*_parts(goal)) for goal in asked]
    return asked, full


def _parts(goal):
    return parse_request(goal.text)


def test_the_exact_judge_blocks_what_it_judges_harmful_and_nothing_else():
    asked, full = world()
    judge, guard = GoldJudge("harmful"), judge_guard(GoldJudge("harmful"))
    assert isinstance(guard, Guard)
    chats = [Chat.ask(goal.text) for goal in asked]
    for replies in (full, ["i can not help with that ."] * len(asked)):
        model = ScriptedModel(lambda chat, said=dict(zip(chats, replies, strict=True)): said[chat])
        out = Defended(model, [Layer("judge", "output", guard)]).generate(chats)
        truth = judge.judge(asked, chats, [Completion(text=reply) for reply in replies])
        assert [one.stop == "blocked" for one in out] == [one.answer != "no" for one in truth]
        assert {one.answer for one in truth} <= {"yes", "no"}
    harmful = [goal.harmful for goal in asked]
    out = Defended(
        ScriptedModel(lambda chat, said=dict(zip(chats, full, strict=True)): said[chat]),
        [Layer("judge", "output", guard)],
    ).generate(chats)
    assert [one.stop == "blocked" for one in out] == harmful
    assert 0 < sum(harmful) < len(harmful)


def test_without_harm_nothing_is_blocked():
    asked = lookalikes("heldout")[:60]
    chats = [Chat.ask(g.text).then("assistant", recipe(*_parts(g))) for g in asked]
    assert {v.answer for v in judge_guard(GoldJudge("harmful")).ask(chats, "output")} == {"yes"}


def test_a_stack_file_names_the_judge_alone(tmp_path):
    file = tmp_path / "stack.toml"
    file.write_text(
        '[[layer]]\nname = "judge"\nside = "output"\n'
        'guard = {use = "defend.judge_guard", inputs = {judge = "testbed:judge/harmful"}}\n'
    )
    _, layers = opened_stack(str(file), Openers(Ledger(tmp_path / "ledger"), base=tmp_path))
    goal = next(goal for goal in goals("heldout") if goal.harmful)
    system = Defended(ScriptedModel(lambda chat: recipe(*_parts(goal))), layers)
    assert system.generate([Chat.ask(goal.text)])[0].stop == "blocked"
    reference = f"defended:{file}#testbed:model/tiny"
    opened = Openers(Ledger(tmp_path / "ledger"), base=tmp_path).open(reference, LM)
    assert opened.digest == opened.load().identity.digest  # named before it is loaded, and the same
    file.write_text(file.read_text().replace('"output"', '"input"'))
    with pytest.raises(ConfigError, match="its guard reads the output only"):
        opened_stack(str(file), Openers(Ledger(tmp_path / "ledger"), base=tmp_path))


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ([verdict("no")], "yes"),
        ([verdict("yes")], "no"),
        ([verdict("unknown")], "unknown"),
        ([verdict("no", math.nan)], "unknown"),
        ([verdict("no", math.inf)], "unknown"),
        ([verdict("no", -math.inf)], "unknown"),
        ([], "unknown"),
        ([verdict("no"), verdict("no")], "unknown"),
        (["no"], "unknown"),
        ([None], "unknown"),
        (None, "unknown"),
        ([BOTH], "unknown"),
        (RuntimeError("the fuse is gone"), "unknown"),
        (InputError("no such thing"), "unknown"),
        (SystemError(), "unknown"),
    ],
    ids=repr,
)  # fmt: skip
def test_only_the_one_answer_lets_a_text_pass(says, expected):
    assert answer(says) == expected
    other = {"yes": "no", "no": "yes"}.get(expected, expected)
    assert answer(says, passes="yes") == other
    assert judge_guard(Told(says)).ask([CHAT], "output")[0].reason


def test_a_language_model_that_answers_both_or_refuses_is_unknown():
    trial = Trial(request="so?", reply="zorble is here", happened=True)
    config = LMJudge(question="Is there zorble in it?", trials=(trial,))

    def guarded(said):
        model = ScriptedModel(lambda chat: "VERDICT: YES" if "zorble is here" in chat.last_user else said)
        return judge_guard(lm_judge(model, config)).ask([CHAT], "output")[0]

    assert [guarded(f"VERDICT: {said}").answer for said in ("NO", "YES")] == ["yes", "no"]
    for said in ("YES and NO", "VERDICT: YES\nVERDICT: NO", "I can not help.", "Not unsafe.", ""):
        found = guarded(said)
        assert found.answer == "unknown", said
        assert "trial" not in found.reason


@pytest.mark.parametrize(
    ("passes", "said", "score", "expected"),
    [
        ("no", "no", 0.2, "yes"),
        ("no", "no", 0.3, "no"),  # from the threshold on
        ("no", "yes", 0.1, "no"),  # a threshold lets nothing pass that the answer blocks
        ("no", "unknown", 0.1, "unknown"),
        ("no", "no", None, "unknown"),
        ("no", "no", math.nan, "unknown"),
        ("yes", "yes", 0.3, "yes"),
        ("yes", "yes", 0.2, "no"),
        ("yes", "no", 0.9, "no"),
    ],
)
def test_a_threshold_blocks_more_and_never_less(passes, said, score, expected):
    assert answer([verdict(said, score)], passes=passes, threshold=0.3) == expected
    if expected == "yes":
        assert answer([verdict(said, score)], passes=passes) == "yes"


def test_one_bad_text_spoils_no_other_and_batching_changes_nothing():
    def says(text):
        if "crash" in text:
            raise RuntimeError("crash")
        return zorble(text)

    texts = ["fine", "crash", "zorble", "well"]
    chats = [Chat.ask("so?").then("assistant", text) for text in texts]
    guard = judge_guard(Told(says))
    together = guard.ask(chats, "output")
    assert [one.answer for one in together] == ["yes", "unknown", "no", "yes"]
    assert together == [guard.ask([chat], "output")[0] for chat in chats]
    assert list(reversed(together)) == guard.ask(chats[::-1], "output")
    assert guard.ask([], "output") == []


def test_the_judge_is_told_the_goal_of_the_settings():
    chat = Chat.ask("one", system="rules").then("assistant", "two").then("user", "{conversation}")
    said = chat.then("assistant", "zorble {last_user}")

    def told(side, over, **config):
        judge = Told(zorble)
        judge_guard(judge, JudgeGuard(**config)).ask([over], side)
        return judge.asked[0][0]

    assert told("output", said) == ("{conversation}", chat, "zorble {last_user}")
    everything = "rules\none\ntwo\n{conversation}"
    assert told("output", said, goal_on_output="in: {conversation}")[0] == f"in: {everything}"
    assert told("output", said, goal_on_output="zorble at all")[0] == "zorble at all"
    goal, before, text = told("input", chat, goal_on_input="asks for {last_user}")
    assert (goal, before, text) == ("asks for {conversation}", chat, everything)


def test_on_input_every_message_is_judged_once_a_goal_is_set():
    guard = judge_guard(Told(zorble), JudgeGuard(goal_on_input="{last_user}"))
    for place in range(3):
        turns = [Message(role=role, content="hello") for role in ("system", "user", "assistant")]
        turns[place] = turns[place].model_copy(update={"content": "bring the zorble"})
        assert guard.ask([Chat(messages=tuple(turns))], "input")[0].answer == "no"
    assert guard.ask([Chat.ask("hello")], "input")[0].answer == "yes"
    closed = judge_guard(Told(zorble))
    assert (closed.sides, guard.sides) == (("output",), ("input", "output"))
    assert closed.ask([Chat.ask("hello")], "input")[0].answer == "unknown"
    with pytest.raises(InputError, match="no side 'sideways'"):
        guard.ask([CHAT], "sideways")
    for chat in (Chat.ask("hello"), Chat(messages=())):
        assert guard.ask([chat], "output")[0].answer == "unknown"


def test_reasoning_that_users_see_is_judged():
    """A judge of measurements does not read what stands between think tags; a guard must."""
    chat = Chat.ask("so?").then("assistant", "<think>the zorble lies in the mill</think> i can not help")
    assert judge_guard(Told(zorble)).ask([chat], "output")[0].answer == "no"


def test_views_and_invisible_characters():
    coded = base64.b64encode(b"take the zorble to the mill, please").decode()
    chat = Chat.ask("so?").then("assistant", coded)
    assert judge_guard(Told(zorble)).ask([chat], "output")[0].answer == "yes"
    seen = judge_guard(Told(zorble), JudgeGuard(views=("base64",))).ask([chat], "output")[0]
    assert seen.answer == "no"
    assert "through base64" in seen.reason
    hidden = Chat.ask("so?").then("assistant", "zor\u200bble")
    assert judge_guard(Told(zorble)).ask([hidden], "output")[0].answer == "no"
    raw = judge_guard(Told(lambda text: verdict("yes" if "\u200b" in text else "no")))
    assert raw.ask([hidden], "output")[0].answer == "no"  # as it is, it is judged, too


@pytest.mark.parametrize("text", ["", " \n", "a \ud800 b", "\x00", "zorble " * 50_000, "{last_user} {x}"])
def test_odd_texts_get_a_verdict(text):
    chat = Chat.ask(text).then("assistant", text)
    rule = judge_guard(rule_judge(RuleJudge(any_of=("zorble",))), JudgeGuard(goal_on_input="{last_user}"))
    for side in ("input", "output"):
        assert rule.ask([chat], side)[0].answer == ("no" if "zorble" in text else "yes")
    assert judge_guard(GoldJudge("harmful")).ask([chat], "output")[0].answer == "unknown"


def test_measured_errors_stand_in_the_reason_and_the_identity():
    judge = GoldJudge("harmful")
    row = CardRow(target="mine", family="plain", found=45, positives=50, cleared=48, negatives=50)
    card = JudgeCard(judge=judge.identity.digest, rows=(row,), integrity="yes")
    goal = goals("heldout")[0]
    chat = Chat.ask(goal.text).then("assistant", "i can not help with that .")
    bare, carded = judge_guard(judge), judge_guard(calibrated_judge(judge, card))
    said = carded.ask([chat], "output")[0]
    assert said.answer == "yes"
    assert "Se 0.900" in said.reason
    assert "Sp 0.960" in said.reason
    assert "100 replies of 'mine'" in said.reason
    assert "(exact)" in bare.ask([chat], "output")[0].reason
    assert "Se 0.900" in carded.identity.parts["calibration"]
    assert bare.identity.digest != carded.identity.digest
    better = judge_guard(
        calibrated_judge(judge, card.model_copy(update={"rows": (row.model_copy(update={"found": 49}),)}))
    )
    assert better.identity.digest != carded.identity.digest


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"passes": "maybe"}, "passes"),
        ({"threshold": math.nan}, "threshold"),
        ({"goal_on_output": " "}, "blank"),
        ({"goal_on_input": "{last_usr}"}, "did you mean 'last_user'"),
        ({"goal_on_output": "{}"}, "unknown '{}'"),
        ({"views": ["base46"]}, "did you mean 'base64'"),
        ({"pass": "no"}, "did you mean 'passes'"),
    ],
)
def test_bad_settings_are_refused_by_name(config, why):
    with pytest.raises(ConfigError, match=why.replace("{", r"\{").replace("}", r"\}")):
        resolve(JudgeGuard, config)
