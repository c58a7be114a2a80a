"""Our losses against TRL 1.16's own code on random float64 log-probs: value and gradient by every token."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from calibrant.maths.kl import penalty
from calibrant.maths.kto import apo_zero_unpaired, kto, reference_point
from calibrant.maths.pair_losses import LOSSES, pair_loss
from calibrant.maths.pair_sums import PairSums, desensitised, on_policy_weight
from calibrant.maths.policy_losses import AGGREGATIONS, Window, clipped_surrogate
from calibrant.maths.reward_losses import bradley_terry, centring

pytestmark = pytest.mark.peers

PAIRS, WIDTH = 7, 9
FLOAT32 = {
    "exo_pair": "TRL keeps ln(1 - e) and ln e in float32",
    "orpo": "TRL rounds log-probs to float32 first",
}
"""Where TRL leaves float64: 1e-6 there, 1e-9 elsewhere."""
DIVERGENCES = {"forward_kl": "forward_kl", "js": "js_divergence"}
"""Ours -> TRL's; its 'alpha_divergence' ends in a KeyError on float64, so that one is not compared."""
AGGREGATED = {
    "token_mean": "dapo",
    "sequence_mean": "grpo",
    "constant": "dr_grpo",
    "micro_token_mean": "bnpo",
}


def draw():
    """Chosen replies in the first half of the rows, rejected ones in the second."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, WIDTH + 1, 2 * PAIRS)
    inside = np.arange(WIDTH) < lengths[:, None]
    near = rng.normal(0, 0.6, (2 * PAIRS, WIDTH))
    reference = -rng.exponential(1.2, (2 * PAIRS, WIDTH)) - 0.05
    policy = np.minimum(reference + near, -0.01)
    return {
        "policy": policy * inside,
        "reference": reference * inside,
        "old": (policy + rng.normal(0, 0.25, policy.shape)) * inside,
        "lengths": lengths,
        "log_collision": -rng.exponential(1.0, policy.shape) * inside,
        "label": rng.integers(0, 2, 2 * PAIRS),
        "kl_policy": rng.normal(0.4, 1.0, 2 * PAIRS),
        "kl_reference": rng.normal(0.0, 1.0, 2 * PAIRS),
        "scores": rng.normal(0, 2, 2 * PAIRS),
        "margin": rng.exponential(0.5, PAIRS),
        "advantages": rng.normal(0, 1, 2 * PAIRS),
    }


def cases():
    """What is compared: name -> (worker's kind, TRL's options, our loss of the inputs)."""
    found = {}
    for name, kind in LOSSES.items():
        if not kind.trl or name in ("simpo", "orpo"):
            continue
        beta = {"beta": 0.3} if "beta" in kind.options else {}
        smooth = {"label_smoothing": 0.1} if "label_smoothing" in kind.options else {}
        theirs = {"loss_types": [kind.trl], **beta, **smooth}
        found[name] = ("dpo", theirs, pairs(name, **beta, **smooth))
        if "divergence" in kind.options:
            for ours, trl in DIVERGENCES.items():
                own = pairs(name, divergence=ours, **beta, **smooth)
                found[f"{name} {ours}"] = ("dpo", {**theirs, "f_divergence_type": trl}, own)
    found["sigmoid, LD-DPO"] = ("dpo", {"beta": 0.3, "ld_alpha": 0.4}, pairs("sigmoid", beta=0.3, ld=0.4))
    found["sigmoid, WPO"] = (
        "dpo",
        {"beta": 0.3, "use_weighting": True},
        pairs("sigmoid", beta=0.3, wpo=True),
    )
    mix = {"beta": 0.3, "loss_types": ["sigmoid", "sft"], "loss_weights": [0.8, 0.2]}
    found["sigmoid and sft"] = ("dpo", mix, mixed)
    found["simpo"] = ("simpo", {"beta": 2.0, "simpo_gamma": 0.7}, pairs("simpo", beta=2.0, gamma=0.7))
    found["orpo"] = ("orpo", {"beta": 0.1}, pairs("orpo", lam=0.1))
    found["reward"] = ("reward", {}, scored())
    found["reward, margin and centring"] = ("reward", {"margin": True, "centre": 0.01}, scored(True, 0.01))
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    found["kto"] = ("kto", {"beta": 0.3, **weights}, unpaired("kto"))
    found["apo_zero_unpaired"] = (
        "kto", {"beta": 0.3, "loss_type": "apo_zero_unpaired", **weights}, unpaired("apo")
    )  # fmt: skip
    clip = {"epsilon_low": 0.2, "epsilon_high": 0.28}
    for ours, trl in AGGREGATED.items():
        options = {**clip, "loss_type": trl, "beta": 0.04, "max_completion_length": WIDTH}
        found[f"grpo {trl}"] = ("grpo", options, surrogate(ours))
    found["rloo"] = ("rloo", clip, by_reply)
    return found


def summed(x, ld=None):
    lengths = x["lengths"].chunk(2)
    if ld is None:
        sides = [x[name].sum(1).chunk(2) for name in ("policy", "reference")]
    else:
        sides = [
            [
                desensitised(side, *of, ld)
                for side, of in zip(x[name].chunk(2), (lengths, lengths[::-1]), strict=True)
            ]
            for name in ("policy", "reference")
        ]
    return PairSums(*sides[0], *sides[1], *lengths)


def pairs(name, ld=None, wpo=False, **options):
    def loss(x):
        each = pair_loss(name, summed(x, ld), options)
        if wpo:
            weight = on_policy_weight(x["policy"], x["log_collision"], x["lengths"]).chunk(2)
            each = each * weight[0] * weight[1]
        return each.mean()

    return loss


def mixed(x):
    sums = summed(x)
    return 0.8 * pair_loss("sigmoid", sums, {"beta": 0.3}).mean() + 0.2 * pair_loss("sft", sums).mean()


def unpaired(name):
    def loss(x):
        ratios, wanted = (x["policy"] - x["reference"]).sum(1), x["label"].bool()
        if name == "apo":
            return apo_zero_unpaired(ratios, wanted, 0.3, (1.3, 0.7)).mean()
        z0 = reference_point(x["kl_policy"] - x["kl_reference"])
        return kto(ratios, wanted, z0, 0.3, (1.3, 0.7)).mean()

    return loss


def scored(margin=False, centre=0.0):
    def loss(x):
        sides = x["scores"].chunk(2)
        each = bradley_terry(*sides, margin=x["margin"] if margin else 0.0) + centre * centring(*sides)
        return each.mean()

    return loss


def surrogate(aggregation):
    def loss(x):
        mask = torch.arange(WIDTH) < x["lengths"][:, None]
        found = clipped_surrogate(x["policy"], x["old"], x["advantages"][:, None], low=0.2, high=0.28).loss
        found = found + 0.04 * penalty("k3", x["policy"], x["reference"])
        window = Window(tokens=int(mask.sum()), sequences=len(mask), longest=WIDTH)
        return AGGREGATIONS[aggregation](found, mask, window)

    return loss


def by_reply(x):
    """TRL's RLOO clips the ratio of whole replies."""
    sums = x["policy"].sum(1), x["old"].sum(1)
    return clipped_surrogate(*sums, x["advantages"], low=0.2, high=0.28).loss.mean()


@pytest.fixture(scope="module")
def theirs(ask, tmp_path_factory):
    """All of TRL's answers from one call."""
    folder = tmp_path_factory.mktemp("losses")
    np.savez(folder / "inputs.npz", **draw())
    asked = [{"name": name, "kind": kind, "options": options} for name, (kind, options, _) in CASES.items()]
    (folder / "cases.json").write_text(json.dumps(asked), encoding="utf-8")
    ask("trl", __file__.replace("test_trl_losses", "worker_losses"), folder)
    return dict(np.load(folder / "outputs.npz"))


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_trls(name, theirs):
    kind, _, loss = CASES[name]
    x = {key: torch.from_numpy(value) for key, value in draw().items()}
    leaf = x["scores" if kind == "reward" else "policy"].requires_grad_()
    value = loss(x)
    value.backward()
    inside = torch.arange(WIDTH) < x["lengths"][:, None]
    grad = leaf.grad if kind == "reward" else leaf.grad * inside
    limit = 1e-6 if name.partition(" ")[0] in FLOAT32 else 1e-9
    assert_close(value.detach(), torch.from_numpy(theirs[f"{name}/loss"]), rtol=0, atol=limit)
    found = torch.from_numpy(theirs[f"{name}/grad"])
    assert_close(grad, found if kind == "reward" else found * inside, rtol=0, atol=limit)


def test_trl_ignores_label_smoothing_in_its_sigmoid_loss(theirs):
    """Why 'conservative' is a name of its own here: the same option does nothing there (since 0.29)."""
    assert LOSSES["conservative"].trl == ""
    plain = pairs("sigmoid", beta=0.3)({key: torch.from_numpy(value) for key, value in draw().items()})
    assert float(theirs["sigmoid/loss"]) == pytest.approx(float(plain), abs=1e-12)
