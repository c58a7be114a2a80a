"""Codes with few non-zero entries, and a backward pass that costs no more than they do.

Of a TopK autoencoder's step only the product with the encoder is dense. All else goes over the chosen
entries, in two orders: by row (decoding, and the gradient of the input) and by column (both weight
gradients). The second is the transpose of a CSR matrix times a dense one, and is sorted once for both:

    dW_dec = A^T @ dX^        dW_enc^T = dA^T @ X        A: (B, m) with few entries

A product of a sparse matrix and a dense one is an ``embedding_bag`` with weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

_GROUP = 16


@dataclass(frozen=True)
class Pattern:
    """Where a (B, m) matrix has entries, row by row."""

    rows: Tensor
    """(n,) ascending."""
    columns: Tensor
    """(n,)."""
    shape: tuple[int, int]
    """(B, m)."""

    @cached_property
    def starts(self) -> Tensor:
        """(B,) the first entry of each row."""
        return _starts(self.rows, self.shape[0])

    @cached_property
    def order(self) -> Tensor:
        """(n,) the entries column by column."""
        return torch.argsort(self.columns, stable=True)

    @cached_property
    def by_column(self) -> tuple[Tensor, Tensor]:
        """Rows of the entries column by column (n,), and the first entry of each column (m,)."""
        return self.rows[self.order], _starts(self.columns, self.shape[1])

    def times(self, values: Tensor, dense: Tensor) -> Tensor:
        """A @ dense: (B, d) from entries (n,) and (m, d)."""
        return embedding_bag(self.columns, dense, self.starts, mode="sum", per_sample_weights=values)

    def transposed_times(self, values: Tensor, dense: Tensor) -> Tensor:
        """A^T @ dense: (m, d) from entries (n,) and (B, d)."""
        rows, starts = self.by_column
        return embedding_bag(rows, dense, starts, mode="sum", per_sample_weights=values[self.order])

    def column_sums(self, values: Tensor) -> Tensor:
        """A^T @ 1: (m,)."""
        return values.new_zeros(self.shape[1]).index_add_(0, self.columns, values)

    def dense(self, values: Tensor) -> Tensor:
        """(B, m) with zeros."""
        return values.new_zeros(self.shape).index_put((self.rows, self.columns), values)


Choice = Callable[[Tensor], tuple[Pattern, Tensor]]
"""Pre-activations (B, m) -> the entries that are kept, and their values (n,)."""


def top_k(k: int) -> Choice:
    """The k largest entries of each row."""

    def choose(pre: Tensor) -> tuple[Pattern, Tensor]:
        values, columns = top_entries(pre, k)
        rows = torch.arange(len(pre), device=pre.device).repeat_interleave(values.shape[1])
        return Pattern(rows, columns.flatten(), (pre.shape[0], pre.shape[1])), values.flatten()

    return choose


def batch_top_k(k: int) -> Choice:
    """The B * k largest entries of the whole batch (Bussmann et al. 2024, 2412.06410)."""

    def choose(pre: Tensor) -> tuple[Pattern, Tensor]:
        flat = pre.flatten()
        where = flat.topk(min(k * len(pre), flat.numel()), sorted=False).indices.sort().values
        shape = (pre.shape[0], pre.shape[1])
        return Pattern(where // shape[1], where % shape[1], shape), flat[where]

    return choose


def top_entries(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns (B, k) of the k largest entries of each row of (B, m), in no order.

    The k largest lie in the k groups of columns whose maxima are largest, so only these are searched.
    """
    rows, width = pre.shape
    if width % _GROUP or width < 4 * _GROUP * k:
        return tuple(pre.topk(min(k, width), sorted=False))  # type: ignore[return-value]
    groups = pre.view(rows, _GROUP, width // _GROUP)
    best = groups.amax(1).topk(k, sorted=False).indices
    found = groups.gather(2, best[:, None].expand(rows, _GROUP, k)).flatten(1)
    values, at = found.topk(k, sorted=False)
    return values, at // k * (width // _GROUP) + best.gather(1, at % k)


def encoded(x: Tensor, encoder: Tensor, bias: Tensor, shift: Tensor | None) -> Tensor:
    """Pre-activations (B, m) = (x - shift) @ encoder^T + bias, without a gradient.

    Args:
        x: (B, d).
        encoder: (m, d).
        bias: (m,).
        shift: (d,), the decoder's bias; None: nothing is taken off.
    """
    with torch.no_grad():
        return torch.addmm(bias, x if shift is None else x - shift, encoder.T)


def entries(
    x: Tensor, encoder: Tensor, bias: Tensor, shift: Tensor | None, pattern: Pattern, values: Tensor
) -> Tensor:
    """``values`` (n,) of ``encoded`` at ``pattern``, with the gradients of x, encoder, bias and shift."""
    return _Entries.apply(x, encoder, bias, shift, pattern, values)  # type: ignore[no-any-return, no-untyped-call]


def decoded(pattern: Pattern, values: Tensor, decoder: Tensor) -> Tensor:
    """(B, d) = A @ decoder for entries (n,) and decoder (m, d), with the gradients of both."""
    product = pattern.times(values, decoder.detach())
    return _Decoder.apply(product, decoder, values.detach(), pattern)  # type: ignore[no-any-return, no-untyped-call]


class _Entries(torch.autograd.Function):
    """Entries of a dense product that was made elsewhere."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        encoder: Tensor,
        bias: Tensor,
        shift: Tensor | None,
        pattern: Pattern,
        values: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, encoder, shift)
        ctx.pattern = pattern
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (flow,) = grads
        x, encoder, shift = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        sums = pattern.column_sums(flow)
        return (
            pattern.times(flow, encoder) if ctx.needs_input_grad[0] else None,
            pattern.transposed_times(flow, x if shift is None else x - shift),
            sums,
            None if shift is None else -(sums @ encoder),
            None,
            None,
        )


class _Decoder(torch.autograd.Function):
    """Adds the decoder's gradient to a product that has those of the entries."""

    @staticmethod
    def forward(ctx: Any, product: Tensor, decoder: Tensor, values: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values)
        ctx.pattern = pattern
        return product.view_as(product)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (flow,) = grads
        (values,) = ctx.saved_tensors
        decoder = ctx.pattern.transposed_times(values, flow) if ctx.needs_input_grad[1] else None
        return flow, decoder, None, None


def _starts(numbers: Tensor, count: int) -> Tensor:
    """(count,) how many entries have a smaller number than each of 0 ... count - 1."""
    counts = torch.bincount(numbers, minlength=count)
    return counts.cumsum(0) - counts
