"""What a probe tells of a cue in wordings that it has not seen, and what its score says of single items.

A wording is held out with all its prompts, so labels go by wording: how far a few wordings make any probe
vary is not in the interval of its AUROC. So the same is done with the two sides of some wordings swapped.
Where a model takes no notice of the side, every such labelling is as likely as the true one, and the rank of
the true one is an exact p-value.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibrant.core import Estimate, OpenLM, Run, unknown
from calibrant.evals.arms import Hits
from calibrant.stats.auroc import area, auroc
from calibrant.stats.folds import Floats, Folds, Held, folds_of
from calibrant.text.ngrams import ngrams
from calibrant.understand._cue_arms import Arms
from calibrant.understand._probe_controls import rowwise
from calibrant.understand._probe_fits import linear, of_text
from calibrant.understand._probe_folds import Fit, best, held_out
from calibrant.understand._probe_rows import Texts, checked, states

FOLDS = 3
"""Parts of the wordings, and of the goals; a wording and a goal are never on both sides of a split."""


class Read(NamedTuple):
    """A cue, read off a model's layers."""

    cue: Arms
    texts: Texts
    states: Tensor
    """(L, N, D) at the last token of each prompt."""
    folds: Folds
    held: Held
    picked: int
    """The layer (of L) that is best over all rows."""
    text: Floats
    """(N,) held-out scores of a probe of the text alone."""
    fit: Fit

    def auroc(self, scores: Floats) -> Estimate:
        """Of scores that tell the cue's presence."""
        return auroc(scores, self.texts.labels, blocks=self.folds.blocks, clusters=self.texts.kinds)

    def same_words(self, seed: int) -> float:
        """AUROC where the wordings are known, prompts split at random: what any token gives."""
        y = self.texts.labels
        found = rowwise(self.fit, self.states[self.picked], torch.from_numpy(y)[None], FOLDS, seed)
        return area(found.scores[0], y, found.folds) or 0.0

    def direction(self) -> Tensor:
        """(D,) mean with the cue less mean without, at the picked layer."""
        x, y = self.states[self.picked], torch.from_numpy(self.texts.labels)
        return x[y].mean(0) - x[~y].mean(0)


def read_cue(model: OpenLM, cue: Arms, sites: Sequence[str], l2: float, run: Run) -> Read:
    """Probe the layers for the cue's presence.

    Raises:
        InputError, CapabilityError, NumericalError: as ``understand.probe``.
    """
    texts, fit = checked(cue.texts(), None), partial(linear, l2=l2)
    folds = folds_of(texts.kinds, texts.labels, FOLDS, run.seed, inner=True)
    x = states(model, texts, sites, "last", run, f"reading the {cue.name}")
    held = held_out(fit, x, texts.labels, folds)
    said = ["\n".join(turn.content for turn in chat.messages) for chat in cue.chats]
    grams = torch.from_numpy(ngrams(said))[None]
    text = held_out(of_text, grams, texts.labels, folds, inner=False).nested
    picked = best(held.scores, texts.labels, folds.blocks)
    return Read(cue, texts, x, folds, held, picked, text, fit)


def swaps(wordings: int, limit: int, seed: int) -> NDArray[np.bool_]:
    """(S, wordings) which wordings are swapped: all other ways to label them, or ``limit`` drawn ones.

    The first stays: swapping all of them is the same labelling with its sides renamed.
    """
    ways = list(product((False, True), repeat=min(wordings - 1, 20)))[1:]
    if len(ways) > limit:
        ways = random.Random(f"swaps/{seed}").sample(ways, limit)
    return np.array([(False, *way, *[False] * (wordings - 1 - len(way))) for way in ways], np.bool_)


def p_swapped(read: Read, limit: int, run: Run) -> tuple[float, int]:
    """Rank of the true labelling's AUROC among others, as a p-value; and among how many."""
    y, count = read.texts.labels, len(read.cue.goals)
    mine = area(read.held.nested, y, read.folds.blocks) or 0.0
    above, ways = 0, swaps(read.cue.wordings, limit, run.seed)
    for at, way in enumerate(ways):
        labels = y ^ np.repeat(way, 2 * count)
        found = held_out(read.fit, read.states, labels, read.folds).nested
        above += (area(found, labels, read.folds.blocks) or 0.0) >= mine - 1e-12
        run.progress(at + 1, len(ways), "probing with wordings swapped")
    return (1 + above) / (1 + len(ways)), len(ways)


def beside(direction: Tensor, count: int, seed: int) -> Tensor:
    """(count, D) random directions at right angles to one (D,), and of its length."""
    lot = torch.Generator().manual_seed(seed)
    others = torch.randn(count, len(direction), generator=lot, dtype=direction.dtype)
    length = direction.norm().clamp_min(1e-12)
    unit = direction / length
    rest = others - (others @ unit)[:, None] * unit
    found: Tensor = length * rest / rest.norm(dim=1, keepdim=True)
    return found


class Predicted(NamedTuple):
    """How well a score tells the items on which the behaviour happened from the others."""

    auroc: Estimate
    beside: float
    """Rank of its distance from chance among random directions beside the cue's, as a p-value."""
    rare: int
    """Prompts of the rarer outcome, among those that can be compared."""


def predicted(read: Read, hits: Hits, sign: int, directions: int, seed: int) -> Predicted:
    """Compare items of one wording and one side, whose scores are of one fit: there the cue is the same.

    ``sign``: -1 where the cue makes the behaviour rarer, so that an AUROC above .5 is always towards the cue.
    """
    seen = np.array([one is not None for one in hits])
    happened = np.array([bool(one) for one in hits])
    count = len(read.cue.goals)
    arm = np.arange(len(hits)) // count
    blocks = arm * (int(read.folds.blocks.max()) + 1) + read.folds.blocks
    rows = np.flatnonzero(seen)
    y, where = happened[rows], blocks[rows]
    mixed = [block for block in np.unique(where) if 0 < y[where == block].mean() < 1]
    inside = np.isin(where, mixed)
    rare = int(min(y[inside].sum(), (~y[inside]).sum()))
    if not rare:
        why = "the behaviour is the same in all prompts of one wording and one side"
        return Predicted(unknown(why, n=len(hits), unit="prompt"), 1.0, 0)
    clusters = [[names[row] for row in rows] for names in read.texts.kinds]
    found = auroc(sign * read.held.nested[rows], y, blocks=where, clusters=clusters)
    x = read.states[read.picked][torch.from_numpy(rows)]
    ways = beside(read.direction(), directions, seed)
    others = [abs((area(one, y, where) or 0.5) - 0.5) for one in (ways @ x.T).numpy()]
    mine = abs((found.value or 0.5) - 0.5)
    above = sum(one >= mine - 1e-12 for one in others)
    return Predicted(found.model_copy(update={"unit": "prompt"}), (1 + above) / (1 + directions), rare)
