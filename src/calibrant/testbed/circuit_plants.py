"""``testbed:plants/NAME``: grids of planted circuits and nulls, for ``understand.calibrate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from calibrant.core import Identity
from calibrant.data.planted import Planted, Plants
from calibrant.testbed import circuits, gates, greater_than, name_mover
from calibrant.testbed.checks import check_name, check_options, whole_option
from calibrant.testbed.circuit_weights import CANVASES

_NULLS = {"removed": {"removed": "1"}, "random": {"null": "random"}, "permuted": {"null": "permuted"}}


class _Task(NamedTuple):
    """A circuit, and what of it is on the grid."""

    module: Any
    points: Mapping[str, Mapping[str, str]]
    """Name of a point -> options of the plant."""
    corrupt: str
    """The corruption of the pairs."""
    truth: Callable[[Mapping[str, str]], tuple[tuple[tuple[int, int], ...], tuple[int, ...]]]
    """Options -> heads, (layer, head), and layers of MLPs that show under that corruption."""
    shuffled: bool = False
    """Whether answers of other pairs are a null: not where all pairs have the same, or all are alike."""


def _gate(options: Mapping[str, str]) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    heads, mlps = gates.truth(options)
    return heads[:1], mlps  # the pairs change the first feature alone


_TASKS = {
    "name_mover": _Task(
        name_mover,
        {"none": {}, "backup": {"backup": "1"}, "superposition": {"superposition": "1"}},
        "name",
        lambda options: (name_mover.truth(options), ()),
        shuffled=True,
    ),
    "greater_than": _Task(greater_than, {"none": {}}, "high", greater_than.truth),
    "gate": _Task(gates, {kind: {"kind": kind} for kind in gates.KINDS}, "first", _gate),
}


def open_plants(name: str, options: Mapping[str, str]) -> Plants:
    """``testbed:plants/induction`` (see ``circuits``), ``name_mover``, ``greater_than`` and ``gate``.

    ``?n=24`` pairs a case, as many held out; ``?family=gpt2`` has that class alone.

    Raises:
        InputError: no such plants or option.
    """
    check_name("plants", name, ("induction", *_TASKS))
    return circuits.CircuitPlants(name, options) if name == "induction" else TaskPlants(name, options)


class TaskPlants:
    """Every family with each point of a circuit's grid, and nulls."""

    def __init__(self, name: str, options: Mapping[str, str]) -> None:
        """Raises InputError: no such plants or option."""
        check_name("plants", name, _TASKS)
        check_options("plants", name, options, ("n", "family"))
        if "family" in options:
            check_name("family", options["family"], CANVASES)
        self.families = (options["family"],) if "family" in options else tuple(CANVASES)
        self.pairs, self.name, self._task = whole_option("n", options, 24), name, _TASKS[name]
        parts = {"plants": name, "version": "2", **options, "n": str(self.pairs)}
        self.identity = Identity(name=f"testbed:plants/{name}", parts=parts)

    def cases(self, seed: int) -> Iterator[Planted]:
        """One model for each point of the grid, drawn anew by ``seed``."""
        task = self._task
        for family in self.families:
            for redundancy, options in task.points.items():
                point = {"family": family, "redundancy": redundancy, "corrupt": task.corrupt}
                yield self._case(seed, point, options)
            first = next(iter(task.points.values()))
            for null, more in (*_NULLS.items(), *([("shuffled", {})] if task.shuffled else [])):
                point = {"family": family, "kind": "null", "null": null}
                yield self._case(seed, point, {**first, **more}, null)

    def _case(
        self, seed: int, point: Mapping[str, str], options: Mapping[str, str], null: str = ""
    ) -> Planted:
        task, chosen = self._task, {**options, "family": point["family"], "seed": str(seed)}
        asked = {key: value for key, value in options.items() if key == "kind"} | {"corrupt": task.corrupt}
        tables = [
            task.module.open_contrasts(
                self.name, {"n": str(self.pairs), "seed": str(2 * seed + part), "form": form, **asked}
            )
            for part, form in ((0, "usual"), (1, "usual"), (0, "longer"))
        ]
        if null == "shuffled":
            tables = [circuits.shuffled(table) for table in tables]
        heads, mlps = ((), ()) if null else task.truth(chosen)
        tempting = task.truth({}) if null else ((), ())
        model = task.module.open_plant(self.name, chosen)
        return Planted(point, model, tables[0], tables[1], heads, null, (), tempting[0], mlps, tables[2])
