"""Pair losses: TRL's vector, slow loops, finite differences, limits, far values, a bandit in closed form."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from calibrant.maths import losses
from calibrant.maths.losses import log1mexp, nll
from calibrant.maths.pair_losses import LOSSES, pair_loss
from calibrant.maths.pair_sums import PairSums, diverged

BETA = 0.5
# Own options for the vector; those not named take none beside beta.
OPTIONS = {
    "conservative": {"label_smoothing": 0.1},
    "robust": {"label_smoothing": 0.1},
    "ipo": {"length_average": True},
    "exo_pair": {"label_smoothing": 1e-3},
    "discopop": {"tau": 0.05},
    "aot": {"label_smoothing": 0.1},
    "aot_unpaired": {"label_smoothing": 0.1},
    "simpo": {"gamma": 0.25},
    "orpo": {"lam": 0.1},
}
# Executed once in TRL 1.16 (DPOTrainer._compute_loss, float64) on ``vector``; cDPO by hand, TRL has none.
PARITY = {
    "sigmoid": 0.6459215975,
    "hinge": 0.85,
    "ipo": 0.96125,
    "exo_pair": 2.5423914714,
    "nca_pair": 1.3677532044,
    "robust": 0.6271715975,
    "conservative": 0.6609215975,
    "bco_pair": 1.3265341087,
    "sppo_hard": 1.89,
    "aot": 0.6609215975,
    "aot_unpaired": 0.6371995339,
    "apo_zero": 0.9631690166,
    "apo_down": 0.9950220127,
    "discopop": 0.7021956951,
    "sft": 14 / 15,
    "sigmoid_norm": 0.6778689523,
}


def settings(name):
    """Keyword arguments of one loss: beta where it has one, and its own options."""
    beta = {"beta": BETA} if "beta" in LOSSES[name].options else {}
    return {**beta, **OPTIONS.get(name, {})}


def loss(name, sums):
    return LOSSES[name].function(sums, **settings(name))


@pytest.fixture
def vector():
    """Two pairs: s_w = (0.8, -0.3), s_l = (-0.4, 0.3), so D = (1.2, -0.6); 4, 2 and 2, 3 tokens."""
    rows = [[-4.2, -1.4], [-1.9, -4.1], [-5.0, -1.1], [-1.5, -4.4], [4, 2], [2, 3]]
    return PairSums(*torch.tensor(rows, dtype=torch.float64))


def case(n=6, seed=5):
    source = torch.Generator().manual_seed(seed)
    sums = [-20 * torch.rand(n, generator=source, dtype=torch.float64) for _ in range(4)]
    counts = [torch.randint(1, 9, (n,), generator=source) for _ in range(2)]
    return PairSums(*sums, *counts)


def near(sums):
    """The same pairs with a policy close to its reference, where no loss is saturated."""
    return sums._replace(
        policy_chosen=sums.ref_chosen + 0.1 * (sums.policy_chosen - sums.ref_chosen),
        policy_rejected=sums.ref_rejected + 0.1 * (sums.policy_rejected - sums.ref_rejected),
    )


@pytest.mark.parametrize("name", PARITY)
def test_parity_with_trl(name, vector):
    """TRL keeps the smoothing of exo_pair in float32, so there it is 4.5e-8 off its own formula."""
    assert abs(float(loss(name, vector).mean()) - PARITY[name]) <= (1e-7 if name == "exo_pair" else 1e-9)


def test_the_vector_by_hand(vector):
    """sigmoid: ln(1 + e^-0.6), ln(1 + e^0.3). ipo: (0.2 + 0.2 - 1)^2, (-0.15 - 0.1 - 1)^2."""
    assert loss("sigmoid", vector).tolist() == pytest.approx(
        [math.log1p(math.exp(-0.6)), math.log1p(math.exp(0.3))], abs=1e-12
    )
    assert loss("ipo", vector).tolist() == pytest.approx([0.36, 1.5625], abs=1e-12)
    assert losses.ipo(vector, BETA, length_average=False).tolist() == pytest.approx([0.04, 2.56], abs=1e-12)
    assert loss("hinge", vector).tolist() == pytest.approx([0.4, 1.3], abs=1e-12)


def sigma(x):
    return 1 / (1 + math.exp(-x))


def smoothed(z, e):
    return -(1 - e) * math.log(sigma(z)) - e * math.log(sigma(-z))


def exo(z, e):
    return sum(q * math.log(q / p) for q, p in ((sigma(z), 1 - e), (sigma(-z), e)))


def odds(mean):
    p = math.exp(mean)
    return math.log(p / (1 - p))


# u, v: ln pi; s, t: log-ratios of chosen and rejected; m, n: their tokens; b: beta.
SLOW = {
    "sigmoid": lambda u, v, s, t, m, n, b: -math.log(sigma(b * (s - t))),
    "conservative": lambda u, v, s, t, m, n, b: smoothed(b * (s - t), 0.1),
    "robust": lambda u, v, s, t, m, n, b: (
        (-0.9 * math.log(sigma(b * (s - t))) + 0.1 * math.log(sigma(b * (t - s)))) / 0.8
    ),
    "hinge": lambda u, v, s, t, m, n, b: max(0.0, 1 - b * (s - t)),
    "ipo": lambda u, v, s, t, m, n, b: (s / m - t / n - 1 / (2 * b)) ** 2,
    "sigmoid_norm": lambda u, v, s, t, m, n, b: -math.log(sigma(b * (s / m - t / n))),
    "exo_pair": lambda u, v, s, t, m, n, b: exo(b * (s - t), 1e-3),
    "discopop": lambda u, v, s, t, m, n, b: (
        -sigma(-b * (s - t) / 0.05) * math.log(sigma(b * (s - t)))
        + sigma(b * (s - t) / 0.05) * math.exp(-b * (s - t))
    ),
    "nca_pair": lambda u, v, s, t, m, n, b: (
        -math.log(sigma(b * s)) - 0.5 * math.log(sigma(-b * s)) - 0.5 * math.log(sigma(-b * t))
    ),
    "bco_pair": lambda u, v, s, t, m, n, b: -math.log(sigma(b * s)) - math.log(sigma(-b * t)),
    "sppo_hard": lambda u, v, s, t, m, n, b: (s - 1 / (2 * b)) ** 2 + (t + 1 / (2 * b)) ** 2,
    "apo_zero": lambda u, v, s, t, m, n, b: 1 - sigma(b * s) + sigma(b * t),
    "apo_down": lambda u, v, s, t, m, n, b: sigma(b * s) + 1 - sigma(b * (s - t)),
    "simpo": lambda u, v, s, t, m, n, b: -math.log(sigma(b * (u / m - v / n) - 0.25)),
    "orpo": lambda u, v, s, t, m, n, b: -u / m - 0.1 * math.log(sigma(odds(u / m) - odds(v / n))),
    "chosen_nll": lambda u, v, s, t, m, n, b: -u / m,
}


@pytest.mark.parametrize("name", SLOW)
def test_agrees_with_the_slow_loop(name):
    sums = case()
    found = loss(name, sums)
    assert found.shape == (6,)
    for i, (u, v, ru, rv, m, n) in enumerate(zip(*(x.tolist() for x in sums), strict=True)):
        slow = SLOW[name](u, v, u - ru, v - rv, m, n, BETA)
        assert float(found[i]) == pytest.approx(slow, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_optimal_transport_agrees_with_the_slow_loop(name):
    """Values sorted on each side; then cDPO rank by rank."""
    sums = case()
    pairs = list(zip(*(x.tolist() for x in sums[:4]), strict=True))
    if name == "aot":
        left, right = [a - b for a, b, *_ in pairs], [c - d for *_, c, d in pairs]
    else:
        left, right = [a - c for a, _, c, _ in pairs], [b - d for _, b, _, d in pairs]
    slow = [smoothed(BETA * (one - two), 0.1) for one, two in zip(sorted(left), sorted(right), strict=True)]
    assert loss(name, sums).tolist() == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_by_finite_differences(name):
    sums = near(case())
    policy = [x.clone().requires_grad_() for x in (sums.policy_chosen, sums.policy_rejected)]

    def run(chosen, rejected):
        return loss(name, sums._replace(policy_chosen=chosen, policy_rejected=rejected))

    assert torch.autograd.gradcheck(run, policy)
    assert run(*policy).requires_grad


@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
def test_gradient_through_a_divergence(divergence):
    sums = near(case())
    policy = [x.clone().requires_grad_() for x in (sums.policy_chosen, sums.policy_rejected)]

    def run(chosen, rejected):
        whole = sums._replace(policy_chosen=chosen, policy_rejected=rejected)
        return losses.sigmoid(diverged(whole, divergence), 0.3)

    assert torch.autograd.gradcheck(run, policy)


def test_gradient_in_closed_form():
    """Rafailov et al., section 4: d loss / d ln pi_w = -beta sigma(-beta D)."""
    sums = case()
    chosen, rejected = (x.clone().requires_grad_() for x in (sums.policy_chosen, sums.policy_rejected))
    whole = sums._replace(policy_chosen=chosen, policy_rejected=rejected)
    losses.sigmoid(whole, 0.3).sum().backward()
    weight = 0.3 * torch.sigmoid(-0.3 * sums.difference)
    assert torch.allclose(chosen.grad, -weight, atol=1e-12)
    assert torch.allclose(rejected.grad, weight, atol=1e-12)


LN2 = math.log(2)
# What a pair costs where the policy is its reference (s = 0 on both sides), by arithmetic.
AT_THE_REFERENCE = {
    "sigmoid": LN2,
    "conservative": LN2,
    "robust": LN2,  # (0.9 - 0.1) ln 2 / 0.8
    "hinge": 1.0,
    "ipo": 1.0,  # (1 / (2 beta))^2
    "sigmoid_norm": LN2,
    "exo_pair": exo(0.0, 1e-3),
    "discopop": 0.5 * LN2 + 0.5,
    "nca_pair": 2 * LN2,
    "bco_pair": 2 * LN2,
    "sppo_hard": 2.0,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "aot": LN2,
    "aot_unpaired": LN2,
}


@pytest.mark.parametrize("name", AT_THE_REFERENCE)
def test_policy_equal_to_reference(name):
    sums = case()
    still = sums._replace(policy_chosen=sums.ref_chosen, policy_rejected=sums.ref_rejected)
    assert loss(name, still).tolist() == pytest.approx([AT_THE_REFERENCE[name]] * 6, abs=1e-12)


def test_every_loss_with_a_reference_has_a_value_there():
    assert set(AT_THE_REFERENCE) == {name for name, kind in LOSSES.items() if kind.needs_reference}


@pytest.mark.parametrize("name", ["sigmoid", "conservative", "robust", "sigmoid_norm", "aot_unpaired"])
def test_a_vanishing_beta_gives_ln_2(name):
    options = {**OPTIONS.get(name, {}), "beta": 1e-12}
    assert LOSSES[name].function(case(), **options).tolist() == pytest.approx([LN2] * 6, abs=1e-9)


@pytest.mark.parametrize("name", sorted(set(SLOW) - {"chosen_nll"}))
def test_an_identical_pair_is_finite_and_pulls_no_side(name):
    """Chosen = rejected. Losses of a difference push the one token string up as much as down."""
    sums = case()
    same = sums._replace(
        policy_rejected=sums.policy_chosen, ref_rejected=sums.ref_chosen, rejected_tokens=sums.chosen_tokens
    )
    policy = sums.policy_chosen.clone().requires_grad_()
    found = loss(name, same._replace(policy_chosen=policy, policy_rejected=policy))
    found.sum().backward()
    assert torch.isfinite(found).all()
    if "divergence" in LOSSES[name].options or name == "simpo":
        assert policy.grad.tolist() == pytest.approx([0.0] * 6, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_far_values_stay_finite(name, dtype):
    """Replies at certainty (0) and at -4000 nats, on either side: value and gradient are numbers."""
    far = [0.0, -4000.0, 0.0, -4000.0, -1e-7]
    rest = [-4000.0, 0.0, 0.0, -4000.0, -1e-7]
    policy = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in (far, rest)]
    ones = torch.ones(5, dtype=torch.int64)
    found = loss(
        name, PairSums(*policy, torch.zeros(5, dtype=dtype), torch.zeros(5, dtype=dtype), ones, ones)
    )
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert all(torch.isfinite(side.grad).all() for side in policy if side.grad is not None)


@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
def test_far_values_stay_finite_under_a_divergence(divergence):
    far = torch.tensor([0.0, -4000.0, 4000.0], requires_grad=True)
    zero, ones = torch.zeros(3), torch.ones(3)
    found = pair_loss(
        "sigmoid", PairSums(far, far.flip(0), zero, zero, ones, ones), {"divergence": divergence}
    )
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(far.grad).all()


def test_no_scored_token_is_no_division_by_zero():
    """Divisors are at least 1, and what is summed over nothing is 0."""
    zero = torch.zeros(2, dtype=torch.float64)
    for name in ("ipo", "sigmoid_norm", "simpo", "orpo", "chosen_nll", "sft"):
        assert torch.isfinite(loss(name, PairSums(*[zero] * 6))).all()


def test_swapping_sides_turns_the_sign():
    """loss(z) - loss(-z) = -z, since ln(1 + e^-z) = ln(1 + e^z) - z."""
    sums = case()
    back = PairSums(
        sums.policy_rejected, sums.policy_chosen, sums.ref_rejected, sums.ref_chosen, *sums[:3:-1]
    )
    there, here = losses.sigmoid(sums, 0.3), losses.sigmoid(back, 0.3)
    assert torch.allclose(there - here, -0.3 * sums.difference, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["sigmoid", "conservative", "robust", "hinge", "exo_pair", "discopop", "aot"]
)
def test_a_common_shift_changes_nothing(name):
    """Whatever both replies share (a prompt's log-prob, say) cancels."""
    sums = case()
    moved = sums._replace(policy_chosen=sums.policy_chosen - 7, policy_rejected=sums.policy_rejected - 7)
    assert torch.allclose(loss(name, moved), loss(name, sums), atol=1e-9)


def test_robust_is_unbiased_under_flipped_labels():
    """(1 - e) loss(pair) + e loss(pair swapped) = the DPO loss on clean labels (Chowdhury et al.)."""
    sums, e = case(), 0.2
    back = PairSums(
        sums.policy_rejected, sums.policy_chosen, sums.ref_rejected, sums.ref_chosen, *sums[:3:-1]
    )
    mean = (1 - e) * losses.robust(sums, 0.3, e) + e * losses.robust(back, 0.3, e)
    assert torch.allclose(mean, losses.sigmoid(sums, 0.3), atol=1e-9)


def test_conservative_is_least_at_the_log_odds_of_the_noise():
    """beta D = ln(0.9 / 0.1): the gradient is 0 there, and below 0 before."""
    best = math.log(9)
    gap = torch.tensor([best - 1, best, best + 1], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(3, dtype=torch.float64)
    losses.conservative(PairSums(gap, zero, zero, zero, zero, zero), 1.0, 0.1).sum().backward()
    before, there, after = gap.grad.tolist()
    assert before < -1e-2
    assert there == pytest.approx(0.0, abs=1e-12)
    assert after > 1e-2


def test_sft_is_the_loss_by_token(vector):
    """5.6 nats over 6 tokens, not the mean of 4.2 / 4 and 1.4 / 2, which is ``chosen_nll``."""
    assert float(losses.sft(vector).mean()) == pytest.approx(5.6 / 6, abs=1e-12)
    assert losses.chosen_nll(vector).tolist() == pytest.approx([1.05, 0.7], abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_cutting_a_batch_matters_only_where_it_is_said(name):
    """Far off, a log-sigmoid is a line, and a sum over lines does not care how they are matched."""
    sums = near(case())
    parts = [PairSums(*(x[cut] for x in sums)) for cut in ([0, 2, 4], [1, 3, 5])]
    whole = float(loss(name, sums).mean())
    summed = sum(float(loss(name, part).sum()) for part in parts) / 6
    assert (summed == pytest.approx(whole, abs=1e-9)) is LOSSES[name].accumulation_invariant


def test_every_loss_is_documented():
    assert all("." in inspect.getdoc(kind.function) for kind in LOSSES.values())


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_bandit_reaches_the_closed_form(beta):
    """Rafailov et al., equations 4 to 7: with every pair drawn by Bradley-Terry from a reward r, the
    population loss is least at pi* = pi_ref exp(r / beta) / Z. The expectation is exact, no sampling.
    """
    source = torch.Generator().manual_seed(2)
    reward = 0.5 * torch.randn(5, generator=source, dtype=torch.float64)
    reference = torch.randn(5, generator=source, dtype=torch.float64).log_softmax(0)
    logits = reference.clone().requires_grad_()
    first, second = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
    share = torch.sigmoid(reward[first] - reward[second])  # P(first is preferred), equation 1
    ones = torch.ones(25)

    def population():
        policy = logits.log_softmax(0)
        sums = PairSums(policy[first], policy[second], reference[first], reference[second], ones, ones)
        return (share * losses.sigmoid(sums, beta)).mean()

    optimiser = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = population()
        value.backward()
        return value

    optimiser.step(closure)
    best = (reference + reward / beta).log_softmax(0)
    found = logits.detach().log_softmax(0)
    assert float((best.exp() * (best - found)).sum()) < 1e-6
    assert float((best.exp() * (best - reference)).sum()) > 1e-2  # it had to move


def test_log1mexp_at_both_ends():
    """Against the two series: ln(1 - e^x) = ln(-x) + x / 2 near 0, and -e^x far below."""
    x = torch.tensor([-1e-12, -1e-3, -LN2, -2.0, -60.0, -4000.0], dtype=torch.float64, requires_grad=True)
    found = log1mexp(x)
    slow = [math.log(1e-12), math.log(-math.expm1(-1e-3)), -LN2, math.log1p(-math.exp(-2)), -math.exp(-60), 0]
    assert found.tolist() == pytest.approx(slow, rel=1e-12)
    found.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_nll_agrees_with_the_slow_loop():
    """Over tokens, not over rows: -(1 + 2 + 3) / 3, and not the mean of 1.5 and 3."""
    values = torch.tensor([[-1.0, -2.0, -9.0], [-9.0, -3.0, -9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [False, True, False]])
    assert float(nll(values, mask)) == 2.0


def test_nll_gradient_by_finite_differences():
    values = torch.stack(case()[:4]).requires_grad_()
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    assert torch.autograd.gradcheck(lambda x: nll(x, mask), (values,))


def test_nll_ignores_what_is_masked():
    """Even a NaN, in the value and in the gradient; and nothing scored is 0, not 0 / 0."""
    values = torch.tensor([[-1.0, math.nan], [-3.0, -math.inf]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, False]])
    found = nll(values, mask)
    found.backward()
    assert float(found.detach()) == 2.0
    assert values.grad.tolist() == [[-0.5, 0.0], [-0.5, 0.0]]
    assert float(nll(values.detach(), torch.zeros_like(mask))) == 0.0
