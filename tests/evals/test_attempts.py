from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from calibrant.core import (
    Attempt,
    BudgetError,
    CapabilityError,
    Chat,
    Completion,
    EvidenceError,
    Goal,
    Identity,
    InputError,
    LayerVerdict,
    NumericalError,
    Quiet,
    Sampling,
    Verdict,
    attempt_id,
)
from calibrant.evals import attempts as module
from calibrant.evals.attempts import Request, ask, read_attempts, write_attempts
from calibrant.models.scripted import ScriptedModel
from calibrant.models.seeds import item_seeds


class YesJudge:
    """Yes where the reply starts with 'yes'; keeps what it was shown."""

    calibration = "exact"

    def __init__(self, name: str = "toy judge") -> None:
        self.identity = Identity(name=name, kind="judge", parts={"name": name})
        self.seen: list[str] = []

    def judge(
        self, goals: Sequence[Goal], chats: Sequence[Chat], completions: Sequence[Completion]
    ) -> list[Verdict]:
        assert len(goals) == len(chats) == len(completions)
        self.seen += [c.text for c in completions]
        return [
            Verdict(question="yes?", answer="yes" if c.text.startswith("yes") else "no") for c in completions
        ]


class Drawing:
    """Draws as a real model does: from hash(seed, chat, occurrence in this call)."""

    identity = Identity(name="drawing", parts={"weights": "toy"})

    def __init__(self) -> None:
        self.calls: list[int] = []

    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
        self.calls.append(len(chats))
        return [Completion(text=f"yes {n}", ids=(1, 2)) for n in item_seeds(chats, sampling.seed)]


class Counting(Quiet):
    """A run that keeps a bill, with a limit."""

    def __init__(self, work: Path, *, queries: int = 10**9, tokens: int = 10**9) -> None:
        super().__init__(work=work)
        self.limit = {"queries": queries, "tokens": tokens}
        self.spent = {"queries": 0, "tokens": 0}
        self.steps: list[tuple[int, int]] = []

    def spend(self, *, tokens: int = 0, queries: int = 0, flops: float = 0.0) -> None:
        new = {"queries": self.spent["queries"] + queries, "tokens": self.spent["tokens"] + tokens}
        if any(new[k] > self.limit[k] for k in new):
            raise BudgetError(f"{new} passes {self.limit}")
        self.spent = new

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.steps.append((done, total))


def wish(text: str, try_: int = 0) -> Request:
    goal = Goal(id=f"g-{text}", text=text, category="toys")
    return Request(goal=goal, chat=Chat.ask(text), attack="none", config={"try": try_})


def wishes(number: int) -> list[Request]:
    return [wish(f"wish {i}") for i in range(number)]


def texts(attempts: Sequence[Attempt]) -> list[str]:
    return [a.completion.text for a in attempts]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)


def test_an_attempt_holds_what_happened(tmp_path: Path) -> None:
    unsure = LayerVerdict(layer="guard", verdict=Verdict(question="may pass?", answer="unknown"), ms=2.5)
    target = ScriptedModel([Completion(text="yes, gladly", ids=(5, 6, 7), layers=(unsure,)), "no"])
    judge, run = YesJudge(), Counting(tmp_path)
    asked = [wish("a"), wish("b").model_copy(update={"attack": "attack.encode/rot13", "access": "weights"})]
    first, second = ask(target, asked, judge, Sampling(max_tokens=10, seed=4), run)
    drawn = {"max_tokens": 10, "temperature": 0.0, "top_p": 1.0, "seed": 0}
    settings = {"try": 0, "sampling": drawn}
    assert first.id == attempt_id("g-a", "none", settings, target.identity.digest, 4)
    assert (first.goal_id, first.category, first.attack, first.access) == ("g-a", "toys", "none", "black box")
    assert (second.attack, second.access) == ("attack.encode/rot13", "weights")
    assert first.chat == Chat.ask("a") == target.seen[0]
    assert (first.outcome, second.outcome) == ("success", "failure")
    assert first.verdicts[judge.identity.digest].answer == "yes"
    assert first.layers == (unsure,)
    assert (first.degraded, second.degraded) == (True, False)
    assert (first.cost.queries, first.cost.target_tokens) == (1, 3)
    assert second.cost.target_tokens == 10  # a reply that shows no tokens costs the most it can have been
    assert first.cost.seconds is not None and first.cost.seconds >= 0
    assert run.spent == {"queries": 2, "tokens": 13}
    assert run.steps == [(0, 2), (2, 2)]


@pytest.mark.parametrize(
    ("stop", "text", "outcome"),
    [
        ("blocked", "yes", "failure"),
        ("error", "", "undetermined"),
        ("error", "yes", "undetermined"),
        ("length", "yes", "success"),
    ],
)
def test_outcomes(
    tmp_path: Path, stop: Literal["blocked", "error", "length"], text: str, outcome: str
) -> None:
    target = ScriptedModel([Completion(text=text, stop=stop, error="made up"), "yes"])
    judge = YesJudge()
    attempt, _ = ask(target, wishes(2), judge, Sampling(), Counting(tmp_path))
    assert attempt.outcome == outcome
    (verdict,) = attempt.verdicts.values()
    assert (verdict.answer == "unknown") == (stop == "error") == (len(judge.seen) == 1)
    if stop == "error":
        assert "made up" in verdict.reason


def test_what_failed_is_asked_again_and_silence_is_no_result(tmp_path: Path) -> None:
    lost = Completion(text="", stop="error", error="down")
    with pytest.raises(InputError, match="none of 2 requests got a reply; the first: down"):
        ask(ScriptedModel([lost, lost]), wishes(2), YesJudge(), Sampling(), Counting(tmp_path))
    up = {"wish 0"}

    def reply(chat: Chat) -> str | Completion:
        return "yes" if chat.last_user in up else lost

    first = ask(ScriptedModel(reply), wishes(2), YesJudge(), Sampling(), Counting(tmp_path))
    assert [a.outcome for a in first] == ["success", "undetermined"]
    up.add("wish 1")
    healed = ScriptedModel(reply)
    again = ask(healed, wishes(2), YesJudge(), Sampling(), Counting(tmp_path))
    assert [a.outcome for a in again] == ["success", "success"] and len(healed.seen) == 1


def test_runs_of_two_seeds_draw_differently(tmp_path: Path) -> None:
    class Seeded(Counting):
        def __init__(self, work: Path, seed: int) -> None:
            super().__init__(work)
            self.seed = seed

    class Drawing:
        identity = ScriptedModel([]).identity

        def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
            return [Completion(text=f"yes {n}") for n in item_seeds(chats, sampling.seed)]

    said = [
        texts(ask(Drawing(), wishes(3), YesJudge(), Sampling(temperature=1), Seeded(tmp_path / str(s), s)))
        for s in (0, 1, 0)
    ]
    assert said[0] == said[2] != said[1]


def test_chunks_are_paid_for_before_they_are_asked(small_chunks: None, tmp_path: Path) -> None:
    """Ten wishes, four a chunk, budget of nine queries: two chunks are asked and kept, the third is not."""
    target = ScriptedModel(lambda chat: "no")
    run = Counting(tmp_path, queries=9)
    with pytest.raises(BudgetError):
        ask(target, wishes(10), YesJudge(), Sampling(), run)
    assert len(target.seen) == 8 == len(read_attempts(tmp_path / "attempts.jsonl"))
    assert run.steps == [(0, 10), (4, 10), (8, 10)]
    more = Counting(tmp_path, queries=10)
    assert len(ask(target, wishes(10), YesJudge(), Sampling(), more)) == 10
    assert len(target.seen) == 10
    assert more.spent["queries"] == 10  # a resumed job does not get its first eight for nothing
    with pytest.raises(BudgetError):
        ask(target, wishes(10), YesJudge(), Sampling(), Counting(tmp_path, queries=9))


def test_tokens_are_booked_at_most_and_billed_as_generated(small_chunks: None, tmp_path: Path) -> None:
    """Twelve replies of 2 tokens, at most 10: before the third chunk 16 are used and 40 booked."""
    run = Counting(tmp_path, tokens=56)
    ask(Drawing(), wishes(12), YesJudge(), Sampling(max_tokens=10), run)
    assert run.spent["tokens"] == 24
    with pytest.raises(BudgetError):
        short = Counting(tmp_path / "short", tokens=55)
        (tmp_path / "short").mkdir()
        ask(Drawing(), wishes(12), YesJudge(), Sampling(max_tokens=10), short)


@pytest.mark.parametrize("kept", [0, 1, 5, 8, 11])
@pytest.mark.parametrize("tail", [b"", b'{"id": "cut in the mid'])
def test_a_killed_job_ends_as_if_it_had_not_been(
    small_chunks: None, tmp_path: Path, kept: int, tail: bytes
) -> None:
    requests = [wish(f"wish {i % 5}", i) for i in range(12)]  # every chat two or three times
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    expected = ask(Drawing(), requests, YesJudge(), Sampling(seed=1), Counting(whole))
    lines = (whole / "attempts.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "attempts.jsonl").write_bytes(b"".join(lines[:kept]) + tail)
    target = Drawing()
    got = ask(target, requests, YesJudge(), Sampling(seed=1), Counting(cut))
    assert [a.id for a in got] == [a.id for a in expected]
    assert texts(got) == texts(expected)
    assert sum(target.calls) < 12 or kept <= 1
    assert len({a.id for a in read_attempts(cut / "attempts.jsonl")}) == 12
    again = Drawing()
    assert texts(ask(again, requests, YesJudge(), Sampling(seed=1), Counting(cut))) == texts(expected)
    assert again.calls == []


def test_draws_do_not_depend_on_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [wish(f"wish {i % 3}", i) for i in range(12)]
    results = []
    for size in (1, 3, 256):
        monkeypatch.setattr(module, "CHUNK", size)
        work = tmp_path / str(size)
        work.mkdir()
        results.append(texts(ask(Drawing(), requests, YesJudge(), Sampling(), Counting(work))))
    assert results[0] == results[1] == results[2]
    assert len(set(results[0])) == 12  # four tries at one chat are four draws, never one draw four times


def test_replies_go_to_their_requests_in_order(small_chunks: None, tmp_path: Path) -> None:
    requests = [wish(text, i) for i, text in enumerate("abcabdefa")]
    got = ask(ScriptedModel(lambda c: c.last_user), requests, YesJudge(), Sampling(), Counting(tmp_path))
    assert texts(got) == list("abcabdefa")
    assert [a.goal_id for a in got] == [r.goal.id for r in requests]


@pytest.mark.parametrize("size", [3, 256])
def test_within_a_chunk_the_model_sees_the_order_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(module, "CHUNK", size)
    target = ScriptedModel(["1", "2", "3"])
    requests = [wish("a", 0), wish("b", 1), wish("a", 2)]
    assert texts(ask(target, requests, YesJudge(), Sampling(), Counting(tmp_path))) == ["1", "2", "3"]


@pytest.mark.parametrize("change", ["judge", "target", "seed", "config", "chat"])
def test_only_the_same_attempt_is_taken_from_disk(tmp_path: Path, change: str) -> None:
    ask(ScriptedModel(["old"]), [wish("a")], YesJudge(), Sampling(), Counting(tmp_path))
    target: Any = ScriptedModel(["old"])  # the same script, so the same identity
    if change == "target":
        target = ScriptedModel(["new"])
    request = wish("a", 1 if change == "config" else 0)
    if change == "chat":
        request = request.model_copy(update={"chat": Chat.ask("a, please")})
    judge = YesJudge("another judge" if change == "judge" else "toy judge")
    (attempt,) = ask(target, [request], judge, Sampling(seed=change == "seed"), Counting(tmp_path))
    assert target.seen == [request.chat] == [attempt.chat]
    assert list(attempt.verdicts) == [judge.identity.digest]


def test_equal_ids_in_one_call_are_refused(tmp_path: Path) -> None:
    target = ScriptedModel(lambda chat: "no")
    with pytest.raises(InputError, match="attempts 1 and 3 have the same id") as caught:
        ask(target, [wish("a"), wish("b"), wish("a")], YesJudge(), Sampling(), Counting(tmp_path))
    assert "config" in caught.value.hint
    assert target.seen == []


def test_nothing_to_ask(tmp_path: Path) -> None:
    assert ask(ScriptedModel([]), [], YesJudge(), Sampling(), Counting(tmp_path)) == []


class Broken(YesJudge):
    def __init__(self, act: Callable[[int], list[Verdict]]) -> None:
        super().__init__()
        self.act = act

    def judge(self, goals: Any, chats: Any, completions: Any) -> list[Verdict]:
        return self.act(len(completions))


def test_a_failing_judge_is_unknown_with_the_reason(tmp_path: Path) -> None:
    def fail(number: int) -> list[Verdict]:
        raise NumericalError("score became NaN at step 3")

    done = ask(ScriptedModel(["yes", "no"]), wishes(2), Broken(fail), Sampling(), Counting(tmp_path))
    assert [a.outcome for a in done] == ["undetermined"] * 2
    assert all("NaN at step 3" in v.reason for a in done for v in a.verdicts.values())


@pytest.mark.parametrize("off", [-1, 1])
def test_a_wrong_number_of_answers_is_an_error(tmp_path: Path, off: int) -> None:
    judge = Broken(lambda n: [Verdict(question="q", answer="no")] * (n + off))
    with pytest.raises(CapabilityError, match=f"'toy judge' returned {3 + off} answers to 3"):
        ask(ScriptedModel(["a", "b", "c"]), wishes(3), judge, Sampling(), Counting(tmp_path))

    class Short(Drawing):
        def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
            return [Completion(text="x")] * (len(chats) + off)

    with pytest.raises(CapabilityError, match="'drawing' returned"):
        ask(Short(), wishes(3), YesJudge(), Sampling(), Counting(tmp_path))


def test_a_bug_in_a_judge_is_not_hidden(tmp_path: Path) -> None:
    def bug(number: int) -> list[Verdict]:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        ask(ScriptedModel(["a"]), wishes(1), Broken(bug), Sampling(), Counting(tmp_path))


def timed(ms: float) -> Callable[[Chat], Completion]:
    layer = LayerVerdict(layer="guard", verdict=Verdict(question="q", answer="yes", score=0.5), ms=ms)
    return lambda chat: Completion(text="naïve \u2028 yes", logprobs=(-0.5, -1e-7), layers=(layer,))


def test_stored_bytes_do_not_depend_on_time(tmp_path: Path) -> None:
    paths = []
    for ms in (1.0, 99.0):
        run = Counting(tmp_path / str(ms))
        (tmp_path / str(ms)).mkdir()
        done = ask(ScriptedModel(timed(ms)), wishes(3), YesJudge(), Sampling(), run)
        paths.append(write_attempts(done, run))
        rows = [json.loads(line) for line in run.artifact("timing.jsonl").read_text("utf-8").splitlines()]
        assert [row["id"] for row in rows] == [a.id for a in done]
        assert [row["seconds"] for row in rows] == [a.cost.seconds for a in done]
        assert [row["ms"] for row in rows] == [{"guard": ms}] * 3
    assert paths[0].name == "attempts.jsonl" and paths[0] == tmp_path / "1.0/artifacts/attempts.jsonl"
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    run = Counting(tmp_path)
    done = ask(ScriptedModel(timed(3.0)), wishes(3), YesJudge(), Sampling(), run)
    assert read_attempts(tmp_path / "attempts.jsonl") == done
    back = read_attempts(write_attempts(done, run))
    assert [a.id for a in back] == [a.id for a in done]
    assert back[0].completion.text == "naïve \u2028 yes" and back[0].completion.logprobs == (-0.5, -1e-7)
    assert back[0].cost.seconds is None and back[0].layers[0].ms is None
    assert back[0].completion.layers[0].ms is None
    assert done[0].layers[0].ms == 3.0  # the caller's own are left alone
    with pytest.raises(InputError, match="same id"):
        write_attempts([done[0], done[0]], run)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no attempts at"):
        read_attempts(tmp_path / "nowhere.jsonl")
    run = Counting(tmp_path)
    ask(ScriptedModel(["a", "b"]), wishes(2), YesJudge(), Sampling(), run)
    log = tmp_path / "attempts.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + b"{}\n" + lines[1])
    with pytest.raises(EvidenceError, match="line 2"):
        ask(ScriptedModel(["a", "b"]), wishes(2), YesJudge(), Sampling(), run)
