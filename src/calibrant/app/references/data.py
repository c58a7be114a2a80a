"""``data:NAME`` and ``data:NAME/FILE``: real data and weights below the folder $CALIBRANT_DATA."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from calibrant.app.references.locate import there
from calibrant.app.references.on_disk import at
from calibrant.app.references.rows import TABLES
from calibrant.app.references.scheme import MODELS, Reference
from calibrant.core import InputError
from calibrant.core.errors import nearest


class Origin(NamedTuple):
    """Where a real data set comes from, and which of its files holds the rows."""

    source: str
    file: str


ORIGINS: dict[str, Origin] = {
    "hh_rlhf": Origin("github.com/anthropics/hh-rlhf @ 354e5c3cb896, harmless-base", "harmless_base.jsonl"),
    "stories260K": Origin("karpathy/llama2.c, stories260K, as a Hugging Face folder", ""),
    "tinystories": Origin("stories of huggingface.co/datasets/roneneldan/TinyStories", "stories.json"),
    "behaviours": Origin("github.com/busycalibrating/AdversariaLLM @ f970939273ea", "harmbench_val.csv"),
    "xstest": Origin("github.com/paul-rottger/exaggerated-safety @ d7bb5bd738c1", "prompts.csv"),
    "model_written_evals": Origin("github.com/anthropics/evals @ 84fcc677e52e, a .jsonl file a trait", ""),
    "moderation": Origin("github.com/openai/moderation-api-release @ f4ab51b5edd3", "samples.jsonl"),
}
"""Data sets that studies name; other folders under $CALIBRANT_DATA work as data:NAME/FILE."""


def path(reference: Reference) -> Path:
    """The file or folder that is named.

    Raises:
        InputError: $CALIBRANT_DATA is not set, nothing lies there or outside it, or a folder where rows are
            wanted.
    """
    text = reference.text
    name, _, inside = reference.rest.partition("/")
    origin = ORIGINS.get(name)
    root = os.environ.get("CALIBRANT_DATA", "")
    target = Path(root) / name / (inside or (origin.file if origin else ""))
    if root:
        _stay_inside(text, target, Path(root))
        if there(target, folder=True) and reference.wanted in TABLES:
            raise InputError(f"'{text}' is a folder", hint=f"name one of its files: {text}/FILE.jsonl")
        if there(target) or there(target, folder=True):
            return target
    where = f"get it from {origin.source}" if origin else f"known names: {', '.join(ORIGINS)}"
    missing = f"{target} is not there" if root else "CALIBRANT_DATA is not set"
    raise InputError(
        f"'{text}': {missing}{'' if origin else nearest(name, ORIGINS)}",
        hint=f"{where}, put it in a folder '{name}' and set CALIBRANT_DATA to the folder above",
    )


def _stay_inside(reference: str, path: Path, root: Path) -> None:
    """Refuse ``data:..``, absolute paths and links that lead out: such a file is not what the name says."""
    try:
        inside = path.resolve().is_relative_to(root.resolve()) and path.resolve() != root.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"'{reference}' names no file: {error}", hint="write data:NAME/FILE") from None
    if not inside:
        raise InputError(
            f"'{reference}' leads outside $CALIBRANT_DATA",
            hint="name a file below it, or give the file's own path: jsonl:PATH",
        )


DATA = at(path, (*MODELS, *TABLES))
