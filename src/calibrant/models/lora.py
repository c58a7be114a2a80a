"""Low-rank adapters (LoRA) by peft: a copy's weights are frozen and adapters are trained.

With the adapters off the copy *is* the model that came in, so it serves as its own reference.
"""

from __future__ import annotations

import warnings
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
from calibrant.models.loading import prove_saves
from calibrant.models.model_facts import FOREIGN, accepted, muted, sample_ids, unembedding

M = TypeVar("M", bound=OpenLM)
_FUSED = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")  # as peft 0.21 lists them
_PASSED_BY = ("out_proj", "conv1d")


class LoRA(Frozen):
    """Adapters W + (alpha / r) B A (Hu et al. 2021, arXiv 2106.09685, equation 3)."""

    r: int = Field(default=8, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(default=16, gt=0)
    """Their scale is alpha / r."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get one: ("q_proj", "v_proj"), or every linear layer but the head; experts
    that are fused into one parameter are no layers."""


def adapted(model: M, config: LoRA | None, seed: int) -> M:
    """Put adapters into ``model`` (in place; a copy of the caller's own) and return it; None leaves it be.

    Raises:
        ConfigError: no layer has one of the wanted names, or what it computes with passes the layer by.
        CapabilityError: the model could not be saved after training.
    """
    prove_saves(model.module)
    if config is None:
        return model
    wanted: Any = config.targets if isinstance(config.targets, str) else list(config.targets)
    settings = LoraConfig(r=config.r, lora_alpha=config.alpha, target_modules=_linear(model.module, wanted))
    # Where peft sees the config it swaps the targets of some families with experts for others: their fused
    # experts, and no dense layer. In a plain box it takes those that were asked for.
    box = nn.ModuleDict({"model": model.module})
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # peft sees to GPT-2's layers, and says so
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(settings, box)
            # Beside weights of 16 bits, too, adapters learn in 32: in 16, small steps would be lost.
            cast_adapter_dtype(box, "default")
        except ValueError as error:
            raise ConfigError(
                f"lora.targets = {wanted!r}: {error}", hint="name layers as the module does, or 'all-linear'"
            ) from error
    try:
        _run(model.module)
    except FOREIGN as error:
        raise ConfigError(
            f"lora.targets = {wanted!r}: with adapters the model fails: {type(error).__name__}: {error}",
            hint="name other layers: those that are linear and nothing more",
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
    passed_by = _PASSED_BY if getattr(module.config, "model_type", "") in _FUSED else ()
    if wanted != "all-linear":
        if lost := sorted({name.rpartition(".")[2] for name in wanted} & set(passed_by)):
            raise ConfigError(
                f"lora.targets: fused kernels of this family read the weights of {', '.join(lost)} past the "
                "layer, so that an adapter would have no effect",
                hint="name other layers, or take 'all-linear', which leaves these out",
            )
        return list(wanted)
    head = unembedding(module)
    kinds = (nn.Linear, Conv1D)  # GPT-2's linear layer is one of its own
    more = _more_than_linear(module, [child for child in module.modules() if isinstance(child, kinds)])
    return [
        name
        for name, child in module.named_modules()
        if isinstance(child, kinds) and child is not head and name.rpartition(".")[2] not in passed_by
        if child not in more
    ]


def _more_than_linear(module: nn.Module, layers: list[nn.Module]) -> set[nn.Module]:
    """Those of ``layers`` that give more than a tensor: routers, which are linear layers by descent."""
    odd, nonlinear = [child for child in layers if type(child) not in (nn.Linear, Conv1D)], set[nn.Module]()
    if not odd:
        return nonlinear

    def note(child: nn.Module, _: Any, output: Any) -> None:
        if not isinstance(output, torch.Tensor):
            nonlinear.add(child)

    handles = [child.register_forward_hook(note) for child in odd]
    try:
        _run(module)
    finally:
        for handle in handles:
            handle.remove()
    return nonlinear


@torch.no_grad()
def _run(module: nn.Module) -> None:
    """One pass over a few ids."""
    ids = torch.tensor([sample_ids(module, 4)], device=next(module.parameters()).device)
    with muted(module):
        module(input_ids=ids, **accepted(module, use_cache=False))
