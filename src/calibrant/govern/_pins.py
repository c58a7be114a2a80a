"""Pins: which records a rule is about, where a record differs from its pins, and what no rule pinned.

Three questions, from wide to narrow:

1. ``touching``: the rule's technique, on the subject, on the rule's data. Whatever their settings, thresholds
   must be older than every such run that finished, and one that failed after the last evidence blocks.
2. ``differs``: whether it also matches the rule's pins. Only a record that does is evidence.
3. ``unpinned``: what the rule does not pin, with the deciding record's value, ready to be pinned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from calibrant.core import Entry, Evidence, Identity, Record
from calibrant.core.digest import canonical, plain
from calibrant.core.errors import nearest
from calibrant.core.record import Input
from calibrant.govern._looks import read_same, share_rows
from calibrant.govern.policy import Rule, flat

_HELPERS = frozenset({"before", "baseline", "reference", "attacker"})
"""Model inputs that help a measurement and are never its subject."""
_MADE = ("model", "lineage.json")
"""What a technique leaves that trained: one model, or a line of them."""
_TESTBED = "testbed:judge/"
"""References of the judges that are the truth itself: nothing else may call itself exact."""
_CARD_MAKERS = ("measure.judge_card", "measure.adjudication")
"""Techniques that calibrate a judge against human labels; a card counts when one of them made it."""
_CARD = ("positives", "negatives", "sensitivity", "specificity")
"""What a record says of a judge's card: counts of labelled replies, and lower bounds."""


def measured(inputs: Mapping[str, Input]) -> str:
    """Name of the input that was measured: 'target', else 'model', else the only model that is no helper."""
    for name in ("target", "model"):
        if name in inputs:
            return name
    models = [name for name, item in inputs.items() if item.kind == "model"]
    return models[0] if len(models) == 1 and models[0] not in _HELPERS else ""


def measures(record: Record, subject: Identity) -> bool:
    """Whether the system that the record measured is ``subject``, down to the digest.

    The metrics of a training run are about the trained model, not about its input.
    """
    if any(artifact.name in _MADE for artifact in record.artifacts):
        return False
    item = record.inputs.get(measured(record.inputs))
    return item is not None and item.kind == "model" and item.digest == subject.digest


def touching(rule: Rule, subject: Identity, evidence: Evidence) -> list[Entry]:
    """The runs, finished or not, of the rule's technique, on the subject and on the data.

    On the data is whoever read these bytes, whatever their file was called, or a part of the file.
    """
    runs = [
        e for e in evidence.entries if e.record.technique == rule.technique and measures(e.record, subject)
    ]
    if not (rule.data or rule.data_digest):
        return runs
    reads = [(entry, item) for entry in runs for item in tables(entry.record).values()]
    pinned = rule.data_digest
    matching = {i.digest: i for _, i in reads if (i.digest == pinned if pinned else i.reference == rule.data)}
    seqs = {
        entry.seq
        for entry, item in reads
        if share_rows(item.reference, rule.data) or any(read_same(item, one) for one in matching.values())
    }
    return [entry for entry in runs if entry.seq in seqs]


def tables(record: Record) -> dict[str, Input]:
    """The inputs that hold data, those that could not be opened included."""
    return {name: item for name, item in record.inputs.items() if item.kind in ("data", "unopened")}


def judges(record: Record) -> dict[str, Input]:
    """The inputs that judged."""
    return {name: item for name, item in record.inputs.items() if item.kind == "judge"}


def differs(rule: Rule, record: Record) -> str:
    """The first pin in which the record differs, or ""."""
    if record.version < rule.min_version:
        return (
            f"version {record.version} of {rule.technique} made it, and the rule asks for {rule.min_version}"
        )
    return _other_data(rule, record) or next(_other_pins(rule, record), "")


def _other_data(rule: Rule, record: Record) -> str:
    data = tables(record)
    if rule.data_input and rule.data_input not in data:
        return f"it has no data in an input '{rule.data_input}'{nearest(rule.data_input, data)}"
    if rule.data_input:
        data = {rule.data_input: data[rule.data_input]}
    if rule.data and not any(item.reference == rule.data for item in data.values()):
        return f"its {_listed(data)}, and the rule pins '{rule.data}'"
    if rule.data_digest and not any(
        item.digest == rule.data_digest and (not rule.data or item.reference == rule.data)
        for item in data.values()
    ):
        return f"its {_listed(data)}: what was read there is not the data {rule.data_digest[:12]} of the rule"
    return ""


def _listed(data: Mapping[str, Input]) -> str:
    parts = [f"{name} is {_label(item)}" for name, item in sorted(data.items())]
    return ", ".join(parts) or "inputs hold no data"


def _other_pins(rule: Rule, record: Record) -> Iterator[str]:
    for name, value in rule.inputs.items():
        item = record.inputs.get(name)
        if item is None:
            yield f"it has no input '{name}'{nearest(name, record.inputs)}"
        elif value not in (item.digest, item.reference):
            yield f"its {name} is {_label(item)}, and the rule pins '{value}'"
    settings = flat(plain(record.config))
    for path, value in rule.settings.items():
        if path not in settings:
            yield f"its config has no '{path}'{nearest(path, settings)}"
        elif canonical(settings[path]) != canonical(value):  # bytes, so that true is not 1
            yield f"its {path} is {settings[path]!r:.60}, and the rule pins {value!r:.60}"
    pin = rule.judge
    if not (pin.question or pin.digest):
        return
    judge = judges(record).get(pin.input)
    if judge is None:
        yield f"it has no judge '{pin.input}'{nearest(pin.input, judges(record))}"
    elif pin.digest and judge.digest != pin.digest:
        yield f"its {pin.input} is {_label(judge)}, and the rule pins {pin.digest[:12]}"
    elif pin.question and judge.parts.get("question", "") != pin.question:
        question = judge.parts.get("question") or "a question that it does not state"
        yield f"its {pin.input} answers '{question}', and the rule pins '{pin.question}'"


def open_data(rule: Rule, record: Record) -> str:
    """Why it is open which of several tables the rule means, or ""."""
    data = tables(record)
    if len(data) < 2 or rule.data_input or not (rule.data or rule.data_digest):
        return ""
    return (
        f"the record read {len(data)} tables ({_listed(data)}), and the rule does not say which is meant;"
        f" give data_input = '{min(data)}' or another"
    )


def bad_judge(rule: Rule, record: Record, evidence: Evidence) -> str:
    """Why the record's judges are not what the rule asks for, or "". Every one of them must be."""
    pin = rule.judge
    if pin.state == "any":
        return ""
    names = sorted({*record.judge, *judges(record)})
    if not names:
        return f"the rule asks for judges that are {pin.state}, and the record names none; set judge = 'any'"
    unfit = (_unfit(name, pin.state, record, evidence) for name in names)
    return next((problem for problem in unfit if problem), "") or _short(rule, record)


def _unfit(name: str, state: str, record: Record, evidence: Evidence) -> str:
    """Why one judge is neither exact nor calibrated against human labels in this ledger, or ""."""
    item, claim = judges(record).get(name), record.judge.get(name, "")
    if item is None:
        return f"the record does not say what its judge '{name}' was; measure again"
    if claim == "exact" and isinstance(item.reference, str) and item.reference.startswith(_TESTBED):
        return ""
    if state == "exact":
        return f"{name} is {claim or 'uncalibrated'}; only a judge of the testbed is exact"
    if claim == "exact":
        return f"{name} calls itself exact, which only a judge of the testbed can be; give it a card"
    if not _calibrated(claim):
        return (
            f"{name} is not calibrated; compare it with labels by people (measure.adjudication draws what to"
            f" label, {_CARD_MAKERS[0]} reads labels), then run again"
        )
    if _card_record(item, evidence) is None:
        return (
            f"{name} has a card that no record of this ledger made; make one with {_CARD_MAKERS[0]} and give"
            " it as record:JOB/card.json"
        )
    return ""


def _calibrated(state: str) -> bool:
    """Whether a state begins with the word; 'uncalibrated' and 'calibratedly' do not."""
    return state == "calibrated" or state.startswith("calibrated:")


def _card_record(judge: Input, evidence: Evidence) -> Record | None:
    """The finished record that produced the judge's card, byte for byte; None where there is none."""
    card = judge.parts.get("card", "")
    for entry in evidence.entries:
        record = entry.record
        makes_card = record.technique in _CARD_MAKERS and record.status == "finished"
        if makes_card and any(a.name == "card.json" and a.digest == card for a in record.artifacts):
            return record
    return None


def _short(rule: Rule, record: Record) -> str:
    """Why the card of the rule's judge misses the minimum values, or ""; an exact judge has no card."""
    pin, item = rule.judge, judges(record).get(rule.judge.input)
    if not pin.floors:
        return ""
    if item is None:
        return f"the rule asks for the card of '{pin.input}', and the record has no such judge"
    if record.judge.get(pin.input) == "exact":
        return ""
    try:
        positives, negatives, *bounds = (float(item.parts[name]) for name in _CARD)
    except (KeyError, ValueError):
        return f"the record does not say what the card of {pin.input} counted; measure again"
    if not min(positives, negatives) >= pin.min_n:
        return (
            f"the card of {pin.input} holds {positives:g} replies with the behaviour, {negatives:g} without;"
            f" the rule asks for {pin.min_n} of each"
        )
    for word, low, floor in zip(_CARD[2:], bounds, (pin.min_sensitivity, pin.min_specificity), strict=True):
        if not low >= floor:
            return f"the {word} of {pin.input} is at least {low:g}, and the rule asks for {floor:g}"
    return ""


def unpinned(rule: Rule, record: Record) -> dict[str, Any]:
    """What the rule leaves open, with the value of this record: written into the rule, it is pinned."""
    pins: dict[str, Any] = {}
    data, subject = tables(record), measured(record.inputs)
    names = [
        name for name, item in data.items()
        if rule.data_input in ("", name) and rule.data in ("", item.reference)
    ]  # fmt: skip
    main = names[0] if names else ""
    if main and not (rule.data or rule.data_digest) and isinstance(data[main].reference, str):
        pins["data"] = data[main].reference  # a table that leaves columns out has no such name, but a digest
    if main and not rule.data_input and len(data) > 1:
        pins["data_input"] = main
    if main and not rule.data_digest:
        pins["data_digest"] = data[main].digest
    if rule.min_version == 1 < record.version:  # a rule that names an older version means it
        pins["min_version"] = record.version
    pins |= {f"judge.{key}": value for key, value in _open_judge(rule, record).items()}
    for name, item in record.inputs.items():
        if name not in (subject, main, rule.judge.input):
            # A path, a record or an endpoint may hold anything: only these references fix what they lead to.
            fixed = isinstance(item.reference, str) and item.reference.startswith(("testbed:", "hf:"))
            if rule.inputs.get(name) not in (item.digest, item.reference if fixed else item.digest):
                pins[f"inputs.{name}"] = item.reference if fixed else item.digest
    settings = flat(plain(record.config))
    return pins | {f"config.{path}": settings[path] for path in settings if path not in rule.settings}


def _open_judge(rule: Rule, record: Record) -> dict[str, Any]:
    """What the rule leaves open about the judge; a digest says all of what judged, but not how well."""
    pin, item = rule.judge, judges(record).get(rule.judge.input)
    if item is None:
        return {}
    exact = record.judge.get(pin.input) == "exact"
    pins: dict[str, Any] = {}
    if pin.state == "any":
        pins["state"] = "exact" if exact else "calibrated"
    if not pin.digest and not pin.question:
        pins["question"] = item.parts.get("question", "")
    if not pin.digest and pin.state == "any":
        pins["digest"] = item.digest
    if not pin.digest and not exact:
        floors = ("min_n", "min_sensitivity", "min_specificity")
        pins |= {name: None for name in floors if getattr(pin, name) == getattr(type(pin)(), name)}
    return pins


def kinds(unpinned: Mapping[str, Any]) -> list[str]:
    """What a rule leaves open without its fields: 'data_digest', 'config', 'judge', ..."""
    return list(dict.fromkeys(key.partition(".")[0] for key in unpinned))


def basis(record: Record) -> tuple[str, str]:
    """The judges and the data of a record in words."""
    judged = [
        f"{item.name or name}: {record.judge.get(name, 'uncalibrated')}"
        + (f", asked '{item.parts['question']}'" if item.parts.get("question") else "")
        + (f", by labels of {item.parts['labels']}" if item.parts.get("labels") else "")
        for name, item in sorted(judges(record).items())
    ]
    data = [f"{name} = {_label(item)}" for name, item in sorted(tables(record).items())]
    return "; ".join(judged), "; ".join(data)


def _label(item: Input) -> str:
    """A name for people, with the beginning of the digest: names can be chosen, digests cannot."""
    name = item.reference if isinstance(item.reference, str) else item.name or "a table"
    return f"'{name}' ({item.digest[:12]})"
