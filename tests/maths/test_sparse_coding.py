"""Sparse coders against slow float64 references: gradients, losses, straight-through estimators."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from calibrant.core import InputError
from calibrant.maths.sparse_coding import Shape, SparseCoder, jump_relu, step, tangent_, unit_rows_
from calibrant.maths.sparse_kernels import (
    Pattern,
    batch_top_k,
    decoded,
    encoded,
    entries,
    top_entries,
    top_k,
)

B, D, M, K = 13, 6, 40, 5
VARIANTS = ("relu", "topk", "batchtopk", "jumprelu")


def draw(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coder_of(variant, shifted=True, skip=False, d_out=D, width=M):
    shape = Shape(variant, D, d_out, width, K, shifted, skip, bandwidth=0.3)
    coder = SparseCoder(shape, mean=0.1 * draw(d_out, seed=4), dtype=torch.float64)
    with torch.no_grad():
        coder.bias.add_(0.1 * draw(width, seed=5))
        if skip:
            coder.skip.add_(0.1 * draw(d_out, D, seed=6))
    return coder


def dense_losses(coder, x, y, coefficient, dead=None, auxiliary=1 / 32):
    """The same by plain autograd over dense matrices; the penalty of jumprelu has no gradient here."""
    shape = coder.shape
    inner = x - coder.decoder_bias if shape.shifted else x
    pre = inner @ coder.encoder.T + coder.bias
    kept = torch.zeros_like(pre, dtype=torch.bool)
    if shape.variant == "topk":
        kept.scatter_(1, pre.topk(K).indices, True)
    elif shape.variant == "batchtopk":
        kept.view(-1)[pre.flatten().topk(K * len(x)).indices] = True
    else:
        kept = pre > (0 if coder.threshold is None else coder.threshold)
    features = torch.where(kept, pre.relu(), 0.0)
    out = features @ coder.decoder + coder.decoder_bias
    out = out if coder.skip is None else out + x @ coder.skip.T
    mse = sum(((y[i] - out[i]) ** 2).sum() for i in range(len(x))) / len(x)
    loss = mse + (coefficient * features.sum() / len(x) if shape.variant == "relu" else 0.0)
    if dead is not None:
        count = min(int(dead.sum()), shape.d_out // 2)
        masked = torch.where(dead, pre, -torch.inf)
        top = masked.topk(count)
        guess = torch.zeros_like(pre).scatter(1, top.indices, top.values) @ coder.decoder
        share = min(1.0, int(dead.sum()) / (shape.d_out // 2))
        loss = loss + auxiliary * share * ((y - out).detach() - guess).square().sum(1).mean()
    return loss, mse, features


@pytest.mark.parametrize("case", [(True, False, D), (False, False, D), (False, True, D), (False, True, 9)])
@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("variant", ["relu", "topk", "batchtopk"])
def test_loss_and_every_gradient_are_those_of_autograd(variant, dead, case):
    shifted, skip, d_out = case
    coder, x = coder_of(variant, shifted, skip, d_out), draw(B, D, seed=1).requires_grad_()
    y = x if d_out == D and shifted else draw(B, d_out, seed=2)
    mask = torch.arange(M) % 3 == 0 if dead else None
    slow, mse, features = dense_losses(coder, x, y, 0.2, mask)
    expected = torch.autograd.grad(slow, [x, *(p for p in coder.parameters() if p.requires_grad)])
    found = coder.losses(x, y, coefficient=0.2, dead=mask)
    grads = torch.autograd.grad(found.loss, [x, *(p for p in coder.parameters() if p.requires_grad)])
    assert_close(found.loss, slow, rtol=0, atol=1e-10)
    assert_close(found.mse, mse, rtol=0, atol=1e-10)
    for one, other in zip(grads, expected, strict=True):
        assert_close(one, other, rtol=0, atol=1e-8)
    assert torch.equal(found.fired, (features > 0).any(0))
    assert float(found.active) == pytest.approx(float((features > 0).sum() / B))


@pytest.mark.parametrize("choose", [top_k(3), batch_top_k(3)])
def test_gradcheck(choose):
    x, encoder, decoder = (
        draw(*size, seed=s).requires_grad_() for s, size in enumerate(((4, 5), (9, 5), (9, 3)))
    )
    bias, shift = draw(9, seed=3).requires_grad_(), draw(5, seed=4).requires_grad_()
    held, _ = choose(encoded(x, encoder, bias, shift))

    def whole(x, encoder, bias, shift, decoder):
        chosen = encoded(x, encoder, bias, shift)[held.rows, held.columns]
        return decoded(held, entries(x, encoder, bias, shift, held, chosen), decoder)

    assert torch.autograd.gradcheck(whole, (x, encoder, bias, shift, decoder))


def test_products_are_those_of_the_dense_matrix():
    rows, columns = torch.tensor([0, 0, 2, 3, 3, 3]), torch.tensor([4, 1, 4, 0, 4, 2])  # row 1 is empty
    pattern, values = Pattern(rows, columns, (4, 6)), draw(6)
    dense = pattern.dense(values)
    assert_close(pattern.times(values, draw(6, 3, seed=1)), dense @ draw(6, 3, seed=1))
    assert_close(pattern.transposed_times(values, draw(4, 3, seed=2)), dense.T @ draw(4, 3, seed=2))
    assert_close(pattern.column_sums(values), dense.sum(0))


@pytest.mark.parametrize(("width", "k"), [(4096, 7), (2048, 32), (2048, 33), (100, 9), (8, 8), (8, 20)])
def test_top_entries_are_the_largest(width, k):
    pre = torch.randn(50, width, generator=torch.Generator().manual_seed(0))
    values, columns = top_entries(pre, k)
    assert torch.equal(values.sort(1).values, pre.topk(min(k, width)).values.sort(1).values)
    assert torch.equal(pre.gather(1, columns), values)
    assert all(len(set(row)) == min(k, width) for row in columns.tolist())


def test_straight_through_estimators_are_the_papers():
    """Equations 11 and 12 by loops."""
    pre, threshold, width = draw(7, 4), torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64), 0.6
    threshold.requires_grad_()
    flow = draw(7, 4, seed=1)
    (jump,) = torch.autograd.grad((jump_relu(pre, threshold, width) * flow).sum(), threshold)
    (count,) = torch.autograd.grad((step(pre, threshold, width) * flow).sum(), threshold)
    held = threshold.tolist()
    for j in range(4):
        near = [i for i in range(7) if abs(float(pre[i, j]) - held[j]) / width < 0.5]
        assert float(jump[j]) == pytest.approx(-sum(held[j] / width * float(flow[i, j]) for i in near))
        assert float(count[j]) == pytest.approx(-sum(float(flow[i, j]) / width for i in near))
    pre.requires_grad_()
    (through,) = torch.autograd.grad((jump_relu(pre, threshold, width) * flow).sum(), pre)
    assert_close(through, torch.where(pre > threshold, flow, 0.0).detach())


def test_the_estimator_is_the_slope_of_the_expected_loss():
    """Where pre-activations are spread evenly: d/dt E[H(z - t)] = -p(t), d/dt E[z H(z - t)] = -t p(t)."""
    pre = torch.linspace(0, 4, 40_001, dtype=torch.float64)[:, None]
    threshold = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    (count,) = torch.autograd.grad(step(pre, threshold, 0.4).mean(), threshold)
    (jump,) = torch.autograd.grad(jump_relu(pre, threshold, 0.4).mean(), threshold)
    assert float(count) == pytest.approx(-0.25, rel=1e-3)
    assert float(jump) == pytest.approx(-1.5 * 0.25, rel=1e-3)


def test_mse_does_not_depend_on_the_batch():
    """Holds against SAELens PR#711: its MSE did, from 2024 to 2026."""
    coder, x = coder_of("topk"), draw(B, D)
    assert_close(coder.losses(torch.cat([x, x])).mse, coder.losses(x).mse)


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_codes_and_forward_agree(variant):
    coder, x = coder_of(variant, skip=True), draw(B, D)
    if coder.threshold is not None:
        coder.threshold.data.fill_(0.4)
    features = coder.encode(x)
    pre = (x - coder.decoder_bias) @ coder.encoder.T + coder.bias
    if variant == "topk":
        assert ((features > 0).sum(1) <= K).all()
        expected = torch.zeros_like(pre).scatter(1, pre.topk(K).indices, pre.topk(K).values.relu())
    else:
        expected = torch.where(pre > (0.4 if coder.threshold is not None else 0.0), pre, 0.0)
    assert_close(features, expected.detach())
    assert_close(coder(x), (coder.decode(features) + x @ coder.skip.T).detach())


def test_norms_stay_1_and_gradients_are_tangent():
    matrix = draw(7, 3) * 5
    matrix[2] = 0
    unit_rows_(matrix)
    norms = torch.linalg.vector_norm(matrix, dim=1)
    assert norms.tolist() == pytest.approx([1, 1, 0, 1, 1, 1, 1])
    grad = draw(7, 3, seed=1)
    tangent_(grad, matrix)
    assert_close((grad * matrix).sum(1), torch.zeros(7, dtype=torch.float64))
    coder = coder_of("jumprelu")
    coder.threshold.data.fill_(-1.0)
    coder.project()
    assert coder.threshold.min().item() == 0.0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("transcoder", [False, True])
def test_a_coder_of_scaled_rows_becomes_one_of_the_rows(variant, transcoder):
    """Holds against SAELens#518: at scale 3 an autoencoder stays the one that it was."""
    coder = coder_of(variant, not transcoder, transcoder, 9 if transcoder else D)
    if coder.threshold is not None:
        coder.threshold.data.fill_(0.3)
    x, (read, written) = draw(B, D), (3.0, 0.5 if transcoder else 3.0)
    before, features = coder(read * x) / written, coder.encode(read * x) / written
    coder.rescale(read, written)
    assert_close(coder(x), before)
    assert_close(coder.encode(x), features)
    assert_close(torch.linalg.vector_norm(coder.decoder, dim=1), torch.ones(M, dtype=torch.float64))


def test_batchtopk_learns_a_threshold():
    coder = coder_of("batchtopk")
    x = draw(400, D, seed=3)
    for _ in range(300):
        coder.losses(x)
    coder.eval()
    assert float((coder.encode(x) > 0).sum(1).double().mean()) == pytest.approx(K, rel=0.05)
    before = coder.threshold.clone()
    coder.losses(2 * x)
    assert torch.equal(coder.threshold, before)


def test_shapes_that_are_none_are_refused():
    for shape, told in (
        (Shape("topk", 4, 4, 8, 0), "k = 0 of 8"),
        (Shape("topk", 4, 4, 8, 9), "k = 9 of 8"),
        (Shape("relu", 4, 5, 8), "a shift needs one width"),
        (Shape("relu", 0, 0, 8), "is none"),
        (Shape("jumprelu", 4, 4, 8, bandwidth=0.0), "bandwidth"),
    ):
        with pytest.raises(InputError, match=told):
            SparseCoder(shape)


def test_rows_of_another_shape_are_refused():
    coder = coder_of("topk")
    for rows in (draw(B, D + 1), draw(2, B, D), draw(B, D).float(), draw(D)):
        with pytest.raises(InputError, match="rows of shape"):
            coder(rows)
        with pytest.raises(InputError, match="rows of shape"):
            coder.losses(rows)
    with pytest.raises(InputError, match="rows of shape"):
        coder.losses(draw(B, D), draw(B, D + 1))


def test_no_row_no_feature():
    """An empty choice is no error: a row may keep nothing."""
    coder = coder_of("relu")
    coder.bias.data.fill_(-1e3)
    x = draw(B, D)
    assert_close(coder(x), coder.decoder_bias.detach().expand(B, D))
    assert coder.losses(x, coefficient=0.1).loss.isfinite()
