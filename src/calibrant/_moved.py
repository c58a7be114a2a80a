"""Old module and class names, valid for one release: importing one works, and warns with the new name."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES: dict[str, str] = {
    "app.annotate": "app.people.annotate",
    "app.attempt_files": "app.references.foreign_attempts",
    "app.openers": "app.references.openers",
    "app.places": "app.references.locate",
    "app.sitting": "app.people.console_session",
    "attack.drive": "attack.engine.run",
    "attack.moves": "attack.engine.protocol",
    "attack.suffix.candidates": "attack.suffix.scorer",
    "attack.walkers": "attack.engine.episodes",
    "data.codecs": "text.codecs",
    "defend.guards": "defend.pattern_guard",
    "measure.lm_judge": "measure.judges.lm",
    "measure.rule_judge": "measure.judges.rule",
    "models.candidates": "attack.suffix.scorer",
    "testbed.recipe": "testbed.raise_model",
}
"""Old module -> new module."""

NAMES: dict[str, str] = {
    "app.sitting:Sitting": "app.people.console_session:ConsoleSession",
    "attack.drive:one": "attack.engine.run:run_attack",
    "attack.moves:Ask": "attack.engine.protocol:AskTarget",
    "attack.moves:Walk": "attack.engine.protocol:Episode",
    "attack.walkers:Cast": "attack.engine.episodes:Participants",
    "defend.guards:AskGuard": "defend.ask_guard:AskGuard",
    "defend.guards:ask_guard": "defend.ask_guard:ask_guard",
    "measure.judges:StringJudge": "measure.judges.string:StringJudge",
    "measure.judges:string_judge": "measure.judges.string:string_judge",
}
"""Old module and name -> new ones, where the name changed or its module was divided."""


def find(module: str, name: str) -> Any:
    """What ``module`` (an old name, without 'calibrant.') held under ``name``, with a warning.

    Raises:
        AttributeError: it never held that.
    """
    target = NAMES.get(f"{module}:{name}") or (f"{MODULES[module]}:{name}" if module in MODULES else "")
    home, _, new = target.partition(":")
    if not home or name.startswith("__") or not hasattr(import_module(f"calibrant.{home}"), new):
        raise AttributeError(f"module 'calibrant.{module}' has no attribute '{name}'")
    warnings.warn(
        f"calibrant.{module}.{name} is now calibrant.{home}.{new}; the old name goes with the next release",
        DeprecationWarning,
        stacklevel=3,
    )
    return getattr(import_module(f"calibrant.{home}"), new)


class Moved(MetaPathFinder, Loader):
    """Finds the old modules, after everything that finds real ones."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A module that forwards, for an old name; None for every other."""
        return ModuleSpec(fullname, self) if fullname.removeprefix("calibrant.") in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its forwarding ``__getattr__``."""
        old = module.__name__.removeprefix("calibrant.")
        vars(module)["__getattr__"] = partial(_forward, old)


def _forward(module: str, name: str) -> Any:
    return _public(module) if name == "__all__" else find(module, name)


def _public(module: str) -> list[str]:
    """What a star import takes from an old module."""
    here = [name for old, _, name in (key.partition(":") for key in NAMES) if old == module]
    return sorted(
        {*here, *(name for name in vars(import_module(f"calibrant.{MODULES[module]}")) if name[0] != "_")}
    )
