"""A tuned lens's parameters: for each site an affine map h + A h + b into the last layer's terms; on disk."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from calibrant.core import InputError, OpenLM

_OURS, _THEIRS = "params.safetensors", "params.pt"


class Translators:
    """Site -> A (D, D) and b (D,), float32."""

    def __init__(self, maps: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Of sites that hold the residual stream."""
        self.maps = dict(maps)

    @classmethod
    def identity(cls, sites: Sequence[str], width: int, device: torch.device) -> Translators:
        """Maps that change nothing, ready to be trained."""
        return cls(
            {
                site: (
                    torch.zeros(width, width, device=device, requires_grad=True),
                    torch.zeros(width, device=device, requires_grad=True),
                )
                for site in sites
            }
        )

    def logits(self, model: OpenLM, site: str, hidden: Tensor) -> Tensor:
        """(..., V) logits of ``hidden`` (..., D) at ``site``.

        The final norm is applied to the translated state, with that state's own scale.

        Raises:
            InputError: no map for this site, or one of another width.
        """
        if site not in self.maps:
            raise InputError(f"the lens has no map for '{site}'", hint=f"it has: {', '.join(self.maps)}")
        matrix, bias = self.maps[site]
        if matrix.shape[0] != hidden.shape[-1]:
            raise InputError(
                f"the lens is {matrix.shape[0]} wide, the model's stream {hidden.shape[-1]}",
                hint="take the model that the lens was trained on",
            )
        moved = hidden.float()
        moved = moved + moved @ matrix.to(moved).T + bias.to(moved)
        return model.unembed(moved.to(hidden.dtype))

    def save(self, folder: Path, model: str) -> None:
        """Write ``params.safetensors`` and ``config.json``; ``model``: digest of the one it belongs to."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{site}.{name}": value.detach().cpu().contiguous()
            for site, pair in self.maps.items()
            for name, value in zip(("weight", "bias"), pair, strict=True)
        }
        save_file(tensors, folder / _OURS)
        about = {"kind": "tuned_lens", "model": model, "sites": list(self.maps)}
        (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")


def read_translators(folder: Path) -> Translators:
    """A lens that ``understand.tuned_lens`` stored, or one of the library tuned-lens (``params.pt``).

    The latter's map number i reads what enters block i. The file is opened without running anything in it.

    Raises:
        InputError: no such files, or others than these.
    """
    try:
        if (folder / _OURS).is_file():
            named = load_file(folder / _OURS)
            sites = json.loads((folder / "config.json").read_text(encoding="utf-8"))["sites"]
            return _checked(
                {site: (named[f"{site}.weight"], named[f"{site}.bias"]) for site in sites}, folder
            )
        if (folder / _THEIRS).is_file():
            state: dict[str, Any] = torch.load(folder / _THEIRS, map_location="cpu", weights_only=True)
            numbers = sorted(
                {int(key.partition(".")[0]) for key in state if re.fullmatch(r"\d+\.weight", key)}
            )
            return _checked(
                {_entry(i): (state[f"{i}.weight"].float(), state[f"{i}.bias"].float()) for i in numbers},
                folder,
            )
    except (
        OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError, SafetensorError,
        pickle.UnpicklingError,
    ) as error:  # fmt: skip
        raise InputError(
            f"'{folder}' holds no tuned lens that can be read ({type(error).__name__})",
            hint="train one with understand.tuned_lens",
        ) from None
    raise InputError(f"'{folder}' holds neither {_OURS} nor {_THEIRS}", hint="give a tuned lens's folder")


def _entry(block: int) -> str:
    return f"blocks.{block - 1}.hook_resid_post" if block else "blocks.0.hook_resid_pre"


def _checked(maps: dict[str, tuple[Tensor, Tensor]], folder: Path) -> Translators:
    widths = {(*matrix.shape, *bias.shape) for matrix, bias in maps.values()}
    finite = all(one.isfinite().all() for pair in maps.values() for one in pair)
    if len(widths) != 1 or len(set(next(iter(widths)))) != 1 or len(next(iter(widths))) != 3 or not finite:
        raise InputError(
            f"the maps in '{folder}' are not square matrices of one width with a bias each, all finite",
            hint="train the lens again",
        )
    return Translators(maps)
