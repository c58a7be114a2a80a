"""Models on the Hugging Face hub: one commit, as a local folder. No torch."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from calibrant.core.errors import InputError
from calibrant.models.hub_name import check_hub_name

_DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt", "bpe.codes"]


def download(name: str, revision: str) -> Path:
    """The local copy of one commit of a hub model, fetched when it is not in the cache.

    Raises:
        InputError: no name that the hub can have, a revision that is no full commit hash, or the hub does not
            have it or answer.
    """
    check_hub_name(name, revision)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_DOWNLOADED))
    except (OSError, ValueError) as error:
        raise InputError(
            f"'{name}' at {revision} is neither in the local cache nor to be had from the hub: {error}",
            hint="check name, commit and network, or fetch it elsewhere and give the folder",
        ) from error
