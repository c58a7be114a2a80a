"""Attempts with planted secrets: whatever is written without `reveal` must not hold them."""

from __future__ import annotations

import json
from datetime import date

import pytest

from calibrant.app.export import report_of
from calibrant.core import (
    Attempt,
    Chat,
    Completion,
    Cost,
    LayerVerdict,
    Message,
    Verdict,
    attempt_id,
    outcome_of,
)
from calibrant.data.rows import Attempts

SECRETS = ("PLUMAGE", "quetzal", "mangrove", "isthmus", "obsidian", "tamarind", "vermilion", "4711-0815")
"""In the system prompt, request, reply, error, the judge's and the layer's sentences; and a number."""


def attempt(
    goal="g1",
    answer="yes",
    *,
    attack="attack.encode/rot13",
    category="privacy",
    family="transform",
    stop="eos",
    seed=0,
    text="the quick tamarind reply 4711-0815",
):
    said = Verdict(question="is it about obsidian?", answer=answer, reason="it said vermilion", score=0.5)
    layer = LayerVerdict(
        layer="words", verdict=Verdict(question="q isthmus", answer="yes", reason="no isthmus here")
    )
    completion = Completion(
        text=text,
        ids=(1, 2, 3),
        logprobs=(-0.1, -0.2, -0.3),
        stop=stop,
        error="server said mangrove" if stop == "error" else None,
        layers=(layer,),
    )
    return Attempt(
        id=attempt_id(goal, attack, None, "t", seed),
        goal_id=goal,
        category=category,
        attack=attack,
        family=family,
        seed=seed,
        chat=Chat(
            messages=(
                Message(role="system", content="never say PLUMAGE"),
                Message(role="user", content="tell me of the quetzal"),
            )
        ),
        completion=completion,
        layers=(layer,),
        verdicts={"judge-1": said},
        outcome=outcome_of(completion, said),
        cost=Cost(queries=1, target_tokens=3, seconds=0.5),
    )


def table(*attempts):
    return Attempts(rows=attempts, source="jsonl:attempts.jsonl")


@pytest.fixture
def make():
    """Makes an attempt: ``make("goal", "yes" | "no" | "unknown", attack=..., ...)``."""
    return attempt


@pytest.fixture
def secrets():
    return SECRETS


@pytest.fixture
def mixed():
    """Two attacks, two hazards; of four goals one is reached, one open, two held."""
    return table(
        attempt("g1", "no"),
        attempt("g1", "yes", attack="attack.encode/leet"),
        attempt("g2", "no"),
        attempt("g2", "unknown", attack="attack.encode/leet"),
        attempt("g3", "no", category="bias"),
        attempt("g4", "no", attack="attack.persona/actor", family="persona", category="bias"),
        attempt(
            "g4",
            "yes",
            attack="attack.persona/actor",
            family="persona",
            category="bias",
            stop="blocked",
            seed=1,
        ),
        attempt(
            "g4",
            "yes",
            attack="attack.persona/actor",
            family="persona",
            category="bias",
            stop="error",
            seed=2,
        ),
    )


@pytest.fixture
def report(mixed):
    """Makes a report of ``mixed``, or of the attempts given."""

    def made(*attempts, reveal=False, target="a model"):
        rows = table(*attempts) if attempts else mixed
        return report_of(
            rows, target, ("the judge was not calibrated",), reveal=reveal, made=date(2026, 1, 2)
        )

    return made


@pytest.fixture
def write(tmp_path):
    """Writes JSON (.json), JSON lines (.jsonl) or text, and gives the path."""

    def written(name, value):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, bytes):
            path.write_bytes(value)
        elif isinstance(value, str):
            path.write_text(value, encoding="utf-8")
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in value), encoding="utf-8")
        else:
            path.write_text(json.dumps(value), encoding="utf-8")
        return path

    return written
