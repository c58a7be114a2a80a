"""The arms of weak-to-strong training: classifiers that differ in their labels and in their loss alone.

Every arm of a seed starts from the same head and sees the texts in the same order. An arm that is done is
kept in ``run.work``; a killed arm goes on where its last checkpoint stands.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from calibrant.core import CapabilityError, OpenLM, digest
from calibrant.data.rows import ClassedText
from calibrant.maths.weak_labels import confidence_loss, hardened, ramp, soft_cross_entropy
from calibrant.models.arm_run import ArmRun
from calibrant.models.checkpoint import Checkpoint
from calibrant.models.classifier import Classifier
from calibrant.models.fit import Fit, Plan, Share, batches_of, fit


class Recipe(NamedTuple):
    """How every arm is trained."""

    epochs: int
    batch_size: int
    fit: Fit

    def steps(self, texts: int) -> int:
        """How many steps so many texts take."""
        return self.epochs * math.ceil(texts / self.batch_size)


class Arm(NamedTuple):
    """One training."""

    name: str
    """Its folder in ``run.work``: 'seed0/student'."""
    start: int
    """Seed of the head and of the order."""
    rows: Sequence[ClassedText]
    """What it is trained on."""
    target: Tensor
    """(N, K) float64 probabilities."""
    confidence: float = 0.0
    """a_max of the confidence loss; 0 is cross-entropy."""


def own_seed(*parts: object) -> int:
    """A seed of its own for each arm."""
    return random.Random("weak to strong/" + "/".join(map(str, parts))).getrandbits(31)


def probabilities(
    model: OpenLM, arm: Arm, recipe: Recipe, asked: Sequence[ClassedText], key: str, run: ArmRun
) -> Tensor:
    """Train a copy of ``model`` as ``arm`` says; its probabilities (M, K) float64 of the ``asked`` texts."""
    texts = [[row.id for row in rows] for rows in (arm.rows, asked)]
    whole = digest([key, arm.name, arm.start, arm.confidence, list(recipe), texts, arm.target.tolist()])
    done = Checkpoint(run.work / "finished.safetensors", whole)
    contents = done.load()
    if contents is not None:
        tensors, facts = contents
        run.spend(tokens=int(facts["spent"]))
        run.progress(recipe.steps(len(arm.rows)), recipe.steps(len(arm.rows)), "kept from before")
        return tensors["probabilities"]
    classifier = Classifier.from_lm(model, arm.target.shape[1], arm.start)
    _descend(classifier, arm, recipe, whole, run)
    prompts, ends = _ids(classifier, asked)
    run.spend(tokens=sum(map(len, prompts)) + sum(map(len, ends)))
    found = classifier.read_all(prompts, ends).double().softmax(1)
    done.save({"probabilities": found}, {"spent": run.spent})
    return found


def _descend(classifier: Classifier, arm: Arm, recipe: Recipe, key: str, run: ArmRun) -> None:
    """Train ``classifier`` in place."""
    prompts, ends = _ids(classifier, arm.rows)
    target = arm.target.float().to(classifier.device)
    prior = arm.target.mean(0)
    batches = batches_of(len(arm.rows), recipe.batch_size, recipe.epochs, arm.start)
    # The loop hands over examples and no step, so an example is a draw, and its number tells the step.
    draws = [row for batch in batches for row in batch]
    steps = [step for step, batch in enumerate(batches) for _ in batch]
    places = iter(range(len(draws)))
    numbered = [[next(places) for _ in batch] for batch in batches]

    def loss(part: list[int], whole: list[int]) -> Share:
        rows = [draws[i] for i in part]
        logits = classifier.read([prompts[i] for i in rows], [ends[i] for i in rows])
        wanted = target[rows]
        if not arm.confidence:
            return Share(soft_cross_entropy(logits, wanted).sum() / len(whole))
        if len(part) != len(whole):
            raise CapabilityError(
                "the confidence loss looks at a whole batch, and this one is cut among processes",
                hint="train in one process, or set confidence = 0",
            )
        alpha = ramp(steps[whole[0]], len(batches), arm.confidence)
        each = confidence_loss(logits, wanted, alpha, hardened(logits, prior))
        return Share(each.sum() / len(whole), {"alpha": alpha})

    plan = Plan(
        numbered,
        key=key,
        costs=[len(prompts[i]) + len(ends[i]) for i in draws],
        size=lambda part: classifier.tokens(
            [prompts[draws[i]] for i in part], [ends[draws[i]] for i in part]
        ),
    )
    fit(classifier.module, plan, loss, recipe.fit, run)


def _ids(classifier: Classifier, rows: Sequence[ClassedText]) -> tuple[list[list[int]], list[list[int]]]:
    """A text is the prompt of an empty reply, and is read at its end token."""
    return classifier.ids([row.prompt for row in rows], [""] * len(rows))
