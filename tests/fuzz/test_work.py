"""Work in proportion to the input: lines of Python are counted as they run; four times the input runs four
times as many. What a C function does inside one call is not seen: the last test feeds what once took minutes.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from fuzz_readers import READERS
from fuzz_seeds import ATTEMPT, FOO, GARAK, JBB, PIECE, RESULT, SCORE, STUDY, VOTE, lines
from test_fuzz import watchdog

from calibrant.core import CalibrantError

Grown = Callable[[int], bytes]
TALK = "\n\nHuman: x\n\nAssistant: y"
GRADED = {"prompt": "Hi", "completion": "Hey", "label": True}
CANARY = {"format": "{secret}", "secret": "12", "alphabet": "0123456789"}
HI = {"prompt": "Hi", "chosen": "Good day", "rejected": "Go away"}


def rows(make: Callable[[int], Any]) -> Grown:
    return lambda n: lines(*(make(at) for at in range(n)))


def names(n: int) -> list[str]:
    return [f"s{at}" for at in range(n)]


def keys(row: dict[str, Any]) -> Grown:
    """One row with so many more columns."""
    return lambda n: lines({**row, **{f"k{at}": at for at in range(n)}})


def turns(n: int) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": "x"} for at in range(2 * n)]


def votes(n: int) -> bytes:
    """One rater votes, others vote on, and then the one takes all back."""
    own = [{**VOTE, "item": f"q{at}"} for at in range(n)]
    others = [{**one, "rater": "bob"} for one in own]
    return lines(*own, *others, *({"undo": one["item"], "rater": "ann"} for one in reversed(own)))


def labels(n: int) -> bytes:
    own = [{"id": f"q{at}", "human": True, "rater": "ann"} for at in range(n)]
    others = [{**one, "rater": "bob"} for one in own]
    return lines(*own, *others, *({"undo": one["id"], "rater": "ann"} for one in reversed(own)))


def table(n: int, times: int = 1) -> bytes:
    """A CSV file of one row with n more columns, each named so many times."""
    head = ["prompt", "chosen", "rejected", *[f"c{at}" for at in range(n)] * times]
    return f"{','.join(head)}\n{','.join(['Hi', 'yes', 'no', *'x' * n * times])}\n".encode()


def scores(n: int) -> bytes:
    return lines({**PIECE, "scores": [SCORE] * n})


def talk(n: int) -> bytes:
    """One conversation in which every second piece has a score, to the limit of turns and beyond."""
    return lines(*({**PIECE, "id": f"p{at}", "sequence": at, "scores": [SCORE]} for at in range(n)))


def results(n: int) -> bytes:
    """Results that all name one conversation."""
    pieces = [{**PIECE, "id": f"p{at}", "sequence": at, "role": "user"} for at in range(20)]
    return json.dumps([*pieces, *({**RESULT, "attack_result_id": f"r{at}"} for at in range(n))]).encode()


def garak(n: int) -> bytes:
    row = {**json.loads(GARAK[3]), "uuid": None}
    return b"\n".join([GARAK[0], lines(*[{**row, "status": 1, "detector_results": {}}, row] * n)])


def jbb(n: int) -> bytes:
    row = JBB["jailbreaks"][0]
    return json.dumps(
        {**JBB, "jailbreaks": [{**row, "index": at, "behavior": f"b{at}"} for at in range(n)]}
    ).encode()


def study(n: int) -> bytes:
    job = '[[job]]\nid = "j{}"\nuse = "measure.refusal"\ninputs = {{goals = "g.jsonl"}}\n'
    return (STUDY + "".join(job.format(at) for at in range(n // 10))).encode()


GROWN: dict[str, tuple[str, Grown]] = {
    "pairs": ("pairs jsonl", rows(lambda at: HI)),
    "pairs with one id": ("pairs jsonl", rows(lambda at: {**HI, "id": "a"})),
    "columns of a row": ("pairs jsonl", keys(HI)),
    "columns of a refused row": ("pairs jsonl", keys({"prompt": "Hi"})),
    "columns of a CSV file": ("pairs csv", table),
    "columns named twice": ("pairs csv", lambda n: table(n, times=2)),
    "turns": ("examples", lambda n: lines({"messages": turns(n)})),
    "a transcript": (
        "pairs jsonl",
        lambda n: lines({side: TALK * n + TALK + side for side in ("chosen", "rejected")}),
    ),
    "goals": ("goals jsonl", rows(lambda at: {"text": f"goal {at}", "n": at % 2, "harmful": True})),
    "graded": ("graded", rows(lambda at: GRADED)),
    "raters": (
        "graded",
        lambda n: lines({"prompt": "x", "completion": "y", "label": 1, "raters": ["yes"] * n}),
    ),
    "canaries": ("canaries", rows(lambda at: CANARY)),
    "a secret": ("canaries", lambda n: lines({**CANARY, "secret": names(n), "alphabet": names(n)})),
    "votes taken back": ("votes", votes),
    "labels taken back": ("labels", labels),
    "queue": ("queue", rows(lambda at: {"id": str(at), "goal": "", "chat": "Hi", "reply": "x"})),
    "attempts": ("attempts", rows(lambda at: {**ATTEMPT, "id": str(at)})),
    "garak without uuids": ("garak", garak),
    "harmbench": (
        "harmbench",
        lambda n: json.dumps(
            {f"b{at}": [{"test_case": "a", "generation": "b", "label": 1}] for at in range(n)}
        ).encode(),
    ),
    "jbb": ("jbb", jbb),
    "promptfoo": ("promptfoo jsonl", rows(lambda at: {**FOO, "id": None, "testIdx": None})),
    "scores of a reply": ("pyrit pieces", scores),
    "results of one conversation": ("pyrit results", results),
    "policy": ("policies", lambda n: "".join(f'k{at} = "x"\n' for at in range(n)).encode()),
    "studies": ("studies", study),
    "a long key": ("table references", lambda n: b"x" * n + b" = 1"),
    "a dotted key": ("table references", lambda n: b"a." * n + b"a = 1"),
    "a list": ("table references", lambda n: b"x = [" + b"1, " * n + b"]"),
    "a judge's reply": ("verdicts", lambda n: b"VERDICT: YES\n" * n),
    "a judge's question": ("judge prompts", lambda n: b"Is it so. The verdict: yes. " * n),
    "thoughts": ("thoughts", lambda n: b"<think>a</think>b" * n),
    "unclosed thoughts": ("thoughts", lambda n: b"<think>a" * n),
    "decodings": ("decoders", lambda n: b"aGVsbG8= .... 68 " * n),
    "a converter": ("converters", lambda n: b"+".join([b"rot13"] * min(n, 900))),
    "a server's reply": (
        "replies",
        lambda n: json.dumps(
            {
                "choices": [
                    {"message": {"content": [{"type": "text", "text": "x"}] * n}, "finish_reason": "stop"}
                ]
            }
        ).encode(),
    ),
}


def work(name: str, data: bytes, room: Path) -> int:
    """How many lines of Python run while a reader reads."""
    count = 0

    def counted(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        count += 1
        return counted

    before = sys.gettrace()
    sys.settrace(counted)
    try:
        READERS[name].read(data, room)
    except CalibrantError:
        pass
    finally:
        sys.settrace(before)
    return count


def excess(grown: str, n: int, room: Path) -> float:
    """Work for four times the input, over four times the work; more than 1 is more than linear."""
    name, make = GROWN[grown]
    work(name, make(2), room)  # what is imported and cached at first
    return work(name, make(4 * n), room) / (4 * work(name, make(n), room))


@pytest.mark.parametrize(
    "grown", ["pairs", "columns of a row", "votes taken back", "scores of a reply", "garak without uuids"]
)
def test_work_is_linear(grown: str, tmp_path: Path) -> None:
    assert excess(grown, 60, tmp_path) < 1.2


@pytest.mark.slow
@pytest.mark.parametrize("grown", GROWN)
def test_work_stays_linear(grown: str, tmp_path: Path) -> None:
    assert excess(grown, 150, tmp_path) < 1.2


def test_more_than_linear_work_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def squared(data: bytes, room: Path) -> object:
        found = data.split(b"\n")
        return [one for one in found for other in found if one == other]

    monkeypatch.setitem(READERS, "pairs jsonl", READERS["pairs jsonl"]._replace(read=squared))
    assert excess("pairs", 20, tmp_path) > 2


HUGE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "300,000 columns of a row": ("pairs jsonl", lambda: keys(HI)(300_000)),
    "300,000 columns of a refused row": ("goals jsonl", lambda: keys({"x": 1})(300_000)),
    "200,000 columns of a CSV file": ("pairs csv", lambda: table(200_000)),
    "20,000 scores of a reply": ("pyrit pieces", lambda: scores(20_000)),
    "20,000 scored replies of one conversation": ("pyrit pieces", lambda: talk(20_000)),
    "a key of 100,000 parts": ("table references", lambda: b"a." * 100_000 + b"a = 1"),
    "100,000 turns": ("examples", lambda: lines({"messages": turns(50_000)})),
}


@pytest.mark.slow
@pytest.mark.parametrize("huge", HUGE)
def test_what_once_took_minutes(huge: str, tmp_path: Path) -> None:
    name, make = HUGE[huge]
    data = make()
    with watchdog(), contextlib.suppress(CalibrantError):
        READERS[name].read(data, tmp_path)
