"""The catalogue: technique and behaviour names with where they live. The only dynamic import is here.

Names are literal, so ``calibrant ls`` needs no torch. Other packages add theirs by entry points in the
groups 'calibrant.techniques' and 'calibrant.behaviours'.
"""

from __future__ import annotations

import importlib
import inspect
import types
import typing
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from calibrant.core import ConfigError, Frozen
from calibrant.core.errors import nearest


class Listed(NamedTuple):
    """Where a name leads, one line on what it does, and which of its metrics to show first."""

    target: str
    summary: str
    headline: str = ""


def _where(name: str, module: str = "") -> str:
    """The target of one of our names: 'attack.gcg' is ``gcg`` of calibrant.attack.gcg, or of ``module``."""
    return f"calibrant.{module or name}:{name.rpartition('.')[2]}"


_TECHNIQUES: dict[str, tuple[str, str]] = {
    "attack.best_of_n": ("mangle a request by chance, again and again", "attack_success_rate"),
    "attack.campaign": ("goals x attacks under one budget, by hazard x technique", "attack_success_rate"),
    "attack.compare": ("paired change of success between two targets", "attack_success_change"),
    "attack.crescendo": ("another model leads the target on, step by step", "attack_success_rate"),
    "attack.encode": ("hide a request in an encoding", "attack_success_rate"),
    "attack.gcg": ("search a suffix by the gradient of the weights", "attack_success_rate"),
    "attack.genetic": ("breed introductions to a request", "attack_success_rate"),
    "attack.harvest": ("confirmed hits become preference pairs", "pairs"),
    "attack.many_shot": ("put many answered requests before a request", "attack_success_rate"),
    "attack.multi_turn": ("lead up to a request over several turns", "attack_success_rate"),
    "attack.pair": ("another model refines its prompt", "attack_success_rate"),
    "attack.persona": ("wrap a request in a persona", "attack_success_rate"),
    "attack.prefill": ("begin the reply for the target", "attack_success_rate"),
    "attack.rainbow": ("an archive of the best attack for each hazard and style", "cells_reached"),
    "attack.random_search": ("search for a suffix by log-probs", "attack_success_rate"),
    "attack.replay": ("ask recorded attempts again, word for word", "reproduction_rate"),
    "attack.rounds": ("attack, patch, attack again; held-out attacks decide", "patches_that_count"),
    "attack.soft_prompt": ("what vectors in place of a suffix could do at most", "upper_bound_success"),
    "attack.tap": ("another model grows a tree of prompts", "attack_success_rate"),
    "defend.learn_rules": ("phrases of hits that no benign request holds, as a guard", "covered"),
    "govern.claim": ("hold an experiment's claims against its runs", "claims_held"),
    "govern.gate": ("weigh the evidence against a release policy", "rules_passed"),
    "measure.adjudication": ("what people are to judge, and what follows once they have", "adjudicated_rate"),
    "measure.calibration_transfer": (
        "does a judge's calibration hold, on its own target and another's",
        "own_coverage",
    ),
    "measure.capability": ("accuracy, and the alignment tax against a model before", "accuracy"),
    "measure.counterfactual": ("is a request treated otherwise about another group?", "largest_gap"),
    "measure.exposure": ("are planted secrets given away? canaries", "exposure"),
    "measure.fit_judge": ("train a judge on a model's own states", "sensitivity"),
    "measure.judge_card": ("how often a judge is right, by human labels", "sensitivity"),
    "measure.over_refusal": ("how often benign look-alikes are refused", "over_refusal_rate"),
    "measure.overoptimization": ("best-of-n under a proxy: what happens to the gold reward", "gold_gain"),
    "measure.preference": ("does the model prefer what people preferred?", "implicit_reward_accuracy"),
    "measure.preference_data": ("faults, agreement and label noise of preference pairs", "faulty_share"),
    "measure.refusal": ("how often plain harmful requests are met", "compliance_rate"),
    "measure.reward": ("mean reward of replies, and their KL from a reference", "reward"),
    "oversee.critique_revise": ("answer, critique, revise; pairs for training", "harm_change"),
    "testbed.annotate": ("simulated raters compare a model's replies", "votes_true"),
    "testbed.plant": ("raise a twin that refuses, with or without planted holes", "through"),
    "testbed.raise_model": ("train a testbed model from scratch", "training_tokens"),
    "train.dpo": ("direct preference optimisation and its family", "train_accuracy"),
    "train.grpo": ("learn from rewards, by groups of replies", "reward_last"),
    "train.kto": ("learn from thumbs up and down", "train_accuracy"),
    "train.online_dpo": ("DPO on the model's own replies, ranked by a reward", "reward_last"),
    "train.ppo": ("learn from a reward on the model's own replies", "reward_last"),
    "train.reward": ("a Bradley-Terry reward model with its calibration", "held_out_accuracy"),
    "train.reward_ensemble": ("several reward models as one", "held_out_accuracy"),
    "train.rloo": ("learn from rewards, each against the others", "reward_last"),
    "train.sft": ("supervised fine-tuning", "loss_last"),
    "understand.lens": ("logit lens: what each layer would say", ""),
}
"""Name -> what it does, and the metric to show first."""
TECHNIQUES = {name: Listed(_where(name), *line) for name, line in _TECHNIQUES.items()}
"""Technique name -> function."""

_BEHAVIOURS: dict[str, tuple[str, str]] = {
    "defend.ask_guard": ("a guard that asks another model", ""),
    "defend.pattern_guard": ("a guard that matches patterns", ""),
    "measure.calibrated_judge": ("a judge with the card of its errors", "measure.judges.calibrated"),
    "measure.classifier_judge": ("a trained judge, from measure.fit_judge", "measure.judges.classifier"),
    "measure.goodhart_watch": ("a watcher: stop where the gold reward may fall", ""),
    "measure.lm_judge": ("asks a model; tried before it may judge", "measure.judges.lm"),
    "measure.rule_judge": ("strings and patterns in a reply: canaries", "measure.judges.rule"),
    "measure.string_judge": ("refusal phrases; uncalibrated", "measure.judges.string"),
    "train.conservative": ("an ensemble read with caution: WCO, UWO, lower bound", ""),
}
"""Name -> what it does, and its module where that has another name."""
BEHAVIOURS = {name: Listed(_where(name, module), summary) for name, (summary, module) in _BEHAVIOURS.items()}
"""Behaviour name -> factory of a judge, guard, reward or watcher."""


class Parameter(NamedTuple):
    """One input of a technique or behaviour."""

    wanted: Any
    """The annotated class or protocol, without ``| None``."""
    required: bool


class Signature(NamedTuple):
    """What a technique takes."""

    function: Callable[..., Any]
    inputs: dict[str, Parameter]
    config: type[Frozen] | None
    version: int


def techniques() -> dict[str, Listed]:
    """All techniques by name, those of other packages included; a package takes no name that is ours."""
    return TECHNIQUES | _plugged("calibrant.techniques") | TECHNIQUES


def behaviours() -> dict[str, Listed]:
    """All behaviours by name, those of other packages included; a package takes no name that is ours."""
    return BEHAVIOURS | _plugged("calibrant.behaviours") | BEHAVIOURS


def _plugged(group: str) -> dict[str, Listed]:
    found = entry_points(group=group)
    return {e.name: Listed(e.value, f"from {e.dist.name if e.dist else 'elsewhere'}") for e in found}


def load(target: str) -> Any:
    """Import what 'module:name' names.

    Raises:
        ConfigError: the module or the name is not there; an optional part may not be installed.
    """
    module, _, name = target.partition(":")
    if not module or not name:
        raise ConfigError(f"'{target}' names no function", hint="write module:function")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # The user's own module may be the one that is not there; ours only lack what pip did not install.
        own = f"{module}.".startswith(f"{error.name}.") and not module.startswith("calibrant.")
        raise ConfigError(
            f"'{target}' needs the module '{error.name}', which is not installed",
            hint="check the name, and put its folder on PYTHONPATH"
            if own
            else "pip install 'calibrant[all]'",
        ) from error
    if not hasattr(found, name):
        raise ConfigError(f"'{target}': the module has no '{name}'{nearest(name, vars(found))}")
    return getattr(found, name)


def find_technique(name: str) -> Signature:
    """The technique's function with its inputs and config class. Raises ConfigError for an unknown name."""
    return _signature(name, techniques(), "technique")


def find_behaviour(name: str) -> Signature:
    """The behaviour's factory with its inputs and config class. Raises ConfigError for an unknown name."""
    return _signature(name, behaviours(), "behaviour")


def _signature(name: str, listed: dict[str, Listed], kind: str) -> Signature:
    if name not in listed:
        raise ConfigError(
            f"no {kind} '{name}'{nearest(name, listed)}", hint="`calibrant ls` shows what there is"
        )
    return signature_of(load(listed[name].target))


def signature_of(function: Callable[..., Any]) -> Signature:
    """Read inputs, config class and version off a function. Raises ConfigError where a type is not given."""
    hints = typing.get_type_hints(function)
    bare = [name for name in inspect.signature(function).parameters if name not in hints]
    if bare:
        raise ConfigError(
            f"'{function.__name__}' does not say what its parameters {', '.join(bare)} are",
            hint="annotate them: model: LM, config: MyConfig = MyConfig()",
        )
    inputs: dict[str, Parameter] = {}
    config: type[Frozen] | None = None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "config":
            config = hints["config"]
        elif parameter.name != "run":
            required = parameter.default is inspect.Parameter.empty
            inputs[parameter.name] = Parameter(_without_none(hints[parameter.name]), required)
    return Signature(function, inputs, config, getattr(function, "version", 1))


def _without_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        kept = [part for part in typing.get_args(hint) if part is not type(None)]
        return kept[0] if len(kept) == 1 else hint
    return hint
