"""A private folder that holds only a model's listed files, for the loader.

transformers looks for dozens of files, and lets several JSON files name others: shards, tokenizer files,
adapters, kernels. Whatever it looks for, it finds here only what is in the model's identity.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calibrant.core.errors import InputError
from calibrant.models.folder import TOKENIZER_CONFIG, is_plain, model_files, read_object

_NAMES_FILES = (TOKENIZER_CONFIG, "special_tokens_map.json")
"""The loader takes each key of these for an argument of the tokenizer, file names among them."""
_ARGUMENTS = {"vocab", "merges", "tokenizer_object", "init_inputs", "trust_remote_code", "local_files_only"}
_VERSIONS = "fast_tokenizer_files"


@contextmanager
def private_folder(folder: Path) -> Iterator[Path]:
    """A folder with a link to each file of ``model_files``; it is gone after the block.

    The two files that may name others are copied without the keys that do.

    Raises:
        InputError: one of these two is no JSON object, or names a tokenizer file outside the folder.
    """
    with tempfile.TemporaryDirectory(prefix="calibrant-") as room:
        copy = Path(room) / "model"
        for name in (name for part in model_files(folder).values() for name in part):
            place = copy / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if name in _NAMES_FILES:
                place.write_text(json.dumps(_without_files(folder / name)), encoding="utf-8")
            else:
                place.symlink_to((folder / name).resolve())
        yield copy


def _without_files(path: Path) -> dict[str, Any]:
    """A tokenizer's settings without those that name files or hand it parts."""
    settings = read_object(path)
    versions = settings.get(_VERSIONS)
    if versions is not None and not (isinstance(versions, list) and all(map(is_plain, versions))):
        raise InputError(
            f"'{path}': '{_VERSIONS}' is no list of names of files in that folder",
            hint="save the tokenizer again",
        )
    dropped = {key for key in settings if key in _ARGUMENTS or key.endswith(("_file", "_path", "_dir"))}
    return {key: value for key, value in settings.items() if key not in dropped}
