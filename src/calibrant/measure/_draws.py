"""Sample and score many replies per prompt, kept in ``run.work``: a killed run samples and scores nothing
twice.

A chunk of prompts is charged before it is sent, and is on disk with its scores before the next one starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from calibrant.core import (
    LM,
    Chat,
    Completion,
    Frozen,
    InputError,
    Reward,
    Run,
    Sampling,
    Scores,
    digest,
)
from calibrant.core.behaviours import same_number
from calibrant.data.distinct import normal_chat
from calibrant.data.rows import Prompt, Prompts
from calibrant.evals.judging import tokens
from calibrant.ledger.lines import Lines, replay

CHUNK = 256
"""Replies between two checks of budget, progress and disk; a prompt's replies are never split."""


class Drawn(Frozen):
    """The N replies to one prompt with their scores; None where there is no reply or no score."""

    key: str
    """Digest of prompt, model, rewards and sampling."""
    id: str
    """The prompt's name."""
    replies: tuple[str, ...]
    """N texts; "" where the model failed."""
    proxy: tuple[float | None, ...]
    """N proxy scores."""
    gold: tuple[float | None, ...]
    """N gold scores."""
    std: tuple[float | None, ...] | None
    """N standard deviations between the members of the proxy, where it is an ensemble."""
    tokens: int
    """Tokens generated; an upper limit where the model does not report them."""
    error: str
    """The first error, or ""."""


def draw(
    model: LM, prompts: Sequence[Prompt], rewards: tuple[Reward, Reward], n: int, sampling: Sampling, run: Run
) -> list[Drawn]:
    """Sample ``n`` replies to each prompt and score them with ``rewards``, proxy and gold. In order of
    prompts.

    Samples use ``sampling.seed + run.seed``. No two prompts may be the same chat (see ``distinct``): equal
    chats in one call get other samples than in two calls.

    Raises:
        BudgetError: the next chunk could exceed a limit; the samples so far are kept in ``run.work``.
        CapabilityError: the model or a reward returned the wrong number of answers.
        InputError: not one prompt has all its replies and scores.
        EvidenceError: the file in ``run.work`` is damaged (a cut last line is not: it is drawn again).
    """
    sampling = sampling.model_copy(update={"seed": sampling.seed + run.seed})
    by = [model.identity.digest, *(reward.identity.digest for reward in rewards)]
    keys = [digest([by, n, sampling, row.id, row.prompt]) for row in prompts]
    with Lines(run.work / "samples.jsonl") as log:
        rows = replay(log, Drawn.model_validate_json, "a set of replies")
        done = {row.key: row for row in rows if not row.error}  # what failed is asked again
        done = {key: done[key] for key in keys if key in done}
        run.spend(queries=n * len(done), tokens=sum(row.tokens for row in done.values()))
        left = [i for i, key in enumerate(keys) if key not in done]
        step = max(1, CHUNK // n)
        for start in range(0, len(left), step):
            chunk = left[start : start + step]
            run.progress(n * len(done), n * len(keys), f"drawing from {model.identity.name}")
            most = n * len(chunk) * sampling.max_tokens
            run.spend(queries=n * len(chunk), tokens=most)
            batch = [(keys[i], prompts[i]) for i in chunk]
            fresh = _sample(model, batch, rewards, n, sampling)
            log.add(row.model_dump_json().encode() for row in fresh)
            done |= {row.key: row for row in fresh}
            run.spend(tokens=sum(row.tokens for row in fresh) - most)  # give back what was not drawn
    run.progress(n * len(done), n * len(keys), f"drawing from {model.identity.name}")
    draws = [done[key] for key in keys]
    if all(row.error for row in draws):
        raise InputError(
            f"not one of {len(draws)} prompts has {n} replies with both scores; the first: {draws[0].error}",
            hint="fix the cause and run the same command again",
        )
    return draws


def distinct(prompts: Prompts) -> list[Prompt]:
    """The prompts without repeats: of equal chats the first stays.

    Raises:
        InputError: there are no prompts, or two share an id.
    """
    if not len(prompts):
        raise InputError(
            f"{prompts.source or 'the input'}: there are no prompts", hint="give at least one prompt"
        )
    first: dict[object, Prompt] = {}
    for row in prompts:
        first.setdefault(normal_chat(row.prompt), row)
    ids = [row.id for row in first.values()]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InputError(f"two prompts share the id '{twice}'", hint="give each prompt an id of its own")
    return list(first.values())


def _sample(
    model: LM,
    batch: Sequence[tuple[str, Prompt]],
    rewards: tuple[Reward, Reward],
    n: int,
    sampling: Sampling,
) -> list[Drawn]:
    """Draw and score one chunk of prompts, each given with its key."""
    chats = [row.prompt for _, row in batch for _ in range(n)]
    replies = model.generate(chats, sampling)
    same_number(f"model '{model.identity.name}'", len(replies), len(chats))
    valid = [i for i, reply in enumerate(replies) if reply.stop != "error"]
    proxy, gold = (_scores(reward, chats, replies, valid) for reward in rewards)
    means, golds = _spread(proxy.mean, valid, len(chats)), _spread(gold.mean, valid, len(chats))
    stds = None if proxy.std is None else _spread(proxy.std, valid, len(chats))
    rows = []
    for place, (key, prompt) in enumerate(batch):
        own = slice(place * n, (place + 1) * n)
        rows.append(
            Drawn(
                key=key,
                id=prompt.id,
                replies=tuple(_storable(reply.text) for reply in replies[own]),
                proxy=means[own],
                gold=golds[own],
                std=None if stds is None else stds[own],
                tokens=sum(tokens(reply, sampling.max_tokens) for reply in replies[own]),
                error=_missing(replies[own], means[own], golds[own]),
            )
        )
    return rows


def _scores(
    reward: Reward, chats: Sequence[Chat], replies: Sequence[Completion], valid: Sequence[int]
) -> Scores:
    """One score for each reply that there is."""
    if not valid:
        return Scores(mean=())
    scores = reward.score([chats[i] for i in valid], [replies[i].text for i in valid])
    same_number(f"reward '{reward.identity.name}'", len(scores.mean), len(valid))
    return scores


def _spread(scores: Sequence[float], places: Sequence[int], n: int) -> tuple[float | None, ...]:
    """Scores at the places of their replies; None elsewhere, and for NaN and infinity."""
    placed: list[float | None] = [None] * n
    for i, score in zip(places, scores, strict=True):
        placed[i] = score if math.isfinite(score) else None
    return tuple(placed)


def _storable(text: str) -> str:
    """Half a surrogate pair has no UTF-8 form, and a reply may hold one."""
    return text.encode("utf-8", "replace").decode()


def _missing(
    replies: Sequence[Completion], proxy: Sequence[float | None], gold: Sequence[float | None]
) -> str:
    for reply, by_proxy, by_gold in zip(replies, proxy, gold, strict=True):
        if reply.stop == "error":
            return f"no reply: {reply.error}"
        if by_proxy is None or by_gold is None:
            return f"the {'proxy' if by_proxy is None else 'gold'} score of a reply is not a number"
    return ""
