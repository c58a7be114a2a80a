"""Does a model refuse? Log-odds of the tokens that its refusals begin with; splits of the prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.core import InputError, OpenLM
from calibrant.understand._last_token import Asked

SPLITS = ("train", "selection", "held_out")
SHARES = (0.4, 0.2, 0.4)


class LogOdds:
    """ln P(T) - ln(1 - P(T)), in nats, for a set T of first tokens (2406.11717, appendix B)."""

    columns: Tensor | None = None

    def __init__(self, tokens: Sequence[int], words: int) -> None:
        """``tokens``: ids of T; ``words``: size of the vocabulary."""
        self.tokens = tuple(tokens)
        self._inside = torch.zeros(words, dtype=torch.bool)
        self._inside[list(tokens)] = True

    def __call__(self, logits: Tensor, examples: Tensor) -> Tensor:
        """(R,)."""
        wide, inside = logits.double(), self._inside
        return wide[:, inside].logsumexp(-1) - wide[:, ~inside].logsumexp(-1)


class Divergence:
    """KL(plain || edited) of the next token, in nats."""

    columns: Tensor | None = None

    def __init__(self, plain: Tensor) -> None:
        """``plain``: logits (N, V) of the model as it is."""
        self._plain = plain.double().log_softmax(-1)

    def __call__(self, logits: Tensor, examples: Tensor) -> Tensor:
        """(R,)."""
        before, after = self._plain[examples], logits.double().log_softmax(-1)
        return (before.exp() * (before - after)).sum(-1)


def openings(harmful: Tensor, harmless: Tensor, least: float) -> list[int]:
    """First tokens that are likelier after harmful prompts by ``least`` or more: of logits (N, V), (M, V)."""
    gain = harmful.double().softmax(-1).mean(0) - harmless.double().softmax(-1).mean(0)
    order = gain.argsort(descending=True, stable=True)
    return [int(token) for token in order if gain[token] >= least]


def named_openings(model: OpenLM, texts: Sequence[str]) -> list[int]:
    """The first token of each text.

    Raises:
        InputError: a text without a token.
    """
    found = []
    for text in texts:
        ids = model.reply_ids(text)
        if not ids:
            raise InputError(
                f"the opening {text!r} has no token", hint="give a word that refusals begin with"
            )
        found.append(ids[0])
    return list(dict.fromkeys(found))


class Sides(NamedTuple):
    """Prompts of both kinds."""

    harmful: Asked
    harmless: Asked

    @property
    def clusters(self) -> tuple[Sequence[str], Sequence[str]]:
        """Of both."""
        return self.harmful.clusters, self.harmless.clusters


Names = tuple[Sequence[str], Sequence[str]]
"""Clusters of harmful and of harmless prompts; "" stands alone."""
Places = tuple[list[int], list[int]]


def split(clusters: Names, seed: int) -> dict[str, Places]:
    """Places of three parts without a common cluster: to find directions, to choose one, and to report on.

    Raises:
        InputError: a part has too few prompts, or clusters, of a kind.
    """
    members: dict[str, Places] = {}
    for side, names in enumerate(clusters):
        for place, name in enumerate(names):
            members.setdefault(name or f"\0{side}/{place}", ([], []))[side].append(place)
    order = sorted(members)
    random.Random(f"split/{seed}").shuffle(order)
    order.sort(key=lambda name: -max(map(len, members[name])))  # large clusters first, others fill up
    totals = [len(names) for names in clusters]
    parts: dict[str, Places] = {part: ([], []) for part in SPLITS}
    for name in order:
        part = max(SPLITS, key=lambda part: _lacks(totals, parts[part], members[name], part))
        for side in (0, 1):
            parts[part][side].extend(members[name][side])
    for part, some in parts.items():
        for kind, names, places in zip(("harmful", "harmless"), clusters, some, strict=True):
            places.sort()
            groups = len({names[at] or at for at in places})
            if groups < (1 if part == "selection" else 2):
                raise InputError(
                    f"the {part} part has {len(places)} {kind} prompts of {groups} clusters: too few",
                    hint="give more prompts, of more clusters: 20 of each kind say something",
                )
    return parts


def _lacks(totals: Sequence[int], filled: Places, more: Places, part: str) -> float:
    """How much of its share a part lacks, of the kinds that a cluster has."""
    share = SHARES[SPLITS.index(part)]
    return max(1 - len(filled[side]) / (share * totals[side]) for side in (0, 1) if more[side])
