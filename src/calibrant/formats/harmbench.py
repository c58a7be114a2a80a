"""HarmBench's completions (github.com/centerforaisafety/HarmBench): {behaviour: [{test_case, generation,
label}]}.

``label`` 1 means that its classifier saw the behaviour, 0 that it did not; without one, or with any other,
the attempt is undetermined. The file names neither model nor method: they are read off the path where it is
HarmBench's own (``results/METHOD/EXPERIMENT/{completions,results}/MODEL.json``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibrant.core import Chat, Completion, Goal, InputError, Verdict
from calibrant.formats.raw import Row, json_document, member, text
from calibrant.formats.reading import Found, Reading, attempt_on, gather

_QUESTION = "did HarmBench's classifier see the behaviour?"


def read_harmbench(path: Path, target: str = "") -> Reading:
    """Read a file of completions, labelled or not.

    Raises:
        InputError: see ``gather``; or the document is no object of behaviours.
    """
    value = json_document(path)
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: expected an object of behaviours, got {type(value).__name__}",
            hint="give the file that HarmBench's step 2 or 3 writes",
        )
    own = path.parent.name in ("completions", "results") and len(path.parents) > 3
    method = path.parents[2].name if own else "harmbench"
    model = path.stem if own else ""
    return gather("harmbench", path, _rows(value), lambda row: _found(row, method, model), target)


def _rows(behaviours: dict[str, Any]) -> Iterator[Row]:
    """Test cases one after the other, numbered from 1: a JSON document has no lines to name."""
    number = 0
    for name, cases in behaviours.items():
        for at, case in enumerate(cases if isinstance(cases, list) else [cases]):
            number += 1
            yield number, (name, at, case)


def _found(row: Any, method: str, model: str) -> Iterator[Found]:
    name, at, case = row
    generation = member(case, "generation", str)
    given = case.get("test_case")
    sent = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    yield attempt_on(
        model,
        Goal(id=text(name, "behaviour"), text=text(name, "behaviour")),
        attack=method,
        chat=Chat.ask(text(sent, "test_case")),
        completion=Completion.read(text(generation, "generation")),
        verdicts={"harmbench": _verdict(case.get("label"))},
        seed=at,
    )


def _verdict(label: Any) -> Verdict:
    if label in (0, 1):
        return Verdict(question=_QUESTION, answer="yes" if label else "no", score=float(label))
    why = "no label in the file" if label is None else f"label {str(label)[:20]!r} is neither 0 nor 1"
    return Verdict(question=_QUESTION, answer="unknown", reason=why)
