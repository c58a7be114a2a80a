"""What tests of planted circuits share: margins, and how well patching tells what was planted."""

from __future__ import annotations

import numpy as np
import torch

from calibrant.core import Quiet
from calibrant.stats.auroc import area
from calibrant.understand.patch import Patching, patch

WAYS = ("denoise", "noise")


def margins(model, contrasts):
    """(N, 2) logit of the answer less that of the foil after both prompts: clean, corrupted."""
    found = []
    for row in contrasts.rows:
        answer, foil = (model.reply_ids(word)[0] for word in (row.answer, row.foil))
        ids = torch.tensor([model.prompt_ids(chat) for chat in (row.clean, row.corrupt)])
        with torch.no_grad():
            logits = model.module(ids).logits[:, -1]
        found.append(logits[:, answer] - logits[:, foil])
    return torch.stack(found)


def patched(model, contrasts, site="z", interactions=0):
    return patch(
        model, contrasts, Patching(site=site, positions="all", interactions=interactions), Quiet()
    ).metrics


def shares(metrics, way):
    """Cell -> share, of those that have one."""
    begins = f"{way}/"
    return {key.removeprefix(begins): one.value for key, one in metrics.items() if key.startswith(begins)}


def separation(metrics, way, cells):
    """AUROC of the sizes of the shares: do the planted cells come first?"""
    found = shares(metrics, way)
    strength = np.abs(list(found.values()))
    return area(strength, np.array([name in cells for name in found]))


def head(place):
    return f"layer_{place[0]}/head_{place[1]}"
