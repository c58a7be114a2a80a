"""Losses of a student that learns from a weak supervisor's labels, as pure functions of logits.

The confidence loss is that of Burns et al. 2023 (arXiv 2312.09390), section 4.3.2 and appendix A.4:

    L = (1 - a) CE(f, weak) + a CE(f, hard_t(f)),    hard_t detached

with ``a`` from 0 to ``a_max`` over the first 20 % of the steps (``ramp``), and t such that the hardened
predictions of a batch keep the class prior of the weak labels (``hardened``).

Where this departs from github.com/openai/weak-to-strong (``weak_to_strong/loss.py``) on purpose:
1. There the weight is the share of the steps that are done until 10 % are, and then jumps to 1.0 times a_max;
   here it rises linearly to a_max, as the paper says.
2. There t is a quantile at the mean weak label of the batch; here the prior is the caller's, so that it can
   be that of all weak labels.
3. There are two classes there, and any number here.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum_k target_k ln softmax(logits)_k, in nats: (B,) from (B, K) logits and (B, K) probabilities."""
    return -(target * logits.log_softmax(-1)).sum(-1)


def quotas(prior: Tensor, count: int) -> list[int]:
    """How many of ``count`` examples each class gets: count times the prior (K,), by largest remainders.

    They add up to ``count``. A class whose prior is far below 1 / count gets none.
    """
    wanted = [float(p) * count for p in prior.double() / prior.double().sum()]
    given = [int(w + 1e-9) for w in wanted]
    order = sorted(range(len(wanted)), key=lambda k: (given[k] - wanted[k], k))
    for k in order[: count - sum(given)]:
        given[k] += 1
    return given


def hardened(logits: Tensor, prior: Tensor) -> Tensor:
    """The class (B,) int64 of each prediction, so many of each as the prior (K,) says; detached.

    With two classes these are the predictions above a threshold t, and t is the quantile of the batch at
    which the share above it is the prior. With K classes a class each has a threshold t_k, and an example is
    of the class with the largest ln p_k - t_k; the thresholds are those at which every class has its share.
    That is the assignment of examples to classes with the largest sum of log-probs under the ``quotas``,
    whose dual variables they are, and it is found as such, exactly. Among equal predictions any may be taken.
    """
    logp = logits.detach().double().log_softmax(-1).cpu().numpy()
    columns = np.repeat(np.arange(logp.shape[1]), quotas(prior, len(logp)))
    rows, places = linear_sum_assignment(-logp[:, columns])
    found: NDArray[np.int64] = np.empty(len(logp), np.int64)
    found[rows] = columns[places]
    return torch.from_numpy(found).to(logits.device)


def confidence_loss(logits: Tensor, weak: Tensor, alpha: float, hard: Tensor) -> Tensor:
    """(1 - alpha) CE(f, weak) + alpha CE(f, hard), in nats: (B,).

    Args:
        logits: (B, K) of the student.
        weak: (B, K) the supervisor's probabilities, or hard labels as 0 and 1.
        alpha: weight of the student's own predictions, 0 to 1; see ``ramp``.
        hard: (B,) int64 the student's own classes; see ``hardened``.
    """
    own = torch.nn.functional.cross_entropy(logits, hard, reduction="none")
    return (1 - alpha) * soft_cross_entropy(logits, weak) + alpha * own


def ramp(step: int, steps: int, most: float, share: float = 0.2) -> float:
    """The weight a at ``step`` of ``steps``, from 0: linear from 0 to ``most`` over the first ``share``."""
    climb = share * steps
    return most if step >= climb else most * step / climb
