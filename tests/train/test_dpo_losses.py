"""The DPO family: every loss learns, options that a loss ignores are errors, other tools' names are taken."""

from __future__ import annotations

import pytest

from calibrant.core import Chat, ConfigError, Quiet, resolve
from calibrant.data.rows import Pair, Preferences
from calibrant.maths.pair_losses import LOSSES
from calibrant.models.fit import Fit
from calibrant.train.dpo import DPO, dpo


def total(model, prompt, reply):
    """Log-prob of one reply alone: no batch, no padding."""
    return model.logprobs([prompt], [reply])[0].total


@pytest.mark.slow
@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "discopop"])
def test_every_loss_prefers_what_it_was_shown(loss, model, pairs, tmp_path):
    """Whatever the loss: afterwards the chosen replies gained on the rejected ones."""
    config = DPO(loss=loss, batch_size=12, epochs=8, fit=Fit(lr=2e-3))
    tuned = dpo(model, pairs(12), config, Quiet(work=tmp_path)).model
    gains = [
        total(tuned, r.prompt, r.chosen) - total(model, r.prompt, r.chosen)
        - total(tuned, r.prompt, r.rejected) + total(model, r.prompt, r.rejected)
        for r in pairs(12)
    ]  # fmt: skip
    assert min(gains) > 0.5


def test_discopop_has_to_climb_a_hill_first(model, pairs, tmp_path):
    """Its loss rises at a difference of 0 (tau = .05, as published): from the reference it goes down."""
    config = DPO(loss="discopop", batch_size=12, epochs=4, fit=Fit(lr=1e-3))
    assert dpo(model, pairs(12), config, Quiet(work=tmp_path)).metrics["train_margin"].value < 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"loss": "sigmoid", "label_smoothing": 0.1}, "ignores 'label_smoothing'; it belongs to"),
        ({"loss": "ipo", "gamma": 1.0}, "ignores 'gamma'"),
        ({"loss": "simpo", "reference_free": True}, "ignores 'reference_free'"),
        ({"loss": "simgoid"}, "did you mean 'sigmoid'"),
        ({"loss": "aot", "fit": {"micro_tokens": 64}}, "looks at a whole batch"),
    ],
)
def test_what_a_loss_ignores_is_an_error(given, said):
    with pytest.raises(ConfigError, match=said):
        resolve(DPO, given)


def test_trl_s_names_are_taken():
    given = {"loss_type": "ipo", "num_train_epochs": 3, "learning_rate": 1e-4, "max_grad_norm": 0.5}
    given["per_device_train_batch_size"] = 4
    found = resolve(DPO, given)
    assert (found.loss, found.epochs, found.batch_size, found.fit.lr, found.fit.clip) == (
        "ipo",
        3,
        4,
        1e-4,
        0.5,
    )
    with pytest.raises(ConfigError, match="another name of 'loss'"):
        resolve(DPO, {"loss": "ipo", "loss_type": "hinge"})


def test_a_mixed_in_nll_holds_the_chosen_reply_up(model, pairs, tmp_path):
    table = pairs(12)
    drift = [
        dpo(model, table, DPO(batch_size=12, epochs=10, nll=nll, fit=Fit(lr=2e-3)), Quiet(work=tmp_path))
        .metrics["chosen_drift_per_token"].value
        for nll in (0.0, 1.0)
    ]  # fmt: skip
    assert drift[1] > drift[0]


def test_falling_replies_are_explained(model, tmp_path):
    """Two replies that share all but their end: both fall when one is pushed away from the other."""
    rows = [
        Pair(id=text, prompt=Chat.ask(text), chosen="say it is dusk ember", rejected="say it is dusk rook")
        for text in ("how", "who", "what")
    ]
    config = DPO(batch_size=3, epochs=40, loss="hinge", beta=0.02, fit=Fit(lr=1e-2))
    result = dpo(model, Preferences(rows=tuple(rows)), config, Quiet(work=tmp_path))
    fell = result.metrics["chosen_drift_per_token"].value < -0.05
    said = any("both replies became less likely" in caveat for caveat in result.caveats)
    assert said == (fell and result.metrics["rejected_drift_per_token"].value < 0)
