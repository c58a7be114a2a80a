"""Weights in memory with their tokenizer: what a language model and a classifier have in common."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from calibrant.core.lm import Identity
from calibrant.models.chat_tokens import ChatTokens
from calibrant.models.loading import context_length, save_weights
from calibrant.models.model_facts import share_facts


class Weights:
    """A module of transformers in eval mode, its tokenizer, and who they are."""

    module: nn.Module
    tokenizer: Any
    identity: Identity
    token_budget: int
    chat_tokens: ChatTokens

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.module.parameters()).device

    @property
    def max_length(self) -> int | None:
        """Most tokens of prompt and reply together; None where the config sets no limit."""
        return context_length(self.module)

    def save(self, path: str | Path) -> None:
        """Write weights (safetensors), config and tokenizer to a folder that ``from_folder`` opens."""
        save_weights(self.module, path)
        self.tokenizer.save_pretrained(path)

    def copy(self) -> Self:
        """A copy with its own weights that require gradients, to be trained (still in eval mode)."""
        twin = copy.copy(self)
        twin.module = copy.deepcopy(self.module).eval().requires_grad_(True)
        twin.chat_tokens = copy.copy(self.chat_tokens)
        share_facts(twin.module, self.module)
        return twin
