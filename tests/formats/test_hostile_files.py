"""Whatever stands in a foreign file, a reader takes a row, refuses it, or says why the file is useless."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import pytest

from calibrant.core import InputError
from calibrant.formats.garak import read_garak
from calibrant.formats.harmbench import read_harmbench
from calibrant.formats.jbb import read_jbb
from calibrant.formats.promptfoo import read_promptfoo
from calibrant.formats.pyrit import read_pyrit

ODD = (
    None,
    True,
    3,
    -1,
    1.5,
    float("nan"),
    10**400,
    "x",
    "",
    "\ud800",
    "[{",
    [],
    [3],
    [None],
    {},
    {"turns": 3},
    {"a": {}},
)
PIECE = {"id": "p", "role": "assistant", "conversation_id": "c", "sequence": 1, "converted_value": "b"}
SCORE = {"score_value": "true", "score_type": "true_false", "scorer_class_identifier": {"class_name": "S"}}
ATTACK = {"children": {"attack_technique": {"children": {"attack": {"class_name": "A"}}}}}
GARAK = (
    (Path(__file__).parent / "data" / "garak_lipsum.report.jsonl").read_text(encoding="utf-8").splitlines()
)
FILES = {
    "garak": (read_garak, [json.loads(line) for line in GARAK[:1] + GARAK[3:6] + GARAK[-4:]]),
    "harmbench": (read_harmbench, {"b": [{"test_case": "a", "generation": "b", "label": 1}] * 2}),
    "jbb": (
        read_jbb,
        {
            "parameters": {"method": "PAIR", "model": "m", "attack_type": "black_box", "defense": None},
            "jailbreaks": [
                {"index": 0, "goal": "g", "behavior": "b", "category": "c", "prompt": "p", "response": "r",
                 "number_of_queries": 1, "response_tokens": 2, "jailbroken": True}
            ],
        },
    ),
    "promptfoo": (
        read_promptfoo,
        {
            "results": {
                "results": [
                    {"id": "r", "testIdx": 0, "promptIdx": 0, "provider": {"id": "p"}, "prompt": {"raw": "a"},
                     "response": {"output": "b", "metadata": {"redteamHistory": [{"prompt": "a"}]}},
                     "success": False, "failureReason": 1, "latencyMs": 1, "tokenUsage": {"completion": 1},
                     "gradingResult": {"pass": False, "score": 0, "reason": "r", "metadata": {}},
                     "testCase": {"metadata": {"pluginId": "p", "strategyId": "s"}}}
                ]
            }
        },
    ),
    "pyrit pieces": (read_pyrit, [{**PIECE, "id": "q", "role": "user"}, {**PIECE, "scores": [SCORE]}]),
    "pyrit results": (
        read_pyrit,
        {
            "scenario_identifier": {"children": {"objective_target": {"model_name": "m"}}},
            "attack_results": {
                "a": [{"conversation_id": "c", "objective": "o", "outcome": "success", "last_response": PIECE,
                       "last_score": SCORE, "atomic_attack_identifier": ATTACK, "executed_turns": 1,
                       "targeted_harm_categories": ["h"]}]
            },
        },
    ),
}  # fmt: skip


def places(value, path=()):
    """Every place in a JSON value, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def changed(value, path, odd):
    """``value`` with ``odd`` at one place."""
    if not path:
        return odd
    made = copy.deepcopy(value)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = odd
    return made


@pytest.mark.parametrize("tool", FILES)
def test_one_odd_value_anywhere(tool, write):
    read, value = FILES[tool]
    lines = tool == "garak"
    rng = random.Random(0)
    tried = [(path, odd) for path in places(value) for odd in ODD if path or not lines]
    for path, odd in rng.sample(tried, min(len(tried), 100)):  # tests/fuzz tries many more
        made = changed(value, path, odd)
        name = "x.jsonl" if lines else "x.json"
        text = "\n".join(map(json.dumps, made)) if lines else json.dumps(made)
        try:
            reading = read(write(name, text))
        except InputError:
            continue
        assert reading.attempts
        for attempt in reading.attempts:
            attempt.model_dump_json()  # it can be written again


@pytest.mark.parametrize("tool", FILES)
def test_a_file_cut_anywhere(tool, write):
    read, value = FILES[tool]
    lines = tool == "garak"
    text = "\n".join(map(json.dumps, value)) if lines else json.dumps(value)
    for at in range(0, len(text), max(1, len(text) // 60)):
        try:
            read(write("x.jsonl" if lines else "x.json", text[:at]))
        except InputError as error:
            assert error.hint
