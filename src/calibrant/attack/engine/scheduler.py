"""The scheduler of attacks: it runs many episodes concurrently; it alone queries, charges and logs.

1. Episodes advance together. Their queries are batched: attacker model, surrogate, computations, and then the
   target, whose replies are judged in the same batches.
2. Every answer is on disk before an episode receives it. A resumed episode receives the logged answers, so a
   killed campaign repeats nothing; errors are retried.
3. Equal queries with equal seeds are sent once in a batch: a sample depends on seed and chat alone.
4. A cap that is reached ends the campaign; episodes that it cuts off are censored.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import add
from typing import Any, TypeVar

import numpy as np

from calibrant.attack.engine.budget import NOTHING, BudgetTracker, Spent
from calibrant.attack.engine.cache import AttemptCache
from calibrant.attack.engine.calls import Sweep, asked_of, once, parameters, plain_cost, silence, timeless
from calibrant.attack.engine.counts import Counts
from calibrant.attack.engine.episodes import Participants, RunningEpisode, key_of, surrogate_for
from calibrant.attack.engine.protocol import AskAttacker, AskTarget, Compute, Computed, Move, Response, Score
from calibrant.core import Attempt, CapabilityError, Chat, Completion, Cost, Run, Sampling, outcome_of
from calibrant.core.digest import plain
from calibrant.evals.judging import tokens, verdicts

M = TypeVar("M", AskAttacker, Score, Compute)


class _CappedError(Exception):
    """A cap was reached."""


class Scheduler:
    """Runs episodes to their ends, or to the end of the budget."""

    def __init__(
        self, who: Participants, cache: AttemptCache, tracker: BudgetTracker, run: Run, batch: int = 256
    ) -> None:
        """``batch``: most concurrent queries to the target, and concurrent episodes."""
        self.who, self.cache, self.tracker, self.run, self.batch = who, cache, tracker, run, batch
        self.all_counts: dict[tuple[str, str, int], Counts] = {}
        """(label, goal id, repetition) -> what came of it."""
        self._visited = array("q")
        self._by = who.judge.identity.digest
        self.capped = ""
        """Name of the cap that ended the campaign; "" when it ran to its end."""
        self.last = Completion(text="", stop="error")
        """The last reply."""
        self._owed: list[float] = list(NOTHING)
        """In the order of ``Spent``; a list, since every attempt adds to it."""
        self._over = self._total = 0
        self._silent = 0
        self._samplings: dict[tuple[int, int], Sampling] = {}
        self._target_size, self._surrogate_size = parameters(who.target), parameters(who.surrogate)

    @property
    def visited(self) -> list[int]:
        """Places in the store of all attempts of this campaign, in order of episodes and of attempts."""
        rows = np.frombuffer(self._visited, np.int64).reshape(-1, 3)
        places: list[int] = rows[np.lexsort((rows[:, 1], rows[:, 0])), 2].tolist()
        return places

    def go(self, episodes: Iterable[RunningEpisode], total: int) -> None:
        """Run all episodes, ``total`` of them; they are created lazily.

        Raises:
            InputError: nothing but errors came back from the target, three batches in a row.
            BudgetError: the job's own budget is used up. CapabilityError: an attack lacks somebody to ask.
        """
        waiting, live = self._numbered(episodes), list[RunningEpisode]()
        self._total = total
        sweep = Sweep()
        try:
            while True:
                live = self._advanced(live, waiting)
                if not live:
                    break
                sweep.now_and_then()
                self.run.progress(self._over, total, f"attacking {self.who.target.identity.name}")
                self._consult(live)
                self._score(live)
                self._work(live)
                self._ask(live)
                self.cache.sync()
        except _CappedError:
            for episode in [*live, *waiting]:
                self._cut(episode)
            self.capped = self.tracker.reached
        finally:
            sweep.done()
            for episode in live:
                if episode.generator is not None:
                    episode.generator.close()

    # Moving on.

    def _numbered(self, episodes: Iterable[RunningEpisode]) -> Iterator[RunningEpisode]:
        """Give each episode its number and its counts as it begins."""
        for place, episode in enumerate(episodes):
            episode.place = place
            for goal in episode.goals:
                self.all_counts[episode.label, goal, episode.repetition] = Counts(episode.attack.family)
            yield episode

    def _advanced(
        self, live: list[RunningEpisode], waiting: Iterator[RunningEpisode]
    ) -> list[RunningEpisode]:
        """Let episodes go on, and begin new ones until there is a batch to ask; returns those under way."""
        for episode in live:
            self._advance(episode)
        running = [episode for episode in live if not episode.over]
        asks = sum(len(episode.asks) for episode in running)
        # No more than a batch can use: episodes that wait cost memory.
        while asks < self.batch and len(running) < self.batch:
            fresh = next(waiting, None)
            if fresh is None:
                break
            self._advance(fresh)
            if not fresh.over:
                running.append(fresh)
                asks += len(fresh.asks)
        self._settle()
        return running

    def _advance(self, episode: RunningEpisode) -> None:
        """Hand over answers until the episode waits for one that nobody has given yet, or ends."""
        if episode.generator is None:
            episode.generator = episode.make()
        while len(episode.answers) == len(episode.moves):
            try:
                answers = [episode.answers[i] for i in range(len(episode.moves))]
                episode.moves = list(episode.generator.send(answers if episode.begun else None))
                episode.begun = True
            except StopIteration:
                episode.over = True
                self._over += 1
                for goal in episode.goals:
                    self.all_counts[episode.label, goal, episode.repetition].ended = True
                return
            episode.answers, episode.keys, episode.numbers = {}, [], []
            episode.asks, episode.rest = [], []
            for index, move in enumerate(episode.moves):
                self._enter(episode, index, move)

    def _enter(self, episode: RunningEpisode, index: int, move: Move) -> None:
        """Give a move its key, and its answer where an earlier try has written one down."""
        if isinstance(move, AskTarget):
            episode.keys.append(key_of(episode.key, "ask", episode.asked))
            episode.numbers.append(episode.asked)
            episode.asked += 1
            stored = self.cache.attempt(episode.keys[-1]) if self.cache.held else None
            if stored and self._same(stored[1], move):
                self._deliver_attempt(episode, index, stored[1], stored[0])
            else:
                episode.asks.append((index, move))
            return
        episode.keys.append(key_of(episode.key, "move", episode.moved))
        episode.numbers.append(-1)
        episode.moved += 1
        entry = self.cache.move(episode.keys[-1])
        if entry is not None and entry["asked"] == asked_of(move):
            self._deliver_answer(episode, index, entry["answer"], Spent(**entry["spent"]))
        else:
            episode.rest.append(index)

    def _same(self, old: Attempt, move: AskTarget) -> bool:
        """Whether an earlier try's attempt answers this question, by this judge; errors are asked again."""
        return old.chat == move.chat and self._by in old.verdicts and old.completion.stop != "error"

    def _deliver_attempt(self, episode: RunningEpisode, index: int, attempt: Attempt, place: int) -> None:
        """An attempt is known: count it, and keep the answer for its episode."""
        cost = attempt.cost
        owed = self._owed
        owed[0] += cost.queries
        owed[1] += cost.target_tokens
        owed[2] += cost.attacker_tokens
        owed[3] += cost.judge_tokens
        owed[4] += cost.flops
        if episode.unbilled is not NOTHING:  # paid for when it came; the attempt only carries it
            self._owed = [a - b for a, b in zip(owed, episode.unbilled, strict=True)]
            episode.unbilled = NOTHING
        self.all_counts[episode.label, attempt.goal_id, episode.repetition].add(attempt, place)
        self._visited.extend((episode.place, attempt.number, place))
        verdict = attempt.verdicts[self._by]
        episode.answers[index] = Response(attempt.id, attempt.completion, verdict, attempt.outcome)

    def _deliver_answer(self, episode: RunningEpisode, index: int, answer: Any, spent: Spent) -> None:
        """Another answer is known; the episode's next attempt carries its cost."""
        self._owed = list(map(add, self._owed, spent))
        episode.unbilled = episode.unbilled.plus(spent)
        consulted = isinstance(episode.moves[index], AskAttacker)
        episode.answers[index] = Completion.model_validate(answer) if consulted else answer

    def _settle(self) -> None:
        """Pay what came in. Raises BudgetError where the job's own budget is used up."""
        queries, target, attacker, judge, flops = self._owed
        self._owed = list(NOTHING)
        self.tracker.pay(Spent(int(queries), int(target), int(attacker), int(judge), flops))

    def _cut(self, episode: RunningEpisode) -> None:
        """The campaign ends before this episode does."""
        for goal in episode.goals:
            self.all_counts[episode.label, goal, episode.repetition].cut = True

    # Asking.

    def _note(self, episode: RunningEpisode, index: int, answer: Any, spent: Spent) -> None:
        """Write an answer down, then hand it over."""
        question = asked_of(episode.moves[index])
        # An attacker model that failed is asked again by the next try.
        if not (isinstance(answer, Completion) and answer.stop == "error"):
            entry = {
                "asked": question,
                "answer": plain(answer),
                "spent": {name: amount for name, amount in spent._asdict().items() if amount},
            }
            self.cache.note(episode.keys[index], entry)
        self._deliver_answer(episode, index, answer, spent)
        episode.rest.remove(index)

    def _consult(self, live: Sequence[RunningEpisode]) -> None:
        """Put all questions to the attacker model."""
        open_ = list(_open(live, AskAttacker))
        if not open_:
            return
        lm = self.who.attacker
        if lm is None:
            raise CapabilityError(
                f"{open_[0][0].attack.name} needs an attacker model, and none was given",
                hint="give the input 'attacker': an LM, such as testbed:attacker/ruled or api:URL#MODEL",
            )
        groups: dict[Sampling, list[tuple[RunningEpisode, int, AskAttacker]]] = {}
        for episode, index, move in open_:
            sampling = self._seeded(move.sampling, episode.repetition, 0)
            groups.setdefault(sampling, []).append((episode, index, move))
        for sampling, group in groups.items():
            fits = self.tracker.affordable(len(group), attacker_tokens=sampling.max_tokens)
            if not fits:
                raise _CappedError
            with self.tracker.reserved(tokens=fits * sampling.max_tokens):
                replies = once(lm, [move.chat for _, _, move in group[:fits]], sampling)
            for (episode, index, _), reply in zip(group, replies, strict=False):
                spent = Spent(attacker_tokens=tokens(reply, sampling.max_tokens))
                self._note(episode, index, reply, spent)
            self._settle()  # after all of them: what is paid for is kept, whatever the budget says

    def _score(self, live: Sequence[RunningEpisode]) -> None:
        """Ask the surrogate for log-probs."""
        open_ = list(_open(live, Score))
        if not open_:
            return
        lm = surrogate_for(open_[0][0].attack, self.who)
        fits = self.tracker.affordable(len(open_), queries=1)
        if not fits:
            raise _CappedError
        with self.tracker.reserved(queries=fits):
            scored = lm.logprobs([m.chat for _, _, m in open_[:fits]], [m.reply for _, _, m in open_[:fits]])
        for (episode, index, move), one in zip(open_, scored, strict=False):
            length = len(lm.prompt_ids(move.chat)) + len(one.ids)
            spent = Spent(queries=1, flops=2 * self._surrogate_size * length)
            # The end token is no part of what is hoped for: it may well go on.
            self._note(episode, index, math.fsum(one.logprobs[:-1]), spent)
        self._settle()

    def _work(self, live: Sequence[RunningEpisode]) -> None:
        """Compute what each episode wants computed, one piece an episode."""
        for episode in live:
            index, move = next(((i, m) for _, i, m in _open([episode], Compute)), (0, None))
            if move is None:
                continue
            if episode.attack.access != "black box":
                surrogate_for(episode.attack, self.who)
            if not self.tracker.affordable(1):
                raise _CappedError
            self.run.progress(self._over, self._total, move.what)
            result: Computed = move.compute()
            self._note(episode, index, result.value, Spent(flops=result.flops))
            self._settle()

    def _ask(self, live: Sequence[RunningEpisode]) -> None:
        """Put one batch of questions to the target, judge the replies, write the attempts down."""
        waiting = ((episode, index, move) for episode in live for index, move in episode.asks)
        batch = list(islice(waiting, self.batch))
        if not batch:
            return
        fits = self.tracker.affordable(len(batch), queries=1, target_tokens=self.who.sampling.max_tokens)
        if not fits:
            raise _CappedError
        groups: dict[tuple[int, int], list[tuple[RunningEpisode, int, AskTarget]]] = {}
        warm = self.who.sampling.temperature > 0
        for ask in batch[:fits]:
            key = (ask[0].repetition, ask[2].draw) if warm else (0, 0)
            groups.setdefault(key, []).append(ask)
        answered = 0
        for key, group in groups.items():
            if key not in self._samplings:
                self._samplings[key] = self._seeded(self.who.sampling, *key)
            with self.tracker.reserved(queries=len(group), tokens=len(group) * self.who.sampling.max_tokens):
                replies = once(self.who.target, [move.chat for _, _, move in group], self._samplings[key])
            answered += sum(reply.stop != "error" for reply in replies)
            self.last = replies[-1]
            attempts = self._attempts(group, replies)
            places = self.cache.add(attempts)
            for (episode, index, _), attempt, place in zip(group, attempts, places, strict=True):
                self._deliver_attempt(episode, index, attempt, place)
            self._settle()
        for episode in {id(episode): episode for episode, _, _ in batch}.values():
            episode.asks = [waits for waits in episode.asks if waits[0] not in episode.answers]
        self._silent = 0 if answered else self._silent + 1
        if self._silent >= 3:
            raise silence(self.last)

    def _attempts(
        self, group: Sequence[tuple[RunningEpisode, int, AskTarget]], replies: Sequence[Completion]
    ) -> list[Attempt]:
        """Judge the replies and make them attempts."""
        goals, chats = [move.goal for _, _, move in group], [move.chat for _, _, move in group]
        judgements = verdicts(self.who.judge, goals, chats, replies)
        self.tracker.judged(max(verdict.tokens for verdict in judgements))
        attempts, billed = [], set[int]()
        for (episode, index, move), reply, verdict in zip(group, replies, judgements, strict=True):
            before = NOTHING if episode.place in billed else episode.unbilled
            billed.add(episode.place)
            completion = timeless(reply)
            attempts.append(
                Attempt(
                    id=episode.keys[index],
                    goal_id=move.goal.id,
                    category=move.goal.category,
                    attack=f"{episode.label}/{move.variant}" if move.variant else episode.label,
                    family=episode.attack.family,
                    access=episode.attack.access,
                    seed=episode.repetition,
                    number=episode.numbers[index],
                    parent=move.parent,
                    chat=move.chat,
                    completion=completion,
                    layers=completion.layers,
                    verdicts={self._by: verdict},
                    outcome=outcome_of(reply, verdict),
                    degraded=any(layer.verdict.answer == "unknown" for layer in reply.layers),
                    cost=self._cost(move.chat, reply, verdict.tokens, before),
                )
            )
        return attempts

    def _cost(self, chat: Chat, reply: Completion, judged: int, before: Spent) -> Cost:
        reply_tokens = tokens(reply, self.who.sampling.max_tokens)
        flops = before.flops
        if self._target_size and reply.stop != "error":
            prompt_tokens = len(self.who.target.prompt_ids(chat))  # type: ignore[attr-defined]
            flops += 2 * self._target_size * (prompt_tokens + reply_tokens)
        if before is NOTHING and not (judged or flops):
            return plain_cost(reply_tokens)
        return Cost(
            queries=1 + before.queries,
            target_tokens=reply_tokens + before.target_tokens,
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


def _open(live: Sequence[RunningEpisode], kind: type[M]) -> Iterator[tuple[RunningEpisode, int, M]]:
    """Every move of this kind, questions to the target aside, that waits for its answer."""
    for episode in live:
        for index in episode.rest:
            move = episode.moves[index]
            if isinstance(move, kind):
                yield episode, index, move
