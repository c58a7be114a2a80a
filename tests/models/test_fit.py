"""The gradient loop: schedules in closed form, clipping, the stop at NaN, and what is left behind."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from calibrant.core import BudgetError, NumericalError, Quiet
from calibrant.models.fit import Fit, Plan, Share, batches_of, fit, rate, training

PLAIN = Fit(lr=0.1, warmup=0.0, schedule="constant")


class Log(Quiet):
    """Keeps what is logged and shown."""

    def __init__(self):
        super().__init__()
        self.rows, self.shown = [], []

    def log(self, step, **metrics):
        self.rows.append((step, metrics))

    def progress(self, done, total, note=""):
        self.shown.append((done, total))


def line(seed=0):
    """A linear layer with its own weights."""
    module = nn.Linear(3, 2)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source))
    return module.requires_grad_(False)


def go(module, batches, loss, config, run):
    """Fit with a loss of one whole batch; returns the loss of every step."""
    plan = Plan(batches=[[i] for i in range(len(batches))], key="test")
    rows = fit(module, plan, lambda part, whole: Share(*loss(batches[part[0]])), config, run)
    return [row["loss"] for row in rows]


def squares(module):
    return lambda batch: ((module(batch) ** 2).mean(), {})


def data(n=8):
    source = torch.Generator().manual_seed(4)
    return [torch.randn(4, 3, generator=source) for _ in range(n)]


# Schedules


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_climbs_in_equal_steps(schedule):
    """20% of 10 steps: half the rate, then all of it."""
    config = Fit(lr=2.0, warmup=0.2, schedule=schedule)
    assert [rate(config, step, 10) for step in (0, 1)] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [2.0, 2.0, 2.0, 2.0]),
        ("linear", [2.0, 1.5, 1.0, 0.5]),
        ("cosine", [2.0, 1 + math.cos(math.pi / 4), 1.0, 1 - math.cos(math.pi / 4)]),
    ],
)
def test_decay_in_closed_form(schedule, rates):
    """One step of warm-up, then four of decay that would reach 0 one step after the last."""
    config = Fit(lr=2.0, warmup=0.2, schedule=schedule)
    assert [rate(config, step, 5) for step in range(1, 5)] == pytest.approx(rates, abs=1e-12)


@given(
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.floats(0, 0.99),
    total=st.integers(1, 60),
)
def test_rates_stay_between_nothing_and_the_peak(schedule, warmup, total):
    config = Fit(lr=0.5, warmup=warmup, schedule=schedule)
    rates = [rate(config, step, total) for step in range(total)]
    assert all(0 < r <= 0.5 for r in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_the_rate_is_used():
    """AdamW's first step moves each weight by the rate (epsilon aside), whatever the gradient's size."""
    for warmup, moved in ((0.0, 0.1), (0.5, 0.05)):
        module = nn.Linear(1, 1, bias=False).requires_grad_(False)
        before = float(module.weight)
        with pytest.raises(BudgetError):
            go(module, [1, 2, 3, 4], _one_step_then_stop(module), Fit(lr=0.1, warmup=warmup), Quiet())
        assert before - float(module.weight) == pytest.approx(moved, abs=1e-6)


def _one_step_then_stop(module):
    def loss(batch):
        if batch == 2:
            raise BudgetError("enough")
        return 0.5 * module.weight.sum(), {}

    return loss


# Steps


def test_the_loop_is_adamw():
    """The same steps by hand: torch's AdamW with the same rates on the same gradients."""
    ours, theirs = line(), line().requires_grad_(True)
    config = Fit(lr=0.05, warmup=0.25, schedule="linear", weight_decay=0.1, clip=1e9)
    go(ours, data(), squares(ours), config, Quiet())
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    for step, batch in enumerate(data()):
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * ((step + 1) / 2 if step < 2 else (8 - step) / 6)
        optimiser.zero_grad()
        (theirs(batch) ** 2).mean().backward()
        optimiser.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_gradient_norms_are_clipped_together():
    """Gradient (3, 4) x 100 over two tensors, clipped to norm 1: (.6, .8)."""
    module = nn.ParameterDict({"a": nn.Parameter(torch.zeros(1)), "b": nn.Parameter(torch.zeros(1))})
    seen = []

    def loss(_):
        value = 300 * module["a"].sum() + 400 * module["b"].sum()
        return value, {}

    class Look(Quiet):
        def log(self, step, **metrics):
            seen.append([float(module[name].grad) for name in "ab"])

    go(module, [0], loss, Fit(clip=1.0), Look())
    assert seen == [pytest.approx([0.6, 0.8], abs=1e-6)]
    go(module, [0], loss, Fit(clip=1000.0), Look())
    assert seen[1] == [300.0, 400.0]


def test_losses_and_metrics_are_logged_as_numbers():
    module, run = line(), Log()
    batches = data(3)
    losses = go(module, batches, lambda b: ((module(b) ** 2).mean(), {"size": len(b)}), PLAIN, run)
    assert [step for step, _ in run.rows] == [0, 1, 2]
    assert [row["loss"] for _, row in run.rows] == losses
    assert run.rows[0][1]["size"] == 4.0
    assert run.shown == [(1, 3), (2, 3), (3, 3)]
    assert losses[0] == float((line()(batches[0]) ** 2).mean())  # before the first step


def test_it_descends():
    module = line()
    losses = go(module, data(1) * 60, squares(module), PLAIN, Quiet())
    assert losses[-1] < 0.05 * losses[0]


def test_same_seed_same_bits():
    one, two = line(), line()
    assert go(one, data(), squares(one), PLAIN, Quiet()) == go(two, data(), squares(two), PLAIN, Quiet())
    assert torch.equal(one.weight, two.weight)


def test_dropout_neither_acts_nor_draws():
    """With dropout the global generator would decide the weights."""
    module = nn.Sequential(line(), nn.Dropout(0.5))
    plain = line()
    state = torch.get_rng_state()
    losses = go(module.train(), data(), squares(module), PLAIN, Quiet())
    assert losses == go(plain, data(), squares(plain), PLAIN, Quiet())
    assert torch.equal(torch.get_rng_state(), state)


def test_bfloat16_moves_the_forward_pass_only():
    module, kinds = line(), []

    def loss(batch):
        out = module(batch)
        kinds.append(out.dtype)
        return (out.float() ** 2).mean(), {}

    go(module, data(2), loss, Fit(bf16=True), Quiet())
    assert kinds == [torch.bfloat16] * 2
    assert module.weight.dtype == torch.float32


def test_no_batches_no_steps():
    module = line()
    assert go(module, [], squares(module), PLAIN, Quiet()) == []
    assert torch.equal(module.weight, line().weight)


# The stop at NaN


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_loss_stops_at_the_last_good_weights(bad):
    module, good = line(), line()
    go(good, data()[:3], squares(good), PLAIN, Quiet())
    batches = [*data()[:3], torch.full((4, 3), bad), *data()]
    with pytest.raises(NumericalError, match=r"loss is (nan|inf) at step 3") as caught:
        go(module, batches, squares(module), PLAIN, Quiet())
    assert "lr" in caught.value.hint
    assert torch.equal(module.weight, good.weight)
    assert torch.equal(module.bias, good.bias)
    _at_rest(module)


def test_a_broken_gradient_stops_too():
    """sqrt at 0: the loss is 0, its gradient infinite."""
    module = line()

    def loss(batch):
        value = (module(batch) ** 2).mean()
        return ((value - value.detach()).sqrt() if batch.sum() == 0 else value), {}

    batches = [data()[0], torch.zeros(4, 3)]
    good = line()
    go(good, batches[:1], squares(good), PLAIN, Quiet())
    with pytest.raises(NumericalError, match=r"gradient norm is (nan|inf) at step 1"):
        go(module, batches, loss, PLAIN, Quiet())
    assert torch.equal(module.weight, good.weight)
    _at_rest(module)


def test_everything_rests_afterwards_also_after_an_error():
    module = line().train()
    go(module, data(), squares(module), PLAIN, Quiet())
    _at_rest(module)
    with pytest.raises(ZeroDivisionError), training(module):
        assert all(p.requires_grad for p in module.parameters())
        module(data()[0]).sum().backward()
        raise ZeroDivisionError
    _at_rest(module)


def _at_rest(module):
    assert not module.training
    assert all(not p.requires_grad and p.grad is None for p in module.parameters())


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"clip": 0.0}, {"warmup": 1.0}, {"beta2": 1.0}, {"schedule": "step"}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValidationError):
        Fit(**wrong)


# Batches


@given(n=st.integers(0, 40), size=st.integers(1, 12), epochs=st.integers(1, 3), seed=st.integers(0, 9))
def test_every_row_once_an_epoch(n, size, epochs, seed):
    batches = batches_of(n, size, epochs, seed)
    assert len(batches) == epochs * math.ceil(n / size)
    assert Counter(i for batch in batches for i in batch) == dict.fromkeys(range(n), epochs)
    first = batches[: len(batches) // epochs]
    assert sorted(i for batch in first for i in batch) == list(range(n))
    assert all(len(batch) == size for batch in first[:-1])


def test_batches_depend_on_seed_and_epoch():
    one = batches_of(50, 50, 2, seed=1)
    assert one == batches_of(50, 50, 2, seed=1)
    assert one != batches_of(50, 50, 2, seed=2)
    assert one[0] != one[1]


def test_batches_never_change():
    """Golden: a moved order moves every trained weight."""
    assert batches_of(5, 2, 1, seed=0) == [[4, 0], [2, 3], [1]]
