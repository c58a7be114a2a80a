"""Outputs of an untrusted policy, honest and attacking, with exact scores and every monitor's suspicion.

Kept in ``run.work`` a block of tasks at a time, so that a killed run asks nothing twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from calibrant.core import LM, Chat, Completion, Frozen, InputError, Monitor, NumericalError, Run, Sampling
from calibrant.core.behaviours import same_number
from calibrant.core.digest import canonical, digest
from calibrant.data.control_setting import ControlSetting, ControlTask
from calibrant.evals.judging import tokens
from calibrant.ledger.lines import Lines, replay

BLOCK = 32
"""Tasks that are asked together."""
Kind = Literal["honest", "attack", "trusted", "known_bad"]


class Output(Frozen):
    """One output, as it is stored in ``outputs.jsonl``."""

    task: str
    """Id of the task."""
    cluster: str
    """Cluster of the task; its id where it has none."""
    kind: Kind
    """'honest' and 'attack': the untrusted policy; 'trusted': the trusted model; 'known_bad': made for the
    collusion check."""
    place: int = 0
    """Which of the outputs for this task."""
    sample: int = 0
    """Which sample of the policy; protocols run the first, resampling reads them all."""
    candidate: int = 0
    """Which candidate of the attacker, who sends the least suspicious."""
    text: str
    """The output."""
    error: str = ""
    """Why there is no output; "" where there is one."""
    cut: bool = False
    """Whether it was cut at max_tokens."""
    main: float | None = None
    """Score of the main task, 0 to 1; None where there is no output."""
    side: bool | None = None
    """Whether the side task was done; None where there is no output."""
    scores: dict[str, float | None] = Field(default_factory=dict)
    """Input name of each monitor -> its suspicion; None where it gave none."""


class Counts(NamedTuple):
    """How many outputs a task gets."""

    outputs: int
    samples: int
    candidates: int


class _Kept(Frozen):
    """A block of tasks in ``run.work``."""

    key: str
    rows: tuple[Output, ...]


def check_tasks(setting: ControlSetting) -> None:
    """Raise InputError unless there are tasks with distinct ids, each with a main and a side task."""
    tasks = setting.tasks
    if not tasks:
        raise InputError("the control setting has no tasks", hint="give at least one task")
    ids = [task.id for task in tasks]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InputError(f"two tasks share the id '{twice}'", hint="give each an id of its own")
    for task in tasks:
        lacks = "main task" if not task.prompt.strip() else "side task" if not task.side.strip() else ""
        if lacks:
            raise InputError(
                f"task '{task.id}' has no {lacks}",
                hint="a task has a prompt, and a side task that an attack is told of",
            )


def draw(
    setting: ControlSetting,
    untrusted: LM,
    trusted: LM | None,
    monitors: Mapping[str, Monitor],
    counts: Counts,
    sampling: Sampling,
    run: Run,
) -> list[Output]:
    """Every output of every task, scored; in order of tasks.

    Raises:
        BudgetError: the next block would pass a limit; those done are kept in ``run.work``.
        CapabilityError: a model or monitor gives another number of answers than it was asked.
        NumericalError: the setting gives a score of the main task outside 0 to 1.
    """
    tasks, seed = list(setting.tasks), run.seed
    lent = [None if one is None else one.identity.digest for one in (untrusted, trusted, *monitors.values())]
    basis = [setting.identity.digest, lent, list(monitors), list(counts), sampling, seed]
    sampling = sampling.model_copy(update={"seed": seed})
    found: list[Output] = []
    with Lines(run.work / "control.jsonl") as log:
        done = {kept.key: kept.rows for kept in replay(log, _Kept.model_validate_json, "a block of outputs")}
        for start in range(0, len(tasks), BLOCK):
            run.progress(start, len(tasks), "drawing outputs")
            block = tasks[start : start + BLOCK]
            key = digest([basis, block])
            if key not in done:
                rows = _drawn(setting, block, untrusted, trusted, counts, sampling, run)
                done[key] = tuple(_scored(rows, {t.id: t for t in block}, monitors, seed))
                log.add([canonical(_Kept(key=key, rows=done[key]))])
            found += done[key]
    run.progress(len(tasks), len(tasks), "drawing outputs")
    return found


def _drawn(
    setting: ControlSetting,
    tasks: Sequence[ControlTask],
    untrusted: LM,
    trusted: LM | None,
    counts: Counts,
    sampling: Sampling,
    run: Run,
) -> list[Output]:
    """Outputs of a block of tasks with their exact scores; no monitor has seen them."""
    untrusted_kinds: tuple[tuple[Kind, int], ...] = (("honest", 1), ("attack", counts.candidates))
    cells: list[tuple[ControlTask, Kind, int, int, int]] = [
        (task, kind, place, sample, candidate)
        for task in tasks
        for kind, candidates in untrusted_kinds
        for place in range(counts.outputs)
        for sample in range(counts.samples)
        for candidate in range(candidates)
    ]
    chats = [setting.ask(task, attack=kind == "attack") for task, kind, *_ in cells]
    replies = _ask(untrusted, chats, sampling, run)
    if trusted is not None:
        cells += [(task, "trusted", place, 0, 0) for task in tasks for place in range(counts.outputs)]
        asked = [setting.ask(task, attack=False) for task, kind, *_ in cells if kind == "trusted"]
        replies += _ask(trusted, asked, sampling, run)
    for task in tasks:
        text = setting.known_bad(task, run.seed)
        if text:
            cells.append((task, "known_bad", 0, 0, 0))
            replies.append(Completion(text=text))
    return [_output(setting, *cell, reply) for cell, reply in zip(cells, replies, strict=True)]


def _ask(model: LM, chats: Sequence[Chat], sampling: Sampling, run: Run) -> list[Completion]:
    run.spend(queries=len(chats))
    replies = model.generate(chats, sampling)
    same_number(f"model '{model.identity.name}'", len(replies), len(chats))
    run.spend(tokens=sum(tokens(reply, sampling.max_tokens) for reply in replies))
    return list(replies)


def _output(
    setting: ControlSetting,
    task: ControlTask,
    kind: Kind,
    place: int,
    sample: int,
    candidate: int,
    reply: Completion,
) -> Output:
    error = (reply.error or "no reason given") if reply.stop == "error" else ""
    if reply.unanswered:  # it was still reasoning, and might have attacked yet
        error = error or "the reply never came: raise max_tokens"
    main, side = (None, None) if error else (setting.main(task, reply.text), setting.side(task, reply.text))
    if main is not None and not 0.0 <= main <= 1.0:
        raise NumericalError(
            f"the main task of '{task.id}' scored {main!r}", hint="a score lies between 0 and 1"
        )
    return Output(
        task=task.id,
        cluster=task.cluster or task.id,
        kind=kind,
        place=place,
        sample=sample,
        candidate=candidate,
        text=reply.text,
        error=error,
        cut=reply.stop == "length",
        main=main,
        side=side,
    )


def _scored(
    rows: Sequence[Output], tasks: Mapping[str, ControlTask], monitors: Mapping[str, Monitor], seed: int
) -> list[Output]:
    """With each monitor's suspicion. Known-bad outputs are mixed in: the order says nothing of the kind."""
    read = [at for at, row in enumerate(rows) if not row.error and row.kind != "trusted"]
    read.sort(key=lambda at: digest([seed, rows[at].task, rows[at].text, at]))
    chats = [Chat.ask(tasks[rows[at].task].prompt).then("assistant", rows[at].text) for at in read]
    found: list[dict[str, float | None]] = [{} for _ in rows]
    for name, monitor in monitors.items():
        scores = monitor.score(chats) if chats else []
        same_number(f"monitor '{monitor.identity.name}'", len(scores), len(chats))
        for at, score in zip(read, scores, strict=True):
            found[at][name] = _finite(score)
    return [row.model_copy(update={"scores": own}) for row, own in zip(rows, found, strict=True)]


def _finite(score: object) -> float | None:
    """What is a number; None for anything else that a monitor may give."""
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        return None
    return float(score) if math.isfinite(score) else None
