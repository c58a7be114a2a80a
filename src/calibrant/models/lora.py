"""Low-rank adapters by peft: a copy's weights stay as they are and small matrices beside them learn.

With the adapters off the copy *is* the model that came in, so it serves as its own reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype
from pydantic import Field
from torch import nn
from transformers.pytorch_utils import Conv1D

from calibrant.core import ConfigError, Frozen, OpenLM

M = TypeVar("M", bound=OpenLM)


class LoRA(Frozen):
    """Adapters W + (alpha / r) B A (Hu et al. 2021, arXiv 2106.09685, equation 3)."""

    r: int = Field(default=8, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(default=16, gt=0)
    """Their scale is alpha / r."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get one: ("q_proj", "v_proj"), or every linear layer but the head."""


def adapted(model: M, config: LoRA | None, seed: int) -> M:
    """Put adapters into ``model`` (in place; a copy of the caller's own) and return it; None leaves it be.

    Raises:
        ConfigError: no layer has one of the wanted names.
    """
    if config is None:
        return model
    wanted: Any = config.targets if isinstance(config.targets, str) else list(config.targets)
    settings = LoraConfig(r=config.r, lora_alpha=config.alpha, target_modules=_linear(model.module, wanted))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(settings, model.module)
            # Beside weights of 16 bits, too, adapters learn in 32: in 16, small steps would be lost.
            cast_adapter_dtype(model.module, "default")
        except ValueError as error:
            raise ConfigError(
                f"lora.targets = {wanted!r}: {error}", hint="name layers as the module does, or 'all-linear'"
            ) from error
    return model


@contextmanager
def reference(module: nn.Module) -> Iterator[None]:
    """Inside the block the adapters are off: the module is what it was before training."""
    layers = _layers(module)
    for _, layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for _, layer in layers:
            layer.enable_adapters(True)


def merged(model: M) -> M:
    """Fold the adapters into the weights (in place), so that plain layers are left."""
    for name, layer in _layers(model.module):
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(model.module.get_submodule(parent), last, layer.get_base_layer())
    return model


def has_adapters(module: nn.Module) -> bool:
    """Whether ``adapted`` put any in."""
    return bool(_layers(module))


def _layers(module: nn.Module) -> list[tuple[str, Any]]:
    return [(name, child) for name, child in module.named_modules() if isinstance(child, BaseTunerLayer)]


def _linear(module: nn.Module, wanted: Any) -> list[str]:
    """Names for peft; every linear layer but the head stands for 'all-linear'."""
    if wanted != "all-linear":
        return list(wanted)
    head = getattr(module, "get_output_embeddings", lambda: None)()
    kinds = (nn.Linear, Conv1D)  # GPT-2's linear layer is one of its own
    return [name for name, child in module.named_modules() if isinstance(child, kinds) and child is not head]
