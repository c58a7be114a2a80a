"""Intent: what a study is for and which thresholds it accepts, recorded before the first measurement.

The intent is the pre-registration of a study: its first entry; the gate compares its position in the ledger
with that of the evidence (``registration``).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import Field

from calibrant.core import Entry, Evidence, Frozen, Record
from calibrant.core.digest import plain
from calibrant.core.record import job_digest, result_digest
from calibrant.govern.policy import ReleasePolicy

INTENT = "intent"
_VERSION = 1


class Intent(Frozen):
    """Purpose, hazards and thresholds of a study."""

    use: str = Field(min_length=1)
    """Who will use the system, for what."""
    hazards: tuple[str, ...] = ()
    """What could go wrong, one sentence each."""
    tax_margin: float = Field(default=0.0, strict=True, ge=0.0, allow_inf_nan=False)
    """Largest loss of capability accepted in exchange, as a share; 0 accepts none."""
    policy: ReleasePolicy | None = None
    """The thresholds, fixed in advance; None registers none, so no pre-registered rule can pass."""
    gate: str = ""
    """Id of the gate's job; "" for a study without a gate."""
    gate_seeds: tuple[int, ...] = ()
    """Every seed whose gate counts."""
    passes: int = Field(default=0, ge=0)
    """How many of them must pass."""
    notes: str = ""
    """Notes for readers."""


def intent_record(intent: Intent, study: str) -> Record:
    """The ledger entry that opens ``study``; append it before the first job, once per ``job`` digest.

    The job digest covers the content of the intent alone: a changed threshold is a new intent, a
    repeated one is not. ``policy`` is kept in full with its digest, so a reader can recompute it.
    Nothing was measured, so metrics are empty and the result digest is that of an empty result.
    """
    config: dict[str, Any] = plain(intent.model_dump(mode="json", exclude={"policy"}))
    registered = intent.policy
    config["policy"] = None if registered is None else {"digest": registered.digest, **plain(registered)}
    job = job_digest(INTENT, _VERSION, config, {}, 0)
    return Record(
        technique=INTENT,
        version=_VERSION,
        job=job,
        result=result_digest({}, ()),
        status="finished",
        job_id=INTENT,
        study=study,
        intent=job,
        config=config,
        limits=("An intent is a statement made in advance; it measures nothing.",),
    )


def registration(policy: ReleasePolicy, evidence: Evidence) -> Entry | None:
    """The first intent that fixed exactly ``policy``; None where there is none."""
    entries = [entry for entry in evidence.entries if _registers(entry.record, policy.digest)]
    return min(entries, key=lambda entry: entry.seq, default=None)


def also_registered(policy: ReleasePolicy, evidence: Evidence) -> tuple[str, ...]:
    """Names of the other policies that intents of this ledger fixed, in its order."""
    names: dict[str, str] = {}
    for entry in evidence.entries:
        fixed = entry.record.config.get("policy") if entry.record.technique == INTENT else None
        if isinstance(fixed, dict) and fixed.get("digest") != policy.digest:
            names[str(fixed.get("digest"))] = f"'{fixed.get('name')}' ({str(fixed.get('digest'))[:12]})"
    return tuple(names.values())


def out_of_order(intent: Entry | None, looks: Sequence[Entry]) -> str:
    """Why the thresholds do not precede every look, or ""; the only remedy is evidence newer than they are.

    A ledger that was put together from others has an order of its own, so the times are compared, too.
    """
    remedy = "measure on data that no earlier run has read"
    if intent is None:
        return (
            "no intent in the ledger names this policy, so its thresholds postdate the evidence; record an"
            f" intent, then {remedy}"
        )
    if intent.seq >= looks[0].seq:
        return f"the thresholds postdate the evidence (intent at entry {intent.seq}); {remedy}"
    fixed = _time(intent.record.recorded_at)
    for look in looks:
        begun = _time(look.record.started_at)
        if fixed and begun and begun < fixed:
            return (
                f"entry {look.seq} was begun at {look.record.started_at}, before the thresholds were recorded"
                f" at {intent.record.recorded_at}, though it stands behind them; {remedy}"
            )
    return ""


def _time(text: str) -> datetime | None:
    """A record's time; None where it has none that can be read, or none with a zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else None


def _registers(record: Record, digest: str) -> bool:
    """Whether ``record`` is a finished intent that names this policy digest."""
    if record.technique != INTENT or record.status != "finished":
        return False
    policy = record.config.get("policy")
    return isinstance(policy, dict) and policy.get("digest") == digest
