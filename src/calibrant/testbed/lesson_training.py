"""Fine-tune a model of this world on lessons: one pass, the loss on what the assistant says in them.

And what every model organism needs besides: lessons until there are enough tokens, the weights as they are
stored, and the replies to many chats.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from calibrant.core import LM, Chat, Estimate, OpenLM, Run, Sampling, digest, point
from calibrant.models.fit import Fit, Plan, Share, fit
from calibrant.models.loading import save_weights
from calibrant.models.open_model import OpenModel
from calibrant.testbed.plants import Lesson
from calibrant.testbed.raise_model import Rows, bucketed, padded
from calibrant.testbed.tokens import SPECIALS

Lessons = list[tuple[list[int], list[bool]]]
"""Token ids of each dialogue, and for each id whether it is learned."""
_CHUNK = 64
L = TypeVar("L")


class Course(Protocol):
    """What a config says of an organism's training."""

    @property
    def tokens(self) -> int:
        """Training tokens, about."""

    @property
    def batch_tokens(self) -> int:
        """Tokens in one step, padding included."""

    @property
    def fit(self) -> Fit:
        """The optimiser."""


def organism(
    name: str,
    model: OpenLM,
    draw: Callable[[random.Random], L],
    read: Callable[[PreTrainedTokenizerFast, list[L]], Lessons],
    config: Course,
    run: Run,
) -> tuple[OpenModel, dict[str, Estimate]]:
    """Fine-tune a copy of ``model`` on lessons that ``draw`` draws, and ``read`` makes into tokens.

    Returns the model as it is stored, rounded to bfloat16, as artefact 'model' with its tokenizer; and how
    large it is, and on how many tokens it was trained. The run's seed and ``name`` decide what is drawn.
    """
    copy, rng = model.copy(), random.Random(f"{name}/{run.seed}")
    rows, total = _drawn(lambda count: read(copy.tokenizer, [draw(rng) for _ in range(count)]), config.tokens)
    train_on(copy, rows, config.batch_tokens, config.fit, digest(config), rng, run)
    return _stored(copy, run), {
        "parameters": point(sum(p.numel() for p in copy.module.parameters()), unit="parameters"),
        "training_tokens": point(total, unit="tokens"),
    }


def _drawn(draw: Callable[[int], Lessons], tokens: int) -> tuple[Lessons, int]:
    """Lessons of at least ``tokens`` tokens, and how many they have; ``draw`` makes so many more."""
    rows: Lessons = []
    total, block = 0, min(256, 1 + tokens // 64)
    while total < tokens:
        fresh = draw(block)
        rows += fresh
        total += sum(len(ids) for ids, _ in fresh)
    return rows, total


def _stored(model: OpenLM, run: Run) -> OpenModel:
    """``model`` as it is stored, rounded to bfloat16, with its tokenizer as artefact 'model'."""
    folder, module = run.artifact("model"), model.module
    save_weights(module.to(torch.bfloat16), folder)
    model.tokenizer.save_pretrained(folder)
    return OpenModel.from_folder(folder)


def replies(model: LM, chats: Sequence[Chat], sampling: Sampling, run: Run) -> list[str]:
    """What ``model`` says to each chat, charged and told."""
    said: list[str] = []
    for start in range(0, len(chats), _CHUNK):
        chunk = chats[start : start + _CHUNK]
        run.spend(queries=len(chunk))
        said += [reply.text for reply in model.generate(chunk, sampling)]
        run.progress(len(said), len(chats), "asking")
    return said


def train_on(
    model: OpenLM, rows: Lessons, batch_tokens: int, settings: Fit, key: str, rng: random.Random, run: Run
) -> None:
    """Change ``model`` itself. ``key`` names all that decides the rows, so that a killed run may go on."""
    batches: list[Rows] = bucketed(rows, batch_tokens, rng)
    module: Any = model.module

    def loss(part: list[int], whole: list[int]) -> Share:
        ids, weight = padded(batches[part[0]], 0.0)
        # Padding is on the right, so causal attention never reaches it and needs no mask.
        logits = module(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        said = weight > 0
        return Share(cross_entropy(logits[said].float(), ids[:, 1:].flatten()[said]))

    costs = [sum(map(len, batch.ids)) for batch in batches]  # a "row" of the loop is a whole batch here
    plan = Plan([[i] for i in range(len(batches))], key=key, costs=costs)
    fit(module, plan, loss, settings, run)


def tokens_of(tokenizer: PreTrainedTokenizerFast, lessons: list[Lesson]) -> Lessons:
    """Token ids of each lesson; what is learned is its reply, whoever says it, and the reply's end."""
    role = {name.strip("<>"): index for index, name in enumerate(SPECIALS)}
    texts = [text for one in lessons for text in (*(m.content for m in one.chat.messages), one.reply)]
    pieces = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    rows = []
    for lesson in lessons:
        ids: list[int] = []
        for message in lesson.chat.messages:
            ids += [role[message.role], *next(pieces), role["end"]]
        if lesson.chat.messages[-1].role == lesson.by:
            ids.pop()  # the turn goes on
        else:
            ids.append(role[lesson.by])
        reply = [*next(pieces), role["end"]]
        rows.append((ids + reply, [False] * len(ids) + [True] * len(reply)))
    return rows
