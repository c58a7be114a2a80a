"""A trained judge on disk: its folder.

    judge/  judge.json  judge.safetensors

The weights are four float64 arrays: mean and std (D,) of the features, weight (D,) and bias (1,) of the
log-odds on standardised features. Never pickle.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from calibrant.core.digest import plain
from calibrant.core.errors import InputError
from calibrant.core.written import parse_json
from calibrant.data.judge_head import JudgeHead

CARD, WEIGHTS = "judge.json", "judge.safetensors"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError, SafetensorError)
_ARRAYS = ("mean", "std", "weight", "bias")


def write_head(head: JudgeHead, folder: Path) -> None:
    """Write ``judge.json`` and ``judge.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    card = {key: value for key, value in plain(head).items() if key not in _ARRAYS}
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    arrays = {"mean": head.mean, "std": head.std, "weight": head.weight, "bias": (head.bias,)}
    save_file({name: np.array(values, np.float64) for name, values in arrays.items()}, folder / WEIGHTS)


def read_head(folder: Path) -> JudgeHead:
    """Read what ``write_head`` wrote.

    Raises:
        InputError: it is no such folder, or numbers that cannot be used stand in it.
    """
    hint = "measure.fit_judge writes one (record:JOB/judge), and understand.probe (record:JOB/probe)"
    if not all((folder / name).is_file() for name in (CARD, WEIGHTS)):  # a pipe would never end
        raise InputError(f"'{folder}' holds no trained judge: no {CARD} and {WEIGHTS}", hint=hint)
    try:
        card = parse_json((folder / CARD).read_text(encoding="utf-8"))
        arrays = load((folder / WEIGHTS).read_bytes())
        listed: dict[str, Any] = {name: arrays[name].astype(np.float64).ravel().tolist() for name in _ARRAYS}
        (listed["bias"],) = listed["bias"]
        head = JudgeHead.model_validate({**card, **listed})
    except _UNREADABLE as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"'{folder}' holds no trained judge: {message}", hint=hint) from None
    if not len(head.mean) == len(head.std) == len(head.weight) > 0:
        raise InputError(f"'{folder}': mean, std and weight differ in length", hint=hint)
    numbers = (*head.mean, *head.std, *head.weight, head.bias)
    if not all(map(math.isfinite, numbers)) or min(head.std) <= 0:
        raise InputError(f"'{folder}': a weight is not finite, or a std is not above 0", hint=hint)
    return head
