"""Identity of a model that lies in a folder, computed from its files: no torch, no transformers.

The files are those of the Hugging Face layout: ``config.json``, ``*.safetensors``, tokenizer files,
and the chat template in ``chat_template.jinja`` or inside ``tokenizer_config.json``. Pickled weights
(``*.bin``, ``*.pt``) are refused: opening one can run code.
"""

from __future__ import annotations

import json
from pathlib import Path

from calibrant.core.digest import digest, digest_bytes, digest_file
from calibrant.core.errors import InputError
from calibrant.core.lm import Identity

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""A folder holds a tokenizer when one of these lies in it."""
_TOKENIZER_FILES = (
    *TOKENIZERS,
    "tokenizer_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
_CONFIGS = ("config.json", "generation_config.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def folder_identity(path: str | Path, *, name: str = "", dtype: str = "float32") -> Identity:
    """Identity of the model in ``path``, as ``OpenModel.from_folder`` with the same arguments has it.

    Parts: ``weights`` (bytes of every ``*.safetensors``), ``tokenizer``, ``template`` ("" when there is
    none), ``config`` (with the generation config, which names the stop tokens) and ``dtype``.

    Raises:
        InputError: no such folder, no config, no tokenizer, or no safetensors weights.
    """
    folder = check_folder(path)
    template = _template(folder)
    parts = {
        "weights": digest({f.name: digest_file(f) for f in sorted(folder.glob("*.safetensors"))}),
        "tokenizer": _digest_present(folder, _TOKENIZER_FILES),
        "template": digest_bytes(template.encode()) if template else "",
        "config": _digest_present(folder, _CONFIGS),
        "dtype": dtype,
    }
    return Identity(name=name or folder.name, parts=parts)


def check_folder(path: str | Path) -> Path:
    """Return ``path`` when it holds a model that can be opened safely; see ``folder_identity``."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"'{folder}' is not a folder", hint="give the folder that holds config.json")
    if not (folder / "config.json").is_file():
        raise InputError(
            f"'{folder}' has no config.json, so it is not a Hugging Face model folder",
            hint="save the model with save_pretrained(folder), or give the folder one level down",
        )
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(f.name for pattern in _PICKLES for f in folder.glob(pattern))
        found = f"only pickled weights ({', '.join(pickles)})" if pickles else "no weights"
        raise InputError(
            f"'{folder}' holds {found}; Calibrant opens *.safetensors only",
            hint="convert on a machine that trusts the file: model.save_pretrained(folder)",
        )
    if not any((folder / file).is_file() for file in TOKENIZERS):
        raise InputError(
            f"'{folder}' has no tokenizer (looked for {', '.join(TOKENIZERS)})",
            hint="save it beside the weights with tokenizer.save_pretrained(folder)",
        )
    return folder


def _digest_present(folder: Path, names: tuple[str, ...]) -> str:
    """Digest over those of ``names`` that exist, each by the digest of its bytes."""
    return digest({name: digest_file(folder / name) for name in names if (folder / name).is_file()})


def _template(folder: Path) -> str:
    """The chat template as text, "" when there is none; a file of its own wins, as in transformers."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return ""
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("chat_template") or ""
    except (json.JSONDecodeError, AttributeError) as error:
        raise InputError(
            f"'{config}' is not a JSON object: {error}", hint="save the tokenizer again"
        ) from None
    return found if isinstance(found, str) else json.dumps(found, sort_keys=True)
