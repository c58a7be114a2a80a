"""Validate names and commits of models on the hub, from the text alone."""

from __future__ import annotations

import re

from calibrant.core.errors import InputError

_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*")


def check_hub_name(name: str, revision: str) -> None:
    """Refuse what is no name, and a revision that may come to mean another model.

    Raises:
        InputError: no name that the hub can have, or a revision that is no full commit hash.
    """
    if not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise InputError(
            f"'{name[:100]}' is no name of a model on the hub",
            hint="write hf:OWNER/NAME@COMMIT, as on the model's page",
        )
    if not re.fullmatch("[0-9a-f]{40}", revision):  # branches and tags move
        raise InputError(
            f"revision '{revision[:100]}' of '{name}' is not a full commit hash",
            hint=f"copy the 40 hex digits of a commit from huggingface.co/{name}/commits/main",
        )
