"""Caveats that every training reports about its model."""

from __future__ import annotations

from typing import Any

from torch import nn

from calibrant.models import precision

_ROUTER = ("router_aux_loss_coef", "router_z_loss_coef", "aux_loss_alpha")
"""How configs of transformers call the weight of a loss that keeps experts in use."""


def training_caveats(bf16: bool, before: nn.Module, after: nn.Module | None = None) -> tuple[str, ...]:
    """Half precision and experts, from ``before`` to ``after`` (None: no weights to compare)."""
    config: Any = before.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    settings = [f"{name} = {value:g}" for name in _ROUTER if (value := getattr(text, name, None))]
    router = (
        f"the config asks for a router loss ({', '.join(settings)}), which was left out: nothing kept the "
        "experts evenly used"
    )
    return (*precision.caveats(bf16, before, after), *([router] if settings else []))


def row_caveats(alone: str) -> tuple[str, ...]:
    """Say so where replies could not share a row; ``alone`` is why (``branches.shares``), or ""."""
    return (f"slower than it could be: each reply had a row of its own, because of {alone}",) if alone else ()
