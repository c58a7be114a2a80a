"""Calibrant's own two formats: JSON lines, which read back as attempts, and flat rows for a table."""

from __future__ import annotations

import json
from typing import Any

from calibrant.core import Attempt
from calibrant.formats.findings import Report, technique_of


def jsonl(report: Report) -> bytes:
    """One attempt a line. Covered or not, ``calibrant`` reads it back."""
    return b"".join(attempt.model_dump_json().encode() + b"\n" for attempt in report.attempts)


def flat(attempt: Attempt) -> dict[str, Any]:
    """One row of plain cells: what nests (the chat, verdicts, layers) is JSON."""
    verdicts = {judge: verdict.model_dump() for judge, verdict in attempt.verdicts.items()}
    cost = {f"cost_{name}": value for name, value in attempt.cost.model_dump().items()}
    completion = attempt.completion
    return {
        "id": attempt.id,
        "goal_id": attempt.goal_id,
        "category": attempt.category,
        "attack": technique_of(attempt),
        "variant": attempt.attack.partition("/")[2],
        "family": attempt.family,
        "access": attempt.access,
        "seed": attempt.seed,
        "number": attempt.number,
        "parent": attempt.parent,
        "chat": _json([turn.model_dump() for turn in attempt.chat.messages]),
        "reply": completion.text,
        "reasoning": completion.reasoning,
        "stop": completion.stop,
        "error": completion.error,
        "outcome": attempt.outcome,
        "cut": attempt.cut,
        "degraded": attempt.degraded,
        "human": attempt.human,
        "verdicts": _json(verdicts),
        "layers": _json([layer.model_dump() for layer in attempt.layers]),
        "prompt_ids_digest": attempt.prompt_ids_digest,
        **cost,
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
