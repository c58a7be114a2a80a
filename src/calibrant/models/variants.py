"""A model read otherwise: without its chat template, or with weights that were never trained."""

from __future__ import annotations

import copy

import torch

from calibrant.core.errors import CapabilityError
from calibrant.models.open_model import OpenModel
from calibrant.models.variant_identity import plain_identity, untrained_identity


def plain(model: OpenModel) -> OpenModel:
    """``model`` as a completion model: prompts are continued as they stand. Its weights are shared."""
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = None
    identity = plain_identity(model.identity)
    return OpenModel(model.module, tokenizer, identity=identity, token_budget=model.token_budget)


def untrained(model: OpenModel, seed: int = 0) -> OpenModel:
    """Config, tokenizer and chat template of ``model``; weights as its class draws them before training.

    Raises:
        CapabilityError: the class cannot be built from its config alone.
    """
    config, kind = copy.deepcopy(model.module.config), type(model.module)
    build = getattr(kind, "_from_config", None)
    if build is None:
        raise CapabilityError(
            f"'{model.identity.name}': {kind.__name__} cannot be built from its config alone",
            hint="only models of transformers can be drawn anew",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(config, dtype=torch.float32).to(model.device)
    identity = untrained_identity(model.identity, seed)
    return OpenModel(module, model.tokenizer, identity=identity, token_budget=model.token_budget)
