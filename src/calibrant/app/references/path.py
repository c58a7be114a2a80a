"""``PATH``, ``jsonl:PATH`` and similar: a file of the study's folder, the working folder or the package."""

from __future__ import annotations

from pathlib import Path

from calibrant.app.references import locate
from calibrant.app.references.on_disk import FILES, at
from calibrant.app.references.rows import TABLES
from calibrant.app.references.scheme import MODELS, Reference
from calibrant.core import ConfigError, InputError, Reward
from calibrant.data.constitution import Constitution
from calibrant.data.guard_policy import GuardPolicy
from calibrant.data.references import SUFFIXES
from calibrant.defend.defended import StackSpec
from calibrant.govern.policy import ReleasePolicy


def path(reference: Reference) -> Path:
    """The file or folder. Raises InputError: it is not there. ConfigError: no file of rows, by its suffix."""
    text, wanted = reference.text, reference.wanted
    if wanted in TABLES and not text.endswith(SUFFIXES):
        raise ConfigError(
            f"'{text}' is no reference to rows{reference.guess}",
            hint="jsonl:PATH, csv:PATH, parquet:PATH, data:NAME, testbed:KIND/NAME or record:JOB/FILE",
        )
    folder = locate.folder(text, reference.base) if wanted in (*MODELS, *FILES, Reward) else None
    if folder is None and wanted in MODELS:
        raise InputError(
            f"'{text}' is no model: {'unknown scheme' if ':' in text else 'no such folder'}{reference.guess}",
            hint="a folder with config.json, hf:NAME@COMMIT, api:URL#MODEL, testbed:model/NAME, "
            "record:JOB/model, best_of:N/REWARD#MODEL, defended:FILE#MODEL",
        )
    if folder is None and wanted is Reward:
        raise InputError(
            f"'{text}' is no reward: no such folder",
            hint="record:JOB/reward, a folder that holds one, testbed:reward/gold, "
            "or {use = ..., config = ...}",
        )
    return folder or locate.file(text, reference.base)


PATH = at(path, (*MODELS, *TABLES, *FILES, Reward, ReleasePolicy, Constitution, GuardPolicy, StackSpec))
ROWS = at(lambda reference: locate.file(reference.rest, reference.base), TABLES)
