"""Gradients of a reading by the activations at sites: the ground of attribution patching."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from calibrant.core import NumericalError, OpenLM
from calibrant.models.hooks import captured, edited
from calibrant.understand._engine.patches import check_still
from calibrant.understand._engine.readers import Reader
from calibrant.understand._engine.skip import last_logits


def leaf(value: Tensor) -> Tensor:
    """Where a graph begins: the value itself, which the model may go on to change in place."""
    return value.detach().clone().requires_grad_().clone()


def gradients(
    model: OpenLM, ids: Tensor, sites: Sequence[str], read: Reader, rows: int = 32
) -> tuple[Tensor, dict[str, Tensor]]:
    """The reading (N,) of each prompt, and its gradient (N, T, ...) by the activation at each site.

    Weights stay as they are: the graph begins at the embedding. ``rows`` prompts at a time.

    Raises:
        CapabilityError: a site that the model does not have or that never runs, or a model in training mode,
            or one whose weights were made in inference mode.
        NumericalError: a gradient is NaN or infinite.
    """
    check_still(model.module, gradients=True)
    readings, parts = [], dict[str, list[Tensor]]((site, []) for site in sites)
    with torch.inference_mode(False), torch.enable_grad():
        for examples in torch.split(torch.arange(len(ids)), rows):
            with (
                edited(model.module, {"hook_embed": leaf}),
                captured(model.module, sites) as activations,
            ):
                reading = read(last_logits(model.module, ids[examples].clone(), read.columns), examples)
            flows = torch.autograd.grad(reading.sum(), [activations[site] for site in sites])
            readings.append(reading.detach().double().cpu())
            for site, flow in zip(sites, flows, strict=True):
                if not flow.isfinite().all():
                    raise NumericalError(
                        f"the gradient at '{site}' is NaN or infinite", hint="load the model in float32"
                    )
                parts[site].append(flow)
    return torch.cat(readings), {site: torch.cat(flows) for site, flows in parts.items()}
