"""What layers cost where they are asked in order, up to the first that blocks: time and calls.

The time of a stack is a game as its successes are: a set of layers, in their order, takes the time of each
layer that no earlier one of the set spares. A layer j with m earlier ones that block this text takes its time
t_j in an order of joining in which it comes before all of them, 1 of m + 1, so its Shapley value gets
t_j / (m + 1); each of the m, where it comes first of them and after j, takes it away: - t_j / (m (m + 1)).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibrant.core import Estimate, Run
from calibrant.core.digest import canonical
from calibrant.defend._layer import Layer
from calibrant.stats import mean
from calibrant.stats.per import added, per

Floats = NDArray[np.float64]


class Asked(NamedTuple):
    """Texts of one side, attempts or benign ones, as the layers were asked about them."""

    ms: Floats
    """(texts, layers): milliseconds, in the order of serving: input layers first."""
    stops: NDArray[np.bool_]
    """(texts, layers): what is not 'yes'."""
    groups: list[str]
    """Their clusters."""
    batches: list[str] | None = None
    """What was asked at once, and shares one time; None: each text has its own."""

    def spared(self) -> NDArray[np.intp]:
        """(texts, layers): earlier layers that block it; where there is one, the layer is not asked."""
        return np.cumsum(self.stops, 1) - self.stops

    def parts(self, names: Sequence[str]) -> Iterator[tuple[str, Floats]]:
        """Milliseconds of each text (texts,): of all layers, and alone, without and as owed by each."""
        before = self.spared()
        whole = (self.ms * (before == 0)).sum(1)
        yield "all", whole
        for at, name in enumerate(names):
            later = np.arange(len(names)) > at
            stopped = self.stops[:, at, None] & later  # what this one spares, maybe beside others
            others = np.where(np.arange(len(names)) == at, 0.0, self.ms)
            yield f"alone/{name}", self.ms[:, at]
            yield f"without/{name}", (others * (before - stopped == 0)).sum(1)
            own = self.ms[:, at] / (before[:, at] + 1)
            saved = np.where(stopped, self.ms / np.maximum(before * (before + 1), 1), 0.0).sum(1)
            yield f"shapley/{name}", own - saved

    def calls(self) -> Floats:
        """(texts, layers): 1 where the layer is asked."""
        return np.asarray(self.spared() == 0, np.float64)


class Traffic(NamedTuple):
    """Attempts, and how many benign requests come with each."""

    attempts: Asked
    benign: Asked
    names: Sequence[str]
    """Of the layers, in the order of serving."""
    benign_per_attempt: float
    level: float

    def times(self, prevented: Mapping[str, Estimate]) -> dict[str, Estimate]:
        """``ms/SIDE/PART`` of a text, and ``ms_per_prevented/PART`` over what each prevents of an attempt."""
        found, parts = dict[str, Estimate](), dict[str, list[Floats]]()
        for side, asked in (("attempts", self.attempts), ("benign", self.benign)):
            for part, values in asked.parts(self.names):
                known = asked.batches or asked.groups
                one = mean(values.tolist(), clusters=known, level=self.level, better="lower", unit="ms")
                found[f"ms/{side}/{part}"] = one if part.startswith("shapley/") else _time(one)
                parts.setdefault(part, []).append(values)
        for name in ("", *self.names):
            both = parts[f"shapley/{name}" if name else "all"]
            told = f"ms_per_prevented/{name}" if name else "ms_per_prevented"
            found[told] = self._per(both, None, prevented[name], "ms")
        return found

    def calls(self, prevented: Mapping[str, Estimate]) -> dict[str, Estimate]:
        """``calls_per_prevented/LAYER``: how often it is asked for each success that it is owed."""
        sides = self.attempts.calls(), self.benign.calls()
        return {
            f"calls_per_prevented/{name}": self._per(
                [side[:, at] for side in sides], (0.0, 1.0), prevented[name], "call"
            )
            for at, name in enumerate(self.names)
        }

    def _per(
        self, sides: Sequence[Floats], bounds: tuple[float, float] | None, prevented: Estimate, unit: str
    ) -> Estimate:
        """The cost of an attempt and its benign requests, over what is prevented of an attempt."""
        sizes = (self.attempts, self.benign)
        groups = [side.batches or side.groups if unit == "ms" else side.groups for side in sizes]
        wide = (1 + self.level) / 2
        first, second = (
            mean(values.tolist(), clusters=known, level=wide, bounds=bounds, better="lower", unit=unit)
            for values, known in zip(sides, groups, strict=True)
        )
        cost = added(first, second, self.benign_per_attempt)
        return per(cost, prevented, level=self.level, better="lower", unit=unit)


def _time(one: Estimate) -> Estimate:
    """What is no saving is not below 0."""
    return one if one.low is None else one.model_copy(update={"low": max(0.0, one.low)})


def batches_of(texts: int, batch: int) -> list[str] | None:
    """Which texts are asked about at once: their times are one number, and show nothing of each."""
    return None if batch == 1 else [str(at // batch) for at in range(texts)]


def traffic_of(
    stack: Sequence[Layer], asked: Sequence[Asked], benign_per_attempt: float, level: float
) -> Traffic:
    """Of attempts and benign texts, with columns in the order of the stack, in that of serving."""
    order = sorted(range(len(stack)), key=lambda at: stack[at].side == "output")
    attempts, benign = (side._replace(ms=side.ms[:, order], stops=side.stops[:, order]) for side in asked)
    return Traffic(attempts, benign, [stack[at].name for at in order], benign_per_attempt, level)


def write_times(times: Mapping[str, Estimate], run: Run) -> None:
    """'timing.jsonl': {part, ms, low, high} each; apart from the metrics, which are alike on each machine."""
    lines = [
        canonical({"part": name, "ms": one.value, "low": one.low, "high": one.high}) + b"\n"
        for name, one in times.items()
    ]
    run.artifact("timing.jsonl").write_bytes(b"".join(lines))
