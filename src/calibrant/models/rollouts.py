"""Rollouts: samples of a policy with log-probs, for RL.

    rolled = roll(policy, chats, 4, Sampling(max_tokens=32, temperature=1.0, seed=7))

Three things are explicit, since most bugs of the field live there: how long a reply is, whether it *ended*
(its stop token was drawn, and is part of it) or was cut off, and the log-probs of the very distribution that
it was drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from calibrant.core import (
    CapabilityError,
    Chat,
    ConfigError,
    InputError,
    NumericalError,
    OpenLM,
    Sampling,
    Scores,
)
from calibrant.models.branches import Branches


@dataclass(frozen=True)
class Rollouts:
    """M = P times K replies: K to each of P prompts, those of one prompt side by side. Tensors on the CPU."""

    chats: tuple[Chat, ...]
    """(M,) what each reply answers."""
    texts: tuple[str, ...]
    """(M,) the replies as text, without the stop token and without the reasoning before them."""
    branches: Branches
    """Token ids: P prompts, K replies each, the stop token included."""
    ended: Tensor
    """(M,) bool: the reply ended by itself; else it was cut off at the limit."""
    behaviour: Tensor
    """(M, T) log-probs in nats under softmax(logits / temperature), as drawn; right-padded with 0."""
    temperature: float
    """Of the draw; every log-prob that is compared with ``behaviour`` divides its logits by it."""
    scores: Scores | None = None
    """What the reward said, once it has been asked."""
    kl: Tensor | None = None
    """(M,) ln pi - ln ref summed over the reply (k1), in nats, once the reference has been read."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def samples(self) -> int:
        """K, replies a prompt."""
        return len(self.texts) // len(self.branches.prompts)

    @property
    def lengths(self) -> Tensor:
        """(M,) int64 tokens of each reply, its stop token included; the score stands on the last of them."""
        return torch.tensor([len(reply) for reply in chain.from_iterable(self.branches.replies)])

    @property
    def tokens(self) -> int:
        """Tokens of all prompts and replies, a prompt counted once."""
        prompts, replies = self.branches
        return sum(map(len, prompts)) + sum(map(len, chain.from_iterable(replies)))

    @property
    def rewards(self) -> Tensor:
        """(M,) float32, what the reward said; raises where it has not been asked."""
        if self.scores is None:
            raise InputError("these replies have no scores yet", hint="ask a reward first")
        return torch.tensor(self.scores.mean)

    def of(self, prompts: Sequence[int]) -> Branches:
        """The branches of some of the prompts, by number."""
        prompt_ids, reply_ids = self.branches
        return Branches([prompt_ids[i] for i in prompts], [reply_ids[i] for i in prompts])

    def rows(self, prompts: Sequence[int]) -> list[int]:
        """Numbers (0 to M - 1) of the replies to some of the prompts, in the order of ``of(prompts)``."""
        return [i * self.samples + k for i in prompts for k in range(self.samples)]


def roll(policy: OpenLM, chats: Sequence[Chat], samples: int, sampling: Sampling) -> Rollouts:
    """Sample ``samples`` replies to each chat. Samples depend on ``sampling.seed`` and the chat alone.

    Raises:
        ConfigError: top_p below 1 or temperature 0: log-probs would not be those of the samples.
        CapabilityError: the model does not show token ids and log-probs.
        NumericalError: a reply broke off because the logits became NaN or infinite.
    """
    if sampling.top_p < 1 or sampling.temperature == 0:
        raise ConfigError(
            f"training needs plain sampling, not top_p = {sampling.top_p}, temperature = "
            f"{sampling.temperature}: the policy's log-probs would not be those of the samples",
            hint="top_p = 1 and a temperature above 0",
        )
    repeated = tuple(chat for chat in chats for _ in range(samples))
    drawn = policy.generate(repeated, sampling)
    replies: list[list[int]] = []
    for number, completion in enumerate(drawn):
        if completion.stop not in ("eos", "length"):
            raise NumericalError(
                f"reply {number} could not be sampled: {completion.error or completion.stop}",
                hint="lower the learning rate, or leave out prompts that fill the context",
            )
        if not completion.ids or completion.logprobs is None:
            raise CapabilityError(
                f"'{policy.identity.name}' shows no token ids and log-probs of reply {number}",
                hint="train a local model, with at least one token of room behind each prompt",
            )
        replies.append(list(completion.ids))
    behaviour = torch.zeros(len(replies), max(map(len, replies), default=0))
    for row, completion in zip(behaviour, drawn, strict=True):
        row[: len(completion.logprobs or ())] = torch.tensor(completion.logprobs)
    return Rollouts(
        chats=repeated,
        texts=tuple(completion.text for completion in drawn),
        branches=Branches(
            [policy.prompt_ids(chat) for chat in chats],
            [replies[i : i + samples] for i in range(0, len(replies), samples)],
        ),
        ended=torch.tensor([completion.stop == "eos" for completion in drawn]),
        behaviour=behaviour,
        temperature=sampling.temperature,
    )
