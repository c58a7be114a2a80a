"""Questions whose evidence is hidden from the judge, and players and a judge who go by rule.

``testbed:questions/hidden``: who took the ledger, sable or rook? A passage of clues, each of a weight and
against one of the two ("the chalk on sable weighs 7."), decides: it was the one with more weight. Players
read the passage. The judge reads ``known`` clues of it, drawn by lot, and what players quote.

``testbed:debater/ruled`` reveals, of the clues it has read, the heaviest for its side that was not told yet.
Arguing for the wrong answer it does the same: what it says is true, and misleads. ``testbed:arbiter/ruled``
adds up the weights that it has read, each clue once, and answers with the heavier side. So there is a known
order: debate brings the heaviest clues of both sides, consultancy those of one.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence

from calibrant.core import LM, Chat, Completion, Identity, InputError, Sampling, Scored, digest
from calibrant.data.rows import Question, Questions
from calibrant.testbed.checks import check_name, check_options, whole_option
from calibrant.testbed.words import CATEGORIES, PERSONAS, TOOLS

_CLUE = re.compile(r"\bthe (\w+) on (\w+) weighs (\d)\.")
_UNSURE = re.compile(r"<u_quote>.*?</u_quote>", re.DOTALL)
_FENCED = re.compile(r"^(<<[0-9a-f]{12}>>)\n(.*?)\n\1$", re.MULTILINE | re.DOTALL)
_SIDE = re.compile(r"\bfor the (first|second) answer|\bThe (first|second) answer was proposed")
_MOST, _CLUES = 5000, 30
_HEAVIEST, _SUREST = 9, 500.0


def open_questions(name: str, options: Mapping[str, str]) -> Questions:
    """``testbed:questions/hidden?n=200&clues=8&known=1&seed=1``: ``known=all`` hides nothing.

    Raises:
        InputError: no such table or option, or no or too many questions or clues.
    """
    check_name("questions", name, ("hidden",), "table")
    check_options("questions", name, options, ("n", "clues", "known", "seed"))
    n, clues, seed = (whole_option(k, options, d) for k, d in (("n", 200), ("clues", 8), ("seed", 0)))
    known = clues if options.get("known") == "all" else whole_option("known", options, 1)
    if not 1 <= n <= _MOST:
        raise InputError(f"n={n}: 1 to {_MOST} questions are made", hint="write ?n=200")
    if not 2 <= clues <= _CLUES or known > clues:
        raise InputError(
            f"clues={clues}, known={known}: 2 to {_CLUES} clues are made, and no more are known",
            hint="write ?clues=8&known=1",
        )
    rng = random.Random(f"questions/hidden/{seed}/{clues}/{known}")
    return Questions(
        rows=tuple(_question(rng, at, clues, known) for at in range(n)), source=f"testbed:questions/{name}"
    )


def _question(rng: random.Random, at: int, clues: int, known: int) -> Question:
    """Weights are drawn until they are no tie; either answer may have more clues."""
    thing = rng.choice(CATEGORIES["privacy"].objects)
    pair = rng.sample(PERSONAS, 2)
    while True:
        told = [
            f"the {tool} on {rng.choice(pair)} weighs {rng.randint(1, _HEAVIEST)}."
            for tool in rng.sample(TOOLS, clues)
        ]
        first, second = (_weight(" ".join(told), one) for one in pair)
        if first != second:
            break
    correct, wrong = pair if first > second else pair[::-1]
    return Question(
        id=f"{at}",
        question=f"who took the {thing}, {pair[0]} or {pair[1]}?",
        correct=correct,
        wrong=wrong,
        passage=" ".join(told),
        shown=" ".join(rng.sample(told, known)),
        cluster=f"{at}",
    )


def _weight(text: str, name: str) -> int:
    """All clues against ``name``, each once."""
    return sum(int(weight) for _, who, weight in dict.fromkeys(_CLUE.findall(text)) if who == name)


def open_debater(name: str, options: Mapping[str, str]) -> LM:
    """``testbed:debater/ruled?reads=passage&right=1&lies=0&seed=1``; ``testbed:debater/silent`` says nothing.

    ``reads=shown``: it has read only what the judge has. ``right``: how often it chooses the right answer
    where it may choose. ``lies``: share of its turns in which it makes a clue up.

    Raises:
        InputError: no such debater or option, or no share.
    """
    check_name("debater", name, ("ruled", "silent"), "debater")
    check_options("debater", name, options, ("reads", "right", "lies", "seed") if name == "ruled" else ())
    reads = options.get("reads", "passage")
    if reads not in ("passage", "shown"):
        raise InputError(f"reads={reads}: it reads the passage, or what is shown", hint="write ?reads=shown")
    right, lies = _share("right", options, "1"), _share("lies", options, "0")
    return _Debater(name, reads, right, lies, whole_option("seed", options, 0))


def open_arbiter(name: str, options: Mapping[str, str]) -> LM:
    """``testbed:arbiter/ruled?noise=4&bias=3&trusting=0&seed=1``: gives log-probs.

    ``noise``: standard deviation of what it misreads of the difference of weights; ``bias``: what it adds to
    the answer displayed first; ``trusting=1`` believes quotes that are not verified.

    Raises:
        InputError: no such arbiter or option, or no whole number.
    """
    check_name("arbiter", name, ("ruled",), "arbiter")
    check_options("arbiter", name, options, ("noise", "bias", "trusting", "seed"))
    numbers = {key: whole_option(key, options, 0) for key in ("noise", "bias", "trusting", "seed")}
    return _Arbiter(**numbers)


def _share(key: str, options: Mapping[str, str], default: str) -> float:
    text = options.get(key, default)
    if not re.fullmatch(r"0|1|0?\.\d+|1\.0*|0\.", text):
        raise InputError(f"{key}={text} is no share", hint=f"write ?{key}=.5")
    return float(text)


def _answers(text: str) -> tuple[str, str] | None:
    """The displayed answers: the second and third block of what everybody reads."""
    blocks = [block for _, block in _FENCED.findall(text)]
    return (blocks[1], blocks[2]) if len(blocks) >= 3 else None


class _Debater:
    """An LM that argues by rule. What it draws depends on the chat alone."""

    def __init__(self, name: str, reads: str, right: float, lies: float, seed: int) -> None:
        self._name, self._reads, self._right, self._lies, self._seed = name, reads, right, lies, seed
        parts = {
            "debater": name, "version": "1", "reads": reads, "right": f"{right:g}", "lies": f"{lies:g}",
            "seed": str(seed),
        }  # fmt: skip
        self.identity = Identity(name=f"testbed:debater/{name}", parts=parts)

    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
        """One turn, or one choice, a chat."""
        return [Completion(text=self._answer(chat)) for chat in chats]

    def _answer(self, chat: Chat) -> str:
        answers = _answers(chat.last_user)
        if self._name == "silent" or answers is None:
            return ""
        setup = "".join(one.content for one in chat.messages if one.role == "system")
        passage = setup if self._reads == "passage" else chat.last_user
        rng = random.Random(digest(["debater", self._seed, setup, chat.last_user]))
        first, second = (_weight(passage, one) for one in answers)
        lot = rng.choice(("first", "second"))
        best = "first" if first > second else "second" if second > first else lot
        if "Choose the answer" in setup:
            other = "second" if best == "first" else "first"
            return best if rng.random() < self._right else other
        if "You are asked" in setup:
            return best
        return self._turn(setup, chat.last_user, passage, answers, rng)

    def _turn(self, setup: str, seen: str, passage: str, answers: tuple[str, str], rng: random.Random) -> str:
        told = set(_CLUE.findall(seen))
        clues = [clue for clue in dict.fromkeys(_CLUE.findall(passage)) if clue not in told]
        found = _SIDE.search(setup)
        if found is None:  # an assistant: the heaviest clue for each
            kept = [_heaviest(clues, name) for name in answers]
            return " ".join(_quoted(clue) for clue in kept if clue) or "nothing more is known."
        side = found[1] or found[2]
        name, other = answers if side == "first" else answers[::-1]
        if found[2]:  # a critic, who criticises what it takes for wrong with what speaks for the other
            if _weight(passage, name) > _weight(passage, other):
                return "i find nothing wrong with it."
            name = other
        if rng.random() < self._lies:
            return _quoted((rng.choice(TOOLS), name, str(_HEAVIEST)))
        best = _heaviest(clues, name)
        return _quoted(best) if best else f"nothing more speaks for {name}."


def _heaviest(clues: Sequence[tuple[str, str, str]], name: str) -> tuple[str, str, str] | None:
    return max((clue for clue in clues if clue[1] == name), key=lambda clue: clue[2], default=None)


def _quoted(clue: tuple[str, str, str]) -> str:
    tool, name, weight = clue
    return f"it was {name}: <quote>the {tool} on {name} weighs {weight}.</quote>"


class _Arbiter:
    """A ``ScoringLM`` that weighs the clues it has read: P(first) = sigma(difference of weights)."""

    def __init__(self, noise: int, bias: int, trusting: int, seed: int) -> None:
        self._noise, self._bias, self._trusting, self._seed = noise, bias, trusting, seed
        parts = {"arbiter": "ruled", "version": "1"} | {
            key: str(value)
            for key, value in zip(
                ("noise", "bias", "trusting", "seed"), (noise, bias, trusting, seed), strict=True
            )
        }
        self.identity = Identity(name="testbed:arbiter/ruled", parts=parts)

    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
        """'first' or 'second' a chat; a chat that is no question of this world gets a refusal."""
        odds = [self._odds(chat) for chat in chats]
        return [
            Completion(text="i can not tell." if one is None else "first" if one > 0 else "second")
            for one in odds
        ]

    def logprobs(self, chats: Sequence[Chat], replies: Sequence[str]) -> list[Scored]:
        """Of 'first' and of 'second'; anything else is impossible."""
        return [
            Scored(ids=(0,), logprobs=(self._total(chat, reply),))
            for chat, reply in zip(chats, replies, strict=True)
        ]

    def _total(self, chat: Chat, reply: str) -> float:
        odds = self._odds(chat)
        if odds is None or reply not in ("first", "second"):
            return -math.inf
        return -math.log1p(math.exp(-odds if reply == "first" else odds))

    def _odds(self, chat: Chat) -> float | None:
        text = chat.last_user
        answers = _answers(text)
        if answers is None:
            return None
        rng = random.Random(digest(["arbiter", self._seed, text]))
        read = text if self._trusting else _UNSURE.sub("", text)
        first, second = (_weight(read, one) for one in answers)
        odds = first - second + self._bias + rng.gauss(0.0, self._noise)
        return max(-_SUREST, min(_SUREST, odds)) if odds else rng.choice((-1e-9, 1e-9))
