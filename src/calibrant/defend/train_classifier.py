"""Train a classifier of texts on labelled data: a guard for what no word list and no other model knows.

Logistic regression with an L2 penalty on one of three kinds of features, after the input and output
classifiers of Sharma et al. 2025 (Constitutional Classifiers, 2501.18837), which are fine-tuned models:

1. ``ngrams``: hashed words, pairs of words and runs of characters of the folded text. No model, milliseconds.
2. ``model``: hidden states of a local model at one site. ``encoder``: a sentence encoder.
3. Penalty and threshold are chosen inside each split, and every rate is of texts that no fit, choice or
   threshold has seen. Near-duplicates and rows of one template or task are never on both sides.
4. Long texts are read in overlapping chunks, and the highest score counts, in training as in the guard.
5. ``exchange``: it is trained on beginnings of replies, too, for replies that are streamed.

The artefact 'classifier/' opens as a guard: ``guard = "record:JOB/classifier"`` in a stack file.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from calibrant.core import (
    Chat,
    Estimate,
    Frozen,
    InputError,
    OpenLM,
    Quiet,
    Result,
    Run,
    point,
    technique,
    unknown,
)
from calibrant.data.classifier_folder import write_classifier
from calibrant.data.distinct import check_goals
from calibrant.data.judge_head import Alarm
from calibrant.data.rows import Goals, LabelledTexts
from calibrant.data.text_classifier import CHECK, ClassifierCard, Features, Reading, TextClassifier
from calibrant.defend._classifier_fits import (
    DenseFits,
    Fits,
    Plane,
    SparseFits,
    by_chance,
    cross_validated,
)
from calibrant.defend._classifier_texts import Texts, checked, table_of
from calibrant.defend._reading import known_views
from calibrant.defend._vectors import Vectors, log_odds, vectors_of
from calibrant.defend.classifier_guard import classifier_guard
from calibrant.models.pooled import Pool, middle_site
from calibrant.models.sentence import SentenceEncoder
from calibrant.stats import rate
from calibrant.stats.alarms import alarms, halfway, probability, threshold
from calibrant.stats.auroc import auroc
from calibrant.stats.chance import widened
from calibrant.stats.folds import folds_of

_ONE_PERCENT = 0.01


class TrainClassifier(Frozen):
    """Features, reading, and how the threshold is chosen."""

    features: Features = "ngrams"
    """'ngrams': hashed words and characters. 'model': states of ``model``. 'encoder': of ``encoder``."""
    question: str = "may this text not pass?"
    """What the label yes answers."""
    false_alarm_rate: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of texts labelled no that may raise an alarm; n of them can set a rate of 1 / (n + 1)."""
    l2: tuple[float, ...] = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
    """Penalties to choose from, against a summed log-loss; texts are rows of length about 1."""
    folds: int = Field(default=5, ge=3)
    """Parts of groups for cross-validation."""
    near: float = Field(default=0.8, gt=0, le=1)
    """Texts whose runs of three words overlap this much (Jaccard) are one group, as template and task are."""
    chunk: int = Field(default=1000, ge=20)
    """Most characters of a text that is scored; a longer one is read in overlapping chunks."""
    overlap: int = Field(default=250, ge=0)
    """Characters that two neighbouring chunks share; at most half of ``chunk``."""
    views: tuple[str, ...] = ("spell", "base64")
    """Codecs that a text is also decoded with when it is scored; the highest score counts."""
    exchange: bool = False
    """Read the prompt with the reply so far, and train on beginnings of replies, too."""
    every: int = Field(default=20, ge=1)
    """With ``exchange``: words between two beginnings."""
    buckets: int = Field(default=2**18, ge=256, le=2**22)
    """Of n-grams: how many buckets they are hashed into."""
    site: str = ""
    """Of a model: where states are read, as in ``model.sites()``; "" is the stream after the middle block."""
    pool: Pool = "mean"
    """Of a model: the mean over the tokens of a text, or the last one."""
    limit: int | None = Field(default=2000, ge=20)
    """Use at most this many texts, drawn at random. None: all."""

    _views = field_validator("views")(known_views)

    @model_validator(mode="after")
    def _check(self) -> TrainClassifier:
        if not self.l2 or not all(0 < one < float("inf") for one in self.l2):
            raise ValueError("'l2' needs a penalty, and each is a finite number above 0")
        if 2 * self.overlap > self.chunk:
            raise ValueError("'overlap' is more than half of 'chunk'")
        return self


class TrainClassifierResult(Result):
    """``auroc``, ``false_alarm_rate``, ``detection_rate``, ``detection_rate/at_1_percent``,
    ``over_refusal_rate``. Artefact 'classifier/', which ``defend.classifier_guard`` takes."""

    classifier: Any = Field(default=None, exclude=True, repr=False)
    """Also the artefact; None where no threshold could be set."""


@technique(version=1)
def train_classifier(
    texts: LabelledTexts,
    model: OpenLM | None = None,
    encoder: SentenceEncoder | None = None,
    benign: Goals | None = None,
    config: TrainClassifier = TrainClassifier(),
    run: Run = Quiet(),
) -> TrainClassifierResult:
    """Fit on all rows; report held-out folds. Label yes is what may not pass.

    ``model`` and ``encoder`` are read where ``features`` says so. ``benign``: requests that should pass.

    Raises:
        InputError: texts that nothing can be learnt from: see the page.
        CapabilityError: the model has no such site.
        NumericalError: a vector is NaN or infinite.
    """
    found = checked(texts, config.exchange, config.near, config.limit, run.seed)
    if benign is not None:
        _check_benign(benign, found)
    folds = folds_of([found.groups], found.labels, config.folds, run.seed, inner=True)
    reading = Reading(
        over=found.over, chunk=config.chunk, overlap=config.overlap, views=config.views, every=config.every
    )
    vectors = _vectors(model, encoder, config)
    table = table_of(found, reading, vectors, run)
    fits: Fits = SparseFits(table) if config.features == "ngrams" else DenseFits(table)
    penalties = tuple(sorted(set(config.l2), reverse=True))
    held, picked = cross_validated(fits, table, folds, penalties)
    rates, one = (
        alarms(held, picked, found.labels, folds, [found.groups], share, between=True)
        for share in (config.false_alarm_rate, _ONE_PERCENT)
    )
    area = auroc(held.nested, found.labels, blocks=folds.blocks, clusters=[found.groups])
    spread = by_chance(fits, table, folds, found.groups, penalties[picked], run.seed)
    metrics: dict[str, Estimate] = {
        "auroc": widened(area, spread),
        **rates,
        "detection_rate/at_1_percent": one["detection_rate"],
        "l2": point(penalties[picked], unit="penalty", n=len(found.labels)),
        "near_duplicates": point(found.copies / len(found.labels), unit="text", n=len(found.labels)),
    }
    made = None
    if rates["false_alarm_rate"].value is not None:
        scores = held.scores[picked]
        cut = threshold(scores[~found.labels], config.false_alarm_rate)
        cut = halfway(cut, scores[found.labels])
        assert cut is not None  # fewer negatives had one
        plane = fits.plane(np.arange(len(found.labels)), penalties[picked])
        made = _made(texts, found, reading, vectors, plane, (cut, penalties[picked]), rates, config, model)
        made = write_classifier(made, run.artifact("classifier"))
        metrics["threshold"] = point(made.card.threshold, unit="probability", n=len(found.labels))
    if benign is not None:
        metrics["over_refusal_rate"] = _over_refusal(benign, made, model, encoder)
    return TrainClassifierResult(
        metrics=metrics, caveats=_caveats(found, metrics, model, encoder, config), classifier=made
    )


def _vectors(model: OpenLM | None, encoder: SentenceEncoder | None, config: TrainClassifier) -> Vectors:
    site = config.site
    if config.features == "model" and model is not None:
        site = site or middle_site(model)
    return vectors_of(config.features, model, encoder, site, config.pool, config.buckets)


def _made(
    table: LabelledTexts,
    texts: Texts,
    reading: Reading,
    vectors: Vectors,
    plane: Plane,
    chosen: tuple[float, float],
    rates: dict[str, Estimate],
    config: TrainClassifier,
    model: OpenLM | None,
) -> TextClassifier:
    """The classifier with its threshold and penalty, ``chosen``, and what it says to the check text."""
    of_model = config.features == "model" and model is not None
    card = ClassifierCard(
        question=config.question,
        features=config.features,
        reader=vectors.digest,
        site=(config.site or middle_site(model)) if of_model and model is not None else "",
        pool=config.pool,
        buckets=config.buckets if config.features == "ngrams" else 0,
        reading=reading,
        threshold=probability(chosen[0]),
        alarm=Alarm(asked=config.false_alarm_rate, **rates),
        l2=chosen[1],
        labels=table.digest,
        n=len(texts.rows),
        check=0.0,
    )
    made = TextClassifier(card, *plane)
    check = float(log_odds(made, vectors.rows([CHECK]))[0])
    return made._replace(card=card.model_copy(update={"check": check}))


def _check_benign(benign: Goals, texts: Texts) -> None:
    """Raise InputError unless they are benign requests of which none is trained on."""
    check_goals(benign, harmful=False)
    if texts.over != "prompt":
        raise InputError(
            "benign requests are prompts, and the classifier reads replies",
            hint="leave 'benign' out, and measure over-refusal with measure.over_refusal on the stack",
        )
    for goal in benign:
        if (same := texts.find(goal.text)) is not None:
            raise InputError(
                f"benign request '{goal.id}' is the training text '{same}'",
                hint="take it out of either table",
            )


def _over_refusal(
    benign: Goals, made: TextClassifier | None, model: OpenLM | None, encoder: SentenceEncoder | None
) -> Estimate:
    """The share of benign requests that the guard would block."""
    if made is None:
        return unknown("there is no threshold", n=len(benign), unit="request")
    said = classifier_guard(made, model, encoder).ask([Chat.ask(goal.text) for goal in benign], "input")
    return rate(
        [verdict.answer != "yes" for verdict in said],
        clusters=[goal.cluster for goal in benign],
        better="lower",
        unit="request",
    )


def _caveats(
    texts: Texts,
    metrics: dict[str, Estimate],
    model: OpenLM | None,
    encoder: SentenceEncoder | None,
    config: TrainClassifier,
) -> tuple[str, ...]:
    notes = [
        "its rates hold for texts like these: on other topics, and under attack, they are unknown",
        "it learns whatever goes with the labels, such as length, source or topic, not their meaning",
    ]
    auroc_low = metrics["auroc"].low
    if auroc_low is None or auroc_low <= 0.5:
        notes.append("the interval of its AUROC holds .5: it may tell nothing")
    if metrics["false_alarm_rate"].value is None:
        notes.append(f"no threshold, and nothing stored: {metrics['false_alarm_rate'].reason}")
    if texts.copies:
        notes.append(f"{texts.copies} texts are near-duplicates of others: kept in one fold, and not dropped")
    if max(Counter(filter(None, texts.groups)).values(), default=0) * 2 > len(texts.groups):
        notes.append("one group holds more than half of the texts: the splits are lopsided")
    if config.exchange:
        notes.append("every beginning of a reply has the label of the whole, though it may show nothing yet")
    unread = {"model": model, "encoder": encoder}
    unread.pop(config.features, None)
    notes += [
        f"the {name} that is given is not read: features = '{config.features}'"
        for name, one in unread.items()
        if one is not None
    ]
    return tuple(notes)
