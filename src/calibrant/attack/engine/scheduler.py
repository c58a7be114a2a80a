"""The one driver of attacks: it runs many walks side by side, and is the only one who asks, pays and writes.

1. Walks advance together. Their questions go out in batches: attacking model, surrogate, computations, and
   then the target, whose replies are judged in the same batches.
2. Every answer is on the disk before a walk hears it. A walk that is resumed is sent what was written down,
   so a killed campaign repeats nothing; what failed is asked again.
3. Equal questions with equal seeds are asked once in a batch: a draw hangs on seed and chat alone.
4. A cap that is reached ends the campaign; walks that it cuts off are censored.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import add
from typing import Any, TypeVar

import numpy as np

from calibrant.attack.engine.batching import Sweep, asked_of, once, parameters, plain_cost, silence, timeless
from calibrant.attack.engine.budget import NOTHING, Purse, Spent
from calibrant.attack.engine.cache import Store
from calibrant.attack.engine.counts import Tally
from calibrant.attack.engine.episodes import Cast, Walker, key_of
from calibrant.attack.engine.protocol import Ask, Attack, Consult, Done, Heard, Move, Score, Work
from calibrant.core import (
    Attempt,
    CapabilityError,
    Chat,
    Completion,
    Cost,
    OpenLM,
    Run,
    Sampling,
    outcome_of,
)
from calibrant.core.digest import plain
from calibrant.evals.judging import tokens, verdicts

M = TypeVar("M", Consult, Score, Work)


class _CappedError(Exception):
    """A cap was reached."""


class Driver:
    """Runs walks to their ends, or to the end of the money."""

    def __init__(self, cast: Cast, store: Store, purse: Purse, run: Run, batch: int = 256) -> None:
        """``batch``: most questions to the target at once, and walks under way."""
        self.cast, self.store, self.purse, self.run, self.batch = cast, store, purse, run, batch
        self.tallies: dict[tuple[str, str, int], Tally] = {}
        """(label, goal id, repetition) -> what came of it."""
        self._visited = array("q")
        self._by = cast.judge.identity.digest
        self.capped = ""
        """Name of the cap that ended the campaign; "" when it ran to its end."""
        self.last = Completion(text="", stop="error")
        """The last reply."""
        self._owed: list[float] = list(NOTHING)
        """In the order of ``Spent``; a list, since every attempt adds to it."""
        self._over = self._total = 0
        self._silent = 0
        self._samplings: dict[tuple[int, int], Sampling] = {}
        self._target_size, self._surrogate_size = parameters(cast.target), parameters(cast.surrogate)

    @property
    def visited(self) -> list[int]:
        """Places in the store of all attempts of this campaign, in order of walks and of attempts."""
        rows = np.frombuffer(self._visited, np.int64).reshape(-1, 3)
        places: list[int] = rows[np.lexsort((rows[:, 1], rows[:, 0])), 2].tolist()
        return places

    def go(self, walkers: Iterable[Walker], total: int) -> None:
        """Run all walks, ``total`` of them; they are made as they are wanted.

        Raises:
            InputError: nothing but errors came back from the target, three batches in a row.
            BudgetError: the job's own budget is used up. CapabilityError: an attack lacks somebody to ask.
        """
        waiting, live = self._numbered(walkers), list[Walker]()
        self._total = total
        sweep = Sweep()
        try:
            while True:
                live = self._advanced(live, waiting)
                if not live:
                    break
                sweep.now_and_then()
                self.run.progress(self._over, total, f"attacking {self.cast.target.identity.name}")
                self._consult(live)
                self._score(live)
                self._work(live)
                self._ask(live)
                self.store.sync()
        except _CappedError:
            for walker in [*live, *waiting]:
                self._cut(walker)
            self.capped = self.purse.reached
        finally:
            sweep.done()
            for walker in live:
                if walker.walk is not None:
                    walker.walk.close()

    # Moving on.

    def _numbered(self, walkers: Iterable[Walker]) -> Iterator[Walker]:
        """Give each walk its number and its tallies as it begins."""
        for place, walker in enumerate(walkers):
            walker.place = place
            for goal in walker.goals:
                self.tallies[walker.label, goal, walker.repetition] = Tally(walker.attack.family)
            yield walker

    def _advanced(self, live: list[Walker], waiting: Iterator[Walker]) -> list[Walker]:
        """Let walks go on, and begin new ones until there is a batch to ask; returns those under way."""
        for walker in live:
            self._advance(walker)
        kept = [walker for walker in live if not walker.over]
        asks = sum(len(walker.asks) for walker in kept)
        # No more than a batch can use: walks that wait cost memory.
        while asks < self.batch and len(kept) < self.batch:
            fresh = next(waiting, None)
            if fresh is None:
                break
            self._advance(fresh)
            if not fresh.over:
                kept.append(fresh)
                asks += len(fresh.asks)
        self._settle()
        return kept

    def _advance(self, walker: Walker) -> None:
        """Hand over answers until the walk waits for one that nobody has given yet, or ends."""
        if walker.walk is None:
            walker.walk = walker.make()
        while len(walker.answers) == len(walker.moves):
            try:
                heard = [walker.answers[i] for i in range(len(walker.moves))]
                walker.moves = list(walker.walk.send(heard if walker.begun else None))
                walker.begun = True
            except StopIteration:
                walker.over = True
                self._over += 1
                for goal in walker.goals:
                    self.tallies[walker.label, goal, walker.repetition].ended = True
                return
            walker.answers, walker.keys, walker.numbers = {}, [], []
            walker.asks, walker.rest = [], []
            for index, move in enumerate(walker.moves):
                self._enter(walker, index, move)

    def _enter(self, walker: Walker, index: int, move: Move) -> None:
        """Give a move its key, and its answer where an earlier try has written one down."""
        if isinstance(move, Ask):
            walker.keys.append(key_of(walker.key, "ask", walker.asked))
            walker.numbers.append(walker.asked)
            walker.asked += 1
            held = self.store.attempt(walker.keys[-1]) if self.store.held else None
            if held and self._same(held[1], move):
                self._heard(walker, index, held[1], held[0])
            else:
                walker.asks.append((index, move))
            return
        walker.keys.append(key_of(walker.key, "move", walker.moved))
        walker.numbers.append(-1)
        walker.moved += 1
        noted = self.store.move(walker.keys[-1])
        if noted is not None and noted["asked"] == asked_of(move):
            self._noted(walker, index, noted["answer"], Spent(**noted["spent"]))
        else:
            walker.rest.append(index)

    def _same(self, held: Attempt, move: Ask) -> bool:
        """Whether an earlier try's attempt answers this question, by this judge; errors are asked again."""
        return held.chat == move.chat and self._by in held.verdicts and held.completion.stop != "error"

    def _heard(self, walker: Walker, index: int, attempt: Attempt, place: int) -> None:
        """An attempt is known: count it, and keep the answer for its walk."""
        cost = attempt.cost
        owed = self._owed
        owed[0] += cost.queries
        owed[1] += cost.target_tokens
        owed[2] += cost.attacker_tokens
        owed[3] += cost.judge_tokens
        owed[4] += cost.flops
        if walker.unbilled is not NOTHING:  # paid for when it came; the attempt only carries it
            self._owed = [a - b for a, b in zip(owed, walker.unbilled, strict=True)]
            walker.unbilled = NOTHING
        self.tallies[walker.label, attempt.goal_id, walker.repetition].add(attempt, place)
        self._visited.extend((walker.place, attempt.number, place))
        verdict = attempt.verdicts[self._by]
        walker.answers[index] = Heard(attempt.id, attempt.completion, verdict, attempt.outcome)

    def _noted(self, walker: Walker, index: int, answer: Any, spent: Spent) -> None:
        """Another answer is known; the walk's next attempt carries its cost."""
        self._owed = list(map(add, self._owed, spent))
        walker.unbilled = walker.unbilled.plus(spent)
        consulted = isinstance(walker.moves[index], Consult)
        walker.answers[index] = Completion.model_validate(answer) if consulted else answer

    def _settle(self) -> None:
        """Pay what came in. Raises BudgetError where the job's own budget is used up."""
        queries, target, attacker, judge, flops = self._owed
        self._owed = list(NOTHING)
        self.purse.pay(Spent(int(queries), int(target), int(attacker), int(judge), flops))

    def _cut(self, walker: Walker) -> None:
        """The campaign ends before this walk does."""
        for goal in walker.goals:
            self.tallies[walker.label, goal, walker.repetition].cut = True

    # Asking.

    def _note(self, walker: Walker, index: int, answer: Any, spent: Spent) -> None:
        """Write an answer down, then hand it over."""
        asked = asked_of(walker.moves[index])
        # An attacking model that failed is asked again by the next try.
        if not (isinstance(answer, Completion) and answer.stop == "error"):
            entry = {
                "asked": asked,
                "answer": plain(answer),
                "spent": {name: amount for name, amount in spent._asdict().items() if amount},
            }
            self.store.note(walker.keys[index], entry)
        self._noted(walker, index, answer, spent)
        walker.rest.remove(index)

    def _consult(self, live: Sequence[Walker]) -> None:
        """Put all questions to the attacking model."""
        open_ = list(_open(live, Consult))
        if not open_:
            return
        lm = self.cast.attacker
        if lm is None:
            raise CapabilityError(
                f"{open_[0][0].attack.name} asks an attacking model, and none was given",
                hint="give the input 'attacker': an LM, such as testbed:attacker/ruled or api:URL#MODEL",
            )
        groups: dict[Sampling, list[tuple[Walker, int, Consult]]] = {}
        for walker, index, move in open_:
            sampling = self._seeded(move.sampling, walker.repetition, 0)
            groups.setdefault(sampling, []).append((walker, index, move))
        for sampling, group in groups.items():
            fits = self.purse.room(len(group), attacker_tokens=sampling.max_tokens)
            if not fits:
                raise _CappedError
            with self.purse.held(tokens=fits * sampling.max_tokens):
                replies = once(lm, [move.chat for _, _, move in group[:fits]], sampling)
            for (walker, index, _), reply in zip(group, replies, strict=False):
                spent = Spent(attacker_tokens=tokens(reply, sampling.max_tokens))
                self._note(walker, index, reply, spent)
            self._settle()  # after all of them: what is paid for is kept, whatever the budget says

    def _score(self, live: Sequence[Walker]) -> None:
        """Ask the surrogate for log-probs."""
        open_ = list(_open(live, Score))
        if not open_:
            return
        lm = self._surrogate(open_[0][0].attack)
        fits = self.purse.room(len(open_), queries=1)
        if not fits:
            raise _CappedError
        with self.purse.held(queries=fits):
            scored = lm.logprobs([m.chat for _, _, m in open_[:fits]], [m.reply for _, _, m in open_[:fits]])
        for (walker, index, move), one in zip(open_, scored, strict=False):
            read = len(lm.prompt_ids(move.chat)) + len(one.ids)
            spent = Spent(queries=1, flops=2 * self._surrogate_size * read)
            # The end token is no part of what is hoped for: it may well go on.
            self._note(walker, index, math.fsum(one.logprobs[:-1]), spent)
        self._settle()

    def _work(self, live: Sequence[Walker]) -> None:
        """Compute what each walk wants computed, one piece a walk."""
        for walker in live:
            index, move = next(((i, m) for _, i, m in _open([walker], Work)), (0, None))
            if move is None:
                continue
            if walker.attack.access != "black box":
                self._surrogate(walker.attack)
            if not self.purse.room(1):
                raise _CappedError
            self.run.progress(self._over, self._total, move.what)
            done: Done = move.compute()
            self._note(walker, index, done.value, Spent(flops=done.flops))
            self._settle()

    def _ask(self, live: Sequence[Walker]) -> None:
        """Put one batch of questions to the target, judge the replies, write the attempts down."""
        waiting = ((walker, index, move) for walker in live for index, move in walker.asks)
        batch = list(islice(waiting, self.batch))
        if not batch:
            return
        fits = self.purse.room(len(batch), queries=1, target_tokens=self.cast.sampling.max_tokens)
        if not fits:
            raise _CappedError
        groups: dict[tuple[int, int], list[tuple[Walker, int, Ask]]] = {}
        warm = self.cast.sampling.temperature > 0
        for asked in batch[:fits]:
            key = (asked[0].repetition, asked[2].draw) if warm else (0, 0)
            groups.setdefault(key, []).append(asked)
        heard = 0
        for key, group in groups.items():
            if key not in self._samplings:
                self._samplings[key] = self._seeded(self.cast.sampling, *key)
            with self.purse.held(queries=len(group), tokens=len(group) * self.cast.sampling.max_tokens):
                replies = once(self.cast.target, [move.chat for _, _, move in group], self._samplings[key])
            heard += sum(reply.stop != "error" for reply in replies)
            self.last = replies[-1]
            attempts = self._attempts(group, replies)
            places = self.store.add(attempts)
            for (walker, index, _), attempt, place in zip(group, attempts, places, strict=True):
                self._heard(walker, index, attempt, place)
            self._settle()
        for walker in {id(walker): walker for walker, _, _ in batch}.values():
            walker.asks = [waits for waits in walker.asks if waits[0] not in walker.answers]
        self._silent = 0 if heard else self._silent + 1
        if self._silent >= 3:
            raise silence(self.last)

    def _attempts(
        self, group: Sequence[tuple[Walker, int, Ask]], replies: Sequence[Completion]
    ) -> list[Attempt]:
        """Judge the replies and make them attempts."""
        goals, chats = [move.goal for _, _, move in group], [move.chat for _, _, move in group]
        said = verdicts(self.cast.judge, goals, chats, replies)
        self.purse.judged(max(verdict.tokens for verdict in said))
        made, billed = [], set[int]()
        for (walker, index, move), reply, verdict in zip(group, replies, said, strict=True):
            before = NOTHING if walker.place in billed else walker.unbilled
            billed.add(walker.place)
            kept = timeless(reply)
            made.append(
                Attempt(
                    id=walker.keys[index],
                    goal_id=move.goal.id,
                    category=move.goal.category,
                    attack=f"{walker.label}/{move.variant}" if move.variant else walker.label,
                    family=walker.attack.family,
                    access=walker.attack.access,
                    seed=walker.repetition,
                    number=walker.numbers[index],
                    parent=move.parent,
                    chat=move.chat,
                    completion=kept,
                    layers=kept.layers,
                    verdicts={self._by: verdict},
                    outcome=outcome_of(reply, verdict),
                    degraded=any(layer.verdict.answer == "unknown" for layer in reply.layers),
                    cost=self._cost(move.chat, reply, verdict.tokens, before),
                )
            )
        return made

    def _cost(self, chat: Chat, reply: Completion, judged: int, before: Spent) -> Cost:
        said = tokens(reply, self.cast.sampling.max_tokens)
        flops = before.flops
        if self._target_size and reply.stop != "error":
            read = len(self.cast.target.prompt_ids(chat))  # type: ignore[attr-defined]
            flops += 2 * self._target_size * (read + said)
        if before is NOTHING and not (judged or flops):
            return plain_cost(said)
        return Cost(
            queries=1 + before.queries,
            target_tokens=said + before.target_tokens,
            attacker_tokens=before.attacker_tokens,
            judge_tokens=judged + before.judge_tokens,
            flops=flops,
        )

    def _seeded(self, sampling: Sampling, repetition: int, draw: int) -> Sampling:
        """The sampling of one draw: the run's seed, the repetition and the draw each move it."""
        base = sampling.seed + self.run.seed
        if sampling.temperature == 0 or (repetition, draw) == (0, 0):
            return sampling.model_copy(update={"seed": base})
        moved = int(key_of(str(base), str(repetition), draw)[:12], 16)
        return sampling.model_copy(update={"seed": moved})

    def _surrogate(self, attack: Attack) -> OpenLM:
        if self.cast.surrogate is None:
            raise CapabilityError(
                f"{attack.name} needs {attack.access}, and no model to read them from was given",
                hint="give the input 'surrogate': local weights, the target's own or a stand-in's",
            )
        return self.cast.surrogate


def _open(live: Sequence[Walker], kind: type[M]) -> Iterator[tuple[Walker, int, M]]:
    """Every move of this kind, questions to the target aside, that waits for its answer."""
    for walker in live:
        for index in walker.rest:
            move = walker.moves[index]
            if isinstance(move, kind):
                yield walker, index, move
