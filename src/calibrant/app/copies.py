"""Copy a record's stored files out of the ledger: a queue to label, a trained model, attempts."""

from __future__ import annotations

import shutil
from pathlib import Path

from calibrant.app.listing import entry_of
from calibrant.core import EvidenceError, InputError
from calibrant.ledger import Ledger
from calibrant.ledger.layout import disk


def copy_out(ledger: Ledger, name: str, folder: Path) -> list[Path]:
    """Copy every artefact of the record that ``name`` means into ``folder``, by its name.

    Raises:
        InputError: no such record, or a file of that name lies there already; nothing is written then.
        EvidenceError: a stored file is missing or altered, or its name leads out of the folder.
    """
    wanted = {folder / artifact.name: artifact for artifact in entry_of(ledger, name).record.artifacts}
    for path, artifact in wanted.items():
        if Path(artifact.name).name != artifact.name:
            raise EvidenceError(
                f"artefact '{artifact.name}' has no plain name",
                hint="run `calibrant verify`: the ledger is damaged",
            )
        if path.exists():
            raise InputError(f"{path} is there already", hint="name another folder")
    for path, artifact in wanted.items():
        stored = ledger.open(artifact)
        with disk("writing", path):
            folder.mkdir(parents=True, exist_ok=True)
            if stored.is_dir():
                shutil.copytree(stored, path)
            else:
                shutil.copyfile(stored, path)
    return list(wanted)
