"""What a sparse coder loses: on stored rows, and in the model, where its output takes the activation's place.

    CE recovered = (CE_ablated - CE_coder) / (CE_ablated - CE_clean)
    KL score     = (KL_ablated - KL_coder) / KL_ablated              KL(clean || edited) of next tokens

Ablated: the activation is 0, which no text gives and which flatters every coder, or its mean. All are ratios
of sums over tokens; intervals are over texts, of the linearised ratio. Positions without a row in the store
(the first, BOS) stay as they are in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from calibrant.core import CapabilityError, Estimate, NumericalError, OpenLM, Run, point, unknown
from calibrant.core.lm import Batch
from calibrant.maths.sparse_coding import SparseCoder
from calibrant.maths.sparse_metrics import Tally
from calibrant.stats import mean
from calibrant.understand._engine.harvest import Texts, batches, keep
from calibrant.understand._engine.store import LeftOut, Store

UNIT = "text"
_CHUNK = 2048
_LOGITS = 2**25
Change = Callable[[Tensor], Tensor]


class Sites(NamedTuple):
    """Where a coder reads and writes."""

    read: str
    """What it reads."""
    written: str
    """What it reproduces: the same, or a transcoder's target."""


def tallied(coder: SparseCoder, store: Store, sites: Sites, among: Tensor) -> Tally:
    """Sums over the stored rows ``among``, by text."""
    names, groups = torch.unique(store.tokens(among)[:, 0], return_inverse=True)
    tally = Tally(len(names), coder.shape.d_out, coder.shape.width)
    for (some, x), where in zip(
        store.chunks(sites.read, _CHUNK, among), torch.split(groups, _CHUNK), strict=True
    ):
        y = x if sites.read == sites.written else store.rows(sites.written, some)
        tally.add(where, y, coder(x), *coder.codes(x))
    return tally


def reconstruction(tally: Tally) -> dict[str, Estimate]:
    """How well held-out rows are written."""
    ratios = {name: tuple(part.numpy() for part in parts) for name, parts in tally.ratios().items()}
    error, spread = ratios.pop("unexplained")
    seen = int(tally.rows.sum())
    found = {"explained_variance": ratio(spread - error, spread, better="higher", null_value=0.0)}
    better: dict[str, Literal["lower", "none"]] = {"mse": "lower"}
    found |= {
        name: ratio(above, below, better=better.get(name, "none")) for name, (above, below) in ratios.items()
    }
    found["dead_share"] = point(
        float(tally.dead.double().mean()), unit="feature", n=len(tally.fired),
        reason=f"features that were on at none of {seen} held-out tokens",
    )  # fmt: skip
    return found


def in_the_model(
    model: OpenLM, coder: SparseCoder, texts: Texts, rows: Sequence[int], store: Store, sites: Sites, run: Run
) -> dict[str, Estimate]:
    """CE recovered and KL score, over zero and mean ablation, on texts by their numbers ``rows``.

    Raises:
        CapabilityError: a transcoder's target runs before what it reads.
        NumericalError: logits are NaN or infinite.
    """
    some = [texts.ids[row] for row in rows]
    centre = store.header.mean(sites.written)
    width = int(model.module.config.vocab_size)  # type: ignore[union-attr, arg-type]
    sums = torch.zeros(
        len(rows), 7, dtype=torch.float64
    )  # CE: clean, coder, zero, mean; KL: coder, zero, mean
    done = 0
    for part in batches(model, some, most=max(1, _LOGITS // width)):
        batch = model.encode([texts.chats[rows[i]] for i in part])
        run.spend(queries=4 * len(part))
        sums[part] = _losses(
            model, batch, _kept(model, batch, [some[i] for i in part], store), coder, centre, sites
        )
        done += len(part)
        run.progress(done, len(rows), "in the model")
    if not sums.isfinite().all():
        raise NumericalError("a run with the coder in place gives NaN or infinity", hint="load it in float32")
    clean, written, *ablated = sums[:, :4].T.numpy()
    far, *worst = sums[:, 4:].T.numpy()
    found: dict[str, Estimate] = {}
    for name, loss, divergence in zip(("zero", "mean"), ablated, worst, strict=True):
        found[f"ce_recovered/{name}"] = ratio(
            loss - written, loss - clean, better="higher",
            doubtful=f"{name} ablation does not change the loss beyond doubt",
        )  # fmt: skip
        found[f"kl_score/{name}"] = ratio(divergence - far, divergence, better="higher")
    return found


def ratio(
    above: ArrayLike,
    below: ArrayLike,
    *,
    better: Literal["higher", "lower", "none"],
    null_value: float | None = None,
    doubtful: str = "",
) -> Estimate:
    """Quotient of two sums over texts (n,), with the interval of its linearised values (delta method).

    ``doubtful``: why there is none where the denominator, which may have either sign, has an interval that
    holds 0; "" where it is a sum of squares or the like.
    """
    numerator, denominator = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    whole = mean(denominator.tolist(), better="none", unit=UNIT)
    open_ended = whole.low is None or whole.high is None or whole.low <= 0 <= whole.high
    if doubtful and open_ended:
        return unknown(doubtful, n=len(denominator), unit=UNIT)
    if not denominator.sum():
        return unknown(
            "there is nothing to compare with: the denominator is 0", n=len(denominator), unit=UNIT
        )
    quotient = numerator.sum() / denominator.sum()
    linear = quotient + (numerator - quotient * denominator) / denominator.mean()
    return mean(linear.tolist(), better=better, unit=UNIT, null_value=null_value)


def _kept(model: OpenLM, batch: Batch, ids: Sequence[Sequence[int]], store: Store) -> Tensor:
    """(B, T) bool: positions that have a row."""
    left_out: LeftOut = store.header.source.left_out
    mask = torch.zeros_like(batch.mask)
    for row, some in enumerate(ids):
        mask[row, : len(some)] = torch.tensor(keep(model, some, left_out))
    return mask


def _losses(
    model: OpenLM, batch: Batch, kept: Tensor, coder: SparseCoder, centre: Tensor, sites: Sites
) -> Tensor:
    """(B, 7): sums over a text's tokens."""
    read: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        read[:] = [value]
        return value

    def write(value: Tensor) -> Tensor:
        if sites.read != sites.written and not read:
            raise CapabilityError(
                f"'{sites.written}' runs before '{sites.read}'",
                hint="a transcoder's target must come after it",
            )
        source = read[0] if read else value
        return _put(value, kept, coder(source.flatten(2)[kept].float().cpu()))

    def constant(vector: Tensor) -> Change:
        return lambda value: _put(value, kept, vector)

    changes: list[dict[str, Change]] = [
        {} if sites.read == sites.written else {sites.read: note},
        {sites.written: constant(torch.zeros_like(centre))},
        {sites.written: constant(centre)},
    ]
    changes[0][sites.written] = write
    with torch.inference_mode():
        clean = model.forward(batch)[:, :-1].float().log_softmax(-1)
        scored, answers = batch.mask[:, 1:], batch.ids[:, 1:, None]
        losses, divergences = [_summed(-clean.gather(-1, answers)[..., 0], scored)], []
        for change in changes:
            with model.edit(change):
                edited = model.forward(batch)[:, :-1].float().log_softmax(-1)
            losses.append(_summed(-edited.gather(-1, answers)[..., 0], scored))
            divergences.append(_summed((clean.exp() * (clean - edited)).sum(-1), scored))
    return torch.stack([*losses, *divergences], 1).cpu()


def _put(value: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
    flat = value.flatten(2).clone()
    flat[kept] = rows.to(flat)
    return flat.view_as(value)


def _summed(values: Tensor, scored: Tensor) -> Tensor:
    return torch.where(scored, values, torch.zeros_like(values)).double().sum(1)
