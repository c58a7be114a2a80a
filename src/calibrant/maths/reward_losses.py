"""Losses of reward models, as pure functions of scores; one value a pair or a list.

Scores are free up to a shift: every loss but ``centring`` reads differences alone. P(w beats l) is
sigma(r_w - r_l), so a score is in log-odds. In the formulas w is the chosen reply, l the rejected one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | float = 0.0,
    label_smoothing: Tensor | float = 0.0,
) -> Tensor:
    """-(1 - e) ln sigma(z) - e ln sigma(-z) with z = r_w - r_l - margin; shape of ``chosen``.

    Bradley & Terry 1952, Biometrika 39, 324-345; the margin as in Llama 2 (arXiv 2307.09288), equation 2.
    ``label_smoothing`` is the share e of labels that are wrong: the loss is then least at
    z = ln((1 - e) / e), not at infinity. With ``margin`` as the threshold of ``tie``, this is the loss of
    a win under Rao and Kupper.
    """
    z = chosen - rejected - margin
    if isinstance(label_smoothing, float) and label_smoothing == 0.0:
        return -logsigmoid(z)
    return -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)


def tie(first: Tensor, second: Tensor, threshold: Tensor | float) -> Tensor:
    """-ln P(neither is better), threshold h > 0, d = r_1 - r_2; shape of ``first``.

    Rao & Kupper 1967, JASA 62, 194-204: P(first wins) = sigma(d - h), P(second wins) = sigma(-d - h), and
    the rest, (e^2h - 1) sigma(d - h) sigma(-d - h), is a tie. Least at d = 0. It is infinite at h = 0.
    """
    d = first - second
    h = torch.as_tensor(threshold, dtype=d.dtype, device=d.device)
    # ln(e^2h - 1) as 2h + ln(1 - e^-2h): e^2h alone overflows.
    return -(2 * h + torch.log(-torch.expm1(-2 * h))) - logsigmoid(d - h) - logsigmoid(-d - h)


def centring(first: Tensor, second: Tensor) -> Tensor:
    """(r_1 + r_2)^2; shape of ``first``. Times a small coefficient it holds the free shift near 0.

    Eisenstein et al. 2023 (arXiv 2312.09244), section 3, with 0.01; TRL's ``center_rewards_coefficient``.
    """
    return (first + second) ** 2


def group_mean(values: Tensor, owner: Tensor, groups: int) -> Tensor:
    """Mean (groups, ...) of ``values`` (P, ...) over the rows of each group; a group without rows gives 0.

    ``owner`` (P,) int64 says which group a row is of. With all C(K, 2) pairs of a ranked list as a group,
    a list weighs as much as a pair: Ouyang et al. 2022 (arXiv 2203.02155), equation 1.
    """
    sums = values.new_zeros(groups, *values.shape[1:]).index_add(0, owner, values)
    counts = torch.bincount(owner, minlength=groups).clamp(min=1)
    return sums / counts.view(-1, *[1] * (values.ndim - 1))


def plackett_luce(scores: Tensor, mask: Tensor) -> Tensor:
    """-ln P(this order), -sum_i (r_i - ln sum_{j >= i} e^{r_j}): (B,), in nats.

    Plackett 1975, Applied Statistics 24, 193-202. Of two replies it is Bradley-Terry.

    Args:
        scores: (B, K), best first.
        mask: (B, K) bool, True on the replies of a list; lists are padded on the right.
    """
    # Far below any score but finite: the gradient of logcumsumexp is NaN where all so far is -infinity.
    held = scores.masked_fill(~mask, torch.finfo(scores.dtype).min / 4)
    rest = held.flip(-1).logcumsumexp(-1).flip(-1)
    return (rest - held).masked_fill(~mask, 0.0).sum(-1)
