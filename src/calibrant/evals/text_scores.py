"""Log-likelihoods and continuations of texts as they stand, as evaluations of plain text ask for them.

Nothing is added but what the tokenizer itself puts before a text, and nothing is cut. A batch changes no
number: rows are padded on the right, under a mask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from calibrant.core.digest import digest
from calibrant.core.errors import InputError
from calibrant.core.lm import Sampling
from calibrant.models.batching import batching
from calibrant.models.generate import Request, buckets, draw
from calibrant.models.open_model import OpenModel, TokenBatch

_LOGITS = 2**27
_CPU = 2048
"""Logits, and tokens on a CPU, that one pass holds."""


class Likelihood(NamedTuple):
    """Log-probs of a continuation, in nats, and whether each of its tokens was the likeliest."""

    logprobs: tuple[float, ...]
    greedy: bool

    @property
    def total(self) -> float:
        """Their sum."""
        return float(sum(self.logprobs))


class Scorer:
    """A model's answers about texts given as ids."""

    def __init__(self, model: OpenModel) -> None:
        """``model``: any local causal language model."""
        self.model = model
        self.first_prompt: tuple[int, ...] = ()
        self._start = self._start_ids()

    def ids(self, text: str, *, start: bool = True) -> list[int]:
        """Ids of a text behind what the tokenizer puts before every text, never twice."""
        ids: list[int] = self.model.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*self._start, *ids] if start and ids[: len(self._start)] != self._start else ids

    def likelihoods(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[Likelihood]:
        """Of each continuation given its context, both as ids; the context holds one at least.

        Raises:
            InputError: a row that has no room in the model.
        """
        fed = [[*context, *reply][:-1] for context, reply in rows]
        for place, ids in enumerate(fed):
            self._fits(place, len(ids))
        if fed and not self.first_prompt:
            self.first_prompt = tuple(rows[0][0])
        how = batching(self.model.module) if fed else None
        config: Any = self.model.module.config
        budget = min(self.model.token_budget, _LOGITS // int(config.vocab_size))
        if self.model.device.type == "cpu":
            budget = min(budget, _CPU)
        lengths = [len(ids) for ids in fed]
        found: dict[int, Likelihood] = {}
        for places in buckets(lengths, budget, [how.reads(n) for n in lengths] if how else ()):
            scored = self._score([fed[place] for place in places], [rows[place][1] for place in places])
            found.update(zip(places, scored, strict=True))
        return [found[place] for place in range(len(rows))]

    def continuations(self, rows: Sequence[tuple[list[int], Sampling, Sequence[str]]]) -> list[str]:
        """What follows each context, up to an end token or the first of its stop texts, which is left out."""
        texts: dict[int, str] = {}
        for sampling in dict.fromkeys(row[1] for row in rows):
            places = [place for place, row in enumerate(rows) if row[1] == sampling]
            wanted, again = [], Counter[tuple[int, ...]]()
            for place in places:
                ids = rows[place][0]
                self._fits(place, len(ids) + 1)
                room = (
                    sampling.max_tokens if self.model.max_length is None else self.model.max_length - len(ids)
                )
                seed = int(digest([sampling.seed, ids, again[tuple(ids)]])[:12], 16)  # repeats draw anew
                again[tuple(ids)] += 1
                wanted.append(Request(ids, min(room, sampling.max_tokens), seed))
            tokens = self.model.chat_tokens
            drawn = draw(self.model.module, wanted, sampling, tokens.stop_ids, self.model.token_budget)
            for place, one in zip(places, drawn, strict=True):
                if one.stop == "error":
                    raise InputError(f"request {place}: the logits became NaN or infinite")
                text = tokens.text(one.ids[:-1] if one.stop == "eos" else one.ids)
                texts[place] = _cut(text, rows[place][2])
        if rows and not self.first_prompt:
            self.first_prompt = tuple(rows[0][0])
        return [texts[place] for place in range(len(rows))]

    @torch.inference_mode()
    def _score(self, fed: list[list[int]], replies: list[list[int]]) -> list[Likelihood]:
        width, end = max(map(len, fed)), self.model.chat_tokens.end_id
        device = self.model.device
        ids = torch.tensor([row + [end] * (width - len(row)) for row in fed], device=device)
        lengths = torch.tensor([len(row) for row in fed], device=device)
        mask = torch.arange(width, device=device)[None] < lengths[:, None]
        logits = self.model.forward(TokenBatch(ids, mask, torch.zeros_like(mask)))
        scored = []
        for row, reply, all_logits in zip(fed, replies, logits, strict=True):
            some = all_logits[len(row) - len(reply) : len(row)].float()
            wanted = torch.tensor(reply, device=device)
            values = some.gather(-1, wanted[:, None]).squeeze(-1) - some.logsumexp(-1)
            likeliest = bool((some.argmax(-1) == wanted).all())
            if bool(values.isnan().any()):
                raise InputError("a log-prob is NaN", hint="load the model in float32, and check its weights")
            scored.append(Likelihood(tuple(values.tolist()), likeliest))
        return scored

    def _fits(self, place: int, length: int) -> None:
        if self.model.max_length is not None and length > self.model.max_length:
            raise InputError(
                f"request {place} has {length} tokens, but the model's context holds {self.model.max_length}",
                hint="use fewer shots (--num_fewshot); nothing is cut silently",
            )

    def _start_ids(self) -> list[int]:
        """What the tokenizer itself puts before a text: usually the start token, or nothing."""
        bare: list[int] = self.model.tokenizer("a", add_special_tokens=False)["input_ids"]
        full: list[int] = self.model.tokenizer("a")["input_ids"]
        return next((full[:i] for i in range(len(full)) if full[i : i + len(bare)] == bare), [])


def _cut(text: str, stops: Sequence[str]) -> str:
    places = [text.find(stop) for stop in stops if stop and stop in text]
    return text[: min(places)] if places else text
