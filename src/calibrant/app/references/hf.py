"""``hf:NAME@COMMIT``: one commit of a Hugging Face model, downloaded once, identified by its bytes."""

from __future__ import annotations

from calibrant.app import catalog
from calibrant.app.references import on_disk
from calibrant.app.references.opened import Opened
from calibrant.app.references.scheme import MODELS, Reference, found_by
from calibrant.models.hub_name import check_hub_name


def commit(reference: Reference) -> tuple[str, str]:
    """Name and commit. Raises InputError where they are none; whether the hub has them is not asked."""
    name, _, revision = reference.rest.partition("@")
    check_hub_name(name, revision)
    return name, revision


def downloaded(reference: Reference, named: tuple[str, str]) -> Opened:
    """The model, fetched unless the cache holds it."""
    folder = catalog.load("calibrant.models.hub:download")(*named)
    return on_disk.model(reference, folder, reference.rest)


HF = found_by(commit, downloaded, MODELS)
