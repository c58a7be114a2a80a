"""Reward-model ensembles: independent models, heads on one trunk, or averaged weights (WARM).

1. independent: M models that differ in head initialisation and data order (Coste et al.,
   2310.02743). Their disagreement is the reward's uncertainty; M times the training and scoring cost. Given
   further trunks ('model_2' to 'model_4'), members take turns on them: what pretraining got wrong is then not
   shared (pretrain ensembles of Eisenstein et al., 2312.09244).
2. shared_trunk: M heads on one trunk, at about the cost of one model; disagreement is underestimated.
3. warm: M fine-tunings of one initialisation, head included, whose *weights* are averaged into one model
   (WARM, 2401.12187). No disagreement, but the scoring cost of one model, and less memorisation of wrong
   labels.

Members share the errors of their data and their trunk: agreement is not correctness (2312.09244).

    calibrant show train.reward_ensemble
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field

from calibrant.core import ConfigError, InputError, OpenLM, Quiet, Record, Run, digest, point, technique
from calibrant.data.rows import Preferences
from calibrant.models.checkpoint import Checkpoint
from calibrant.models.classifier import Classifier
from calibrant.models.fit import last
from calibrant.models.reward_card import calibration
from calibrant.models.reward_folder import RewardCard, member_folders, reward_identity, write_card
from calibrant.models.reward_model import Ensemble, RewardModel
from calibrant.train._settings import Settings
from calibrant.train.reward import (
    RewardConfig,
    RewardResult,
    Task,
    caveats,
    descend,
    held_out_rows,
    normaliser,
    prepared,
    stored,
)

_LOGGED = ("loss", "accuracy", "margin")
_EXAMPLES = "examples.parquet"


class RewardEnsemble(Settings):
    """Settings of an ensemble of reward models."""

    kind: Literal["independent", "shared_trunk", "warm"] = "independent"
    """Separately trained models, heads on one trunk, or one model of averaged weights (WARM)."""
    members: int = Field(default=4, ge=2, le=1000)
    """How many."""
    lr_spread: float = Field(default=1.0, ge=1)
    """Learning rates of members go from lr / spread to lr x spread in equal ratios (independent and warm)."""
    each: RewardConfig = RewardConfig()
    """How a member is trained; its heads follow from ``kind``."""

    def contradictions(self) -> list[str]:
        """Settings that ``kind`` ignores."""
        problems = super().contradictions()
        if self.each.heads != 1:
            problems.append("each.heads follows from kind and members: leave it at 1")
        if self.kind == "shared_trunk" and self.lr_spread != 1:
            problems.append("heads on one trunk are trained with one learning rate: leave lr_spread at 1")
        return problems


@technique(version=3)
def reward_ensemble(
    model: OpenLM,
    pairs: Preferences,
    held_out: Preferences | None = None,
    ties: Preferences | None = None,
    model_2: OpenLM | None = None,
    model_3: OpenLM | None = None,
    model_4: OpenLM | None = None,
    config: RewardEnsemble = RewardEnsemble(),
    run: Run = Quiet(),
) -> RewardResult:
    """Train several reward models on the trunk of ``model``, saved as one artefact 'reward'.

    Inputs and errors are those of ``train.reward``. A killed run keeps its finished members. With ``model_2``
    to ``model_4``, members of kind 'independent' take turns on all that are given.

    Raises:
        ConfigError: further trunks for a kind that has only one.
        InputError: trunks of different tokenizers, or a trunk that is given twice.
    """
    trunks = _trunks([model, model_2, model_3, model_4], config)
    together = config.kind == "shared_trunk"
    each = config.each.model_copy(update={"heads": config.members}) if together else config.each
    task = prepared(model, pairs, ties, each)
    members = _members(each, config, run.seed)
    trained = [_trained(trunks[m.number % len(trunks)], task, m, run) for m in members]
    rows, name = held_out_rows(model, held_out, each), f"{config.kind} rewards on {model.identity.name}"
    models = [RewardModel(c, normaliser(c, task)) for c in _joined([c for c, _ in trained], config.kind)]
    saved: RewardModel | Ensemble
    if config.kind == "independent":
        figures = calibration(Ensemble(models), rows)
        saved = _saved(models, [calibration(m, rows) for m in models], figures, run.artifact("reward"), name)
    else:
        figures = calibration(models[0], rows)
        card = RewardCard(kind="heads" if together else "warm", members=config.members, calibration=figures)
        saved = stored(models[0], run.artifact("reward"), card, name)
    shared = "their data" if len(trunks) > 1 else "their data and their trunk"
    numbers = {n: sum(notes[n] for _, notes in trained) / len(trained) for n in _LOGGED}
    return RewardResult(
        reward=saved,
        metrics={
            **figures,
            "loss_last": point(numbers["loss"], unit="nats, last 10 steps, mean of members"),
            "train_accuracy": point(
                numbers["accuracy"], unit="share of pairs, last 10 steps, mean of members"
            ),
            "train_margin": point(numbers["margin"], unit="log-odds, last 10 steps, mean of members"),
            "dropped_for_length": task.dropped,
        },
        caveats=(
            *caveats(task, models[0].classifier, held_out, each.fit.bf16),
            f"members share {shared}, so they can agree and be wrong together",
        ),
    )


def _trunks(given: Sequence[OpenLM | None], config: RewardEnsemble) -> list[OpenLM]:
    """What members are trained from, in turn."""
    trunks = [one for one in given if one is not None]
    if len(trunks) > 1 and config.kind != "independent":
        raise ConfigError(
            f"kind '{config.kind}' has one trunk, and {len(trunks)} are given",
            hint="set kind = 'independent', or leave model_2 to model_4 out",
        )
    if len(trunks) > config.members:
        raise ConfigError(f"{len(trunks)} trunks for {config.members} members", hint="give each a member")
    if len({one.identity.digest for one in trunks}) < len(trunks):
        raise InputError("a trunk is given twice", hint="leave it out: members take turns anyway")
    read = [(one.tokenizer.get_vocab(), one.tokenizer.chat_template) for one in trunks]
    if any(other != read[0] for other in read):
        raise InputError(
            "the trunks have different tokenizers or chat templates: one table of tokens does not do",
            hint="give models that were pretrained on one vocabulary and speak in one template",
        )
    return trunks


def averaged(classifiers: Sequence[Classifier]) -> Classifier:
    """One classifier whose weights are the means of theirs (in float64): WARM, equation 4.

    Only meaningful for weights with the same initialisation, heads included.
    """
    average = classifiers[0].copy()
    states = [classifier.module.state_dict() for classifier in classifiers]
    with torch.no_grad():
        for name, tensor in average.module.state_dict().items():
            tensor.copy_(torch.stack([state[name].double() for state in states]).mean(0))
    average.module.requires_grad_(False)
    return average


class _Member(NamedTuple):
    """How one model is trained."""

    number: int
    of: int
    config: RewardConfig
    start: int
    """Seed of the head's first weights."""
    order: int
    """Seed of the data's order and of the bootstrap."""


def _members(each: RewardConfig, config: RewardEnsemble, seed: int) -> list[_Member]:
    if config.kind == "shared_trunk":
        return [_Member(0, 1, each, seed, seed)]
    members = []
    for number in range(config.members):
        own = random.Random(f"reward member/{seed}/{number}").getrandbits(31)
        lr = each.fit.lr * config.lr_spread ** (2 * number / (config.members - 1) - 1)
        rated = each.model_copy(update={"fit": each.fit.model_copy(update={"lr": lr})})
        members.append(_Member(number, config.members, rated, seed if config.kind == "warm" else own, own))
    return members


def _trained(model: OpenLM, task: Task, member: _Member, run: Run) -> tuple[Classifier, dict[str, float]]:
    """One trained model and its last numbers; taken from ``run.work`` where an earlier try finished it."""
    classifier = Classifier.from_lm(model, member.config.heads, member.start)
    member_run = _MemberRun(run, member, steps=task.steps(member.config))
    key = digest([task.key, *member, model.identity.digest])
    checkpoint = Checkpoint(member_run.work / "finished.safetensors", key)
    contents = checkpoint.load()
    if contents is None:
        steps = descend(classifier, task, member.config, member.order, member_run)
        facts = {"spent": member_run.spent, **{name: last(steps, name) for name in _LOGGED}}
        checkpoint.save(classifier.module.state_dict(), facts)
    else:
        tensors, facts = contents
        classifier.module.load_state_dict(tensors)
        run.spend(tokens=int(facts["spent"]))
    if (member_run.work / _EXAMPLES).is_file():
        name = _EXAMPLES if member.of == 1 else f"examples_{member.number}.parquet"
        shutil.copyfile(member_run.work / _EXAMPLES, run.artifact(name))
    return classifier, facts


def _joined(classifiers: list[Classifier], kind: str) -> list[Classifier]:
    return [averaged(classifiers)] if kind == "warm" else classifiers


def _saved(
    models: Sequence[RewardModel],
    cards: Sequence[dict[str, Any]],
    figures: dict[str, Any],
    folder: Path,
    name: str,
) -> Ensemble:
    """Write separately trained models, each with its own card, as one reward."""
    card = RewardCard(kind="independent", members=len(models), calibration=figures)
    members = [
        stored(
            member, inside, RewardCard(kind="single", members=1, calibration=own), f"{name}, {inside.name}"
        )
        for member, inside, own in zip(models, member_folders(folder, card), cards, strict=True)
    ]
    write_card(folder, card)
    return Ensemble(members, identity=reward_identity(folder, name=name))


class _MemberRun:
    """The run as one member sees it: a folder of its own that survives a kill, and its place in the whole."""

    def __init__(self, run: Run, member: _Member, steps: int) -> None:
        self.seed, self.cache, self.references = run.seed, run.cache, run.references
        self.work = run.work / f"member{member.number}"
        self.work.mkdir(parents=True, exist_ok=True)
        self.spent = 0
        self._run, self._member, self._before = run, member, member.number * steps

    def log(self, step: int, **metrics: float) -> None:
        self._run.log(self._before + step, member=self._member.number, **metrics)

    def artifact(self, name: str) -> Path:
        return self.work / name

    def spend(self, *, tokens: int = 0, queries: int = 0, flops: float = 0.0) -> None:
        self._run.spend(tokens=tokens, queries=queries, flops=flops)
        self.spent += tokens

    def progress(self, done: int, total: int, note: str = "") -> None:
        message = f"member {self._member.number + 1} of {self._member.of}, {note}"
        self._run.progress(self._before + done, self._member.of * total, message)

    def call(
        self, technique: str, inputs: Mapping[str, Any], config: Mapping[str, Any] | None = None
    ) -> Record:
        return self._run.call(technique, inputs, config)
