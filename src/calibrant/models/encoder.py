"""A sentence encoder from a folder in Hugging Face layout: the mean of the last states, scaled to length 1.

Mean pooling over all tokens, special ones included: Reimers & Gurevych 2019 (Sentence-BERT, 1908.10084). The
folder's own pooling settings are not read: an encoder that was trained with another pooling gives other
vectors here than in sentence-transformers, the same ones every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModel

from calibrant.core import Identity, InputError, NumericalError
from calibrant.models.folder import unchanged
from calibrant.models.loading import Kind, breaking, context_length, load_folder
from calibrant.models.sentence import encoder_identity

_BEHIND_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Families that number positions from behind the padding token."""
_ENCODER = Kind(AutoModel, "sentence encoder", "config.json and *.safetensors must come from one encoder")


def open_encoder(path: Path) -> Encoder:
    """The encoder of a folder, in float32 on the CPU.

    Raises:
        InputError: no such model, pickled weights, code of its own, weights that do not fit, or no limit of
            length in its config.
        CapabilityError: the folder holds an adapter.
    """
    with unchanged(path):
        module, tokenizer = load_folder(path, "float32", _ENCODER)
        identity = encoder_identity(path)
    with breaking(path):
        return Encoder(module, tokenizer, identity)


class Encoder:
    """The ``SentenceEncoder`` that ``open_encoder`` makes."""

    def __init__(self, module: nn.Module, tokenizer: Any, identity: Identity) -> None:
        """Wrap ``module``, which is put in eval mode with its parameters frozen (not copied)."""
        limit = context_length(module)
        if limit is None:
            raise InputError(
                f"'{identity.name}' has no max_position_embeddings", hint="give a BERT-like encoder"
            )
        config: Any = module.config
        self._module, self._tokenizer = module.eval().requires_grad_(False), tokenizer
        first = (config.pad_token_id or 0) + 1 if config.model_type in _BEHIND_PADDING else 0
        self.most = limit - first
        self.identity = identity

    def size(self, text: str) -> int:
        """See ``SentenceEncoder``."""
        return len(self._ids(text))

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """See ``SentenceEncoder``. One text at a time: none depends on what stands beside it."""
        return np.array([self._vector(text) for text in texts], np.float64)

    def _vector(self, text: str) -> NDArray[np.float64]:
        ids = self._ids(text)
        if len(ids) > self.most:
            raise InputError(
                f"a text of {len(ids)} tokens, but the encoder reads {self.most}", hint="read it in chunks"
            )
        states = self._module(input_ids=torch.tensor([ids])).last_hidden_state[0].double().numpy()
        vector = states.mean(axis=0)
        size = float(np.linalg.norm(vector))
        if not np.isfinite(size) or size == 0:
            raise NumericalError(f"the encoder's vector has the length {size}", hint="check its weights")
        found: NDArray[np.float64] = vector / size
        return found

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, truncation=False, verbose=False)["input_ids"]
        return ids
