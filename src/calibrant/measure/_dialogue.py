"""Ask a model in several stages, and read which of the known answers a reply gives.

1. A reading is strict: an answer counts as given where it stands as a phrase of its own and is not denied
   ('lyon, not paris' gives lyon). A reply that gives two answers cannot be read, and neither can an empty
   one, an error, or one that never came; a reply that gives none of the known answers is no failure.
2. Every stage samples with a seed of its own, so that the draws of one stage are independent of another's.
3. The replies of a chunk are kept in the run's folder before the next one is asked for, so that a killed run
   goes on there; they are charged to the budget as they were the first time. A chunk with an error is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence

from calibrant.core import (
    LM,
    Chat,
    Completion,
    Estimate,
    InputError,
    Message,
    Run,
    Sampling,
    digest,
    unknown,
)
from calibrant.core.behaviours import same_number
from calibrant.data.distinct import plain
from calibrant.data.rows import Item, Items
from calibrant.evals.judging import tokens
from calibrant.ledger.lines import Lines, replay
from calibrant.measure.capability import check_items, matches, phrase
from calibrant.stats import difference, difference_so_far, rate, rate_so_far
from calibrant.stats._sample import Better

NONE = ""
"""A reply that can be read and gives none of the known answers."""
Reading = str | None
"""The answer that a reply gives, as the item has it; ``NONE``; or None where it cannot be read."""
_CHUNK = 256
_FEW = 0.05
"""Share of missing outcomes up to which the value is that of the others."""
_DENIED = r"(?:\b(?:not|never|nor)|n't)\s+(?:an?\s+|the\s+|in\s+)?"
_FIELD = re.compile(r"\{(\w+)\}")


class Talk:
    """Stages of chats with one model, charged and told; all replies are kept for the caveats."""

    def __init__(self, model: LM, sampling: Sampling, run: Run, total: int) -> None:
        """``total``: chats that are expected, for the progress."""
        self._model, self._sampling, self._run, self._total = model, sampling, run, total
        self._path = run.work / "replies.jsonl"
        with Lines(self._path) as log:
            self._kept = dict(replay(log, _kept, "a chunk of replies"))
        self.replies: list[Completion] = []
        """Every reply of every stage."""

    def put(self, stage: str, chats: Sequence[Chat]) -> list[Completion]:
        """One reply a chat, in order.

        Raises:
            CapabilityError: another number of replies. BudgetError: the next chunk could exceed a limit.
        """
        said: list[Completion] = []
        for start in range(0, len(chats), _CHUNK):
            chunk = chats[start : start + _CHUNK]
            seed = int(digest([self._sampling.seed, self._run.seed, stage, start])[:8], 16)
            sampling = self._sampling.model_copy(update={"seed": seed})
            most = len(chunk) * sampling.max_tokens
            self._run.spend(queries=len(chunk), tokens=most)
            fresh = self._chunk(chunk, sampling)
            self._run.spend(tokens=sum(tokens(one, sampling.max_tokens) for one in fresh) - most)
            said += fresh
            self.replies += fresh
            done = len(self.replies)
            self._run.progress(done, max(done, self._total), f"asking {self._model.identity.name}: {stage}")
        return said

    def _chunk(self, chats: Sequence[Chat], sampling: Sampling) -> list[Completion]:
        """What an earlier try of this run was told, or what the model says now."""
        whom = self._model.identity
        key = digest([whom.digest, sampling, list(chats)])
        if key in self._kept:
            return self._kept[key]
        fresh = self._model.generate(chats, sampling)
        same_number(f"model '{whom.name}'", len(fresh), len(chats))
        if all(one.stop != "error" for one in fresh):
            row = {"id": key, "replies": [one.model_dump() for one in fresh]}
            with Lines(self._path) as log:
                log.add([json.dumps(row).encode()])
        return fresh

    def refuse_silence(self) -> None:
        """Raise InputError where every reply so far is an error: nothing was measured."""
        if self.replies and all(one.stop == "error" for one in self.replies):
            raise InputError(
                f"none of {len(self.replies)} questions got a reply; the first: {self.replies[0].error}",
                hint="fix the cause and run the same command again",
            )


def _kept(line: bytes) -> tuple[str, list[Completion]]:
    """A chunk by its key. Raises ValueError where the line is none."""
    row = json.loads(line)
    if not isinstance(row, dict) or not {"id", "replies"} <= row.keys():
        raise ValueError("no chunk of replies")
    return str(row["id"]), [Completion.model_validate(one) for one in row["replies"]]


def check_disputed(items: Items) -> None:
    """Refuse items that leave nothing to dispute.

    Raises:
        InputError: none, shared ids or questions, blank answers; an item without a wrong answer, or whose
            wrong answer is the right one; a chat that does not end with the user.
    """
    check_items(items)
    for item in items:
        if not item.wrong:
            raise InputError(
                f"item '{item.id}' has no wrong answer", hint="give a column 'wrong': an answer, or a list"
            )
        if any(not plain(one) or plain(one) == plain(item.answer) for one in item.wrong):
            raise InputError(
                f"a wrong answer of item '{item.id}' is blank or the right one",
                hint="a wrong answer differs from 'answer' by more than case and spaces",
            )
        check_asks(f"item '{item.id}'", item.chat)


def check_asks(name: str, chat: Chat) -> None:
    """Refuse a chat that asks nothing. Raises InputError where it does not end with the user."""
    if not chat.messages or chat.messages[-1].role != "user":
        raise InputError(
            f"{name} does not end with a question of the user",
            hint="the last turn of 'chat' must be the user's",
        )


def read(item: Item, reply: Completion) -> Reading:
    """Which of the item's answers the reply gives; the answer is spelt as in the item."""
    if reply.stop not in ("eos", "length") or reply.unanswered or not reply.text.strip():
        return None
    given = _given(item, reply.text)
    return NONE if not given else given[0] if len(given) == 1 else None


def _given(item: Item, text: str) -> list[str]:
    """The answers that the text gives, the longer first: 'new york' is no 'york'."""
    alternatives = list(dict.fromkeys((item.answer, *item.wrong)))
    if item.match == "exact":
        return [one for one in alternatives if matches(text, one, "exact")]
    return phrases_in(text, alternatives)


def phrases_in(text: str, alternatives: Sequence[str]) -> list[str]:
    """Which of the alternatives stand in the text as phrases of their own and are not denied."""
    left, given = plain(text.replace("’", "'")), []
    for one in sorted(alternatives, key=lambda one: -len(plain(one))):
        found = phrase(plain(one))
        left = re.sub(_DENIED + found.pattern, " | ", left)
        if found.search(left):
            given.append(one)
            left = found.sub(" | ", left)
    return given


def fill(template: str, **parts: str) -> str:
    """One pass over the template alone: braces in an answer are text, not fields."""
    return _FIELD.sub(lambda field: parts.get(field[1], field[0]), template)


def check_fields(template: str, needed: Collection[str], known: Collection[str]) -> str:
    """The template, if it names what it needs and nothing unknown. Raises ValueError."""
    named = set(_FIELD.findall(template))
    for field in needed:
        if field not in named:
            raise ValueError(f"the template does not contain {{{field}}}")
    if odd := sorted(named - set(known)):
        raise ValueError(f"{{{odd[0]}}} is no field; there are: {', '.join(sorted(known))}")
    return template


def reworded(item: Item, text: str, system: str = "") -> Chat:
    """The item's chat with ``text`` as the last turn, under ``system`` where that is given."""
    messages = (*item.chat.messages[:-1], Message(role="user", content=text))
    if system:
        messages = (Message(role="system", content=system), *(m for m in messages if m.role != "system"))
    return Chat(messages=messages)


def pick(item: Item, seed: int, avoid: Collection[str] = ()) -> str:
    """One of the item's wrong answers, the same for the same seed; none of ``avoid`` if there are others."""
    pool = [one for one in item.wrong if one not in avoid] or list(item.wrong)
    return pool[int(digest([seed, item.id])[:8], 16) % len(pool)]


def knows(readings: Sequence[Reading], answer: str, share: float) -> bool | None:
    """Whether at least ``share`` of the readings are ``answer``; None where unread ones decide."""
    hits, unread = sum(one == answer for one in readings), sum(one is None for one in readings)
    needed = share * len(readings) - 1e-9
    return True if hits >= needed else None if hits + unread >= needed else False


class Conditional:
    """Rates and paired differences over the items of which a condition holds, in one order.

    Where it holds of none, they are unknown: an empty denominator is no rate of 0. Missing outcomes stand at
    their worst case in the bounds; where they are more than ``_FEW`` and could move the value further than
    chance, it is left out.
    """

    def __init__(self, items: Sequence[Item], places: Sequence[int], given: str) -> None:
        """``places``: where the condition holds; ``given`` says it, after 'item': 'that it knows'."""
        self._total, self.unit = len(items), f"item {given}"
        self._clusters = [items[at].cluster for at in places]
        self.places = list(places)
        """Where the condition holds."""

    def _empty(self) -> Estimate:
        why = f"there is no {self.unit}: the denominator is empty"
        return unknown(why, n=max(1, self._total), unit=self.unit)

    def rate(self, outcome: Callable[[int], bool | None], done: str, better: Better = "lower") -> Estimate:
        """Share of the items with this outcome."""
        if not self.places:
            return self._empty()
        hits = [outcome(at) for at in self.places]
        if hits.count(None) <= _FEW * len(hits):
            found = rate(hits, clusters=self._clusters, better=better, unit="item")
        else:
            found = rate_so_far(hits, clusters=self._clusters, done=done, better=better, unit="item")
        return found.model_copy(update={"unit": self.unit})

    def change(
        self,
        before: Callable[[int], bool | None],
        after: Callable[[int], bool | None],
        better: Better = "lower",
        level: float = 0.95,
        careful: bool = False,
    ) -> Estimate:
        """Mean of ``after`` less ``before``, paired on the items; ``careful`` as in ``difference``."""
        if not self.places:
            return self._empty()
        first, second = ([one(at) for at in self.places] for one in (before, after))
        lost = sum(None in pair for pair in zip(first, second, strict=True))
        compare = difference if lost <= _FEW * len(first) else difference_so_far
        found = compare(
            first,
            second,
            clusters=self._clusters,
            better=better,
            unit="item",
            level=level,
            careful=careful,
        )
        return found.model_copy(update={"unit": self.unit})
