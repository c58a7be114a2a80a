"""Checkpoints of a training loop: one safetensors file, with metadata as JSON inside it.

    point = Checkpoint(run.work / "dpo.safetensors", key)
    found = point.load()                      # (tensors, facts), or None
    if point.due(): point.save(tensors, facts)

A kill at any moment leaves the file as it was before or as it is after. A file of another key (other data,
config, seed or start) is not taken, and a file that does not read is treated as none: the loop starts again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from calibrant.core import InputError

EVERY = 60.0
"""Seconds between two checkpoints."""


class Checkpoint:
    """One file that a loop writes now and then and looks for when it starts."""

    def __init__(self, path: Path, key: str, every: float | None = None) -> None:
        """``key`` names what the state belongs to; ``every`` is in seconds (None: ``EVERY``)."""
        self.path, self.key = path, key
        self.every = EVERY if every is None else every
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether the last one is ``every`` seconds old."""
        return time.monotonic() - self._last >= self.every

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write tensors and JSON facts, on the disk before this returns.

        Raises:
            InputError: the disk is full or refuses; the state saved before is still there.
        """
        draft = self.path.with_suffix(".draft")
        # Tensors that share memory (tied weights, views) would be refused or stored whole.
        apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        metadata = {"key": self.key, "facts": json.dumps(facts)}
        try:
            save_file(apart, draft, metadata=metadata)
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            draft.replace(self.path)
        except (OSError, SafetensorError) as error:
            draft.unlink(missing_ok=True)
            raise InputError(
                f"the state of the run cannot be written to {self.path}: {error}",
                hint="free space, then run the same command again: it resumes from the last checkpoint",
            ) from error
        self._last = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts as they were saved, or None when there is nothing of this key."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self.key:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return None
        return tensors, json.loads(metadata["facts"])

    def clear(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def optimiser_state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's tensors by '<parameter>.<name>', and what of its state is not a tensor."""
    state = optimiser.state_dict()
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for number, values in state["state"].items():
        for name, value in values.items():
            (tensors if isinstance(value, Tensor) else rest)[f"{number}.{name}"] = value
    return tensors, {"groups": state["param_groups"], "rest": rest}


def restore_optimiser(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Put back what ``optimiser_state`` gave."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **facts["rest"]}.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    groups = [{**group, "betas": tuple(group["betas"])} for group in facts["groups"]]
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` under 'prefix/name', so that several sets lie in one file."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The set that ``prefixed`` put under ``prefix``."""
    return {
        name.removeprefix(f"{prefix}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}/")
    }
