"""Getting a Hugging Face model from a folder or the hub into memory and back, and saying what it is.

Weights are safetensors only and no code of the model's own is run (``trust_remote_code`` off).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from calibrant.core.digest import digest
from calibrant.core.errors import InputError
from calibrant.core.lm import Identity
from calibrant.models.folder import check_folder

Dtype = Literal["float32", "bfloat16", "float16"]
_DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "vocab.txt", "merges.txt"]
_bars: Any = transformers_logging


class Kind(NamedTuple):
    """What a folder is opened as."""

    auto: Any
    """The auto class of transformers."""
    name: str
    """For messages."""
    remedy: str
    """What to do where weights are missing."""


LANGUAGE = Kind(
    AutoModelForCausalLM,
    "causal language model",
    "config.json and *.safetensors must come from the same model",
)


def load_folder(path: str | Path, dtype: Dtype, kind: Kind = LANGUAGE) -> tuple[nn.Module, Any]:
    """Module and tokenizer of a folder in Hugging Face layout.

    Raises:
        InputError: no such model, pickled weights, code of its own, or weights that do not fit.
    """
    folder = check_folder(path)
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    weights: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        for how in ("is_local", "local_files_only"):  # how it was opened is no part of it: not to be saved
            tokenizer.init_kwargs.pop(how, None)
        with _no_progress_bars():
            module, report = kind.auto.from_pretrained(
                folder, dtype=getattr(torch, dtype), **weights, **options
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"'{folder}' cannot be opened: {error}",
            hint=f"it must be a {kind.name} that transformers knows, without code of its own",
        ) from error
    lost = sorted(str(key) for what in ("missing_keys", "mismatched_keys") for key in report[what])
    if lost:  # transformers would fill these with random numbers and carry on
        raise InputError(
            f"'{folder}' lacks {len(lost)} weights that its config asks for: {', '.join(lost[:5])}",
            hint=kind.remedy,
        )
    return module, tokenizer


def download(name: str, revision: str) -> Path:
    """The local copy of one commit of a hub model, fetched when it is not in the cache.

    Raises:
        InputError: the revision is not a full commit hash, or the hub does not have it or answer.
    """
    if not re.fullmatch("[0-9a-f]{40}", revision):  # branches and tags move
        raise InputError(
            f"revision '{revision}' of '{name}' is not a full commit hash",
            hint=f"copy the 40 hex digits of a commit from huggingface.co/{name}/commits/main",
        )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_DOWNLOADED))
    except (OSError, ValueError) as error:
        raise InputError(
            f"'{name}' at {revision} is neither in the local cache nor to be had from the hub: {error}",
            hint="check name, commit and network, or fetch it elsewhere and give the folder",
        ) from error


def save_weights(module: nn.Module, path: str | Path) -> None:
    """Write weights (safetensors) and configs to a folder."""
    model: Any = module
    with _no_progress_bars():
        model.save_pretrained(path)


def module_identity(module: nn.Module, tokenizer: Any, name: str) -> Identity:
    """Identity of weights in memory as they are now; parts as in ``folder_identity``.

    The digests are over tensors, not over files: a model and its saved folder have different ones.
    """
    config: Any = module.config
    settings = json.loads(config.to_json_string(use_diff=False))
    for volatile in ("_name_or_path", "transformers_version"):
        settings.pop(volatile, None)
    words = [tokenizer.backend_tokenizer.to_str(), tokenizer.bos_token, tokenizer.eos_token]
    parts = {
        "weights": _digest_weights(module),
        "tokenizer": digest(words),
        "template": digest(tokenizer.chat_template) if tokenizer.chat_template else "",
        "config": digest([settings, list(stop_ids(module))]),
    }
    return Identity(name=name, parts=parts)


def stop_ids(module: nn.Module) -> tuple[int, ...]:
    """End tokens that the generation config names: none, one or several."""
    found = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    if found is None:
        return ()
    return (int(found),) if isinstance(found, int) else tuple(int(token) for token in found)


def _digest_weights(module: nn.Module) -> str:
    """SHA-256 over the state dict: name, dtype, shape and bytes of every tensor, sorted by name."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing on the terminal, and leave its setting as it was."""
    shown = _bars.is_progress_bar_enabled()
    _bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            _bars.enable_progress_bar()
