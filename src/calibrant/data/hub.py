"""Rows of a dataset on the Hugging Face hub, or of a folder in its layout. Needs the extra ``data``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import httpx

from calibrant.core.errors import InputError
from calibrant.data.files import RawRow


def rows_from_hub(
    name: str, revision: str | None, split: str = "train", subset: str | None = None
) -> Iterator[RawRow]:
    """Stream the rows of one split, numbered from 1; nothing is downloaded as a whole.

    ``revision`` is a commit or tag; only a local folder may go without, for what is on the hub changes.

    Raises:
        InputError: there is no revision; the hub, dataset, revision, subset or split cannot be reached or
            found; or a file breaks off on the way. Raised while rows are drawn, except the first.
    """
    if revision is None and not Path(name).is_dir():
        raise InputError(
            f"dataset '{name}' has no revision",
            hint=f"pin one: hf:{name}@COMMIT, from the dataset's page on the hub",
        )
    return _rows(name, revision, split, subset)


def _rows(name: str, revision: str | None, split: str, subset: str | None) -> Iterator[RawRow]:
    number = 0
    try:
        rows = datasets.load_dataset(name, name=subset, revision=revision, split=split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield number, dict(row)
    except (OSError, ValueError, httpx.HTTPError, datasets.exceptions.DatasetsError) as error:
        where = f"'{name}' at revision {revision}" if revision else f"'{name}'"
        place = f"breaks off after row {number}" if number else "cannot be opened"
        raise InputError(
            f"dataset {where}, split '{split}', subset {subset or 'default'} {place}: {error}",
            hint="check the names and the network (HF_HUB_OFFLINE=1 reads the local cache only), "
            "or download a file and read that",
        ) from error
