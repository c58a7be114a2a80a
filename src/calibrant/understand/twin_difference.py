"""What was changed in a model, read off its activations on texts that have nothing to do with the change.

A model and its edited or fine-tuned twin read the same texts. For each layer (Minder et al. 2025, 2510.13900,
look at the first tokens of unrelated text; here it is all of a text, and tested):

1. ``shift``: the mean difference of the residual streams, along the direction that the *other* half of the
   texts gives, over the length of the base's stream: 0 on average where nothing is shared by the texts.
2. ``p``: the length of the mean difference beside those with random signs a text, which is what two random
   halves of the texts differ by; the largest over all layers.
3. ``local``: what attention and MLP of each layer of the twin write differently when they are handed the
   base's stream, so that changes before them do not show: where it is largest, most was changed (``edited``).
4. ``share``: of the squares of the latter, at single tokens, what one direction holds. An edit of rank 1 has
   1. ``single`` says whether it reaches .9 where most was changed.
5. The mean difference through the final norm and the unembedding: the tokens that it speaks for.

    calibrant show understand.twin_difference
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from calibrant.core import (
    CapabilityError,
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
from calibrant.data.rows import Prompts
from calibrant.stats import mean
from calibrant.stats.max_statistic import least_p, max_norm_flip
from calibrant.understand._twins import Differences, check_twins, compare, tokenised

UNIT = "text"


class TwinDifference(Frozen):
    """How the twins are compared."""

    level: float = Field(default=0.05, gt=0, lt=1)
    """Chance of any false find over all layers that is accepted."""
    single: float = Field(default=0.9, gt=0, le=1)
    """From this share of the squared difference on, one direction is said to hold it."""
    prefix: int | None = Field(default=None, ge=1)
    """Read only so many tokens of each text, from its beginning. None: all."""
    tokens: int = Field(default=10, ge=1)
    """So many tokens of each layer's reading are stored."""
    limit: int | None = Field(default=100, ge=6)
    """Use at most this many texts, evenly spread. None: all."""


class TwinDifferenceResult(Result):
    """``shift/STAGE`` and ``p/STAGE`` ('embedding', 'layer_0', ...), ``local/PART`` and ``share/PART``
    ('layer_0/attn_out', ...), ``first``, ``edited``, ``edited/share``, ``single``. Artefacts
    'directions.safetensors' and 'layers.json'."""

    edited: str = Field(default="", exclude=True)
    """The part that changed most; "" where none did."""
    directions: Any = Field(default=None, exclude=True, repr=False)
    """'mean': stage -> mean difference (D,). 'local': part -> mean difference of what it writes; 'top': the
    direction of norm 1 that holds most of that."""


@technique(version=2)
def twin_difference(
    base: OpenLM,
    twin: OpenLM,
    texts: Prompts,
    config: TwinDifference = TwinDifference(),
    run: Run = Quiet(),
) -> TwinDifferenceResult:
    """Compare the streams of ``base`` and ``twin``, layer by layer, on texts that have nothing to do with it.

    Raises:
        InputError: fewer than six texts, one that does not fit the context, or one object given twice.
        CapabilityError: models of another architecture, shape, precision, device or tokenizer.
        NumericalError: a stream is NaN or infinite.
    """
    rows, n = texts.rows, min(config.limit or len(texts), len(texts))
    if n < 6:  # no p-value could be below .05
        raise InputError(f"{n} texts are too few to tell a difference from noise", hint="100 are plenty")
    check_twins(base, twin)
    ids = tokenised(base, twin, [rows[i * len(rows) // n].prompt for i in range(n)])
    found = compare(base, twin, [row[: config.prefix] for row in ids], run)
    draws = 2000
    chances = max_norm_flip(found.whole.transpose(0, 1).numpy(), draws=draws, seed=run.seed)
    shares, top = _shares(found.tokens)
    rounding = _ROUNDING * torch.finfo(next(base.module.parameters()).dtype).eps
    metrics = _metrics(found, chances.tolist(), shares, least_p(n, draws), rounding, config, run.seed)
    names = [part.name for part in found.parts]
    directions = {
        "mean": dict(zip(found.stages, found.whole.mean(0), strict=True)),
        "local": dict(zip(names, found.local.mean(0), strict=True)),
        "top": dict(zip(names, top, strict=True)),
    }
    stored = {
        f"{kind}/{name}": way.clone() for kind, some in directions.items() for name, way in some.items()
    }
    save_file(stored, run.artifact("directions.safetensors"))
    readings, notes = _read(twin, found.whole.mean(0), config.tokens)
    table = {
        "stages": dict(zip(found.stages, readings, strict=True)),
        "p": chances.tolist(),
        "shares": dict(zip(names, shares, strict=True)),
    }
    run.artifact("layers.json").write_text(json.dumps(table), encoding="utf-8")
    edited = ""
    if metrics["edited"].value is not None:
        part = found.parts[int(found.relative.mean(0).argmax())]
        edited, words = part.name, ", ".join(map(repr, readings[part.layer + 1][:5]))
        notes.append(f"{edited} changed most; behind it the mean difference reads {words or 'nothing'}")
    return TwinDifferenceResult(
        metrics=metrics, caveats=(*_NOTES, *notes), edited=edited, directions=directions
    )


_NOTES = (
    "a difference of activations shows that something was changed, not what the model does with it",
    "what the change does on texts unlike these is not seen",
    "the tokens of a direction are a reading, not a test",
)


def _metrics(
    found: Differences,
    chances: Sequence[float],
    shares: Sequence[float],
    least: float,
    rounding: float,
    config: TwinDifference,
    seed: int,
) -> dict[str, Estimate]:
    """All metrics; layer -1 stands for the embedding. Parts of a size up to ``rounding`` write the same."""
    n, shifts = len(found.whole), _along(found.whole, seed) / found.lengths
    differs = (found.relative.mean(0) > rounding).tolist()
    metrics: dict[str, Estimate] = {}
    for at, stage in enumerate(found.stages):
        metrics[f"shift/{stage}"] = _mean(shifts[:, at])
        metrics[f"p/{stage}"] = point(chances[at], unit="p-value", n=n)
    for at, part in enumerate(found.parts):
        metrics[f"local/{part.name}"] = _mean(found.relative[:, at])
        share = point(shares[at], unit="share", n=len(found.tokens))
        metrics[f"share/{part.name}"] = share if differs[at] else unknown(_SAME, n=n, unit="share")
    rises = [at for at, chance in enumerate(chances) if chance <= config.level]
    mute = f"no p-value can be below {least:.2g}: give more texts" if least > config.level else ""
    if not any(differs):
        rises, mute = [], _SAME
    first = point(rises[0] - 1, unit="layer", n=n) if rises else unknown(mute or _NONE, n=n, unit="layer")
    return metrics | {"first": first} | _edited(found, shares, any(differs), config.single)


_ROUNDING = 2.0
"""Times the spacing of numbers beside 1: a model run twice may differ by a part of it, by how memory lies."""
_SAME, _NONE = "what is written is the same", "no layer's mean difference is beyond chance"


def _edited(found: Differences, shares: Sequence[float], differs: bool, single: float) -> dict[str, Estimate]:
    """Where most was changed, and whether one direction holds it."""
    sizes, n = found.relative.mean(0), len(found.whole)
    if not differs:
        return {name: unknown(_SAME, n=n) for name in ("edited", "edited/share", "single")}
    edited = int(sizes.argmax())
    return {
        "edited": point(found.parts[edited].layer, unit="layer", n=n),
        "edited/share": point(float(sizes[edited] ** 2 / (sizes**2).sum()), unit="share", n=n),
        "single": point(float(shares[edited] >= single), unit="yes or no", n=n),
    }


def _along(values: Tensor, seed: int) -> Tensor:
    """(N, S): each text's difference along the mean difference of the half that it is not in."""
    order = list(range(len(values)))
    random.Random(f"halves/{seed}").shuffle(order)
    halves = [order[: len(order) // 2], order[len(order) // 2 :]]
    found = torch.zeros(values.shape[:2], dtype=torch.float64)
    for here, there in (halves, halves[::-1]):
        way = values[there].double().mean(0)
        unit = way / way.norm(dim=-1, keepdim=True).clamp(min=1e-300)
        found[here] = (values[here].double() * unit).sum(-1)
    return found


def _mean(values: Tensor) -> Estimate:
    return mean(values.tolist(), better="none", unit=UNIT, null_value=0.0)


def _shares(tokens: Tensor) -> tuple[list[float], Tensor]:
    """Share of the squared differences (M, S, D) that one direction holds, and that direction, (S, D)."""
    shares, top = [], []
    for values in tokens.transpose(0, 1):
        whole = float((values.double() ** 2).sum())
        if whole == 0:
            shares.append(0.0)
            top.append(torch.zeros(values.shape[1]))
            continue
        _, sizes, ways = torch.linalg.svd(values.double(), full_matrices=False)
        shares.append(float(sizes[0] ** 2) / whole)
        sign = 1.0 if float((values.double() @ ways[0]).sum()) >= 0 else -1.0
        top.append((sign * ways[0]).float())
    return shares, torch.stack(top)


def _read(model: OpenLM, directions: Tensor, count: int) -> tuple[list[list[str]], list[str]]:
    """The likeliest tokens of each direction (S, D); none for 0, and where the model has no lens."""
    device, dtype = next(model.module.parameters()).device, next(model.module.parameters()).dtype
    readings: list[list[str]] = []
    for way in directions:
        if not way.norm() > 0:
            readings.append([])
            continue
        try:
            with torch.inference_mode():
                pair = torch.stack([way, torch.zeros_like(way)]).to(device, dtype)
                logits = model.unembed(pair[None])[0].float()
        except CapabilityError as error:
            return [[] for _ in directions], [f"no tokens are read off: {error.message}"]
        best = (logits[0] - logits[1]).topk(min(count, logits.shape[-1])).indices
        readings.append([model.tokenizer.decode([int(token)]) for token in best])
    return readings, []
