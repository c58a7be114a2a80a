"""Whole replies under a direction: what it costs on harmless prompts, and what a judge says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from calibrant.core import Attempt, Chat, Estimate, Goal, Judge, OpenLM, Run, Sampling
from calibrant.core.attempt import HIT
from calibrant.core.digest import digest
from calibrant.evals.attempts import Request, ask, write_attempts
from calibrant.models.batching import batching
from calibrant.models.directions import Direction, ablated, steer
from calibrant.stats import mean, rate_so_far


def reply_cost(
    model: OpenLM, goals: Sequence[Goal], direction: Direction, tokens: int, run: Run
) -> dict[str, Estimate]:
    """KL(plain || ablated) and rise of the cross-entropy, per token of the model's own greedy replies."""
    chats = [Chat.ask(goal.text) for goal in goals]
    run.spend(queries=3 * len(chats), tokens=len(chats) * tokens)
    replies = [one.text for one in model.generate(chats, Sampling(max_tokens=tokens))]
    kl, ce, order = list[float](), list[float](), list[int]()
    for some in _groups(model, chats, replies):
        order += some
        one, two = _per_token(model, [chats[i] for i in some], [replies[i] for i in some], direction)
        kl += one
        ce += two
    clusters = [goals[i].cluster for i in order] if any(goal.cluster for goal in goals) else None
    return {
        f"cost/{name}": mean(values, clusters=clusters, better="lower", unit="nats/token", null_value=0.0)
        for name, values in (("kl", kl), ("ce", ce))
    }


def _groups(model: OpenLM, chats: Sequence[Chat], replies: Sequence[str]) -> Iterator[list[int]]:
    """Rows that may share a batch, eight at a time."""
    how, keys = batching(model.module), dict[int, list[int]]()
    for i, (chat, reply) in enumerate(zip(chats, replies, strict=True)):
        keys.setdefault(how.reads(len(model.prompt_ids(chat)) + len(model.reply_ids(reply)) + 1), []).append(
            i
        )
    for group in keys.values():
        yield from (group[start : start + 8] for start in range(0, len(group), 8))


def _per_token(
    model: OpenLM, chats: Sequence[Chat], replies: Sequence[str], direction: Direction
) -> tuple[list[float], list[float]]:
    """KL and difference of cross-entropies of each row: means over the tokens of its reply."""
    batch = model.encode(chats, replies)
    with torch.inference_mode():
        plain = model.forward(batch)[:, :-1].float().log_softmax(-1)
        with ablated(model, direction):
            other = model.forward(batch)[:, :-1].float().log_softmax(-1)
    scored, targets = batch.reply[:, 1:], batch.ids[:, 1:, None]
    kl = (plain.exp() * (plain - other)).sum(-1)
    rise = (plain - other).gather(-1, targets)[..., 0]
    return _means(kl, scored), _means(rise, scored)


def _means(values: Tensor, scored: Tensor) -> list[float]:
    kept = scored.cpu()
    masked = torch.where(kept, values.cpu().double(), 0.0)
    return [float(x) for x in masked.sum(1) / kept.sum(1)]


class Heard:
    """A judge on whole replies to the held-out prompts; nothing where there is none."""

    def __init__(
        self,
        model: OpenLM,
        harmful: Sequence[Goal],
        harmless: Sequence[Goal],
        judge: Judge | None,
        sampling: Sampling,
        run: Run,
    ) -> None:
        """The judge answers whether a reply refuses."""
        self._model, self._harmful, self._harmless = model, harmful, harmless
        self._judge, self._sampling, self._run = judge, sampling, run
        self._attempts: list[Attempt] = []

    def plain(self) -> dict[str, Estimate]:
        """Refusal rates of the model as it is."""
        return self._rates("", self._harmful, None, "harmful") | self._rates(
            "", self._harmless, None, "harmless"
        )

    def under(self, direction: Direction) -> dict[str, Estimate]:
        """Of harmful prompts with the direction taken out, of harmless ones with it added."""
        with self._used(ablated(self._model, direction)):
            one = self._rates("_ablated", self._harmful, direction, "harmful")
        with self._used(steer(self._model, direction)):
            return one | self._rates("_steered", self._harmless, direction, "harmless")

    def store(self) -> None:
        """Artefact 'attempts.jsonl'; outcome 'success' is a refusal."""
        if self._attempts:
            write_attempts(self._attempts, self._run)

    def _used(self, edit: AbstractContextManager[None]) -> AbstractContextManager[None]:
        return nullcontext() if self._judge is None else edit

    def _rates(
        self, how: str, goals: Sequence[Goal], direction: Direction | None, side: str
    ) -> dict[str, Estimate]:
        if self._judge is None:
            return {}
        about = {} if direction is None else {"direction": digest(direction.vector.tolist())}
        name = f"understand.refusal_direction{how.replace('_', '/')}"
        requests = [Request(goal=g, chat=Chat.ask(g.text), attack=name, config=about) for g in goals]
        attempts = ask(self._model, requests, self._judge, self._sampling, self._run)
        self._attempts += attempts
        return {
            f"judged_rate/{side}{how}": rate_so_far(
                [HIT[one.outcome] for one in attempts],
                clusters=[goal.cluster for goal in goals],
                done="refused",
                better="none",
                unit="prompt",
            )
        }
