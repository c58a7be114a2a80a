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
    "app.behaviours": "app.references.behaviours",
    "app.console": "app.people.console",
    "app.labelling": "app.people.labelling",
    "app.lent": "app.ledger_run",
    "app.openers": "app.references.openers",
    "app.paths": "app.references.locate",
    "app.places": "app.references.locate",
    "app.plug_ins": "app.references.plug_ins",
    "app.sitting": "app.people.console_session",
    "app.stand_ins": "app.references.opened",
    "app.surroundings": "app.environment",
    "app.tables": "app.references.tables",
    "app.turns": "app.people.conversation_tree",
    "app.vote_file": "app.people.answer_file",
    "attack.asking": "attack.engine.calls",
    "attack.converse": "attack.engine.conversations",
    "attack.curves": "attack.engine.curves",
    "attack.drive": "attack.engine.run",
    "attack.driver": "attack.engine.scheduler",
    "attack.findings": "attack.engine.metrics",
    "attack.known": "attack._registry",
    "attack.moves": "attack.engine.protocol",
    "attack.purse": "attack.engine.budget",
    "attack.rates": "attack.engine.metrics",
    "attack.speech": "attack.engine.attacker_prompts",
    "attack.store": "attack.engine.cache",
    "attack.suffix_search": "attack.suffix.search",
    "attack.tally": "attack.engine.counts",
    "attack.walkers": "attack.engine.episodes",
    "data.alphabets": "text.alphabets",
    "data.codecs": "text.codecs",
    "data.converters": "text.converters",
    "data.rewriting": "text.rewriting",
    "defend.guards": "defend.pattern_guard",
    "defend.readings": "text.decodings",
    "formats.covered": "formats.redact",
    "govern.look_alikes": "govern._look_alikes",
    "govern.looks": "govern._looks",
    "govern.pins": "govern._pins",
    "measure.calibrated_judge": "measure.judges.calibrated",
    "measure.classifier_judge": "measure.judges.classifier",
    "measure.draws": "measure._draws",
    "measure.judge_features": "measure.judges._features",
    "measure.judge_prompt": "measure.judges._prompt",
    "measure.judge_rows": "measure.judges._graded",
    "measure.label_integrity": "measure._label_checks",
    "measure.lm_judge": "measure.judges.lm",
    "measure.pair_tokens": "measure._pair_tokens",
    "measure.rates": "measure._rates",
    "measure.refusal_phrases": "measure.judges._phrases",
    "measure.rule_judge": "measure.judges.rule",
    "measure.two_phase_errors": "measure._two_phase",
    "models.ask": "evals.attempts",
    "models.candidates": "attack.suffix.candidates",
    "models.embedded": "attack.suffix.embedded",
    "models.judging": "evals.judging",
    "models.slot": "attack.suffix.slot",
    "testbed.recipe": "testbed.raise_model",
    "train._critic": "train._ppo_critic",
    "train._group": "train._rl_group",
    "train._learner": "train._rl_state",
    "train._rl": "train._rl_common",
    "train._round": "train._ppo_rollout",
    "train._update": "train._ppo_update",
    "views.lanes": "views.series",
    "views.words": "views.formatting",
}
"""Old module -> new module."""

NAMES: dict[str, str] = {
    "app.openers:Opened": "app.references.opened:Opened",
    "app.places:ORIGINS": "app.references.data:ORIGINS",
    "app.sitting:Sitting": "app.people.console_session:ConsoleSession",
    "app.turns:Turns": "app.people.conversation_tree:ConversationTree",
    "attack.drive:drive": "attack.engine.run:run_attacks",
    "attack.drive:one": "attack.engine.run:run_attack",
    "attack.driver:Driver": "attack.engine.scheduler:Scheduler",
    "attack.findings:Tallies": "attack.engine.metrics:AllCounts",
    "attack.moves:Ask": "attack.engine.protocol:AskTarget",
    "attack.moves:Consult": "attack.engine.protocol:AskAttacker",
    "attack.moves:Done": "attack.engine.protocol:Computed",
    "attack.moves:Heard": "attack.engine.protocol:Response",
    "attack.moves:Walk": "attack.engine.protocol:Episode",
    "attack.moves:Work": "attack.engine.protocol:Compute",
    "attack.purse:Purse": "attack.engine.budget:BudgetTracker",
    "attack.store:Store": "attack.engine.cache:AttemptCache",
    "attack.tally:Tally": "attack.engine.counts:Counts",
    "attack.walkers:Cast": "attack.engine.episodes:Participants",
    "attack.walkers:Walker": "attack.engine.episodes:RunningEpisode",
    "attack.walkers:walkers": "attack.engine.episodes:episodes",
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
