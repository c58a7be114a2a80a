"""Sparse autoencoders and transcoders: encode, decode, losses.

    f = a((x - b_dec) W_enc + b_enc)       x^ = f W_dec + b_dec      (a transcoder takes nothing off x)

The activation a is one of four:

- ``relu`` with an L1 penalty on f (Bricken et al. 2023), decoder rows of norm 1;
- ``topk``: the k largest of each row, then ReLU (Gao et al. 2024, 2406.04093);
- ``batchtopk``: the B * k largest of a batch (Bussmann et al. 2024, 2412.06410); when it is not trained, what
  exceeds a threshold, the running mean of a batch's least entry;
- ``jumprelu``: z where z > threshold, with an L0 penalty, both by a straight-through estimator of a bandwidth
  (Rajamanoharan et al. 2024, 2407.14435, eqs 11 and 12). The threshold is learned as it is and kept at 0 or
  more: its logarithm, which the paper learns, hardly moves under Adam's steps (SAELens#494).

Features that no longer fire are trained to explain what the others leave (auxiliary loss, 2406.04093, A.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from calibrant.core.errors import InputError
from calibrant.maths.sparse_kernels import (
    Choice,
    Pattern,
    batch_top_k,
    decoded,
    encoded,
    entries,
    top_entries,
    top_k,
)

Variant = Literal["relu", "topk", "batchtopk", "jumprelu"]
_SLOW = 0.01  # share of each batch in the running threshold of batchtopk


@dataclass(frozen=True)
class Shape:
    """What a coder is, without its weights."""

    variant: Variant
    """The activation."""
    d_in: int
    """Width of what is read."""
    d_out: int
    """Width of what is written."""
    width: int
    """Features."""
    k: int = 0
    """Of topk and batchtopk."""
    shifted: bool = True
    """Whether the decoder's bias is taken off the input. A transcoder must not."""
    skip: bool = False
    """Whether a linear map of the input is added to the output."""
    bandwidth: float = 0.05
    """Of the straight-through estimator, in units of the pre-activations."""

    def check(self) -> None:
        """Refuse a shape that is none.

        Raises:
            InputError: a size below 1, k outside 1 ... width, or a shift where widths differ.
        """
        if min(self.d_in, self.d_out, self.width) < 1:
            raise InputError(
                f"a coder of {self.d_in} to {self.width} to {self.d_out} is none", hint="1 or more"
            )
        if self.variant in ("topk", "batchtopk") and not 1 <= self.k <= self.width:
            raise InputError(f"k = {self.k} of {self.width} features", hint=f"choose 1 to {self.width}")
        if self.shifted and self.d_in != self.d_out:
            raise InputError(
                f"a shift needs one width, got {self.d_in} and {self.d_out}", hint="set shifted to False"
            )
        if not self.bandwidth > 0:
            raise InputError(f"bandwidth = {self.bandwidth}", hint="a small positive number")


class Losses(NamedTuple):
    """One batch's."""

    loss: Tensor
    """Scalar: mse + penalty + auxiliary."""
    mse: Tensor
    """Mean over rows of ||x - x^||^2: the size of a batch does not matter."""
    penalty: Tensor
    """Sparsity, times its coefficient."""
    auxiliary: Tensor
    """Of dead features, times its coefficient."""
    active: Tensor
    """Mean number of features that are not 0."""
    fired: Tensor
    """(m,) bool: which fired in the batch."""


class SparseCoder(nn.Module):
    """Weights, and what is done with them. ``threshold`` is that of jumprelu, or batchtopk's running one."""

    encoder: nn.Parameter
    """(m, d_in): W_enc transposed."""
    bias: nn.Parameter
    """(m,): b_enc."""
    decoder: nn.Parameter
    """(m, d_out): W_dec."""
    decoder_bias: nn.Parameter
    """(d_out,): b_dec."""
    threshold: nn.Parameter | None
    """(m,)."""
    skip: nn.Parameter | None
    """(d_out, d_in)."""

    def __init__(
        self, shape: Shape, *, mean: Tensor | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        """Random unit directions; the encoder begins as the decoder, where both have one width.

        Args:
            shape: what it is.
            mean: (d_out,) where the decoder's bias begins; None: 0.
            seed: of the directions.
            dtype: of the weights.

        Raises:
            InputError: see ``Shape.check``.
        """
        super().__init__()
        shape.check()
        self.shape = shape
        generator = torch.Generator().manual_seed(seed)
        size = (shape.width, shape.d_out)
        decoder = torch.randn(size, generator=generator, dtype=torch.float64)
        same = shape.d_in == shape.d_out and shape.shifted
        reader = (
            decoder
            if same
            else torch.randn(shape.width, shape.d_in, generator=generator, dtype=torch.float64)
        )
        self.decoder = nn.Parameter(_unit(decoder).to(dtype))
        self.encoder = nn.Parameter(_unit(reader).to(dtype).clone())
        self.bias = nn.Parameter(torch.zeros(shape.width, dtype=dtype))
        start = torch.zeros(shape.d_out, dtype=dtype) if mean is None else mean.to(dtype).clone()
        self.decoder_bias = nn.Parameter(start)
        learned = shape.variant == "jumprelu"
        low = torch.full((shape.width,), shape.bandwidth / 5 if learned else 0.0, dtype=dtype)
        held = shape.variant in ("jumprelu", "batchtopk")
        self.threshold = nn.Parameter(low, requires_grad=learned) if held else None
        self.skip = nn.Parameter(torch.zeros(shape.d_out, shape.d_in, dtype=dtype)) if shape.skip else None

    def codes(self, x: Tensor) -> tuple[Pattern, Tensor]:
        """Features of rows (B, d_in), as a coder that is not trained gives them: where, and values (n,).

        Raises:
            InputError: rows of another shape or type.
        """
        self._check(x, self.shape.d_in)
        pre = encoded(x, self.encoder, self.bias, self._shift())
        if self.shape.variant == "topk":
            pattern, values = top_k(self.shape.k)(pre)
            return pattern, values.relu()
        rows, columns = (pre > self._floor(pre)).nonzero(as_tuple=True)
        return Pattern(rows, columns, (pre.shape[0], pre.shape[1])), pre[rows, columns]

    def encode(self, x: Tensor) -> Tensor:
        """Features (B, m), without a gradient."""
        with torch.no_grad():
            pattern, values = self.codes(x)
            return pattern.dense(values)

    def decode(self, features: Tensor) -> Tensor:
        """(B, d_out) from features (B, m), without the skip connection, which needs the input."""
        return features @ self.decoder + self.decoder_bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, d_out) from (B, d_in), without a gradient."""
        with torch.no_grad():
            pattern, values = self.codes(x)
            return self._finished(pattern.times(values, self.decoder), x)

    def losses(
        self,
        x: Tensor,
        target: Tensor | None = None,
        *,
        coefficient: float = 0.0,
        dead: Tensor | None = None,
        auxiliary: float = 1 / 32,
    ) -> Losses:
        """What is descended, on rows (B, d_in).

        Args:
            x: what is read.
            target: (B, d_out) what is to be written; None: x.
            coefficient: of the L1 or L0 penalty; relu and jumprelu only.
            dead: (m,) bool: features that the auxiliary loss revives.
            auxiliary: its coefficient.

        Raises:
            InputError: rows of another shape or type.
        """
        self._check(x, self.shape.d_in)
        self._check(x if target is None else target, self.shape.d_out)
        wanted = x if target is None else target
        sparse = self.shape.variant in ("topk", "batchtopk")
        step = self._sparse(x) if sparse else self._dense(x, coefficient)
        error = wanted - self._finished(step.product, x)
        mse = error.square().sum(-1).mean()
        aux = mse.new_zeros(())
        if dead is not None and auxiliary and bool(dead.any()):
            aux = auxiliary * self._revive(x, step.pre.detach(), error.detach(), dead)
        loss = mse + step.penalty + aux
        return Losses(loss, mse, step.penalty, aux, step.active, step.fired)

    def project(self) -> None:
        """After a step: decoder rows of norm 1, thresholds of 0 or more."""
        with torch.no_grad():
            unit_rows_(self.decoder)
            if self.threshold is not None:
                self.threshold.clamp_(min=0.0)

    def rescale(self, read: float, written: float) -> None:
        """Make a coder that was trained on ``read`` * x and ``written`` * y one of x and y themselves."""
        with torch.no_grad():
            self.encoder.mul_(read / written)
            for part in (self.bias, self.decoder_bias, self.threshold):
                if part is not None:
                    part.div_(written)
            if self.skip is not None:
                self.skip.mul_(read / written)

    def _check(self, rows: Tensor, width: int) -> None:
        if rows.ndim != 2 or rows.shape[1] != width or rows.dtype != self.encoder.dtype:
            raise InputError(
                f"rows of shape {tuple(rows.shape)} and type {rows.dtype}",
                hint=f"give (rows, {width}) in {self.encoder.dtype}",
            )

    def _shift(self) -> Tensor | None:
        return self.decoder_bias if self.shape.shifted else None

    def _floor(self, pre: Tensor) -> Tensor:
        return pre.new_zeros(()) if self.threshold is None else self.threshold.clamp(min=0.0)

    def _finished(self, product: Tensor, x: Tensor) -> Tensor:
        out = product + self.decoder_bias
        return out if self.skip is None else out + x @ self.skip.T

    def _sparse(self, x: Tensor) -> _Step:
        pre = encoded(x, self.encoder, self.bias, self._shift())
        choose: Choice = (top_k if self.shape.variant == "topk" else batch_top_k)(self.shape.k)
        pattern, chosen = choose(pre)
        values = entries(x, self.encoder, self.bias, self._shift(), pattern, chosen).relu()
        positive = chosen > 0
        fired = torch.zeros(self.shape.width, dtype=torch.bool, device=x.device)
        fired[pattern.columns[positive]] = True
        if self.threshold is not None and self.training and bool(positive.any()):
            with torch.no_grad():
                begun = bool((self.threshold > 0).any())
                self.threshold.lerp_(chosen[positive].min().expand_as(self.threshold), _SLOW if begun else 1)
        active = positive.sum() / len(x)
        return _Step(decoded(pattern, values, self.decoder), pre, x.new_zeros(()), active, fired)

    def _dense(self, x: Tensor, coefficient: float) -> _Step:
        inner = x if not self.shape.shifted else x - self.decoder_bias
        pre = inner @ self.encoder.T + self.bias
        if self.shape.variant == "relu":
            features = pre.relu()
            penalty = coefficient * features.sum(-1).mean()
        else:
            assert self.threshold is not None
            features = jump_relu(pre, self.threshold, self.shape.bandwidth)
            penalty = coefficient * step(pre, self.threshold, self.shape.bandwidth).sum(-1).mean()
        on = features.detach() > 0
        return _Step(features @ self.decoder, pre, penalty, on.sum() / len(x), on.any(0))

    def _revive(self, x: Tensor, pre: Tensor, error: Tensor, dead: Tensor) -> Tensor:
        """||e - e^||^2 a row, where the dead features alone explain the error e."""
        names = dead.nonzero()[:, 0]
        count = min(len(names), max(1, self.shape.d_out // 2))
        values, at = top_entries(pre[:, names], count)
        rows = torch.arange(len(x), device=x.device).repeat_interleave(count)
        pattern = Pattern(rows, names[at.flatten()], (len(x), self.shape.width))
        some = entries(x, self.encoder, self.bias, self._shift(), pattern, values.flatten())
        guess = decoded(pattern, some, self.decoder)
        share = min(1.0, len(names) / max(1, self.shape.d_out // 2))
        return share * (error - guess).square().sum(-1).mean()


class _Step(NamedTuple):
    product: Tensor
    pre: Tensor
    penalty: Tensor
    active: Tensor
    fired: Tensor


def jump_relu(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """z where z > t, else 0, for thresholds t (m,) of 0 or more. d/dt = -(t / w) K((z - t) / w), eq. 11."""
    return _JumpReLU.apply(pre, threshold, bandwidth)  # type: ignore[no-any-return, no-untyped-call]


def step(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """1 where z > t, else 0. d/dt = -(1 / w) K((z - t) / w), eq. 12; nothing flows to z."""
    return _Step01.apply(pre, threshold, bandwidth)  # type: ignore[no-any-return, no-untyped-call]


def unit_rows_(matrix: Tensor) -> None:
    """Scale every row to norm 1, in place; a row of zeros stays."""
    with torch.no_grad():
        matrix.div_(torch.linalg.vector_norm(matrix, dim=1, keepdim=True).clamp(min=1e-12))


def tangent_(grad: Tensor, matrix: Tensor) -> None:
    """Take off ``grad``, in place, what would only change the row norms of ``matrix``, which are 1."""
    with torch.no_grad():
        grad.addcmul_(matrix, (grad * matrix).sum(1, keepdim=True), value=-1)


def _unit(matrix: Tensor) -> Tensor:
    unit_rows_(matrix)
    return matrix


def _near(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """The rectangle K((z - threshold) / w): 1 within half a bandwidth of the threshold."""
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype)


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (flow,) = grads
        pre, threshold = ctx.saved_tensors
        slope = -(threshold / ctx.bandwidth) * (_near(pre, threshold, ctx.bandwidth) * flow).sum(0)
        return flow * (pre > threshold), slope, None


class _Step01(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (flow,) = grads
        pre, threshold = ctx.saved_tensors
        return None, -(_near(pre, threshold, ctx.bandwidth) * flow).sum(0) / ctx.bandwidth, None
