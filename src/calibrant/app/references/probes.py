"""``record:JOB/probe`` as a guard or a monitor: the probe, and the model it was fitted to as reader."""

from __future__ import annotations

from typing import Any

from calibrant.app import catalog
from calibrant.app.references import behaviours
from calibrant.app.references.opened import STAND_INS, Opened, from_bytes
from calibrant.app.references.scheme import Opens, Reference
from calibrant.core import CalibrantError, CapabilityError, Entry, Guard, InputError, Monitor, OpenLM
from calibrant.core.record import Artifact
from calibrant.data.judge_head import JudgeHead

AS_PROBE = (Guard, Monitor)
"""What a stored probe opens as, beside ``JudgeHead``."""
_MAKERS = {
    Guard: "calibrant.defend.probe_guard:probe_guard",
    Monitor: "calibrant.models.monitor:ProbeMonitor",
}


def open(reference: Reference, entry: Entry, artifact: Artifact, openers: Opens) -> Opened:
    """The probe; neither its model nor any other is loaded yet.

    Raises:
        InputError: the artefact is no probe.
        CapabilityError: the model that it was fitted to cannot be opened here, or is another one now.
    """
    path = openers.ledger.open(artifact)
    head: JudgeHead = from_bytes(
        path, lambda: catalog.load("calibrant.data.judge_folder:read_head")(path), reference.text
    ).load()
    hint = "name it: guard = {use = 'defend.probe_guard', inputs = {model = ..., head = ...}}"
    reader = reader_of(reference, entry, head.model, openers, "model", OpenLM, hint)
    maker = catalog.load(_MAKERS[reference.wanted])
    return behaviours.described(
        maker(STAND_INS[OpenLM](reader), head), lambda: maker(reader.load(), head), reference
    )


def reader_of(
    reference: Reference, entry: Entry, then: str, openers: Opens, role: str, wanted: Any, hint: str
) -> Opened:
    """What the record names as its input ``role``, whose numbers are read: the one with the digest ``then``.

    Raises:
        InputError: the record names none.
        CapabilityError: it cannot be opened here, or is another one now.
    """
    if role not in entry.record.inputs:
        raise InputError(f"'{reference.text}': its record names no {role}", hint=hint)
    name = entry.record.inputs[role].reference
    try:
        found = openers.open(name, wanted)
    except CalibrantError as error:
        raise CapabilityError(
            f"'{reference.text}' reads the activations of {name!r}, which cannot be opened here: "
            f"{error.message}",
            hint=hint,
        ) from error
    if found.digest != then:
        raise CapabilityError(
            f"'{reference.text}' reads the activations of {name!r}, which is another {role} now: "
            f"{then[:12]} became {found.digest[:12]}",
            hint=hint,
        )
    return found
