"""Races of training loops: one model, one table of rows, a worker of ours and one of the peer's, in turn.

The peer lives in an environment of its own, so both sides are processes (``_pace.py`` is their stopwatch):
they load the same weights and rows, train some steps whose losses must agree, and then take turns at a few
optimiser steps each. What is compared is CPU seconds of the process on one pinned core with one thread, the
reference's log-probs included, so that other work on the machine costs neither side much. Peak memory is
the most that the process held, libraries included.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from types import TracebackType
from typing import Any, NamedTuple

import torch
from _race import Row, make_row, say
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from calibrant.models.precision import bf16_units
from calibrant.testbed.tokens import SPECIALS, TEMPLATE

Told = dict[str, Any]
"""What a worker says at a stop: see ``_pace.py``."""
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VOCABULARY = 16_384
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "intermediate_size": 688,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
"""13 million parameters, two thirds of them in embedding and unembedding, as in small public models."""
FRAME = 4
"""Tokens that the chat template puts round a prompt: <user>, <end>, <assistant>; and <end> after a reply."""
WARM, ROUNDS = 3, 15
"""Steps before the clock, and blocks of one step on it; a quick race has 1 and 1."""
TRL_DEFAULT: dict[str, Any] = {"learning_rate": 1e-4, "train_sampling_strategy": "sequential"}
"""TRL's defaults (bfloat16 autocast, gradient checkpointing), rows in the order given, a higher rate."""
TRL_BEST = TRL_DEFAULT | {
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_strategy": "no",
    "disable_tqdm": True,
}
"""Float32 like ours, nothing computed twice, nothing shown."""
FIT = {"lr": 1e-4, "schedule": "constant", "warmup": 0.0, "beta2": 0.999}
"""The same optimiser in our words."""
TOLERANCE = 1e-4
"""Most difference of any loss, in nats, between two in float32: sums in another order."""
LOOSE = 0.03
"""The same against bfloat16."""
PEER_ENV = {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def words() -> list[str]:
    """All words that are one token each, with the space before them."""
    count = VOCABULARY - len(SPECIALS) - 256
    return [" " + "".join(letters) for letters in product(ascii_lowercase, repeat=3)][:count]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of VOCABULARY made-up words over bytes, with the testbed's chat template."""
    pieces = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"Ġ{word[1:]}" for word in words())]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_model(folder: Path, *, reward: bool = False, outputs: int = 1) -> Path:
    """A Llama with random weights and its tokenizer in ``folder``; ``reward``: with a score head instead."""
    tokenizer = build_tokenizer()
    shape = SHAPE | {"num_labels": outputs}
    config = LlamaConfig(
        **shape,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=SPECIALS.index("<end>"),
        pad_token_id=SPECIALS.index("<pad>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = (LlamaForSequenceClassification if reward else LlamaForCausalLM)(config)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def text(rng: random.Random, tokens: int, choices: Sequence[str]) -> str:
    """Words drawn at random, ``tokens`` of them."""
    return "".join(rng.choices(choices, k=tokens))


class Drawn(NamedTuple):
    """One prompt with its replies, best first."""

    prompt: str
    replies: tuple[str, ...]


def draw(count: int, prompt: int, reply: int, replies: int, seed: int = 0) -> list[Drawn]:
    """``count`` prompts of ``prompt`` tokens, each with replies of ``reply / 4`` to ``reply`` tokens.

    Lengths are counted as the model sees them, template and end token included.
    """
    rng, choices = random.Random(seed), words()
    lengths = range(max(2, reply // 4), reply + 1)
    return [
        Drawn(
            prompt=text(rng, prompt - FRAME + 1, choices),
            replies=tuple(text(rng, rng.choice(lengths) - 1, choices) for _ in range(replies)),
        )
        for _ in range(count)
    ]


def chat(role: str, content: str) -> list[dict[str, str]]:
    """One turn in the form that both sides read."""
    return [{"role": role, "content": content}]


def table(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as JSON lines; the path as text."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


class Worker:
    """A process that trains and stops between steps until it is told to go on."""

    def __init__(self, python: Path, script: str, job: dict[str, Any], folder: Path) -> None:
        """Start ``script`` of this folder on ``job``, its files in ``folder``; it runs to its first stop."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        self._log = (folder / "stderr.txt").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [str(python), str(HERE / script), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | PEER_ENV | {"OMP_NUM_THREADS": "1"},
        )
        self._waits = False

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def next(self) -> Told:
        """Let it run to its next stop; what it tells there."""
        if self._waits and self._process.stdin is not None:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"a worker ended early:\n{self._log.read()[-4000:]}")
        self._waits = True
        told: Told = json.loads(line)
        return told


class Course(NamedTuple):
    """What both sides train on."""

    title: str
    """How the rows of the results begin."""
    technique: str
    """What the workers call it."""
    model: Path
    """The folder that both open."""
    ours: Sequence[Mapping[str, Any]]
    """Our rows."""
    theirs: Sequence[Mapping[str, Any]]
    """The peer's rows, in the order in which we train."""
    start: Path | None = None
    """The folder that the peer opens, where it is another (a reward model's)."""


class Setting(NamedTuple):
    """One race on a course."""

    name: str
    """What of the peer."""
    options: Mapping[str, Any]
    """Of the peer's config."""
    config: Mapping[str, Any]
    """Ours."""
    target: float
    """Ratio to reach; 0 where there is none."""
    tolerance: float = TOLERANCE
    """Most difference of any two losses, warm-up included."""


def race_on(course: Course, settings: Sequence[Setting], folder: Path, quick: bool) -> list[Row]:
    """Race our trainer and the peer's on one course, in each of the settings."""
    warm, rounds = pace(quick)
    tables = table(folder / "ours.jsonl", course.ours), table(folder / "theirs.jsonl", course.theirs)
    shared = {"technique": course.technique, "model": str(course.model), "warm": warm, "block": 1}
    # In full, both sides share one core from the start; a quick race may use what there is.
    shared["core"] = None if quick else core()
    versions = {"trl": peer_version("trl")}
    rows = []
    for number, setting in enumerate(settings):
        if dict(setting.config).get("fit", {}).get("bf16") and not bf16_units():
            say(f"{course.title}, {setting.name}: left out, since this CPU has no bfloat16 units")
            continue
        ours = shared | {"rows": tables[0], "config": dict(setting.config)}
        theirs = shared | {"rows": tables[1], "options": dict(setting.options)}
        theirs |= {"model": str(course.start or course.model)}
        with ExitStack() as stack:
            workers = [
                stack.enter_context(Worker(python, script, job, folder / f"{number} {script}"))
                for python, script, job in (
                    (Path(sys.executable), "_worker_ours.py", ours),
                    (peer_python("trl"), "_worker_trl.py", theirs),
                )
            ]
            title = f"{course.title}, against TRL's {setting.name}"
            row = duel(title, *workers, rounds=rounds, steps=warm + rounds, setting=setting)
        rows.append(row._replace(versions=row.versions | versions))
    return rows


def duel(name: str, ours: Worker, peer: Worker, *, rounds: int, steps: int, setting: Setting) -> Row:
    """Race two workers: losses that agree, then ``rounds`` blocks in turn.

    ``steps`` is the whole pass, over which the cost of what is done once (the reference) is spread.
    """
    start = [ours.next()], [peer.next()]
    agree(name, start[0][0], start[1][0], setting.tolerance)
    mine, theirs = in_turn(start, (ours, peer), rounds)
    for one, other in zip(mine, theirs, strict=True):
        agree(name, one, other, setting.tolerance)
    return versus(name, mine, theirs, steps, setting.target)


def in_turn(told: Sequence[list[Told]], workers: Sequence[Worker], rounds: int) -> list[list[Told]]:
    """Let workers run a block each, ``rounds`` times; who goes first alternates.

    ``told`` holds what each said at its start line; returned is the same with what it said of every block.
    """
    found = [list(side) for side in told]
    for number in range(rounds):
        for side, worker in list(zip(found, workers, strict=True))[:: -1 if number % 2 else 1]:
            side.append(worker.next())
    return found


def versus(
    name: str, mine: Sequence[Told], theirs: Sequence[Told], steps: int, target: float, scale: float = 1.0
) -> Row:
    """A row: CPU seconds a step of theirs over ours, times ``scale``, and peak memory of theirs over ours."""
    costs = [_costs(side, steps) for side in (mine, theirs)]
    say(f"  CPU seconds a step: ours {_mean(costs[0]):.3f}, peer {_mean(costs[1]):.3f}")
    ratios = [scale * b / a for a, b in zip(*costs, strict=True)]
    memory = theirs[-1]["peak"] / mine[-1]["peak"]
    return make_row(name, ratios, equal=True, memory_ratio=memory, target=target)


def pace(quick: bool) -> tuple[int, int]:
    """Steps before the clock, and blocks on it."""
    return (1, 1) if quick else (WARM, ROUNDS)


def core() -> int | None:
    """The core that both sides are pinned to: they take turns on it."""
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def peer_python(name: str) -> Path:
    """The interpreter of a peer's environment."""
    python = ROOT / ".peers" / name / "bin" / "python"
    if not python.exists():
        sys.exit(f"no environment of peer {name}: run 'make peers' first")
    return python


def peer_version(name: str, package: str = "trl") -> str:
    """The version pinned in ``benchmarks/peers/NAME.txt``."""
    lines = (HERE / "peers" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{package}=="))


def agree(name: str, ours: Told, theirs: Told, tolerance: float) -> None:
    """Every loss of one block within ``tolerance`` of the other side's."""
    pairs = list(zip(ours["losses"], theirs["losses"], strict=True))
    apart = max(abs(a - b) for a, b in pairs)
    assert apart <= tolerance, f"{name}: losses differ by {apart:.1e}: {pairs}"


def _costs(told: Sequence[Told], steps: int) -> list[float]:
    """CPU seconds a step of each block, with a step's share of what is done once."""
    once = told[0]["setup"] / steps
    return [block["seconds"] / len(block["losses"]) + once for block in told[1:]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
