"""Probes with controls: what can a simple classifier read off each layer, and would it read it off anything?

A linear probe, a k-sparse one or a small perceptron on the residual stream of every layer at once. No
template and no task is on both sides of a split, the layer is chosen inside each split, and beside it stand:

1. the same on the input embeddings, on the model with shuffled weights, and on the text alone (n-grams);
2. a control task (Hewitt & Liang 2019, 1909.03368): ``selectivity``;
3. the prequential codelength of the labels (Voita & Titov 2020, 2003.12298): ``compression``;
4. what the model says without the probe's direction, against random moves of the same size: ``ablation``;
5. the probe as an alarm at a chosen rate of false alarms, stored: it opens as a judge, guard and monitor.

    calibrant show understand.probe
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from calibrant.core import (
    CapabilityError,
    Estimate,
    Frozen,
    NumericalError,
    OpenLM,
    Quiet,
    Result,
    Run,
    point,
    technique,
    unknown,
)
from calibrant.core.figure_data import Datum, FigureData, by_names, curve
from calibrant.data.judge_folder import write_head
from calibrant.data.judge_head import Alarm, JudgeHead
from calibrant.data.rows import LabelledTexts
from calibrant.models.pooled import Pool
from calibrant.stats import rate
from calibrant.stats.alarms import alarms, probability, threshold
from calibrant.stats.auroc import UNIT, area, auroc, auroc_gain
from calibrant.stats.chance import Labels, by_group, dealt_again, widened, widened_gain
from calibrant.stats.folds import Floats, Folds, Held, folds_of
from calibrant.text.ngrams import ngrams
from calibrant.understand._engine.patches import check_still
from calibrant.understand._probe_ablation import ablation
from calibrant.understand._probe_controls import codelength, selectivity
from calibrant.understand._probe_draws import Chance, chance
from calibrant.understand._probe_fits import Plane, linear, of_text, perceptron, sparse
from calibrant.understand._probe_folds import Fit, best, held_out
from calibrant.understand._probe_rows import Texts, checked, shuffled, states


class Probing(Frozen):
    """Which probe, where, and what is set beside it."""

    probe: Literal["linear", "sparse", "mlp"] = "linear"
    """Logistic regression, the same on k features, or a perceptron with one hidden layer of 32."""
    k: int = Field(default=16, ge=1)
    """Features of the sparse probe."""
    site: Literal["resid_post", "resid_mid", "attn_out", "mlp_out"] = "resid_post"
    """The residual stream after a layer or between attention and MLP, or what either adds to it."""
    position: Pool = "last"
    """The last token of the reply (of the prompt, where there are no replies), or the mean over all."""
    l2: float = Field(default=1.0, gt=0)
    """Penalty on the squared weights of standardised features, against a summed log-loss."""
    folds: int = Field(default=4, ge=3)
    """Parts of templates, and of tasks, for cross-validation."""
    question: str = "does the text have the property?"
    """What the labels answer; the stored probe's verdicts carry it."""
    false_alarm_rate: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of negatives that may raise an alarm."""
    controls: int = Field(default=10, ge=1)
    """Draws of the control task."""
    random_model: bool = True
    """Also probe the model with its weights in random order: as many forward passes again."""
    directions: int = Field(default=20, ge=10)
    """Random directions beside the probe's own."""
    ablated: int = Field(default=64, ge=0)
    """Use at most this many texts for the ablation, drawn at random. 0: no ablation."""
    limit: int | None = Field(default=500, ge=8)
    """Use at most this many texts, drawn at random. None: all."""


class ProbeResult(Result):
    """``auroc``, ``auroc/layer_i``, ``gain/...`` over each baseline, ``selectivity``,
    ``compression/layer_i``, ``ablation/...``, ``false_alarm_rate``. Artefact 'probe/', which
    ``measure.classifier_judge`` and ``defend.probe_guard`` take."""

    def figure_data(self) -> tuple[FigureData, ...]:
        """The probe by layer beside what no layer has; and its ablation beside random directions."""
        layers = curve(self.metrics, {"auroc": "the probe"})
        controls = {"embedding": "input embeddings", "random_model": "shuffled weights", "text": "text alone"}
        flat = tuple(
            Datum(label=label, estimate=self.metrics[f"auroc/{name}"], at=one.at)
            for name, label in controls.items()
            if f"auroc/{name}" in self.metrics
            for one in layers
        )
        title = "AUROC of the probe at each layer, and of its controls, which have no layers"
        read = FigureData(kind="lens", values=(*layers, *flat), title=title, axis="layer")
        moves = {"probe": "the probe's direction", "random": "random directions"}
        ablated = tuple(
            Datum(
                label="change of a log-prob, in nats", estimate=self.metrics[f"ablation/{name}"], stage=stage
            )
            for name, stage in moves.items()
            if f"ablation/{name}" in self.metrics
        )
        title = "What the model says without the probe's direction"
        used = FigureData(kind="intervals", values=ablated, title=title)
        return (*([read] if layers else []), *([used] if ablated else []), *by_names(self.metrics)[-1:])


@technique(version=4)
def probe(
    model: OpenLM, texts: LabelledTexts, config: Probing = Probing(), run: Run = Quiet()
) -> ProbeResult:
    """Probe every layer of ``model`` for the labels of ``texts``.

    Raises:
        InputError: texts that cannot be probed: see the page.
        CapabilityError: the model has no such sites, or is in training mode.
        NumericalError: an activation is NaN or infinite.
    """
    check_still(model.module)
    found = checked(texts, config.limit, run.seed)
    folds = folds_of(found.kinds, found.labels, config.folds, run.seed, inner=True)
    sites = _sites(model, config.site)
    x = states(model, found, sites, config.position, run, "reading the layers")
    work = _Work(found, folds, _fit(config, run.seed), [int(site.split(".")[1]) for site in sites])
    held = held_out(work.fit, x, found.labels, folds)
    picked = best(held.scores, found.labels, folds.blocks)
    lots = dealt_again(found.labels, found.kinds, folds, run.seed)
    mine = chance(work.fit, x[picked], lots, folds)
    metrics = _headline(work, held, picked, mine) | _baselines(model, work, held, lots, mine, config, run)
    metrics |= selectivity(
        work.fit, x[picked], found.labels, found.kinds, config.folds, config.controls, run.seed
    )
    lengths, metrics["bits_per_label"] = codelength(work.fit, x, found.labels, found.kinds, picked, run.seed)
    metrics |= {f"compression/layer_{at}": one for at, one in zip(work.layers, lengths, strict=True)}
    metrics |= alarms(held, picked, found.labels, folds, found.kinds, config.false_alarm_rate)
    if config.probe != "mlp":
        whole = work.fit(x[picked : picked + 1], torch.from_numpy(found.labels))
        assert isinstance(whole, Plane)
        if config.ablated:
            plane = whole.mean[0], whole.weight[0] / whole.std[0]
            metrics |= ablation(model, found, sites[picked], plane, config.directions, config.ablated, run)
        if metrics["false_alarm_rate"].value is not None:
            rates = (metrics["false_alarm_rate"], metrics["detection_rate"])
            _store(model, texts, found, sites[picked], whole, held.scores[picked], rates, config, run)
    return ProbeResult(metrics=metrics, caveats=_caveats(found, config, metrics))


class _Work(NamedTuple):
    """What every fit needs."""

    texts: Texts
    folds: Folds
    fit: Fit
    layers: list[int]
    """The layer of each site."""


def _fit(config: Probing, seed: int) -> Fit:
    if config.probe == "linear":
        return partial(linear, l2=config.l2)
    if config.probe == "sparse":
        return partial(sparse, l2=config.l2, k=config.k)
    return partial(perceptron, l2=config.l2, seed=seed)


def _sites(model: OpenLM, name: str) -> list[str]:
    found = [site for site in model.sites() if site.startswith("blocks.") and site.endswith(f".hook_{name}")]
    if not found:
        raise CapabilityError(
            f"'{model.identity.name}' has no hook_{name}",
            hint="model.sites() lists what it has; site = 'resid_post' works for most",
        )
    return found


def _headline(work: _Work, held: Held, picked: int, spread: Chance) -> dict[str, Estimate]:
    labels, kinds, blocks = work.texts.labels, work.texts.kinds, work.folds.blocks
    right = ((held.nested > 0) == labels).tolist()
    majority = np.zeros(len(labels), np.bool_)
    for cell in work.folds.filled:
        rows = work.folds.inside(cell)
        majority[rows] = labels[rows] == (labels[work.folds.apart(cell)].mean() > 0.5)
    usual = float(majority.mean())
    metrics = {
        "auroc": widened(auroc(held.nested, labels, blocks=blocks, clusters=kinds), spread.auroc),
        "accuracy": widened(_widest(right, kinds, usual), spread.accuracy, usual),
        "accuracy/majority": point(usual, unit=UNIT, n=len(labels)),
        "layer": point(float(work.layers[picked]), unit="layer", n=len(labels)),
    }
    return metrics | {
        f"auroc/layer_{layer}": widened(auroc(one, labels, blocks=blocks, clusters=kinds), spread.auroc)
        for layer, one in zip(work.layers, held.scores, strict=True)
    }


def _widest(right: Sequence[bool], kinds: Sequence[Sequence[str]], null: float) -> Estimate:
    some: Sequence[Sequence[str] | None] = kinds or [None]
    found = [rate(right, clusters=names, better="higher", unit=UNIT, null_value=null) for names in some]
    return max(found, key=lambda one: (one.high or 1.0) - (one.low or 0.0))


class _Known(NamedTuple):
    """A baseline: scores (N,) of rows by fits that have not seen them, and what was fitted to what."""

    scores: Floats
    fit: Fit
    x: Tensor
    """(N, D)."""


def _baselines(
    model: OpenLM,
    work: _Work,
    held: Held,
    lots: Sequence[Labels],
    mine: Chance,
    config: Probing,
    run: Run,
) -> dict[str, Estimate]:
    """AUROC of what knows less, and what the probe has beyond it, on the same splits."""
    texts, labels = work.texts, work.texts.labels
    said: dict[str, _Known | str] = {}
    said["embedding"] = "the model has no blocks.0.hook_resid_pre"
    if (first := "blocks.0.hook_resid_pre") in model.sites():
        x = states(model, texts, [first], "mean", run, "reading the embeddings")
        found = held_out(work.fit, x, labels, work.folds, inner=False)
        said["embedding"] = _Known(found.nested, work.fit, x[0])
    grams = torch.from_numpy(ngrams([_text(texts, row) for row in range(len(labels))]))[None]
    found = held_out(of_text, grams, labels, work.folds, inner=False)
    said["text"] = _Known(found.nested, of_text, grams[0])
    if config.random_model:
        said["random_model"] = _random(model, work, config, run)
    metrics: dict[str, Estimate] = {}
    for name, known in said.items():
        if isinstance(known, str):
            metrics |= {f"{kind}/{name}": unknown(known, unit=UNIT) for kind in ("auroc", "gain")}
            continue
        options = {"blocks": work.folds.blocks, "clusters": texts.kinds}
        spread = chance(known.fit, known.x, lots, work.folds).auroc
        one = auroc(known.scores, labels, **options)  # type: ignore[arg-type]
        gain = auroc_gain(held.nested, known.scores, labels, **options)  # type: ignore[arg-type]
        value = area(held.nested, labels, work.folds.blocks)
        metrics[f"auroc/{name}"] = widened(one, spread)
        metrics[f"gain/{name}"] = widened_gain(gain, (value, mine.auroc), (one.value, spread))
    return metrics


def _random(model: OpenLM, work: _Work, config: Probing, run: Run) -> _Known | str:
    """The probe on a model that has learnt nothing, or why there is none."""
    try:
        twin = shuffled(model, run.seed)
        x = states(twin, work.texts, _sites(model, config.site), config.position, run, "reading at random")
        found = held_out(work.fit, x, work.texts.labels, work.folds)
        picked = best(found.scores, work.texts.labels, work.folds.blocks)
        return _Known(found.nested, work.fit, x[picked])
    except NumericalError as error:
        return f"the model with shuffled weights breaks: {error.message}"


def _text(texts: Texts, row: int) -> str:
    one = texts.rows[row]
    return "\n".join([*(turn.content for turn in one.prompt.messages), one.reply])


def _store(
    model: OpenLM,
    table: LabelledTexts,
    texts: Texts,
    site: str,
    plane: Plane,
    scores: Floats,
    rates: tuple[Estimate, Estimate],
    config: Probing,
    run: Run,
) -> None:
    """Artefact 'probe/': fitted to all rows, with the threshold of held-out ones and its ``rates``."""
    cut = threshold(scores[~texts.labels], config.false_alarm_rate)
    assert cut is not None  # fewer negatives had one
    parts: dict[str, Tensor] = {"mean": plane.mean, "std": plane.std, "weight": plane.weight}
    head = JudgeHead(
        question=config.question,
        model=model.identity.digest,
        site=site,
        pool=config.position,
        over="prompt" if texts.replies is None else "reply",
        threshold=probability(cut),
        alarm=Alarm(asked=config.false_alarm_rate, false_alarm_rate=rates[0], detection_rate=rates[1]),
        labels=table.digest,
        n=len(texts.rows),
        bias=float(plane.bias[0]),
        **{name: tuple(value[0].tolist()) for name, value in parts.items()},
    )
    write_head(head, run.artifact("probe"))


def _caveats(texts: Texts, config: Probing, metrics: dict[str, Estimate]) -> tuple[str, ...]:
    notes = ["what a probe reads need not be used: ablation and patching show what is"]
    if not texts.kinds:
        notes.append("no template or task is named: rows of one may be on both sides of a split")
    for names in texts.kinds:
        if max(Counter(names).values()) * 2 > len(names):
            notes.append("one template or task holds more than half of the rows: the splits are lopsided")
    if config.probe == "mlp":
        notes.append("a perceptron has no single direction: no ablation, and no stored probe")
    elif metrics["false_alarm_rate"].value is None:
        notes.append(f"no threshold: {metrics['false_alarm_rate'].reason}")
    else:
        notes.append("the alarm's rates hold for texts like these: on other tasks they are unknown")
    for names in texts.kinds:
        if groups := by_group(names, texts.labels):
            notes.append(
                f"labels go by group, of which there are {groups}: they are all that a probe learns from, "
                "and others would have given another one"
            )
    return tuple(notes)
