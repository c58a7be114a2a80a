"""Weak-to-strong generalisation: a strong model learns from a weak supervisor's labels (2312.09390).

Burns et al. 2023, sections 3 and 4.3.2. How much of the gap between the supervisor and the same strong model
trained on the truth does the student recover? PGR = (student - weak) / (ceiling - weak) in accuracy.

Where this departs from the published code (github.com/openai/weak-to-strong):
1. PGR is given only where its denominator is resolved, with an interval over items and seeds; else it is
   unknown and the differences speak. Nothing is dropped because of its outcome.
2. Splits that share a text are refused; nothing is stopped or chosen by true labels.
3. Agreement with the supervisor is shown on the supervisor's errors, beside the ceiling's there.
4. The confidence loss is the paper's: see ``calibrant.maths.weak_labels``.

    calibrant show oversee.weak_to_strong
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from calibrant.core import Frozen, OpenLM, Quiet, Result, Run, digest, technique
from calibrant.core.digest import canonical
from calibrant.data.rows import ClassedTexts
from calibrant.models.arm_run import ArmRun
from calibrant.models.fit import FIT_ALIASES, Fit
from calibrant.models.template_check import check_trainable
from calibrant.models.training_caveats import training_caveats
from calibrant.oversee._weak_arms import Arm, Recipe, own_seed, probabilities
from calibrant.oversee._weak_data import Task, checked
from calibrant.oversee._weak_figures import Predictions, caveats, figures


class WeakToStrong(Frozen):
    """The arms, and how they are trained."""

    aliases: ClassVar[Mapping[str, str]] = FIT_ALIASES | {
        "num_train_epochs": "epochs", "per_device_train_batch_size": "batch_size",
    }  # fmt: skip

    labels: Literal["soft", "hard"] = "soft"
    """What the student learns from: the supervisor's probabilities, or its most probable class."""
    confidence: float = Field(default=0.5, ge=0, le=1)
    """Largest weight a_max of the student's own predictions in the confidence loss; 0.75 is the paper's for
    its largest students. 0: no such arm."""
    seeds: int = Field(default=3, ge=2)
    """Trainings of every arm, each with a head and an order of its own."""
    supervisors: int = Field(default=1, ge=1)
    """Weak models trained for each seed; the mean of their probabilities is the label."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the texts, for every arm; more of them imitate more of the supervisor's errors."""
    batch_size: int = Field(default=16, ge=2)
    """Texts in one step; the confidence loss keeps the class shares of each."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Coverage of every interval."""
    fit: Fit = Fit(lr=3e-4)
    """The optimiser, of supervisors too."""

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if self.confidence and self.fit.micro_tokens:
            raise ValueError("the confidence loss looks at a whole batch, so fit.micro_tokens cannot cut it")
        return self


class WeakToStrongResult(Result):
    """PGR, accuracies and agreement; weak labels in 'weak_labels.jsonl', a row a test text in
    'predictions.jsonl'."""


@technique(version=1)
def weak_to_strong(
    strong: OpenLM,
    student_texts: ClassedTexts,
    test_texts: ClassedTexts,
    weak: OpenLM | None = None,
    weak_texts: ClassedTexts | None = None,
    config: WeakToStrong = WeakToStrong(),
    run: Run = Quiet(),
) -> WeakToStrongResult:
    """Train student and ceiling on copies of ``strong``, by the labels of ``weak`` or of the column 'weak'.

    The weak model is trained on ``weak_texts``; without one, these tell only what the supervisor has seen.

    Raises:
        InputError, NumericalError: the splits are not fit for it, see ``_weak_data.checked``; a text does not
        fit the context; a loss became NaN or infinite. CapabilityError: transformers has no classifier of a
        model's family, or a chat template renders an answered chat differently.
    """
    task = checked(student_texts, test_texts, weak, weak_texts)
    for model in filter(None, (strong, weak)):
        check_trainable(model, config.fit.any_template)
    predictions, labels = _trained(task, strong, weak, config, run)
    metrics = figures(predictions, task.clusters, config.level, run.seed)
    _write(task, predictions, labels, run)
    prior = np.bincount(labels.argmax(2).flatten().numpy(), minlength=len(task.classes))
    return WeakToStrongResult(
        metrics=metrics,
        caveats=(
            *caveats(task, predictions, metrics, prior),
            *training_caveats(config.fit.bf16, strong.module),
        ),
    )


def _trained(
    task: Task, strong: OpenLM, weak: OpenLM | None, config: WeakToStrong, run: Run
) -> tuple[Predictions, Tensor]:
    """Predictions of all arms, and the weak labels (S, N, K) of the student split."""
    recipe = Recipe(config.epochs, config.batch_size, config.fit)
    names = ["student", *(["confidence"] if config.confidence else []), "ceiling"]
    at = recipe.steps(len(task.student))
    teachers = config.supervisors if weak is not None else 0
    whole = config.seeds * (teachers * recipe.steps(len(task.weak)) + len(names) * at)
    rows = [task.student, task.test, task.weak]
    key = digest([list(map(list, rows)), task.classes, [m.identity.digest for m in (strong, weak) if m]])
    number = before = 0

    def train(model: OpenLM, arm: Arm, asked: list[int]) -> Tensor:
        nonlocal number, before
        texts = [row for split in asked for row in rows[split]]
        found = probabilities(model, arm, recipe, texts, key, ArmRun(run, arm.name, number, before, whole))
        number, before = number + 1, before + recipe.steps(len(arm.rows))
        return found

    said: dict[str, list[Tensor]] = {name: [] for name in ("weak", *names)}
    labels = []
    for seed in range(config.seeds):
        if weak is None:
            both = torch.cat([task.given(task.student), task.given(task.test)])
        else:
            exact = task.exact(task.weak)
            several = [
                train(
                    weak,
                    Arm(f"seed{seed}/weak{j}", own_seed(run.seed, seed, "weak", j), task.weak, exact),
                    [0, 1],
                )
                for j in range(teachers)
            ]
            both = torch.stack(several).mean(0)
        label, on_test = both[: len(task.student)], both[len(task.student) :]
        labels.append(label)
        said["weak"].append(on_test)
        hard = torch.nn.functional.one_hot(label.argmax(1), len(task.classes)).double()
        taught = hard if config.labels == "hard" else label
        for name in names:
            target = task.exact(task.student) if name == "ceiling" else taught
            most = config.confidence if name == "confidence" else 0.0
            arm = Arm(f"seed{seed}/{name}", own_seed(run.seed, seed), task.student, target, most)
            said[name].append(train(strong, arm, [1]))
    classes = {name: torch.stack(found).argmax(2).numpy() for name, found in said.items() if found}
    truth = task.truth(task.test).numpy()
    return Predictions(
        truth, classes["weak"], classes["student"], classes["ceiling"], classes.get("confidence")
    ), torch.stack(labels)


def _write(task: Task, found: Predictions, labels: Tensor, run: Run) -> None:
    """The weak labels by seed, and every arm's class of each test text by seed."""
    weak = [
        {
            "id": row.id,
            "label": row.label,
            "weak": [_spelt(task, values) for values in labels[:, at].tolist()],
        }
        for at, row in enumerate(task.student)
    ]
    tested = [
        {
            "id": row.id,
            "label": row.label,
            **{n: [task.classes[k] for k in arm[:, at].tolist()] for n, arm in found.arms().items()},
        }
        for at, row in enumerate(task.test)
    ]
    for name, table in (("weak_labels.jsonl", weak), ("predictions.jsonl", tested)):
        run.artifact(name).write_bytes(b"".join(canonical(row) + b"\n" for row in table))


def _spelt(task: Task, values: list[float]) -> dict[str, float]:
    return {name: round(p, 9) for name, p in zip(task.classes, values, strict=True)}
