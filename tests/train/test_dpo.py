"""DPO: what one step costs by a slow route, what must not matter, a planted preference and its null."""

from __future__ import annotations

import math

import pytest
import torch
from kept import Log
from transformers import GPT2Config, GPT2LMHeadModel

from calibrant.core import BudgetError, Chat, InputError, NumericalError, Quiet
from calibrant.data.rows import Pair, Preferences
from calibrant.measure.preference import preference
from calibrant.models import reference
from calibrant.models.fit import Fit
from calibrant.models.fitting import length
from calibrant.models.open_model import OpenModel
from calibrant.train.dpo import DPO, dpo

FAST = DPO(batch_size=8, fit=Fit(lr=3e-3))


def uneven():
    """Prompts and replies of many lengths."""
    texts = ["how", "where is the barn?", "who", "how do i mend the old mill?", "what", "is it you?"]
    replies = ["ember", "no the barn", "", "say it is dusk", "well", "good morning to you"]
    rows = [
        Pair(id=text, prompt=Chat.ask(text), chosen=a, rejected=b)
        for text, a, b in zip(texts, replies, reversed(replies), strict=True)
    ]
    return Preferences(rows=tuple(rows), source="uneven")


def total(model, prompt, reply):
    """Log-prob of one reply alone: no batch, no padding."""
    return model.logprobs([prompt], [reply])[0].total


def test_the_second_step_by_a_slow_route(model, tmp_path):
    """One batch twice: the first loss is ln 2, the second that of single rows under the once-tuned model."""
    table, beta = uneven(), 0.5
    one = dpo(model, table, DPO(batch_size=6, beta=beta, fit=Fit(schedule="constant")), Quiet(work=tmp_path))
    run = Log(tmp_path)
    dpo(model, table, DPO(batch_size=6, beta=beta, epochs=2, fit=Fit(schedule="constant")), run)
    assert run.rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    shifts = [
        [total(one.model, row.prompt, r) - total(model, row.prompt, r) for r in (row.chosen, row.rejected)]
        for row in table
    ]
    losses = [math.log1p(math.exp(-beta * (chosen - rejected))) for chosen, rejected in shifts]
    assert run.rows[1]["loss"] == pytest.approx(sum(losses) / 6, abs=1e-5)
    assert run.rows[1]["rewards/margins"] == pytest.approx(beta * sum(c - r for c, r in shifts) / 6, abs=1e-4)
    words = sum(length(model, row.prompt, row.chosen) - len(model.prompt_ids(row.prompt)) for row in table)
    assert run.rows[1]["chosen_drift_per_token"] == pytest.approx(sum(c for c, _ in shifts) / words, abs=1e-5)
    assert run.rows[1]["rewards/accuracies"] == sum(c > r for c, r in shifts) / 6


def test_order_within_a_batch_does_not_matter(model, tmp_path):
    table = uneven()
    turned = Preferences(rows=table.rows[::-1])
    runs = Log(tmp_path / "a"), Log(tmp_path / "b")
    config = DPO(batch_size=6, epochs=4, fit=Fit(lr=1e-3))
    for rows, run in zip((table, turned), runs, strict=True):
        dpo(model, rows, config, run)
    for one, two in zip(*(run.rows for run in runs), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4)
    assert runs[0].rows[-1]["loss"] < 0.9 * math.log(2)  # something was there to differ


def test_swapped_sides_start_as_mirror_images(model, tmp_path):
    """The first step sees opposite gradients, so the margins of the second have opposite signs."""
    table = uneven()
    swapped = [row.model_copy(update={"chosen": row.rejected, "rejected": row.chosen}) for row in table]
    margins = []
    for rows in (table.rows, tuple(swapped)):
        tuned = dpo(
            model, Preferences(rows=rows), DPO(batch_size=6, fit=Fit(lr=1e-4)), Quiet(work=tmp_path)
        ).model
        margins.append(
            sum(
                total(tuned, row.prompt, row.chosen) - total(tuned, row.prompt, row.rejected) for row in table
            )
            - sum(
                total(model, row.prompt, row.chosen) - total(model, row.prompt, row.rejected) for row in table
            )
        )
    assert margins[0] > 0
    assert margins[1] == pytest.approx(-margins[0], rel=0.05)


def test_the_model_that_came_in_is_unchanged(model, pairs, weights, tmp_path):
    before = weights(model)
    result = dpo(model, pairs(16), FAST, Quiet(work=tmp_path))
    assert weights(model) == before != weights(result.model)
    for lm in (model, result.model):
        assert not lm.module.training
        assert all(not p.requires_grad and p.grad is None for p in lm.module.parameters())


def test_the_tuned_model_is_another_model(model, pairs, tmp_path):
    """Under one identity, answers of the old model would be taken for the new one's."""
    tuned = dpo(model, pairs(8), FAST, Quiet(work=tmp_path)).model
    assert tuned.identity.digest != model.identity.digest
    assert tuned.identity.name == "tiny after dpo"


def test_same_seed_same_bits(model, pairs, weights, tmp_path):
    first, again, other = (
        weights(dpo(model, pairs(24), FAST, Quiet(seed=seed, work=tmp_path)).model) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_dropout_has_no_say(model, weights, tmp_path):
    """GPT-2 comes with dropout: it would make each run differ and the first loss miss ln 2."""
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": len(model.tokenizer)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.5, eos_token_id=1))
    lm = OpenModel.from_module(module, model.tokenizer, "gpt2")
    runs = Log(tmp_path), Log(tmp_path)
    tuned = [dpo(lm, uneven(), DPO(batch_size=6), run).model for run in runs]
    assert runs[0].rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert weights(tuned[0]) == weights(tuned[1])


def test_the_reference_is_read_once_and_found_by_later_jobs(model, pairs, monkeypatch, tmp_path):
    """However long the training; another beta finds what the first job read; other rows are read then."""
    read, real = [], reference.branch_sums

    def counted(lm, branches, *how):
        read.append(sum(map(len, branches.replies)))
        return real(lm, branches, *how)

    monkeypatch.setattr(reference, "branch_sums", counted)
    for beta in (0.1, 0.3):
        dpo(model, pairs(12), DPO(batch_size=4, epochs=3, beta=beta), Quiet(work=tmp_path))
    assert read == [24]
    both = Preferences(rows=(*pairs(12).rows[::-1], *pairs(2, start=12).rows))
    dpo(model, both, DPO(batch_size=4), Quiet(work=tmp_path))
    assert read == [24, 4]


def test_a_cached_reference_changes_nothing(model, pairs, weights, tmp_path):
    fresh, found = (dpo(model, pairs(12), FAST, Quiet(work=tmp_path / str(n))).model for n in (0, 0))
    assert (
        weights(fresh)
        == weights(found)
        == weights(dpo(model, pairs(12), FAST, Quiet(work=tmp_path / "2")).model)
    )


def test_tokens_are_charged_before_they_are_used(model, pairs, weights, tmp_path):
    table, run, before = pairs(12), Log(tmp_path), weights(model)
    dpo(model, table, DPO(batch_size=5, epochs=2), run)
    prompts = [len(model.prompt_ids(row.prompt)) for row in table]
    each = [length(model, row.prompt, r) for row in table for r in (row.chosen, row.rejected)]
    assert run.tokens == 2 * (sum(each) - sum(prompts))  # a prompt is read once for both replies

    class Poor(Quiet):
        def spend(self, *, tokens=0, queries=0, flops=0.0):
            raise BudgetError("no tokens left")

    with pytest.raises(BudgetError):
        dpo(model, table, DPO(), Poor(work=tmp_path / "poor"))
    assert weights(model) == before
    assert not (tmp_path / "poor" / "artifacts").exists()


def test_a_pair_too_long_is_left_out_and_counted(model, pairs, weights, tmp_path):
    """Training with it in the table is training without it, to the bit."""
    table = pairs(9)
    long = Pair(id="long", prompt=Chat.ask("how " * 30), chosen="ember", rejected="no")
    mixed = Preferences(rows=(long, *table.rows))
    config = DPO(batch_size=4, max_length=20)
    with_it = dpo(model, mixed, config, Quiet(work=tmp_path))
    without = dpo(model, table, config, Quiet(work=tmp_path))
    assert with_it.metrics["dropped_for_length"].value == pytest.approx(0.1)
    assert without.metrics["dropped_for_length"].value == 0.0
    assert weights(with_it.model) == weights(without.model)


@pytest.mark.parametrize(("n", "said"), [(4, "none of 4 rows fits 3 tokens"), (0, "there are no rows")])
def test_nothing_to_learn_from(model, pairs, n, said):
    with pytest.raises(InputError, match=said):
        dpo(model, pairs(n), DPO(max_length=3))


def test_a_broken_model_is_named_and_saves_nothing(model, pairs, tmp_path):
    broken = model.copy()
    with torch.no_grad():
        broken.module.model.norm.weight.fill_(math.nan)
    with pytest.raises(NumericalError, match=r"(?i)nan"):
        dpo(broken, pairs(4), DPO(), Quiet(work=tmp_path))
    assert not (tmp_path / "artifacts").exists()


def test_what_is_saved_opens_again_and_says_the_same(model, pairs, tmp_path):
    run, table = Quiet(work=tmp_path), pairs(8)
    result = dpo(model, table, FAST, run)
    opened = OpenModel.from_folder(run.artifact("model"))
    asked = [row.prompt for row in table], [row.chosen for row in table]
    assert opened.logprobs(*asked) == result.model.logprobs(*asked)
    assert opened.logprobs(*asked) != model.logprobs(*asked)


def held_out(model, table, held, run):
    tuned = dpo(model, table, DPO(batch_size=16, epochs=6, fit=Fit(lr=2e-3)), run)
    found = preference(tuned.model, held, reference=model, run=run)
    return tuned, found.metrics["implicit_reward_accuracy"]


def test_a_planted_preference_is_learned(model, pairs, tmp_path):
    """One word is always preferred: on prompts that were never seen it wins, too."""
    run = Log(tmp_path)
    tuned, found = held_out(model, pairs(96), pairs(64, start=96), run)
    assert found.low is not None
    assert found.low > 0.9
    assert run.rows[-1]["loss"] < 0.25 * run.rows[0]["loss"]
    assert tuned.metrics["train_accuracy"].value == 1.0
    assert tuned.metrics["train_margin"].value > 1.0
    assert all(estimate.method == "point" for estimate in tuned.metrics.values())
    assert any("training pairs" in caveat for caveat in tuned.caveats)


def test_a_preference_by_lot_teaches_nothing(model, pairs, by_lot, tmp_path):
    """The same words with sides drawn by lot: on held-out pairs chance is all that is left."""
    _, found = held_out(model, pairs(96, lot=True), pairs(64, start=96, lot=True), Quiet(work=tmp_path))
    by_lot(found.value, 64)


def soft(table, probability):
    return Preferences(rows=tuple(r.model_copy(update={"chosen_probability": probability}) for r in table))


def test_soft_labels_by_a_slow_route(model, tmp_path):
    """The second step's loss is the cross-entropy with the labels, pair by pair."""
    table, beta, p = soft(uneven(), 0.8), 0.5, 0.8
    fixed = Fit(schedule="constant")
    one = dpo(model, table, DPO(batch_size=6, beta=beta, fit=fixed), Quiet(work=tmp_path))
    run = Log(tmp_path)
    dpo(model, table, DPO(batch_size=6, beta=beta, epochs=2, fit=fixed), run)
    losses = []
    for row in table:
        won, lost = (
            total(one.model, row.prompt, r) - total(model, row.prompt, r) for r in (row.chosen, row.rejected)
        )
        z = beta * (won - lost)
        losses.append(p * math.log1p(math.exp(-z)) + (1 - p) * math.log1p(math.exp(z)))
    assert run.rows[1]["loss"] == pytest.approx(sum(losses) / 6, abs=1e-5)


def test_even_labels_teach_nothing_and_certain_ones_are_the_old_training(model, pairs, weights, tmp_path):
    table = pairs(16)
    hard = weights(dpo(model, table, FAST, Quiet(work=tmp_path)).model)
    assert weights(dpo(model, soft(table, 1.0), FAST, Quiet(work=tmp_path)).model) == hard
    even = dpo(model, soft(table, 0.5), FAST, Quiet(work=tmp_path)).model
    for row in table:
        moved = [total(even, row.prompt, r) - total(model, row.prompt, r) for r in (row.chosen, row.rejected)]
        assert abs(moved[0] - moved[1]) < 0.3
