"""Identity of a model folder, computed from its files: no torch, no transformers.

The files are those of the Hugging Face layout: ``config.json``, ``model.safetensors`` or the shards that
``model.safetensors.index.json`` names, tokenizer files, and the chat template in ``chat_template.jinja`` or
inside ``tokenizer_config.json``. ``model_files`` lists them, and they alone are given to whatever loads the
model (``private.py``): a file that is not listed, and so not in the digest, cannot change an answer. Pickled
weights (``*.bin``, ``*.pt``) are refused: opening one can run code. A link counts as the bytes it leads to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calibrant.core.digest import digest, digest_bytes, digest_file
from calibrant.core.errors import CapabilityError, InputError
from calibrant.core.lm import Identity
from calibrant.ledger.layout import disk

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""A folder holds a tokenizer when one of these lies in it."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_TEMPLATE, _MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates/*.jinja"
_TOKENIZER_FILES = (  # names and patterns
    "tokenizer.json",
    "tokenizer.*.json",  # of ``fast_tokenizer_files``, for other versions of the library
    TOKENIZER_CONFIG,
    "*.model",  # SentencePiece and tiktoken
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "bpe.codes",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_CONFIGS = ("config.json", "generation_config.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_ADAPTER = "adapter_config.json"
_LONGEST = 2**28  # bytes of a config, an index or a tokenizer


def folder_identity(path: str | Path, *, name: str = "", dtype: str = "float32") -> Identity:
    """Identity of the model in ``path``, as ``OpenModel.from_folder`` with the same arguments has it.

    Parts: ``weights`` (bytes of the weights and of their index), ``tokenizer``, ``template`` ("" when there
    is none), ``config`` (with the generation config, which names the stop tokens) and ``dtype``.

    Raises:
        InputError: no such folder, no config, no tokenizer, no safetensors weights, or a file that cannot be
            read.
        CapabilityError: the folder holds an adapter.
    """
    folder = check_folder(path)
    with disk("reading", folder):
        files = model_files(folder)
        parts = {part: _digest(folder, files[part]) for part in ("weights", "tokenizer", "config")}
        template = _template(folder)
        more = [file for file in files["template"] if file != _TEMPLATE]
        parts["template"] = digest_bytes(template.encode()) if template else ""
        if more:
            parts["template"] = digest([template, _digest(folder, more)])
    return Identity(name=name or folder.name, parts={**parts, "dtype": dtype})


def check_folder(path: str | Path) -> Path:
    """Return ``path`` when it holds a model that can be opened safely.

    Raises:
        InputError: no such folder, no config, no tokenizer, or no safetensors weights.
        CapabilityError: the folder holds an adapter.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"'{folder}' is not a folder", hint="give the folder that holds config.json")
    if (folder / _ADAPTER).exists():
        raise CapabilityError(
            f"'{folder}' holds an adapter ({_ADAPTER}), whose base model may be anywhere",
            hint="merge it with peft (merge_and_unload), save the model, and give that folder",
        )
    if not (folder / "config.json").is_file():
        raise InputError(
            f"'{folder}' has no config.json, so it is not a Hugging Face model folder",
            hint="save the model with save_pretrained(folder), or give the folder one level down",
        )
    if not any((folder / file).is_file() for file in (WEIGHTS, INDEX)):
        pickles = sorted(f.name for pattern in _PICKLES for f in folder.glob(pattern))
        content = f"only pickled weights ({', '.join(pickles)})" if pickles else "no weights"
        raise InputError(
            f"'{folder}' holds {content}; Calibrant opens {WEIGHTS}, or the shards of {INDEX}, only",
            hint="convert on a machine that trusts the file: model.save_pretrained(folder)",
        )
    if not any((folder / file).is_file() for file in TOKENIZERS):
        raise InputError(
            f"'{folder}' has no tokenizer (looked for {', '.join(TOKENIZERS)})",
            hint="save it in the same folder with tokenizer.save_pretrained(folder)",
        )
    return folder


def model_files(folder: Path) -> dict[str, list[str]]:
    """Part of the identity -> names, below ``folder``, of the regular files that a loader may open.

    Raises:
        InputError: the index is no index, or names a shard that does not lie in the folder.
    """
    return {
        "weights": _weights(folder),
        "tokenizer": _present(folder, _TOKENIZER_FILES),
        "template": _present(folder, (_TEMPLATE, _MORE_TEMPLATES)),
        "config": _present(folder, _CONFIGS),
    }


@contextmanager
def unchanged(folder: str | Path) -> Iterator[None]:
    """Inside the block a model is read: its files must be the same at the end.

    Raises:
        InputError: one was changed, replaced, added or taken away meanwhile; or see ``check_folder``.
        CapabilityError: the folder holds an adapter.
    """
    check_folder(folder)
    before = _stamps(Path(folder))
    yield
    if _stamps(Path(folder)) != before:
        raise InputError(
            f"a file in '{folder}' was changed while the model was opened",
            hint="wait until whatever writes there has finished, then open it again",
        )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: it is none, is nested too deep, holds an endless number, or is longer than 256 MiB.
    """
    try:
        if path.stat().st_size > _LONGEST:
            raise ValueError(f"longer than {_LONGEST} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"'{path}' is not a JSON object: {error}", hint="save the model again") from None
    if not isinstance(value, dict):
        raise InputError(f"'{path}' is not a JSON object", hint="save the model again")
    return value


def is_plain(name: Any) -> bool:
    """Whether ``name`` is a file's name and no path."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set("/\\\0") & set(name)


def _weights(folder: Path) -> list[str]:
    """The one file of weights, which transformers prefers, or the index and its shards."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    shards = read_object(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InputError(f"'{folder / INDEX}' has no 'weight_map'", hint="save the model again")
    wrong = [
        name
        for name in shards.values()
        if not is_plain(name) or not name.endswith(".safetensors") or not (folder / name).is_file()
    ]
    if wrong:
        raise InputError(
            f"'{folder / INDEX}' names {str(wrong[0])[:99]!r}, which is no *.safetensors file in that folder",
            hint="all shards must be in the folder of their index",
        )
    return [INDEX, *sorted(set(shards.values()))]


def _present(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    """Names of the regular files that match one of ``patterns``."""
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return sorted(file.relative_to(folder).as_posix() for file in files)


def _digest(folder: Path, names: list[str]) -> str:
    """Digest over files, each by name and by the digest of its bytes."""
    return digest({name: digest_file(folder / name) for name in names})


def _stamps(folder: Path) -> dict[str, tuple[int, ...]]:
    """What the file system says of each file that may be read: another number, another file."""
    with disk("reading", folder):
        names = [name for part in model_files(folder).values() for name in part]
        stats = {name: (folder / name).stat() for name in names}
    return {name: (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats.items()}


def _template(folder: Path) -> str:
    """The chat template as text, "" when there is none; a file of its own wins, as in transformers."""
    own = folder / _TEMPLATE
    if own.is_file():
        try:
            return own.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"'{own}' is not UTF-8: {error}", hint="save the tokenizer again") from None
    config = folder / TOKENIZER_CONFIG
    template = (read_object(config).get("chat_template") or "") if config.is_file() else ""
    return template if isinstance(template, str) else json.dumps(template, sort_keys=True)
