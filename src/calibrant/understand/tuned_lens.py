"""Tuned lens: each layer read through an affine map into the last one's terms (Belrose 2023, 2303.08112).

    lens_i = softmax( unembed( norm( h_i + A_i h_i + b_i ) ) ),  A_i = 0, b_i = 0 at the start
    min over A_i, b_i of KL( final || lens_i ), the model frozen

1. Trained on some texts, read on others, beside the logit lens on the same positions.
2. A map with a bias learns the usual distribution of tokens even from noise. So a control is trained alike on
   final predictions of other positions: ``beyond_control`` is what a layer says about its own position.
3. The final norm is applied to the translated state with that state's own scale.

    calibrant show understand.tuned_lens
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from calibrant.core import (
    CapabilityError,
    Estimate,
    Frozen,
    InputError,
    NumericalError,
    OpenLM,
    Quiet,
    Result,
    Run,
    technique,
)  # fmt: skip
from calibrant.core.figure_data import FigureData, by_names, curve
from calibrant.core.lm import Chat
from calibrant.data.rows import Prompts
from calibrant.maths.kl import categorical_kl
from calibrant.stats import mean
from calibrant.understand._engine.patches import check_still
from calibrant.understand._translators import Translators
from calibrant.understand._translators import read_translators as read_translators

_SAME = 0.01  # nats: the last layer must be read as the model itself reads it
_LENSES = ("tuned", "plain", "control")


class TunedLens(Frozen):
    """How the lens is trained and read."""

    steps: int = Field(default=250, ge=1)
    """Optimiser steps."""
    batch: int = Field(default=16, ge=1)
    """Texts in a step."""
    positions: int = Field(default=16, ge=1)
    """Positions drawn of each text, in training and in reading; only these are unembedded."""
    lr: float = Field(default=1e-3, gt=0, le=10)
    """Learning rate of Adam, falling to 0 in a straight line."""
    held_out: float = Field(default=0.25, gt=0, lt=1)
    """Share of the texts that the lens is read on and not trained on."""
    control: bool = True
    """Train a second lens on predictions of other positions, too: what it reaches is no reading."""
    limit: int | None = Field(default=2000, ge=4)
    """Use at most this many texts, evenly spread. None: all."""


class TunedLensResult(Result):
    """``tuned/METRIC/layer_i``, ``plain/...`` and ``control/...`` of ``kl_to_final``, ``ce``, ``bias`` and
    ``top1_agreement``; ``gain/layer_i``, ``beyond_control/layer_i``. Artefact 'tuned_lens', a folder."""

    def figure_data(self) -> tuple[FigureData, ...]:
        """A figure a measure: the tuned lens beside the logit lens and the control."""
        lenses = {"tuned": "tuned lens", "plain": "logit lens", "control": "control"}
        titles = {
            "kl_to_final": "KL from the last layer, in nats",
            "top1_agreement": "Share of places with the last layer's first choice",
        }
        figures = [
            FigureData(kind="lens", values=values, title=title, axis="layer")
            for measure, title in titles.items()
            if (values := curve(self.metrics, {f"{one}/{measure}": told for one, told in lenses.items()}))
        ]
        return (*figures, *by_names(self.metrics))


class _Drawn(NamedTuple):
    """What was seen at positions of some texts."""

    streams: list[Tensor]
    """(S, D) after each block but the last."""
    final: Tensor
    """(S, V) log-probs of the model itself."""
    follows: Tensor
    """(S,) the token that follows."""
    texts: Tensor
    """(S,) which text."""


@technique(version=1)
def tuned_lens(
    model: OpenLM, texts: Prompts, config: TunedLens = TunedLens(), run: Run = Quiet()
) -> TunedLensResult:
    """Train a map for each layer of ``model`` but the last, and read texts that it has not seen.

    Raises:
        InputError: fewer than four distinct texts of two tokens, or one that does not fit the context.
        CapabilityError: the model's blocks, or the way from them to its logits, were not found.
        NumericalError: the training diverges.
    """
    check_still(model.module, gradients=True)
    sites = [site for site in model.sites() if site.endswith("hook_resid_post")]
    if len(sites) < 2:
        raise CapabilityError(
            f"no tuned lens for '{model.identity.name}': it has {len(sites)} blocks that can be read",
            hint="take a model of two layers or more, of another family; see model.sites()",
        )
    chats, notes = _distinct(model, texts, config.limit)
    order = torch.randperm(len(chats), generator=torch.Generator().manual_seed(run.seed)).tolist()
    aside = min(max(2, round(config.held_out * len(chats))), len(chats) - 2)
    shown, held = ([chats[at] for at in some] for some in (order[aside:], order[:aside]))
    _check_last(model, held[: config.batch], sites)
    lenses = _train(model, shown, sites, config, run)
    lenses[0].save(run.artifact("tuned_lens"), model.identity.digest)
    metrics = _metrics(_read(model, held, sites, lenses, config, run))
    return TunedLensResult(
        metrics=metrics,
        caveats=(
            "a fitted lens says what can be read off a layer by an affine map, not what the model uses",
            "it is fitted to texts like these: on others it may be worse than the logit lens",
            *notes,
        ),
    )


def _distinct(model: OpenLM, texts: Prompts, limit: int | None) -> tuple[list[Chat], list[str]]:
    """Texts of two tokens or more, each once: a copy on both sides of the split would be no held-out text."""
    rows = texts.rows
    if limit is not None and len(rows) > limit:
        rows = tuple(rows[i * len(rows) // limit] for i in range(limit))
    seen: dict[tuple[int, ...], Chat] = {}
    for row in rows:
        seen.setdefault(tuple(model.prompt_ids(row.prompt)), row.prompt)
    kept = [chat for ids, chat in seen.items() if len(ids) > 1]
    if len(kept) < 4:
        raise InputError(
            f"a tuned lens needs four distinct texts of two tokens or more, got {len(kept)}",
            hint="hundreds say something",
        )
    lost = len(rows) - len(kept)
    return kept, [f"{lost} of {len(rows)} texts left out: copies, or of one token"] if lost else []


def _check_last(model: OpenLM, chats: Sequence[Chat], sites: Sequence[str]) -> None:
    """Refuse a model whose last stream, unembedded, is not what it says."""
    with torch.inference_mode():
        batch = model.encode(chats)
        stream = model.trace(batch, [sites[-1]])[sites[-1]]
        apart = categorical_kl(model.forward(batch).float(), model.unembed(stream).float())[batch.mask]
    if apart.isnan().any():
        raise NumericalError(
            "the model's logits are no numbers", hint="load it in float32, check its weights"
        )
    if not bool((apart <= _SAME).all()):
        raise CapabilityError(
            f"no tuned lens for '{model.identity.name}': the last layer's reading is not what it says",
            hint="load it in float32; if that does not help, take a model of another family",
        )


def _draw(
    model: OpenLM, chats: Sequence[Chat], sites: Sequence[str], count: int, generator: torch.Generator
) -> _Drawn:
    """At most ``count`` positions of each text that a token follows, at random."""
    with torch.no_grad():
        batch = model.encode(chats)
        streams = model.trace(batch, list(sites))
        free = torch.rand(batch.ids.shape[0], batch.ids.shape[1] - 1, generator=generator)
        free = free.masked_fill(~batch.mask[:, 1:].cpu(), -1.0)
        best = free.topk(min(count, free.shape[1]), dim=1)
        rows, ranks = (best.values >= 0).nonzero(as_tuple=True)
        places = best.indices[rows, ranks]
        device = batch.ids.device
        rows, places = rows.to(device), places.to(device)
        taken = [streams[site][rows, places] for site in sites]
        final = model.unembed(taken[-1][None])[0].float().log_softmax(-1)
    return _Drawn(taken[:-1], final, batch.ids[rows, places + 1], rows.cpu())


def _train(
    model: OpenLM, chats: Sequence[Chat], sites: Sequence[str], config: TunedLens, run: Run
) -> list[Translators]:
    """The lens and, where asked for, its control."""
    generator = torch.Generator().manual_seed(run.seed + 1)
    lenses: list[Translators] = []
    with torch.inference_mode(False), torch.enable_grad():
        for step, some in enumerate(_batches(chats, config, generator)):
            drawn = _draw(model, some, sites, config.positions, generator)
            run.spend(queries=len(some))
            if not lenses:
                width, device = drawn.streams[0].shape[1], drawn.final.device
                lenses = [Translators.identity(sites[:-1], width, device) for _ in range(1 + config.control)]
                weights = [one for lens in lenses for pair in lens.maps.values() for one in pair]
                optimiser = torch.optim.Adam(weights, lr=config.lr)
            shuffled = drawn.final[
                torch.randperm(len(drawn.final), generator=generator).to(drawn.final.device)
            ]
            optimiser.param_groups[0]["lr"] = config.lr * (1 - step / config.steps)
            optimiser.zero_grad()
            losses = [0.0, 0.0]
            for at, (lens, target) in enumerate(zip(lenses, (drawn.final, shuffled), strict=False)):
                for site, stream in zip(sites[:-1], drawn.streams, strict=True):
                    loss = categorical_kl(target, lens.logits(model, site, stream[None])[0].float()).mean()
                    loss.backward()  # type: ignore[no-untyped-call]
                    losses[at] += float(loss.detach()) / len(drawn.streams)
            if not torch.tensor(losses).isfinite().all():
                raise NumericalError(
                    f"the lens's loss is no number at step {step}",
                    hint="lower lr, or load the model in float32",
                )
            optimiser.step()
            run.log(step, loss=losses[0], **({"control_loss": losses[1]} if config.control else {}))
            run.progress(step + 1, config.steps, "training")
    return lenses


def _batches(chats: Sequence[Chat], config: TunedLens, generator: torch.Generator) -> Iterator[list[Chat]]:
    """``steps`` batches: every text once before any comes again."""
    waiting: list[int] = []
    for _ in range(config.steps):
        if len(waiting) < config.batch:
            waiting += torch.randperm(len(chats), generator=generator).tolist()
        some, waiting = waiting[: config.batch], waiting[config.batch :]
        yield [chats[at] for at in some]


def _read(
    model: OpenLM,
    chats: Sequence[Chat],
    sites: Sequence[str],
    lenses: Sequence[Translators],
    config: TunedLens,
    run: Run,
) -> dict[str, list[float]]:
    """Metric name -> one number a text."""
    generator = torch.Generator().manual_seed(run.seed + 2)
    found: dict[str, list[float]] = {}
    for first in range(0, len(chats), config.batch):
        some = chats[first : first + config.batch]
        run.spend(queries=len(some))
        drawn = _draw(model, some, sites, config.positions, generator)
        with torch.no_grad():
            for layer, (site, stream) in enumerate(zip(sites[:-1], drawn.streams, strict=True)):
                readings = [lenses[0].logits(model, site, stream[None]), model.unembed(stream[None])]
                readings += [lens.logits(model, site, stream[None]) for lens in lenses[1:]]
                for name, logits in zip(_LENSES, readings, strict=False):
                    for key, values in _values(logits[0].float(), drawn).items():
                        sums = torch.zeros(len(some)).index_add_(0, drawn.texts, values.cpu())
                        counts = torch.bincount(drawn.texts, minlength=len(some))
                        found.setdefault(f"{name}/{key}/layer_{layer}", []).extend((sums / counts).tolist())
        run.progress(first + len(some), len(chats), "reading")
    return found


def _values(logits: Tensor, drawn: _Drawn) -> dict[str, Tensor]:
    """Name -> (S,), of logits (S, V)."""
    here, follows = logits.log_softmax(-1), drawn.follows[:, None]
    said, final = here.gather(1, follows)[:, 0], drawn.final.gather(1, follows)[:, 0]
    return {
        "kl_to_final": categorical_kl(drawn.final, here),
        "ce": -said,
        "bias": said - final,
        "top1_agreement": (here.argmax(-1) == drawn.final.argmax(-1)).float(),
    }


def _metrics(found: dict[str, list[float]]) -> dict[str, Estimate]:
    """Means over held-out texts, and differences between lenses on the same texts."""
    layers = [name.rpartition("/")[2] for name in found if name.startswith("tuned/kl_to_final/")]
    gaps: dict[str, list[float]] = {}
    for title, other in (("gain", "plain"), ("beyond_control", "control")):
        if f"{other}/kl_to_final/layer_0" in found:
            for layer in layers:
                pairs = zip(
                    found[f"{other}/kl_to_final/{layer}"], found[f"tuned/kl_to_final/{layer}"], strict=True
                )
                gaps[f"{title}/{layer}"] = [one - two for one, two in pairs]
    whole = [sum(row) / len(row) for row in zip(*(gaps[f"gain/{layer}"] for layer in layers), strict=True)]
    metrics = {
        name: mean(values, better="higher", unit="text", null_value=0.0)
        for name, values in {"gain": whole, **gaps}.items()
    }
    for name, values in found.items():
        share = "/top1" in name
        metrics[name] = mean(
            values,
            better="higher" if share or "/bias" in name else "lower",
            unit="text",
            bounds=(0.0, 1.0) if share else None,
        )
    return metrics
