"""Readers of files as functions of bytes: rows, what techniques leave, other tools' files."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_seeds import (
    ATTEMPT,
    CANARIES,
    CARD,
    CLASSED,
    EXAMPLES,
    FOO,
    FOO_DOCUMENT,
    GARAK,
    GOALS,
    GRADED,
    ITEMS,
    JBB,
    LABELS,
    PAIRS,
    PIECE,
    QUEUE,
    RESULT,
    REWARD,
    SCORE,
    VOTES,
    XSTEST,
    lines,
)
from safetensors.numpy import save

from calibrant.core import Estimate, Record
from calibrant.core.record import job_digest, result_digest
from calibrant.data.advice import advice_from
from calibrant.data.attempts import attempts_from
from calibrant.data.canaries import canaries_from
from calibrant.data.cards import read_card
from calibrant.data.choices import Choices
from calibrant.data.files import raw_rows
from calibrant.data.goal_probes import goal_probes_from
from calibrant.data.graded import graded_from
from calibrant.data.human_labels import is_queue, labels_from, read_queue
from calibrant.data.judge_folder import read_head
from calibrant.data.parquet import rows_from_parquet
from calibrant.data.readers import describe, read, read_file
from calibrant.data.rows import (
    CheckedAnswers,
    ClassedTexts,
    Examples,
    Goals,
    Items,
    LabelledReplies,
    Preferences,
    Prompts,
    Questions,
    Table,
)
from calibrant.data.task_tree import TaskTrees
from calibrant.data.votes import read_comparisons, votes_from
from calibrant.formats.garak import read_garak
from calibrant.formats.harmbench import read_harmbench
from calibrant.formats.jbb import read_jbb
from calibrant.formats.promptfoo import read_promptfoo
from calibrant.formats.pyrit import read_pyrit
from calibrant.ledger import Ledger, verify
from calibrant.models.reward_folder import read_card as read_reward_card


class Reader(NamedTuple):
    """Reads bytes; ``seeds`` are texts of which it makes something."""

    read: Callable[[bytes, Path], object]
    seeds: tuple[bytes, ...]


def file(name: str, read: Callable[[Path], Any], seed: bytes) -> Reader:
    """A reader of a file of this name; what it made must be fit to be written again."""

    def run(data: bytes, room: Path) -> object:
        path = room / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return used(read(path))

    return Reader(run, (seed,))


def text(read: Callable[[str], Any], *seeds: str) -> Reader:
    """A reader of a text; bytes that are not UTF-8 come as a file system gives them: as lone surrogates."""
    return Reader(
        lambda data, _: used(read(data.decode("utf-8", "surrogateescape"))),
        tuple(seed.encode() for seed in seeds),
    )


def used(made: Any) -> Any:
    """What every user of a table or a reading does next."""
    if isinstance(made, Table):
        return made.digest, describe(made)
    if hasattr(made, "attempts"):
        return [attempt.model_dump_json() for attempt in made.attempts]
    return made


# Rows.


def table(kind: type[Table[Any]], name: str, seed: bytes) -> Reader:
    return file(name, partial(read_file, kind), seed)


def own(read_rows: Callable[..., Any], name: str, seed: bytes) -> Reader:
    return file(name, lambda path: read_rows(raw_rows(path), str(path)), seed)


def parquet() -> Reader:
    out = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["Hi"], "chosen": ["a"], "rejected": ["b"], "n": [1]}), out)
    return file("x.parquet", lambda path: read(Preferences, rows_from_parquet(path), "x"), out.getvalue())


PROBES = lines({"question": "Q?", "options": ["a", "b"], "goal": "a", "proxy": "b"})

ROWS = {
    "pairs jsonl": table(Preferences, "x.jsonl", PAIRS),
    "pairs ndjson": table(Preferences, "x.ndjson", PAIRS),
    "pairs csv": table(Preferences, "x.csv", b'prompt,chosen,rejected\n"Hi, you",yes,no\nBye,yes,no\n'),
    "pairs parquet": parquet(),
    "examples": table(Examples, "x.jsonl", EXAMPLES),
    "prompts": table(Prompts, "x.jsonl", EXAMPLES),
    "labelled": table(LabelledReplies, "x.jsonl", EXAMPLES),
    "goals jsonl": table(Goals, "x.jsonl", GOALS),
    "goals json": table(Goals, "x.json", b'{"data": [' + b", ".join(GOALS.splitlines()) + b"]}"),
    "goals tsv": table(Goals, "x.tsv", b"text\tharmful\tnote\nBake a moon\tno\tx\nBake a sun\t1\t\n"),
    "items": table(Items, "x.jsonl", ITEMS),
    "classed": table(ClassedTexts, "x.jsonl", CLASSED),
    "soft pairs csv": table(
        Preferences,
        "x.csv",
        b"prompt,chosen,rejected,chosen_probability,category\nHi,yes,no,0.8,bias\nBye,a,b,,\n",
    ),
    "checked": table(
        CheckedAnswers, "x.jsonl", lines({"question": "Q?", "answer": "red hay", "flaw": "hay", "kind": "k"})
    ),
    "questions": table(
        Questions, "x.jsonl", lines({"question": "Q?", "correct": "a", "wrong": "b", "passage": "a is so"})
    ),
    "trees": table(
        TaskTrees,
        "x.jsonl",
        lines(
            {
                "question": "Q?",
                "nodes": [
                    {"id": "a", "ask": "a?", "answer": 1, "kind": "k"},
                    {"id": "r", "ask": "{a}?", "answer": "2", "parts": ["a"], "needs": "any"},
                ],
                "cluster": "c",
            }
        ),
    ),
    "choices": table(
        Choices,
        "x.jsonl",
        lines(
            {
                "question": "Q?\n\nChoices:\n (A) a\n (B) b",
                "answer_matching_behavior": "(A)",
                "answer_not_matching_behavior": "(B)",
            }
        ),
    ),
    "graded": own(graded_from, "x.jsonl", GRADED),
    "graded xstest": own(graded_from, "completions_m.csv", XSTEST),
    "goal probes": own(goal_probes_from, "x.jsonl", PROBES),
    "canaries": own(canaries_from, "x.jsonl", CANARIES),
    "votes": own(votes_from, "x.jsonl", VOTES),
    "labels": own(labels_from, "x.jsonl", LABELS),
    "queue": file("x.jsonl", lambda path: (is_queue(path), used(read_queue(path))), QUEUE),
    "advice": file(
        "x.jsonl",
        lambda path: list(advice_from(raw_rows(path), "x", ("yes", "no")).values()),
        lines({"id": "a", "advice": "yes", "text": "t"}, {"id": "b", "verdicts": {"j": {"answer": "no"}}}),
    ),
    "comparisons": file("x.jsonl", read_comparisons, lines({"prompt": "Hi", "a": "x", "b": "y"})),
    "attempts": own(attempts_from, "x.jsonl", lines(ATTEMPT, {**ATTEMPT, "id": "b"})),
}


# What techniques leave.


def judge_folder() -> Reader:
    told = {
        "question": "q",
        "model": "m",
        "site": "s",
        "pool": "mean",
        "threshold": 0.5,
        "labels": "",
        "n": 3,
    }
    arrays = {name: np.ones(2) for name in ("mean", "std", "weight")} | {"bias": np.ones(1)}

    def run(data: bytes, room: Path) -> object:
        (room / "judge.json").write_bytes(data)
        (room / "judge.safetensors").write_bytes(save(arrays))
        return read_head(room).digest

    return Reader(run, (json.dumps(told).encode(),))


def written() -> bytes:
    """The line of a small record."""
    metrics = {"rate": Estimate(value=0.5, low=0.1, high=0.9, n=4, method="exact")}
    made = Record(
        technique="measure.refusal",
        version=1,
        job=job_digest("measure.refusal", 1, {}, {}, 0),
        result=result_digest(metrics, ()),
        status="finished",
        job_id="ask",
        metrics=metrics,
        limits=("few",),
    )
    with tempfile.TemporaryDirectory() as room:
        Ledger(Path(room)).append(made)
        return (Path(room) / "records.jsonl").read_bytes()


def ledger(data: bytes, room: Path) -> object:
    (room / "records.jsonl").write_bytes(data)
    report = verify(room)
    return report.model_dump_json(), len(Ledger(room).entries())


LEFT = {
    "judge card": file("card.json", lambda path: read_card(path).digest, json.dumps(CARD).encode()),
    "judge folder": judge_folder(),
    "reward card": file(
        "reward.json", lambda path: read_reward_card(path.parent), json.dumps(REWARD).encode()
    ),
    "ledger": Reader(ledger, (written(),)),
}


# Other tools.

TOOLS = {
    "garak": file("x.report.jsonl", read_garak, b"\n".join(GARAK[:1] + GARAK[3:6] + GARAK[-4:])),
    "harmbench": file(
        "completions/m.json", read_harmbench, b'{"b": [{"test_case": "a", "generation": "b", "label": 1}]}'
    ),
    "jbb": file("x.json", read_jbb, json.dumps(JBB).encode()),
    "promptfoo json": file("x.json", read_promptfoo, json.dumps(FOO_DOCUMENT).encode()),
    "promptfoo jsonl": file("x.jsonl", read_promptfoo, lines(FOO, {**FOO, "id": "s", "success": True})),
    "pyrit results": file(
        "x.json",
        read_pyrit,
        json.dumps({"scenario_identifier": {"children": {}}, "attack_results": {"a": [RESULT]}}).encode(),
    ),
    "pyrit pieces": file(
        "x.jsonl",
        read_pyrit,
        lines({**PIECE, "id": "q", "role": "user", "sequence": 0}, {**PIECE, "scores": [SCORE]}),
    ),
    "pyrit csv": file("x.csv", read_pyrit, b"# v\nobjective,assistant_response,human_score_1\no,r,1.0\n"),
}
