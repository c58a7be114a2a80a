"""GCG on real weights: a chosen, benign continuation, forced by a string and checked by generating."""

from __future__ import annotations

import pytest
import torch

from calibrant.attack.gcg import GCG, optimise
from calibrant.core import Chat, Sampling
from calibrant.models.open_model import OpenModel

pytestmark = [pytest.mark.real, pytest.mark.slow]

ASKED = Chat.ask("Once upon a time there was a dog.")
REPLY = " He had a big red ball."
CONFIG = GCG(suffix=" x" * 12, steps=150, width=128, top_k=64)


@pytest.fixture
def model(real_data):
    folder = real_data / "stories260K"
    if not folder.is_dir():
        pytest.skip("needs the weights stories260K: see data:stories260K")
    return OpenModel.from_folder(folder)


def said(model, suffix):
    (reply,) = model.generate([Chat.ask(ASKED.last_user + suffix)], Sampling(max_tokens=12))
    return reply.text


def test_forces_a_chosen_continuation_of_a_story(model):
    """The model is asked with the final string, tokenised anew, and continues greedily."""
    found = optimise(model, ASKED, REPLY, CONFIG, torch.Generator().manual_seed(1))
    assert found.reached
    assert said(model, found.text).startswith(REPLY)
    whole = model.prompt_ids(Chat.ask(ASKED.last_user + found.text))
    assert tuple(whole[-len(found.ids) :]) == found.ids
    assert not any(said(model, suffix).startswith(REPLY) for suffix in ("", CONFIG.suffix))


def test_a_suffix_of_another_search_does_not_force_it(model):
    """Null: as many steps for another beginning leave this one unsaid."""
    found = optimise(model, ASKED, " She", CONFIG, torch.Generator().manual_seed(1))
    assert found.reached and not said(model, found.text).startswith(REPLY)
