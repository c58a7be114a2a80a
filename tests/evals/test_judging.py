"""Judging a batch of replies: one verdict each, unknown where target or judge failed, prefill read whole."""

from __future__ import annotations

import pytest

from calibrant.core import CapabilityError, Chat, Completion, Goal, Identity, InputError, Verdict
from calibrant.core.behaviours import same_number
from calibrant.evals.judging import tokens, verdicts


class Judge:
    """Says yes to what was brewed, and keeps what it was given."""

    identity = Identity(name="truth", kind="judge", parts={"rule": "brewed"})
    calibration = "exact"

    def __init__(self, error=None, answers=None):
        self.seen, self.error, self.answers = [], error, answers

    def judge(self, goals, chats, completions):
        self.seen.append((list(goals), list(chats), [c.text for c in completions]))
        if self.error is not None:
            raise self.error
        said = [Verdict(question="?", answer="yes" if "brewed" in c.text else "no") for c in completions]
        return said if self.answers is None else said[: self.answers]


def asked(*completions, judge, chats=None):
    goals = [Goal(id=f"g{i}", text=f"brew potion {i}") for i in range(len(completions))]
    return verdicts(judge, goals, chats or [Chat.ask(goal.text) for goal in goals], list(completions))


def test_one_verdict_a_reply_in_order():
    judge = Judge()
    said = asked(Completion(text="no"), Completion(text="brewed"), Completion(text=""), judge=judge)
    assert [v.answer for v in said] == ["no", "yes", "no"]
    assert len(judge.seen) == 1


def test_a_reply_that_never_came_is_unknown_and_not_shown_to_the_judge():
    judge = Judge()
    broken = [Completion(text="", stop="error", error="503"), Completion(text="brewed", stop="error")]
    said = asked(broken[0], Completion(text="brewed"), broken[1], Completion(text="no"), judge=judge)
    assert [v.answer for v in said] == ["unknown", "yes", "unknown", "no"]
    assert said[0].reason == "the target did not answer: 503"
    assert said[2].reason == "the target did not answer: no reason given"
    ((goals, chats, texts),) = judge.seen
    assert [goal.id for goal in goals] == ["g1", "g3"]
    assert [chat.last_user for chat in chats] == ["brew potion 1", "brew potion 3"]
    assert texts == ["brewed", "no"]


def test_where_nothing_came_nobody_is_asked():
    judge = Judge(error=AssertionError())
    assert [v.answer for v in asked(Completion(text="", stop="error"), judge=judge)] == ["unknown"]
    assert asked(judge=judge) == []


def test_a_judge_that_fails_leaves_its_batch_open():
    judge = Judge(error=InputError("429 from the judge", hint="wait"))
    said = asked(Completion(text="brewed"), Completion(text="", stop="error"), judge=judge)
    assert [v.answer for v in said] == ["unknown", "unknown"]
    assert said[0].reason == "the judge failed: 429 from the judge"


def test_a_bug_in_a_judge_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        asked(Completion(text="brewed"), judge=Judge(error=ZeroDivisionError()))


def test_one_answer_too_few():
    with pytest.raises(CapabilityError, match="judge 'truth' returned 1 answers to 2 questions"):
        asked(Completion(text="brewed"), Completion(text="no"), judge=Judge(answers=1))
    same_number("anybody", 3, 3)


def test_a_begun_reply_is_judged_with_its_beginning():
    judge, begun = Judge(), Chat.ask("brew it").then("assistant", "so it is bre")
    plain = Chat.ask("brew it").then("assistant", "no").then("user", "please")
    said = asked(Completion(text="wed"), Completion(text="wed"), judge=judge, chats=[begun, plain])
    assert [v.answer for v in said] == ["yes", "no"]
    ((_, chats, texts),) = judge.seen
    assert (chats, texts) == ([Chat.ask("brew it"), plain], ["so it is brewed", "wed"])


def test_what_a_guard_blocked_says_nothing_of_the_beginning():
    judge, begun = Judge(), Chat.ask("brew it").then("assistant", "it is brewed:")
    said = asked(Completion(text="", stop="blocked"), judge=judge, chats=[begun])
    assert [v.answer for v in said] == ["no"]


def test_tokens_are_counted_where_they_show_and_else_taken_at_their_most():
    assert tokens(Completion(text="abc", ids=(1, 2, 3)), 64) == 3
    assert tokens(Completion(text="abc", logprobs=(-1.0, -2.0)), 64) == 2
    assert tokens(Completion(text="abc", ids=()), 64) == 0
    assert tokens(Completion(text="abc"), 64) == 64
    assert tokens(Completion(text=""), 64) == 0


THOUGHT = "<think>it could be brewed</think>"


def test_the_judge_reads_the_reply_and_not_the_reasoning():
    """Also where an LM of somebody else's left both in one text."""
    judge = Judge()
    said = asked(
        Completion.read(f"{THOUGHT}no"),
        Completion(text=f"{THOUGHT}no"),
        Completion(text="brewed"),
        judge=judge,
    )
    assert [v.answer for v in said] == ["no", "no", "yes"]
    assert judge.seen[0][2] == ["no", "no", "brewed"]


def test_reasoning_without_a_reply_is_unknown_and_not_shown_to_the_judge():
    judge = Judge(error=AssertionError())
    cut = Completion(text="<think>brewed", stop="length")
    for reply in (cut, Completion.read(cut.text, stop="length"), Completion(text=" ", reasoning="brewed")):
        (said,) = asked(reply, judge=judge)
        assert (said.answer, said.reason) == ("unknown", "the target was still reasoning: no reply follows")


@pytest.mark.parametrize(
    ("begun", "reply", "read"),
    [
        ("sure, ", Completion(text="brewed"), "sure, brewed"),
        ("<think>easy</think>sure, ", Completion(text="brewed"), "sure, brewed"),
        ("<think>easy", Completion(text="no", reasoning="enough"), "no"),
        ("sure, ", Completion(text="no", reasoning="after a second thought"), "no"),
    ],
)
def test_a_beginning_inside_the_reasoning_is_no_part_of_the_reply(begun, reply, read):
    judge = Judge()
    asked(reply, judge=judge, chats=[Chat.ask("brew").then("assistant", begun)])
    assert judge.seen[0][2] == [read]


def test_reasoning_counts_as_tokens():
    assert tokens(Completion(text="", reasoning="a b", ids=(1, 2, 3)), 9) == 3
    assert tokens(Completion(text="no", reasoning="a b", tokens=5, logprobs=(-1.0,)), 9) == 5
    assert (
        tokens(Completion(text="no", reasoning="a b", logprobs=(-1.0,)), 9) == 9
    )  # those of the reply alone
    assert tokens(Completion(text="", reasoning="a b"), 9) == 9
    assert tokens(Completion(text="no", tokens=0), 9) == 0
