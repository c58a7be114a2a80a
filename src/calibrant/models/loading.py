"""Load a Hugging Face model from a folder or the hub, save it, and compute its identity.

Weights are safetensors only and no code of the model's own is run (``trust_remote_code`` off).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from calibrant.core.digest import digest
from calibrant.core.errors import CapabilityError, InputError
from calibrant.core.lm import Identity
from calibrant.ledger.layout import disk
from calibrant.models.folder import check_folder
from calibrant.models.foreign import foreign
from calibrant.models.model_facts import FOREIGN
from calibrant.models.plausible import bounded, check_plausible
from calibrant.models.plausible_tokenizer import check_tokenizer
from calibrant.models.private import private_folder

Dtype = Literal["float32", "bfloat16", "float16"]
_OPTIONS: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
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
    """Module and tokenizer of a folder in Hugging Face layout, read from its listed files alone.

    Raises:
        InputError: no such model, pickled weights, code of its own, or weights that do not fit.
        CapabilityError: the folder holds an adapter.
    """
    folder = check_folder(path)
    with disk("reading", folder):
        held = check_plausible(folder)
        check_tokenizer(folder)
        with private_folder(folder) as private, breaking(folder, kind, private):
            tokenizer = AutoTokenizer.from_pretrained(private, **_OPTIONS)
            with _no_progress_bars(), bounded(held, folder):
                module, report = kind.auto.from_pretrained(
                    private,
                    dtype=getattr(torch, dtype),
                    use_safetensors=True,
                    output_loading_info=True,
                    **_OPTIONS,
                )
    for how in ("is_local", "local_files_only"):  # how it was opened is no part of it: not to be saved
        tokenizer.init_kwargs.pop(how, None)
    tokenizer.name_or_path = module.config.name_or_path = str(folder)  # the private one is gone
    lost = sorted(str(key) for what in ("missing_keys", "mismatched_keys") for key in report[what])
    if lost:  # transformers would fill these with random numbers and carry on
        raise InputError(
            f"'{folder}' lacks {len(lost)} weights that its config asks for: {', '.join(lost[:5])}",
            hint=kind.remedy,
        )
    return module, tokenizer


def breaking(
    folder: str | Path, kind: Kind = LANGUAGE, private: Path | None = None
) -> AbstractContextManager[None]:
    """Inside the block a folder is opened: what breaks there is said to be the folder's fault."""
    hint = f"it must be a {kind.name} that transformers knows, without code of its own"
    hide = (str(private), str(folder)) if private else ("", "")
    return foreign(f"'{folder}' cannot be opened", hint, hide)


def save_weights(module: nn.Module, path: str | Path) -> None:
    """Write weights (safetensors) and configs to a folder."""
    model: Any = module
    with _no_progress_bars():
        model.save_pretrained(path)


def prove_saves(module: nn.Module) -> None:
    """Try, before long work on ``module``, what would be done with it afterwards: everything but the tensors.

    Raises:
        CapabilityError: its configs cannot be written, so that a training would be lost at its end.
    """
    model: Any = module
    with TemporaryDirectory() as folder, _no_progress_bars():
        try:
            model.state_dict()
            model.save_pretrained(folder, state_dict={})
        except (OSError, *FOREIGN) as error:
            raise CapabilityError(
                f"{type(module).__name__} cannot be saved, so that a training would be lost: {error}",
                hint="fix its config or generation_config, as the message says, and start again",
            ) from error


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
    """End tokens that the generation config names: none, one or several. Raises InputError for others."""
    return token_ids(getattr(getattr(module, "generation_config", None), "eos_token_id", None))


def embeddings(module: nn.Module) -> int | None:
    """How many token ids the model can read; None where its table of embeddings is none of the usual ones."""
    model: Any = module
    try:
        weight = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        return None
    return int(weight.shape[0]) if isinstance(weight, torch.Tensor) and weight.dim() == 2 else None


def context_length(module: nn.Module) -> int | None:
    """Most tokens that the model reads at once; None where the config sets no limit."""
    limit = getattr(module.config, "max_position_embeddings", None)
    return None if limit is None or int(limit) < 1 else int(limit)


def token_ids(found: Any) -> tuple[int, ...]:
    """The tokens of an ``eos_token_id`` in a config: none, one or several. Raises InputError for others."""
    listed = () if found is None else tuple(found) if isinstance(found, (list, tuple)) else (found,)
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in listed):
        raise InputError(
            f"eos_token_id = {str(found)[:80]} is no token id and no list of them",
            hint="fix it in generation_config.json or config.json",
        )
    return listed


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
    enabled = _bars.is_progress_bar_enabled()
    _bars.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            _bars.enable_progress_bar()
