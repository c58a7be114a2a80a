"""Preference losses on pairs, as pure functions of summed log-probs; one function a loss.

Each takes ``PairSums`` and its own options and returns (B,): mean it over the batch, then descend. In the
formulas s = ln pi - ln ref of a reply in nats (w chosen, l rejected), D = s_w - s_l, |y| = tokens of a
reply, sigma the logistic function. What each takes, and its name in TRL, stands in ``pair_losses.py``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from calibrant.maths.logprobs import masked_sum
from calibrant.maths.pair_sums import PairSums


def sigmoid(sums: PairSums, beta: float) -> Tensor:
    """DPO: -ln sigma(beta D). Rafailov et al. 2023 (arXiv 2305.18290), equation 7."""
    return -logsigmoid(beta * sums.difference)


def conservative(sums: PairSums, beta: float, label_smoothing: float) -> Tensor:
    """cDPO: -(1 - e) ln sigma(beta D) - e ln sigma(-beta D), where a share e of the labels is wrong.

    Mitchell 2023, "A note on DPO with noisy preferences". Least at beta D = ln((1 - e) / e), not at infinity.
    """
    return _smoothed(beta * sums.difference, label_smoothing)


def robust(sums: PairSums, beta: float, label_smoothing: float) -> Tensor:
    """rDPO: [-(1 - e) ln sigma(beta D) + e ln sigma(-beta D)] / (1 - 2 e), e below 1/2.

    Its mean over labels flipped with probability e is the DPO loss on clean labels. Unbounded below.
    Chowdhury et al. 2024 (arXiv 2403.00409).
    """
    z = beta * sums.difference
    clean, flipped = -logsigmoid(z), -logsigmoid(-z)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def hinge(sums: PairSums, beta: float) -> Tensor:
    """max(0, 1 - beta D): a pair that is far enough apart teaches no more.

    SLiC-HF, Zhao et al. 2023 (arXiv 2305.10425), on log-ratios as in RSO, Liu et al. 2023 (arXiv 2309.06657).
    """
    return relu(1 - beta * sums.difference)


def ipo(sums: PairSums, beta: float, length_average: bool = True) -> Tensor:
    """(D' - 1 / (2 beta))^2, beta being the paper's tau. Azar et al. 2023 (arXiv 2310.12036), equation 17.

    ``length_average``: D' = s_w / |y_w| - s_l / |y_l|, as TRL and HALOs have it, confirmed by the authors;
    else D' = D, as OpenRLHF has it. The two ask for margins of quite different size.
    """
    gap = sums.mean_difference if length_average else sums.difference
    return (gap - 1 / (2 * beta)) ** 2


def sigmoid_norm(sums: PairSums, beta: float) -> Tensor:
    """-ln sigma(beta (s_w / |y_w| - s_l / |y_l|)): DPO by token. Lambert et al. 2024 (arXiv 2411.15124)."""
    return -logsigmoid(beta * sums.mean_difference)


def exo_pair(sums: PairSums, beta: float, label_smoothing: float) -> Tensor:
    """KL of (sigma(beta D), sigma(-beta D)) from (1 - e, e), e above 0: reverse, where DPO's is forward.

    Ji et al. 2024 (EXO, arXiv 2402.00856), equation 16 for two replies. It is infinite at e = 0.
    """
    z = beta * sums.difference
    wins = z.sigmoid() * (logsigmoid(z) - math.log1p(-label_smoothing))
    return wins + (-z).sigmoid() * (logsigmoid(-z) - math.log(label_smoothing))


def discopop(sums: PairSums, beta: float, tau: float) -> Tensor:
    """(1 - m)(-ln sigma(z)) + m e^-z, z = beta D, m = sigma(z / tau), tau at most 1.

    Lu et al. 2024 (arXiv 2406.08414), equation 5. m e^-z is made in one exponent: alone, e^-z overflows.
    """
    z = beta * sums.difference
    return (-z / tau).sigmoid() * -logsigmoid(z) + (logsigmoid(z / tau) - z).exp()


def nca_pair(sums: PairSums, beta: float) -> Tensor:
    """-ln sigma(r_w) - 1/2 ln sigma(-r_w) - 1/2 ln sigma(-r_l), r = beta s.

    Chen et al. 2024 (NCA, arXiv 2402.05369). Each reply is held by itself, so the chosen one cannot fall
    with the rejected one.
    """
    chosen, rejected = beta * sums.chosen_ratio, beta * sums.rejected_ratio
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair(sums: PairSums, beta: float) -> Tensor:
    """-ln sigma(r_w) - ln sigma(-r_l), r = beta s: each reply is classified as good or bad.

    Jung et al. 2024 (arXiv 2404.04656) without the shift by a running mean, as TRL has it since 0.29.
    """
    return -logsigmoid(beta * sums.chosen_ratio) - logsigmoid(-beta * sums.rejected_ratio)


def sppo_hard(sums: PairSums, beta: float) -> Tensor:
    """(s_w - 1 / (2 beta))^2 + (s_l + 1 / (2 beta))^2: each reply towards a log-ratio of its own.

    Wu et al. 2024 (SPPO, arXiv 2405.00675), equation 4.7 with win probabilities 1 and 0.
    """
    return (sums.chosen_ratio - 0.5 / beta) ** 2 + (sums.rejected_ratio + 0.5 / beta) ** 2


def apo_zero(sums: PairSums, beta: float) -> Tensor:
    """1 - sigma(r_w) + sigma(r_l), r = beta s: the chosen reply up, the rejected one down.

    D'Oosterlinck et al. 2024 (arXiv 2408.06266), equation 7: for replies better than the model's own.
    """
    return (-beta * sums.chosen_ratio).sigmoid() + (beta * sums.rejected_ratio).sigmoid()


def apo_down(sums: PairSums, beta: float) -> Tensor:
    """sigma(r_w) + 1 - sigma(r_w - r_l), r = beta s: both down, the rejected one more.

    D'Oosterlinck et al. 2024 (arXiv 2408.06266), equation 8: for replies worse than the model's own.
    """
    return (beta * sums.chosen_ratio).sigmoid() + (-beta * sums.difference).sigmoid()


def aot(sums: PairSums, beta: float, label_smoothing: float) -> Tensor:
    """cDPO on sorted values: the policy's log-ratios of pairs against the reference's, rank by rank.

    Melnyk et al. 2024 (arXiv 2406.05882). A row of the output belongs to a rank, not to a pair, and it
    changes with the pairs around it: cut a batch in two and the loss is another.
    """
    policy = (sums.policy_chosen - sums.policy_rejected).sort().values
    reference = (sums.ref_chosen - sums.ref_rejected).sort().values
    return _smoothed(beta * (policy - reference), label_smoothing)


def aot_unpaired(sums: PairSums, beta: float, label_smoothing: float) -> Tensor:
    """cDPO on sorted values: the batch's s_w against its s_l, rank by rank; see ``aot``."""
    gap = sums.chosen_ratio.sort().values - sums.rejected_ratio.sort().values
    return _smoothed(beta * gap, label_smoothing)


def simpo(sums: PairSums, beta: float, gamma: float) -> Tensor:
    """-ln sigma(beta (a_w - a_l) - gamma), a = ln pi / |y|; no reference.

    Meng et al. 2024 (arXiv 2405.14734), equation 6. Some tools give gamma / beta instead of gamma.
    """
    chosen, rejected = _by_token(sums)
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def orpo(sums: PairSums, lam: float) -> Tensor:
    """-a_w - lam ln sigma(ln odds_w - ln odds_l), a = ln pi / |y|, odds = e^a / (1 - e^a); no reference.

    Hong et al. 2024 (arXiv 2403.07691), equations 6 and 7. Odds diverge as a -> 0, so there they stand
    still: within one float of certainty only the first term has a gradient.
    """
    chosen, rejected = _by_token(sums)
    return -chosen - lam * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def chosen_nll(sums: PairSums) -> Tensor:
    """-ln pi(y_w) / |y_w|: a mix-in that holds the chosen reply up. Pang et al. 2024 (arXiv 2404.19733)."""
    return -_by_token(sums)[0]


def sft(sums: PairSums) -> Tensor:
    """-ln pi(y_w) B / sum |y_w|: its mean over the batch is the loss by token, as in plain fine-tuning.

    TRL's ``loss_type="sft"``. Long replies weigh more, and the divisor is the batch's: ``chosen_nll`` is
    the one to take where batches are cut.
    """
    return -sums.policy_chosen * len(sums.policy_chosen) / sums.chosen_tokens.sum().clamp(min=1)


def nll(token_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood per scored token, in nats: scalar.

    ``token_logprobs`` and ``mask`` (B, T, bool); the mean is over all scored tokens of the batch, not over
    rows. What is masked cannot leak, even where it is NaN; with no scored token the loss is 0.
    """
    return -masked_sum(token_logprobs, mask).sum() / mask.sum().clamp(min=1)


def log1mexp(x: Tensor) -> Tensor:
    """ln(1 - e^x) for x < 0 (any shape), to the last digits on both ends.

    Maechler 2012, "Accurately computing log(1 - exp(-|a|))", equation 7.
    """
    near = x > -math.log(2)
    # Each branch sees only values that it is made for: a NaN in the other would spoil the gradient.
    expm1 = torch.where(near, x, -1.0).expm1()
    exp = torch.where(near, -1.0, x).exp()
    return torch.where(near, torch.log(-expm1), torch.log1p(-exp))


def _smoothed(z: Tensor, share: float) -> Tensor:
    """Cross-entropy of sigma(z) against labels of which a ``share`` is wrong, (B,)."""
    return -(1 - share) * logsigmoid(z) - share * logsigmoid(-z)


def _by_token(sums: PairSums) -> tuple[Tensor, Tensor]:
    """Mean log-prob by token of the chosen and of the rejected reply, each (B,), in nats."""
    return (
        sums.policy_chosen / sums.chosen_tokens.clamp(min=1),
        sums.policy_rejected / sums.rejected_tokens.clamp(min=1),
    )


def _log_odds(mean: Tensor) -> Tensor:
    """ln(p / (1 - p)) of p = e^mean, held one float short of certainty, (B,)."""
    below = mean.clamp(max=-torch.finfo(mean.dtype).eps)
    return below - log1mexp(below)
