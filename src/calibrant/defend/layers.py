"""Layer lab: what each guard of a stack adds, which ones fail together, and what each one costs.

Source: Shapley (1953), "A value for n-person games"; leave-one-out and joint failure as in the safety
engineering of redundant barriers; staged attacks on a pipeline: STACK, McKenzie et al. 2025 (arXiv
2506.24068).

1. The attack and the benign requests are those of the model *without* guards. Every layer is asked about
   every attempt, whatever the others say (shadow mode), so each one's verdict is known beside all others.
2. An attempt gets through a set of layers where the model did harm and each of them says 'yes'. So the
   success of any set is known without another attack: alone, all but one, all.
3. The Shapley value of a layer is exact for any number of layers: an attempt that m layers stop counts 1 / m
   for each. They add up to what the stack prevents; what it costs on benign requests is split alike.
4. Layers fail together where more gets through all than independent layers would let through: rho above 1
   (``calibrant.stats.together``).
5. 'No' and 'unknown' stop alike; ``unread_rate`` says how often a layer could not answer.
6. Costs go over what is prevented: benign requests that are blocked, calls and milliseconds for each success
   that a layer is owed, in traffic of ``benign_per_attempt``. Calls and times are those of serving: layers
   in their order, up to the first that blocks (``defend/_costs.py``).
7. Safety training counts as one more layer where the same attempts were sent to the trained model
   (``attack.replay``): it lets an attempt pass that succeeds there, too. Guards are asked about the replies
   of the model before. An undetermined replay is a missing outcome, and widens intervals.

What this shows is an upper bound of the defence: who knows the layers writes round them. Attack the stack
itself (``defended:FILE.toml#MODEL``) for that.

Command: ``calibrant run STUDY.toml`` with ``use = "defend.layers"`` and inputs system, attempts, benign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from calibrant.core import (
    LM,
    Attempt,
    ConfigError,
    Estimate,
    Frozen,
    InputError,
    Quiet,
    Result,
    Run,
    technique,
    unknown,
)
from calibrant.core.attempt import HIT
from calibrant.core.digest import canonical
from calibrant.core.figure_data import FigureData, by_names
from calibrant.data.rows import Attempts, Goals
from calibrant.defend._costs import Asked, batches_of, traffic_of, write_times
from calibrant.defend._hits import NUMBER, Hits, Passes, outcomes
from calibrant.defend._layer import Caller
from calibrant.defend._layers_table import figures, table, times_table
from calibrant.defend._over_blocks import blocked_for_each, over_blocks, wide
from calibrant.defend._trained import Meaning, answers, stands
from calibrant.defend.defended import Defended
from calibrant.formats.redact import is_covered
from calibrant.stats import rate
from calibrant.stats.together import UNIT, failing_together


def _usual_name(value: object) -> bool:
    return value == "training"


def _one_each(value: object) -> bool:
    return value == 1.0


def _usual_meaning(value: object) -> bool:
    return value == "refused"


class Layers(Frozen):
    """Settings of the lab."""

    level: float = Field(default=0.95, gt=0, le=0.999999)
    """Coverage of every interval."""
    pairs: int = Field(default=12, ge=2)
    """Most layers whose pairs each get a ``rho``; that of all layers together is always given."""
    batch: int = Field(default=64, ge=1)
    """Attempts that a layer is asked about at once. Times are a text's share of its batch: 1 gives what one
    user waits."""
    benign_per_attempt: float = Field(default=1.0, ge=0, le=1e9, allow_inf_nan=False, exclude_if=_one_each)
    """Benign requests for each attempt in the traffic whose costs are told, such as 1000."""
    trained_name: str = Field(default="training", pattern=r"^[^\W_][\w .:-]*$", exclude_if=_usual_name)
    """Name of the layer that ``trained`` makes."""
    benign_success: Meaning = Field(default="refused", exclude_if=_usual_meaning)
    """What a success among ``trained_benign`` is by its judge: refused, as measure.over_refusal asks, or
    answered, as a judge of helpfulness asks; only the latter sees broken text."""


class LayersResult(Result):
    """``attempt_success_rate`` (no guards), ``/all`` (all of them), ``/alone/LAYER``, ``/without/LAYER``;
    ``marginal``, ``shapley``, ``bypass_rate``, ``unread_rate`` and ``rho``; ``over_block_rate`` likewise;
    ``over_block_per_prevented`` and ``calls_per_prevented``. Artefacts 'layers.md', a table to hand on,
    'verdicts.jsonl', and 'timing.md' and 'timing.jsonl', milliseconds by the same parts."""

    def figure_data(self) -> tuple[FigureData, ...]:
        """What each layer adds; which pairs fail together."""
        return (*figures(self.metrics), *by_names(self.metrics))


@technique(version=2)  # version 1 told no costs
def layers(
    system: LM,
    attempts: Attempts,
    benign: Attempts,
    goals: Goals | None = None,
    trained: Attempts | None = None,
    trained_benign: Attempts | None = None,
    config: Layers = Layers(),
    run: Run = Quiet(),
) -> LayersResult:
    """Ask each layer of ``system`` about each attempt on the model without guards.

    ``goals`` name clusters of goals that are not independent; without them each goal is one. ``trained`` and
    ``trained_benign`` are replays of both sides on the model after safety training, which is then a layer.

    Raises:
        InputError: ``system`` has no layers; a side has no attempt, or some that went through guards; or
            replays are of one side alone, do not cover the attempts, or are not word for word.
        ConfigError: a guard has the name of the trained layer, or a '+' in its name.
    """
    if not isinstance(system, Defended) or not system.layers:
        raise InputError(
            "the system has no layers", hint="give defended:FILE.toml#MODEL, a model behind a stack of guards"
        )
    if odd := [layer.name for layer in system.layers if "+" in layer.name]:
        raise ConfigError(
            f"the layer '{odd[0]}' has a '+' in its name, which joins the names of pairs",
            hint="name it otherwise",
        )
    _check(attempts.rows, "attempts")
    _check(benign.rows, "benign")
    same = {(a.id, a.chat) for a in attempts.rows} & {(a.id, a.chat) for a in benign.rows}
    if same:
        raise InputError(
            f"{len(same)} attempts are in both 'attempts' and 'benign'",
            hint="give an attack on harmful goals, and measure.over_refusal on look-alikes of them",
        )
    learnt = _learnt(system, attempts, benign, trained, trained_benign, config)
    known = {goal.id: goal.cluster for goal in goals or ()}
    if known and not any(a.goal_id in known for a in attempts.rows):
        raise InputError("no attempt is after any of the goals", hint="give the goals of the attack")
    groups = [[known.get(a.goal_id) or a.goal_id for a in rows] for rows in (attempts.rows, benign.rows)]
    count = len(attempts.rows)
    sides = [_asked(system, rows.rows, config, run) for rows in (attempts, benign)]
    verdicts, unread = (
        np.concatenate([getattr(one, part) for one in sides]) for part in ("passes", "unread")
    )
    names = [layer.name for layer in system.layers]
    if learnt is not None:
        verdicts, names = np.column_stack([verdicts, learnt]), [*names, config.trained_name]
        unread = np.column_stack([unread, learnt == 0.5])
    _write([*attempts.rows, *benign.rows], verdicts, names, run)
    harmed = [HIT[a.outcome] for a in attempts.rows]
    hits = Hits(harmed, verdicts[:count], groups[0], config.level)
    metrics = _attacked(hits, names, config.pairs)
    metrics |= over_blocks(verdicts[count:], groups[1], names, config.level)
    for name, missing in zip(names, unread.T, strict=True):
        metrics[f"unread_rate/{name}"] = rate(
            missing.tolist(), clusters=[*groups[0], *groups[1]], level=config.level, better="lower",
            unit="attempt",
        )  # fmt: skip
    owed = Hits(harmed, verdicts[:count], groups[0], wide(config.level)).owed(names)
    metrics |= blocked_for_each(verdicts[count:], groups[1], owed, config.benign_per_attempt, config.level)
    metrics |= _spent(system, sides, groups, owed, config, run)
    run.artifact("layers.md").write_text(table(metrics, names, _traffic(config)), encoding="utf-8")
    told = _caveats(hits, verdicts[count:], names)
    if learnt is not None:
        told.append(
            f"'{config.trained_name}' is one replay of each attempt: another seed may go otherwise, and "
            "output layers read what the model said before its training"
        )
    return LayersResult(metrics=metrics, caveats=tuple(told))


def _learnt(
    system: Defended,
    attempts: Attempts,
    benign: Attempts,
    trained: Attempts | None,
    trained_benign: Attempts | None,
    config: Layers,
) -> Passes | None:
    """What training lets pass, of both sides; None where there are no replays."""
    if trained is None and trained_benign is None:
        return None
    if trained is None or trained_benign is None:
        given, lost = ("trained", "trained_benign") if trained else ("trained_benign", "trained")
        raise InputError(
            f"'{given}' is given without '{lost}': a layer has what it stops and what it costs",
            hint="send both sides to the trained model with attack.replay, only = 'all'",
        )
    if config.trained_name in [layer.name for layer in system.layers]:
        raise ConfigError(
            f"trained_name = '{config.trained_name}' is the name of a guard", hint="give another name"
        )
    _check(trained.rows, "trained")
    _check(trained_benign.rows, "trained_benign")
    passed = stands(attempts.rows, trained.rows, "attempts")
    passed += answers(benign.rows, trained_benign.rows, config.benign_success)
    return np.array([NUMBER[one] for one in passed])


def _check(rows: Sequence[Attempt], side: str) -> None:
    if not rows:
        raise InputError(f"'{side}' holds no attempt", hint="give attempts.jsonl of a run without guards")
    hidden = sum(is_covered(a.completion.text) or is_covered(a.chat.last_user) for a in rows)
    if hidden:
        raise InputError(
            f"{hidden} of {len(rows)} attempts of '{side}' are redacted: no guard can read them",
            hint="give attempts.jsonl as the ledger holds it",
        )
    guarded = sum(bool(a.layers) or a.completion.stop == "blocked" for a in rows)
    if guarded:
        raise InputError(
            f"{guarded} of {len(rows)} attempts of '{side}' went through guards already",
            hint="attack and measure the model itself: what it would have said is not known here",
        )


class _Said(NamedTuple):
    """What each layer says of each text: (texts, layers), in the order of the stack."""

    passes: Passes
    unread: NDArray[np.bool_]
    ms: NDArray[np.float64]


def _asked(system: Defended, rows: Sequence[Attempt], config: Layers, run: Run) -> _Said:
    """Every layer about every text of a side."""
    stack = system.layers
    passes = np.zeros((len(rows), len(stack)))
    unread, times = np.zeros(passes.shape, np.bool_), np.zeros(passes.shape)
    for column, layer in enumerate(stack):
        for at in range(0, len(rows), config.batch):
            part = rows[at : at + config.batch]
            chats = [
                a.chat if layer.side == "input" else system.with_reply(a.chat, a.completion) for a in part
            ]
            for place, said in enumerate(Caller(layer).verdicts(chats), at):
                passes[place, column] = said.verdict.answer == "yes"
                unread[place, column] = said.verdict.answer == "unknown"
                times[place, column] = said.ms or 0.0
            run.progress(column * len(rows) + at + len(part), passes.size, f"layer '{layer.name}'")
    return _Said(passes, unread, times)


def _write(rows: Sequence[Attempt], passes: Passes, names: Sequence[str], run: Run) -> None:
    """'verdicts.jsonl': which layers stop each attempt, and of which that is not known, if any."""
    lines = []
    for attempt, row in zip(rows, passes.tolist(), strict=True):
        line: dict[str, Any] = {"attempt": attempt.id, "goal": attempt.goal_id}
        line["stopped_by"] = [name for name, passed in zip(names, row, strict=True) if passed == 0]
        if 0.5 in row:
            line["not_known"] = [name for name, passed in zip(names, row, strict=True) if passed == 0.5]
        lines.append(canonical(line) + b"\n")
    run.artifact("verdicts.jsonl").write_bytes(b"".join(lines))


def _traffic(config: Layers) -> str:
    return f"Costs are those of traffic with {config.benign_per_attempt:g} benign for each attempt."


def _spent(
    system: Defended,
    sides: Sequence[_Said],
    groups: Sequence[list[str]],
    owed: Mapping[str, Estimate],
    config: Layers,
    run: Run,
) -> dict[str, Estimate]:
    """Calls for each success; times, which are another machine's tomorrow, go to files."""
    asked = [
        Asked(side.ms, side.passes == 0, known, batches_of(len(known), config.batch))
        for side, known in zip(sides, groups, strict=True)
    ]
    traffic = traffic_of(system.layers, asked, config.benign_per_attempt, config.level)
    times = traffic.times(owed)
    write_times(times, run)
    at_once = "one text" if config.batch == 1 else f"{config.batch} texts at once, a text's share of them,"
    told = f"{_traffic(config)} Milliseconds of this machine, {at_once} each."
    run.artifact("timing.md").write_text(times_table(times, traffic.names, told), encoding="utf-8")
    return traffic.calls(owed)


def _attacked(hits: Hits, names: Sequence[str], most: int) -> dict[str, Estimate]:
    every = list(range(len(names)))
    metrics = {"attempt_success_rate": hits.success([]), "attempt_success_rate/all": hits.success(every)}
    for at, name in enumerate(names):
        others = [column for column in every if column != at]
        metrics[f"attempt_success_rate/alone/{name}"] = hits.success([at])
        metrics[f"attempt_success_rate/without/{name}"] = hits.success(others)
        metrics[f"marginal/{name}"] = hits.marginal(at, others)
        metrics[f"shapley/{name}"] = hits.share(at)
        left = hits.done & (hits.behind(others) == 1)
        metrics[f"bypass_rate/{name}"] = (
            rate(
                outcomes(hits.passes[left, at]), clusters=[hits.groups[row] for row in np.flatnonzero(left)],
                level=hits.level, better="lower", unit="success",
            )
            if left.any()
            else unknown("the other layers let no success pass", n=len(hits.harmed), unit="success")
        )  # fmt: skip
    if len(names) > 1:
        metrics["rho/all"] = _together(hits, every)
    if 2 < len(names) <= most:
        for first, second in combinations(every, 2):
            metrics[f"rho/{names[first]}+{names[second]}"] = _together(hits, [first, second])
    return metrics


def _together(hits: Hits, columns: Sequence[int]) -> Estimate:
    chosen = hits.passes[:, list(columns)]
    rows = np.flatnonzero(hits.done & (chosen != 0.5).all(1))
    if not len(rows):
        return unknown("no attempt succeeded without guards", n=len(hits.harmed), unit=UNIT)
    return failing_together(chosen[rows] == 1, clusters=[hits.groups[row] for row in rows], level=hits.level)


def _caveats(hits: Hits, benign: Passes, names: Sequence[str]) -> list[str]:
    told = [
        "an upper bound of the defence: who made these attempts knew no layer; attack the stack itself",
        "that the attempts were made on the model behind these layers is taken on trust",
    ]
    every = range(len(names))
    for at, name in enumerate(names):
        alone = hits.only(at, [column for column in every if column != at])[hits.done]
        if len(names) > 1 and not alone.any():
            cost = int((benign[:, at] == 0).sum())
            told.append(
                f"'{name}' stops no success that the others let pass, and {cost} of {len(benign)} benign ones"
            )
    if not hits.done.any():
        told.append("no attempt succeeded without guards: nothing is known of what they stop")
    return told
