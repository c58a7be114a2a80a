"""Catalogue, records and status as plain data, for the command line and for programs."""

from __future__ import annotations

import sys
from typing import Any, Literal, get_args, get_origin

from calibrant.app.catalog import behaviours, find_behaviour, find_technique, techniques
from calibrant.app.references import locate
from calibrant.core import ConfigError, Entry, Estimate, Frozen, InputError, Record
from calibrant.core.errors import nearest
from calibrant.ledger import Ledger


def everything() -> dict[str, Any]:
    """Techniques, behaviours and packaged studies with a line each. Loads none of them."""
    return {
        "techniques": {name: entry.summary for name, entry in sorted(techniques().items())},
        "behaviours": {name: entry.summary for name, entry in sorted(behaviours().items())},
        "studies": studies(),
    }


def studies() -> dict[str, str]:
    """Packaged studies: name -> title."""
    tables = {path.stem: locate.toml(path) for path in sorted(locate.STUDIES.glob("*.toml"))}
    return {name: table.get("title", "") for name, table in tables.items() if "job" in table}


def describe(name: str) -> dict[str, Any]:
    """A technique or behaviour: what it is, its inputs and its config with defaults and help.

    Raises:
        ConfigError: no such name; the nearest is given.
    """
    if name in techniques():
        kind, signature = "technique", find_technique(name)
    elif name in behaviours():
        kind, signature = "behaviour", find_behaviour(name)
    else:
        known = [*techniques(), *behaviours()]
        raise ConfigError(f"nothing is called '{name}'{nearest(name, known)}", hint="see `calibrant ls`")
    module = sys.modules[signature.function.__module__]
    return {
        "name": name,
        "kind": kind,
        "about": ((module if kind == "technique" else signature.function).__doc__ or "").strip(),
        "version": signature.version,
        "inputs": {
            n: {"wanted": getattr(p.wanted, "__name__", str(p.wanted)), "required": p.required}
            for n, p in signature.inputs.items()
        },
        "config": fields(signature.config) if signature.config is not None else {},
    }


def fields(config: type[Frozen]) -> dict[str, Any]:
    """Field name -> type, default and help."""
    table: dict[str, Any] = {}
    for name, info in config.model_fields.items():
        annotation = info.annotation
        type_name = getattr(annotation, "__name__", str(annotation)) if annotation else ""
        if get_origin(annotation) is Literal:
            type_name = " | ".join(map(repr, get_args(annotation)))
        default = info.get_default(call_default_factory=True) if not info.is_required() else "required"
        if isinstance(default, Frozen):
            default = default.model_dump(mode="json")
        table[name] = {"type": type_name, "default": default, "help": info.description or ""}
    return table


def row(entry: Entry) -> dict[str, Any]:
    """One record in a line: for `calibrant log`."""
    record = entry.record
    metric, estimate = headline(record)
    return {
        "seq": entry.seq,
        "digest": entry.digest,
        "result": record.result,
        "recorded_at": record.recorded_at,
        "study": record.study,
        "job": record.job_id,
        "seed": record.seed,
        "technique": record.technique,
        "status": record.status,
        "seconds": record.seconds,
        "headline": f"{metric} {estimate}" if metric else "",
        "failure": record.failure.message if record.failure else "",
        "remedy": record.failure.hint if record.failure else "",
    }


PLANNED = "planned_queries"
"""The metric that tells most of a campaign that was only quoted (``dry_run``)."""


_FOUND, _NAMED = "found/denoise", 3
"""A headline that counts cells, and how many of them are named beside it."""


def headline(record: Record) -> tuple[str, Estimate | None]:
    """The metric that tells most; a record keeps its metrics in alphabetical order. ("", None): none."""
    known = techniques().get(record.technique)
    name = known.headline if known is not None else ""
    if name not in record.metrics:
        name = PLANNED if PLANNED in record.metrics else next(iter(record.metrics), "")
    return name, record.metrics.get(name)


_ALSO = {"measure.eval_log": "mean_score/", "oversee.critique_revise": "helpful_change/"}
"""Techniques whose headline misleads by itself -> the family that is told beside it."""


def beside(record: Record) -> str:
    """What a headline leaves out. "": nothing.

    Which cells do most, how faithful the least circuit is, scores of a log, what revisions cost, how much of
    an audit is undecided.
    """
    name, counted = headline(record)
    if record.technique in _ALSO:
        also = [
            f"{key} {one}" for key, one in record.metrics.items() if key.startswith(_ALSO[record.technique])
        ]
        return "; ".join(also[:_NAMED])
    if record.technique == "oversee.constitution_audit" and counted is not None and counted.value is not None:
        return counted.reason
    if name == _FOUND and counted is not None and counted.value:
        shares = {key.removeprefix("denoise/"): one.value or 0.0 for key, one in record.metrics.items()
                  if key.startswith("denoise/")}  # fmt: skip
        most = sorted(shares, key=lambda cell: -abs(shares[cell]))[: min(int(counted.value), _NAMED)]
        return f"largest shares: {', '.join(f'{cell} {shares[cell]:.2f}' for cell in most)}"
    least = record.metrics.get("least_size")
    if record.technique != "understand.circuit" or least is None:
        return ""
    sizes = [key.partition("/")[2] for key, one in record.metrics.items()
             if key.startswith("kept/") and one.value is not None and one.value == least.value]  # fmt: skip
    kept = [f"faithfulness {record.metrics[f'faithfulness/{size}']}" for size in sizes[:1]]
    return ", ".join([f"least_size {least}", *kept])


def hazards(record: Record) -> dict[str, dict[str, Estimate]]:
    """Hazard -> technique family -> success rate of a campaign; {} for other records.

    Read off metrics named 'attack_success_rate/HAZARD/FAMILY'; the hazard 'all' comes last.
    """
    rates: dict[str, dict[str, Estimate]] = {}
    if record.technique != "attack.campaign":  # an attack by itself is one row, and its headline is printed
        return rates
    for name, estimate in record.metrics.items():
        root, _, rest = name.partition("/")
        hazard, slash, family = rest.partition("/")
        if root == "attack_success_rate" and slash and hazard != "variant":
            rates.setdefault(hazard, {})[family] = estimate
    return dict(sorted(rates.items(), key=lambda pair: (pair[0] == "all", pair[0])))


def entry_of(ledger: Ledger, name: str) -> Entry:
    """The record that ``name`` means: a digest or its beginning, or 'STUDY/JOB' or 'STUDY/JOB#SEED' as a log
    shows it, of which the latest is meant.

    Raises:
        InputError: there is none, or the beginning of a digest fits records of several jobs.
    """
    if "/" not in name:
        return ledger.get(name)
    known: dict[str, Entry] = {}
    for entry in ledger.entries():
        one = entry.record
        if one.job_id:
            known |= dict.fromkeys(
                (f"{one.study}/{one.job_id}", f"{one.study}/{one.job_id}#{one.seed}"), entry
            )
    if name not in known:
        raise InputError(
            f"no record in {ledger.root} is of '{name}'{nearest(name, known)}",
            hint="see `calibrant log`; a run that an earlier study had done is listed under that study",
        )
    return known[name]


def status(ledger: Ledger) -> dict[str, Any]:
    """How a ledger stands: records by status, studies, and jobs that were begun and not finished."""
    entries = ledger.entries()
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry.record.status] = counts.get(entry.record.status, 0) + 1
    work = ledger.root / "work"
    begun = sorted(path.name for path in work.iterdir() if path.is_dir()) if work.is_dir() else []
    return {
        "ledger": str(ledger.root),
        "records": len(entries),
        "by_status": counts,
        "studies": sorted({e.record.study for e in entries if e.record.study}),
        "unfinished": begun,
        "last": row(entries[-1]) if entries else None,
    }
