"""Path patching: what a head or MLP does by way of given readers alone, all else as in the run.

For every sender two questions, with the receivers fixed (queries, keys or values of heads, MLPs, the logits):

    denoise  [m(corrupt with its clean write at the receivers) - m(corrupt)] / [m(clean) - m(corrupt)]
    noise    [m(clean) - m(clean with its corrupted write at the receivers)] / [m(clean) - m(corrupt)]

Patching a head shows all that it does; this shows what it does through that query, that key, or straight to
the answer. What may lie between sender and receivers is a choice, and the two papers differ: nothing
(``direct``: Goldowsky-Dill et al. 2023, 2304.05969), or MLPs, which work anew while heads are held (``mlps``:
Wang et al. 2022, 2211.00593). From the receivers on, the model runs as it does.

1. Effects are per pair, and stored. ``found`` is corrected for looking at all senders.
2. Several receivers are changed together; one that a sender does not come before is left alone.
3. Where the corruption does not change the answer, nothing is testable, and the metrics are unknown.

    calibrant show understand.path_patch
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from calibrant.core import Frozen, InputError, OpenLM, Quiet, Result, Run, technique
from calibrant.core.errors import nearest
from calibrant.data.rows import Contrasts
from calibrant.understand._cards import in_words, shipped_card
from calibrant.understand._contrasts import encode
from calibrant.understand._effects import Effects
from calibrant.understand._engine.columns import KINDS
from calibrant.understand._engine.find_graph import graph_of
from calibrant.understand._engine.graph import Graph
from calibrant.understand._engine.paths import path_runs, plain_readings, reaches
from calibrant.understand._engine.readers import LogitDifference


class PathPatching(Frozen):
    """From where to where, by which way, and what counts as found."""

    receivers: tuple[str, ...] = ("logits",)
    """Where senders are read: 'a5.h2<q>', '<k>' or '<v>' (keys and values count their own heads), 'm3',
    'logits'; 'a5.h2' is all three of a head."""
    senders: tuple[str, ...] = ()
    """'a0.h1', 'm0', 'input'; (): all that come before a receiver."""
    through: Literal["direct", "mlps"] = "direct"
    """What may lie between: nothing, MLPs being held as heads are; or MLPs, which work anew."""
    floor: float = Field(default=0.1, ge=0)
    """Least share of the corruption's effect that counts as found."""
    level: float = Field(default=0.05, gt=0, lt=1)
    """Chance of any false find among all senders that is accepted."""
    limit: int | None = Field(default=100, ge=2)
    """Use at most this many pairs, evenly spread. None: all."""

    @field_validator("receivers", "senders")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("name each place once")
        return names

    @field_validator("receivers")
    @classmethod
    def _some(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("give at least one receiver: 'logits', 'a1.h2<k>', ...")
        return names


class PathPatchResult(Result):
    """``denoise/SENDER`` and ``noise/SENDER`` (``a0.h1``, ``m0``, ``input``), ``found/denoise``,
    ``found/noise``, ``total_effect``, ``clean_right``. Artefact 'effects.json'."""


class Sender(NamedTuple):
    """A writer, by its name."""

    name: str


@technique(version=2)  # version 1 counted a pair and its swap twice
def path_patch(
    model: OpenLM, contrasts: Contrasts, config: PathPatching = PathPatching(), run: Run = Quiet()
) -> PathPatchResult:
    """Patch every sender into the receivers of ``model``, in both directions, on pairs of prompts.

    Raises:
        InputError: pairs that cannot be compared, a place that the model does not have, or a sender that
            comes before no receiver.
        CapabilityError: the model's stream is no sum of heads and MLPs, it is in half precision, or not
            causal.
        NumericalError: a patched run is NaN or infinite.
    """
    pairs = encode(model, contrasts, config.limit)
    graph = graph_of(model.module)
    receivers = _receivers(graph, config.receivers)
    senders = _senders(graph, config.senders, receivers)
    read, values = LogitDifference(pairs.answers, pairs.foils), []
    base = []
    for note, ids, other in (
        ("into the corrupted run", pairs.corrupt, pairs.clean),
        ("into the clean run", pairs.clean, pairs.corrupt),
    ):
        found = path_runs(
            model, graph, ids, other, senders, receivers, config.through == "mlps", read,
            lambda done, total, note=note: run.progress(done, total, note),  # type: ignore[misc]
        )  # fmt: skip
        values.append(found.numpy())
        base.append(plain_readings(model, ids, read).numpy())
        passes = 3 * len(senders) + 2 if config.through == "mlps" else len(senders) + 2
        run.spend(queries=passes * len(ids))
    corrupt, clean = base
    cells = [Sender(graph.writers[at]) for at in senders]
    effects = Effects(cells, pairs, np.stack([values[0] - corrupt, clean - values[1]]), clean, corrupt)
    metrics, chances = effects.metrics(config, run.seed)
    effects.write(run, chances)
    way = {
        "direct": "the direct way alone: what goes through an MLP or a head in between is not seen",
        "mlps": "MLPs between sender and receivers work anew: what goes through another head is not seen",
    }
    notes = (
        way[config.through],
        f"{len(cells)} senders, two directions: 'found' is corrected for looking at all, an interval is not",
        _card(model, config),
    )
    return PathPatchResult(metrics=metrics, caveats=(*notes, *graph.notes, *effects.notes))


def _card(model: OpenLM, config: PathPatching) -> str:
    if config.receivers == ("logits",) and config.through == "direct":
        return in_words(shipped_card(), model, "path_logits")
    return "no card: path patching is calibrated on the direct way to the logits"


def _receivers(graph: Graph, names: tuple[str, ...]) -> list[int]:
    """Numbers of readers."""
    known = {reader.name: at for at, reader in enumerate(graph.readers)}
    found: list[int] = []
    for name in names:
        head = re.fullmatch(r"a\d+\.h\d+", name)
        mine = [f"{name}<{kind}>" for kind in KINDS] if head else [name]
        for one in mine:
            if one not in known:
                shared = head and one != mine[0] and mine[0] in known
                raise InputError(
                    f"the model has no receiver '{one}'{nearest(one, known)}",
                    hint="keys and values are fewer than heads here: name them by their own number"
                    if shared
                    else "'a5.h2<q>', 'a5.h2<k>', 'a5.h2<v>', 'm3' or 'logits'",
                )
        found += [known[one] for one in mine]
    return sorted(set(found))


def _senders(graph: Graph, names: tuple[str, ...], receivers: list[int]) -> list[int]:
    """Numbers of writers, each before a receiver."""
    known = {name: at for at, name in enumerate(graph.writers)}
    for name in names:
        if name not in known:
            raise InputError(
                f"the model has no sender '{name}'{nearest(name, known)}", hint="'a0.h1', 'm0' or 'input'"
            )
        if not reaches(graph, known[name], receivers):
            raise InputError(
                f"'{name}' comes before no receiver", hint="choose an earlier sender or a later receiver"
            )
    return [known[name] for name in names] or [
        at for at in range(len(graph.writers)) if reaches(graph, at, receivers)
    ]
