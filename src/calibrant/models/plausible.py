"""Whether a config can belong to its weights, checked before anything is built.

A config is a page of numbers that someone else wrote: ten million layers, or an attention to be fetched from
the network, cost nothing to write. What lies in the weights' headers bounds what a model of them can be.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from calibrant.core.errors import InputError
from calibrant.models.folder import INDEX, model_files, read_object

ATTENTION = {
    "eager": "",
    "sdpa": "",
    "flex_attention": "",
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
}
"""Attention that a config may ask for -> the package that it needs: without it, code would be fetched."""
_EXPERTS = {"eager": "", "grouped_mm": "", "batched_mm": ""}
_CHOICES = {"attn_implementation": ATTENTION, "experts_implementation": _EXPERTS}
_FETCHED = ("backbone", "checkpoint_path", "pretrained", "use_pretrained_backbone", "use_timm_backbone")
"""What has a part of a model brought from elsewhere."""
_COUNTS = re.compile("layer|block|label|expert|head|stage|depth|stack|group|codebook|hidden_sizes")
_NO_COUNT = re.compile("_size$|_ids?$")  # ``block_size`` is a length, ``block_token_id`` names a word
_MOST = 2**16  # of layers, labels, experts, ...: what a config builds one by one
_LARGEST = 2**53
_HEADER = 100_000_000  # bytes; the limit of safetensors itself
_SPARE_TENSORS, _SPARE, _SPARE_BUFFERS = 1000, 2**22, 2**26


class Held(NamedTuple):
    """What the headers of a folder's weights say."""

    tensors: int
    size: int
    """Bytes of all tensors."""


def check_plausible(folder: Path) -> Held:
    """What the folder's weights hold, once its config was found plausible beside them.

    Raises:
        InputError: a header that is none, a count of layers, labels or experts that no model has, or an
            implementation of attention or experts that transformers does not bring along.
    """
    files = model_files(folder)
    headers = [_read_header(folder / file) for file in files["weights"] if file != INDEX]
    for file in files["config"]:
        _check_config(read_object(folder / file), f"'{folder / file}'")
    return Held(sum(held.tensors for held in headers), sum(held.size for held in headers))


@contextmanager
def bounded(held: Held, folder: Path) -> Iterator[None]:
    """Inside the block, this thread may build no model much larger than what the weights hold.

    The bounds leave room for tied weights, fused tensors, four bits a weight and masks kept as buffers.

    Raises:
        InputError: it does.
    """
    thread = threading.get_ident()
    count = elements = buffers = 0

    def refuse(what: str) -> None:
        raise InputError(
            f"'{folder}': its config asks for over {what}, but its weights are {held.tensors} tensors of "
            f"{held.size} bytes",
            hint="config.json and *.safetensors must come from the same model",
        )

    def parameter(_: Any, __: str, value: Tensor | None) -> None:
        nonlocal count, elements
        if value is None or threading.get_ident() != thread:
            return
        count, elements = count + 1, elements + value.numel()
        if count > 10 * held.tensors + _SPARE_TENSORS:
            refuse(f"{count - 1} parameters")
        if elements > 2 * held.size + _SPARE:
            refuse(f"{elements - value.numel()} numbers in parameters")

    def buffer(_: Any, __: str, value: Tensor | None) -> None:
        nonlocal buffers
        if value is None or threading.get_ident() != thread:
            return
        buffers += value.numel()
        if buffers > 2 * held.size + _SPARE_BUFFERS:
            refuse(f"{buffers - value.numel()} numbers in buffers")

    handles = (
        register_module_parameter_registration_hook(parameter),
        register_module_buffer_registration_hook(buffer),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _read_header(path: Path) -> Held:
    """Tensors in a safetensors file: 8 bytes of length, a JSON object, then the data."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _HEADER):
            raise InputError(
                f"'{path}' is no safetensors file: its header would have {length} of {size} bytes",
                hint="it may have been cut off: fetch or save it again",
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        total = sum(end - start for start, end in spans)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"'{path}' has no safetensors header: {error}", hint="save the model again"
        ) from None
    if total != size - 8 - length:
        raise InputError(
            f"'{path}' should hold {total} bytes of tensors, but has {size - 8 - length}",
            hint="it may have been cut off: fetch or save it again",
        )
    return Held(len(spans), total)


def _check_config(config: dict[str, Any], where: str) -> None:
    """Every number and every choice in a config, however deep it lies."""
    open_: list[tuple[str, Any]] = [("", config)]
    while open_:
        path, value = open_.pop()
        if isinstance(value, Mapping):
            open_ += [(f"{path}.{name}", item) for name, item in value.items()]
            fetched = [name for name in _FETCHED if value.get(name)]
            if fetched:
                raise InputError(
                    f"{where}: '{fetched[0]}' brings weights from elsewhere",
                    hint="all must be in the folder",
                )
        elif isinstance(value, list):
            open_ += [(path, item) for item in value]
        elif isinstance(value, int):
            key = path.rpartition(".")[2]
            most = _MOST if _COUNTS.search(key) and not _NO_COUNT.search(key) else _LARGEST
            if abs(value) > most or (value < 0 and key.startswith(("num_", "n_"))):
                raise InputError(
                    f"{where}: {path[1:80]} = {str(value)[:40]} is none that a model has (0 to {most})",
                    hint="the config must be that of the weights in its folder",
                )
        elif isinstance(value, str):
            for name, known in _CHOICES.items():
                if name in path:
                    _check_choice(value, known, f"{where}: {path[1:80]}")


def _check_choice(value: str, known: Mapping[str, str], where: str) -> None:
    if value not in known:
        raise InputError(
            f"{where} = {value[:80]!r} is none that comes with transformers, and none is fetched",
            hint=f"set it to one of {', '.join(known)}, or take it out",
        )
    package = known[value]
    if package and find_spec(package) is None:
        raise InputError(
            f"{where} = '{value}' needs the package '{package}', which is not installed",
            hint="install it, or take the setting out",
        )
