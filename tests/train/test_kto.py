"""KTO: what one step costs by a slow route, what must not matter, a planted preference and its null."""

from __future__ import annotations

import math
import random

import pyarrow.parquet as pq
import pytest
import torch
from kept import Log
from transformers import GPT2Config, GPT2LMHeadModel

from calibrant.core import BudgetError, Chat, InputError, NumericalError, Quiet, resolve
from calibrant.data.rows import Labelled, LabelledReplies
from calibrant.maths.kto import solve_weights
from calibrant.measure.preference import preference
from calibrant.models import checkpoint, reference
from calibrant.models.fit import Fit
from calibrant.models.fitting import length
from calibrant.models.lora import LoRA
from calibrant.models.open_model import OpenModel
from calibrant.train import kto as kto_file
from calibrant.train.kto import KTO, kto

FAST = KTO(batch_size=8, fit=Fit(lr=3e-3))
STILL = Fit(lr=1e-3, schedule="constant", warmup=0.0)


def table(*rows):
    """Rows from (prompt, completion, label)."""
    made = [
        Labelled(id=f"{i} {p}", prompt=Chat.ask(p), completion=c, label=up)
        for i, (p, c, up) in enumerate(rows)
    ]
    return LabelledReplies(rows=tuple(made), source="plant")


def uneven():
    """Prompts and replies of many lengths, one reply empty, two up to one down."""
    texts = ["how", "where is the barn?", "who", "how do i mend the old mill?", "what", "is it you?"]
    replies = ["ember", "no the barn", "", "say it is dusk", "well", "good morning to you"]
    return table(*zip(texts, replies, [True, True, False] * 2, strict=True))


@pytest.fixture
def labelled(pairs):
    """``labelled(n, down=2, lot=False)``: 'ember' is up, every ``down``-th row 'no the barn', which is down.

    By lot, each of the two is up as often as down.
    """

    def build(n, *, down=2, lot=False, start=0):
        rng, rows = random.Random(f"labels/{start}"), []
        thumbs = {True: [k % 2 == 0 for k in range(n)], False: [k % 2 == 0 for k in range(n)]}
        for thumb in thumbs.values():
            rng.shuffle(thumb)
        for k, row in enumerate(pairs(n, start=start)):
            good = k % down != 0
            up = thumbs[good].pop() if lot else good
            rows.append((row.prompt.last_user, row.chosen if good else row.rejected, up))
        return table(*rows)

    return build


def total(model, prompt, reply):
    """Log-prob of one reply alone: no batch, no padding."""
    return model.logprobs([prompt], [reply])[0].total


def examples(run):
    return pq.read_table(run.work / "artifacts" / "examples.parquet").to_pylist()


def sigma(x):
    return 1 / (1 + math.exp(-x))


def test_the_second_step_by_a_slow_route(model, tmp_path):
    """Two rows can only borrow from each other. The first loss is half the mean weight, the second that of
    single rows under the once-tuned model, z0 from the log-ratios of the swapped replies.
    """
    rows = table(("how", "ember", True), ("where is the barn?", "say it is dusk", False))
    config = {"batch_size": 2, "beta": 0.5, "undesirable_weight": 1.5, "fit": STILL}
    one = kto(model, rows, KTO(**config), Quiet(work=tmp_path)).model
    run = Log(tmp_path / "two")
    kto(model, rows, KTO(epochs=2, **config), run)
    first, second = rows.rows
    s = [total(one, r.prompt, r.completion) - total(model, r.prompt, r.completion) for r in rows]
    swapped = [
        total(one, a.prompt, b.completion) - total(model, a.prompt, b.completion)
        for a, b in ((first, second), (second, first))
    ]
    z0 = max(0.0, sum(swapped) / 2)
    slow = (1 - sigma(0.5 * (s[0] - z0)) + 1.5 * (1 - sigma(0.5 * (z0 - s[1])))) / 2
    assert run.rows[0]["loss"] == pytest.approx((0.5 + 0.75) / 2, abs=1e-5)
    assert run.rows[1]["loss"] == pytest.approx(slow, abs=1e-5)
    assert run.rows[1]["kl"] == pytest.approx(z0, abs=1e-4)
    assert run.rows[1]["rewards/margins"] == pytest.approx(0.5 * (s[0] - s[1]), abs=1e-4)
    noted = {row["id"]: row["mismatched_ratio"] for row in examples(run) if row["step"] == 1}
    assert noted[first.id] == pytest.approx(swapped[0], abs=1e-4)
    assert noted[second.id] == pytest.approx(swapped[1], abs=1e-4)


def test_z0_stands_above_zero_once_the_policy_moved(model, tmp_path):
    """Else the test above could pass with z0 = 0 throughout: here every reply is pushed up."""
    run, rows = Log(tmp_path), table(*[(f"how {word}?", word, True) for word in ("ember", "dusk", "rook")])
    kto(model, rows, KTO(batch_size=3, epochs=6, fit=Fit(lr=3e-3)), run)
    assert run.rows[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert run.rows[-1]["kl"] > 0.1


def test_every_aggregate_can_be_audited(model, tmp_path):
    """The log of examples gives back each step's z0, rewards and loss."""
    run = Log(tmp_path)
    rows = uneven()
    kto(model, rows, KTO(batch_size=4, epochs=3, beta=0.5, fit=STILL), run)
    weights = solve_weights(4, 2)
    noted = examples(run)
    assert len(noted) == 18
    for step, row in enumerate(run.rows):
        mine = [r for r in noted if r["step"] == step]
        z0 = max(0.0, sum(r["mismatched_ratio"] for r in mine) / len(mine))
        losses = []
        for r in mine:
            s = r["logp"] - r["ref_logp"]
            assert r["reward"] == pytest.approx(0.5 * s, abs=1e-5)
            assert r["z0"] == pytest.approx(z0, abs=1e-4)
            margin = 0.5 * (s - z0) if r["desirable"] else 0.5 * (z0 - s)
            losses.append(weights[0 if r["desirable"] else 1] * (1 - sigma(margin)))
        assert row["loss"] == pytest.approx(sum(losses) / len(mine), abs=1e-4)
        assert row["kl"] == pytest.approx(z0, abs=1e-4)
    assert {r["id"] for r in noted} == {row.id for row in rows}


# Borrowing


def test_pairs_are_drawn_anew_every_epoch_inside_the_batch(model, labelled, monkeypatch, tmp_path):
    real, drawn = kto_file.mismatch, []

    def recorded(prompts, replies, rng, fits):
        found = real(prompts, replies, rng, fits)
        drawn.append({prompts[i]: replies[j] for i, j in enumerate(found)})
        assert all(replies[i] != replies[j] for i, j in enumerate(found))
        return found

    monkeypatch.setattr(kto_file, "mismatch", recorded)
    kto(model, uneven(), KTO(batch_size=6, epochs=5), Quiet(work=tmp_path))
    assert [len(pairing) for pairing in drawn] == [6] * 5
    assert len({tuple(sorted(pairing.items())) for pairing in drawn}) > 1


def test_a_reply_alone_in_its_batch_is_learned_without_z0(model, tmp_path):
    """batch_size 1 is apo_zero_unpaired, and says so."""
    runs = Log(tmp_path / "a"), Log(tmp_path / "b")
    config = {"batch_size": 1, "fit": STILL}
    alone = kto(model, uneven(), KTO(**config), runs[0])
    kto(model, uneven(), KTO(loss="apo_zero_unpaired", **config), runs[1])
    assert runs[0].rows == runs[1].rows
    assert alone.metrics["without_mismatch"].value == 1.0
    assert any("had none to borrow" in caveat for caveat in alone.caveats)
    assert all(math.isnan(row["mismatched_ratio"]) for row in examples(runs[0]))


def test_a_ragged_last_batch_of_one(model, tmp_path):
    run = Log(tmp_path)
    result = kto(model, uneven(), KTO(batch_size=5), run)
    assert run.rows[1]["kl"] == 0.0
    assert result.metrics["without_mismatch"].value == pytest.approx(1 / 6)


def test_a_borrowed_reply_fits_the_context(model, tmp_path):
    """The long prompt takes the short reply only, though its own reply is all that the context holds."""
    long = "how do i mend the old mill?"
    rows = table((long, "ember", True), ("how", "say it is dusk", False), ("who", "no", True))
    room = length(model, rows.rows[0].prompt, "no")
    assert room < length(model, rows.rows[0].prompt, "say it is dusk")
    lent = []
    real = kto_file.mismatch

    def recorded(*given):
        lent.append(real(*given))
        return lent[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kto_file, "mismatch", recorded)
        kto(model, rows, KTO(batch_size=3, epochs=6, max_length=room), Quiet(work=tmp_path))
    assert len(lent) == 6
    for pairing, batch in zip(lent, kto_file.batches_of(3, 3, 6, 0), strict=True):
        assert batch[pairing[batch.index(0)]] == 2


def test_labels_of_one_kind(model, pairs, tmp_path):
    """All up: the replies gain; all down: they lose. What cannot be known is unknown."""
    for up in (True, False):
        rows = table(*[(row.prompt.last_user, row.chosen, up) for row in pairs(8)])
        run = Log(tmp_path / str(up))
        result = kto(model, rows, KTO(batch_size=4, epochs=4, fit=Fit(lr=3e-3)), run)
        drift = "desirable" if up else "undesirable"
        gained = result.metrics[f"{drift}_drift_per_token"].value
        assert gained > 0.1 if up else gained < -0.1
        assert result.metrics["train_margin"].value is None
        assert result.metrics["train_margin"].reason
        assert result.metrics["desirable_weight"].value == result.metrics["undesirable_weight"].value == 1.0
        assert any(f"every reply is {drift}" in caveat for caveat in result.caveats)
        assert all(math.isfinite(row["loss"]) for row in run.rows)


def test_batches_of_one_label_between_others(model, labelled, tmp_path):
    """Batches of two: some hold one label, and what they cannot show is not logged as 0."""
    run = Log(tmp_path)
    result = kto(model, labelled(12), KTO(batch_size=2, epochs=2), run)
    both = [{"rewards/chosen", "rewards/rejected"} <= set(row) for row in run.rows]
    assert any(both)
    assert not all(both)
    assert all(("rewards/margins" in row) is two for row, two in zip(run.rows, both, strict=True))
    assert result.metrics["train_margin"].value is not None


# What must not matter


def test_how_a_batch_is_cut_does_not_matter(model, tmp_path):
    """z0 is that of the whole batch, however many pieces it is computed in."""
    fits = Fit(lr=1e-3), Fit(lr=1e-3, micro_tokens=30), Fit(lr=1e-3, recompute=True)
    runs = [Log(tmp_path / str(n)) for n in range(3)]
    for run, fitted in zip(runs, fits, strict=True):
        kto(model, uneven(), KTO(batch_size=6, epochs=6, fit=fitted), run)
    assert runs[0].rows[-1]["kl"] > 1e-3
    for whole, cut, again in zip(*(run.rows for run in runs), strict=True):
        for name in whole.keys() - {"rewards/accuracies"}:  # at step 0 all margins are 0 but for rounding
            assert cut[name] == pytest.approx(whole[name], abs=1e-4), name
            assert again[name] == pytest.approx(whole[name], abs=1e-6), name
    noted = [examples(run) for run in runs[:2]]
    for one, two in zip(*noted, strict=True):
        assert two == pytest.approx(one, abs=1e-3)


def test_half_precision_still_learns_where_a_batch_is_cut(model, labelled, weights, tmp_path):
    """Autocast keeps the weights that it cast: those of the pass without gradient must not be found again."""
    config = KTO(batch_size=8, epochs=3, fit=Fit(lr=3e-3, bf16=True))
    whole = Log(tmp_path / "a")
    kto(model, labelled(8), config, whole)
    cut = Log(tmp_path / "b")
    kto(model, labelled(8), config.model_copy(update={"fit": Fit(lr=3e-3, bf16=True, micro_tokens=30)}), cut)
    assert cut.rows[-1]["loss"] < 0.95 * cut.rows[0]["loss"]
    assert cut.rows[-1]["loss"] == pytest.approx(whole.rows[-1]["loss"], abs=0.02)
    for one, two in zip(whole.rows, cut.rows, strict=True):
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=0.1)


def test_rows_of_their_own_give_the_same_numbers(model, tmp_path, monkeypatch):
    """The plain path, for models whose replies cannot share a row; it is said."""
    together, apart = Log(tmp_path / "a"), Log(tmp_path / "b")
    kto(model, uneven(), KTO(batch_size=6, epochs=4), together)
    for place in (kto_file, reference):
        monkeypatch.setattr(place, "shares", lambda module: "a sliding window")
    result = kto(model, uneven(), KTO(batch_size=6, epochs=4), apart)
    for one, two in zip(together.rows, apart.rows, strict=True):
        for name in one.keys() - {"rewards/accuracies"}:
            assert two[name] == pytest.approx(one[name], abs=1e-4), name
    assert any("a sliding window" in caveat for caveat in result.caveats)


def test_the_model_that_came_in_is_unchanged(model, labelled, weights, tmp_path):
    before = weights(model)
    result = kto(model, labelled(16), FAST, Quiet(work=tmp_path))
    assert weights(model) == before != weights(result.model)
    assert result.model.identity.digest != model.identity.digest
    assert result.model.identity.name == "tiny after kto"
    for lm in (model, result.model):
        assert not lm.module.training
        assert all(not p.requires_grad and p.grad is None for p in lm.module.parameters())


def test_same_seed_same_bits(model, labelled, weights, tmp_path):
    first, again, other = (
        weights(kto(model, labelled(24), FAST, Quiet(seed=seed, work=tmp_path / str(n))).model)
        for n, seed in enumerate((0, 0, 1))
    )
    assert first == again != other


class Kill(Exception):  # noqa: N818
    """As a kill would, it leaves no time to tidy up."""


@pytest.mark.parametrize("at", [1, 4, 7])
def test_killed_at_any_step_it_ends_with_the_same_bits(at, model, labelled, weights, monkeypatch, tmp_path):
    config = KTO(batch_size=4, epochs=3, fit=Fit(lr=3e-3))
    whole = Log(tmp_path / "whole", seed=5)
    through = kto(model, labelled(12), config, whole)
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)

    class Killed(Log):
        def log(self, step, **metrics):
            super().log(step, **metrics)
            if step == at:
                raise Kill

    first, second = Killed(tmp_path / "cut", seed=5), Log(tmp_path / "cut", seed=5)
    with pytest.raises(Kill):
        kto(model, labelled(12), config, first)
    resumed = kto(model, labelled(12), config, second)
    assert weights(resumed.model) == weights(through.model)
    assert resumed.metrics == through.metrics
    assert first.rows[:at] + second.rows == whole.rows
    assert (second.work / "artifacts/examples.parquet").read_bytes() == (
        whole.work / "artifacts/examples.parquet"
    ).read_bytes()


def test_dropout_has_no_say_and_absolute_positions_are_right(model, weights, tmp_path):
    """GPT-2 comes with dropout and learned positions, of which it has no more than its context."""
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": len(model.tokenizer)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.5, eos_token_id=1))
    lm = OpenModel.from_module(module, model.tokenizer, "gpt2")
    runs = Log(tmp_path / "a"), Log(tmp_path / "b")
    tuned = [kto(lm, uneven(), KTO(batch_size=6, desirable_weight=1.0), run).model for run in runs]
    assert runs[0].rows[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert weights(tuned[0]) == weights(tuned[1])


# Costs


def test_the_reference_is_read_once_and_found_by_later_jobs(model, monkeypatch, tmp_path):
    """Own and borrowed replies in one go, a pair that is met again only once; a second job reads nothing."""
    read, real = [], reference.branch_sums

    def counted(lm, branches, *how):
        read.append((len(branches.prompts), sum(map(len, branches.replies))))
        return real(lm, branches, *how)

    monkeypatch.setattr(reference, "branch_sums", counted)
    for beta in (0.1, 0.3):
        kto(model, uneven(), KTO(batch_size=6, epochs=20, beta=beta), Quiet(work=tmp_path))
    assert len(read) == 1
    assert read[0][0] == 6
    assert 12 <= read[0][1] <= 36  # of 126 that were scored


def test_tokens_are_charged_before_they_are_used(model, labelled, weights, tmp_path):
    rows, before = labelled(12), weights(model)
    prompts = [len(model.prompt_ids(row.prompt)) for row in rows]
    each = [length(model, row.prompt, row.completion) for row in rows]
    for loss, cost in (("kto", 2 * sum(each) - sum(prompts)), ("apo_zero_unpaired", sum(each))):
        run = Log(tmp_path / loss)
        kto(model, rows, KTO(loss=loss, batch_size=5, epochs=2), run)
        assert run.tokens == 2 * cost

    class Poor(Quiet):
        def spend(self, *, tokens=0, queries=0, flops=0.0):
            raise BudgetError("no tokens left")

    with pytest.raises(BudgetError):
        kto(model, rows, KTO(), Poor(work=tmp_path / "poor"))
    assert weights(model) == before
    assert not (tmp_path / "poor" / "artifacts").exists()


def test_a_reply_too_long_is_left_out_and_counted(model, labelled, weights, tmp_path):
    """Training with it in the table is training without it, to the bit."""
    rows = labelled(9)
    long = Labelled(id="long", prompt=Chat.ask("how " * 30), completion="ember", label=True)
    config = KTO(batch_size=4, max_length=20)
    mixed = LabelledReplies(rows=(long, *rows.rows))
    with_it = kto(model, mixed, config, Quiet(work=tmp_path / "a"))
    without = kto(model, rows, config, Quiet(work=tmp_path / "b"))
    assert with_it.metrics["dropped_for_length"].value == pytest.approx(0.1)
    assert without.metrics["dropped_for_length"].value == 0.0
    assert weights(with_it.model) == weights(without.model)


@pytest.mark.parametrize(("n", "said"), [(4, "none of 4 rows fits 3 tokens"), (0, "there are no rows")])
def test_nothing_to_learn_from(model, labelled, n, said):
    with pytest.raises(InputError, match=said):
        kto(model, labelled(n), KTO(max_length=3))


def test_a_broken_model_is_named_and_saves_nothing(model, labelled, tmp_path):
    broken = model.copy()
    with torch.no_grad():
        broken.module.model.norm.weight.fill_(math.nan)
    with pytest.raises(NumericalError, match=r"NaN|nan"):
        kto(broken, labelled(4), KTO(), Quiet(work=tmp_path))
    assert not (tmp_path / "artifacts").exists()


def test_what_is_saved_opens_again_and_says_the_same(model, labelled, tmp_path):
    run, rows = Quiet(work=tmp_path), labelled(8)
    result = kto(model, rows, FAST, run)
    opened = OpenModel.from_folder(run.artifact("model"))
    asked = [row.prompt for row in rows], [row.completion for row in rows]
    assert opened.logprobs(*asked) == result.model.logprobs(*asked)
    assert opened.logprobs(*asked) != model.logprobs(*asked)


# Settings


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ({}, (1.0, 7.5)),
        ({"undesirable_weight": 3.0}, (1.0, 3.0)),
        ({"desirable_weight": 2.0}, (2.0, 1.0)),
        ({"desirable_weight": 1.0, "undesirable_weight": 1.0}, (1.0, 1.0)),
    ],
)
def test_weights(given, weights):
    assert KTO(**given).weights(10, 1) == pytest.approx(weights)


def test_weights_outside_of_the_band_are_said(model, labelled, tmp_path):
    said = [
        any("outside of [1, 4/3]" in caveat for caveat in kto(
            model, labelled(8), KTO(undesirable_weight=w), Quiet(work=tmp_path)).caveats)
        for w in (None, 1.0, 3.0)
    ]  # fmt: skip
    assert said == [False, False, True]


def test_trl_s_names_are_taken():
    given = {"loss_type": "apo_zero_unpaired", "beta": 0.2, "desirable_weight": 1.2, "num_train_epochs": 2,
             "per_device_train_batch_size": 4, "learning_rate": 1e-4}  # fmt: skip
    found = resolve(KTO, given)
    assert (found.loss, found.beta, found.desirable_weight, found.epochs, found.batch_size, found.fit.lr) == (
        "apo_zero_unpaired", 0.2, 1.2, 2, 4, 1e-4
    )  # fmt: skip


def test_adapters_alone_learn(model, labelled, tmp_path):
    config = KTO(batch_size=8, epochs=6, lora=LoRA(r=4), fit=Fit(lr=1e-2))
    result = kto(model, labelled(16), config, Quiet(work=tmp_path))
    assert result.metrics["train_accuracy"].value == 1.0
    before, after = (dict(lm.module.named_parameters()) for lm in (model, result.model))
    assert before.keys() == after.keys()
    assert all("proj" in name for name in after if not torch.equal(before[name], after[name]))


# Planted truth


def held_out(model, rows, held, run, **config):
    tuned = kto(model, rows, KTO(batch_size=16, epochs=6, fit=Fit(lr=2e-3), **config), run)
    found = preference(tuned.model, held, reference=model, run=run)
    gaps = [
        total(tuned.model, row.prompt, row.chosen) - total(model, row.prompt, row.chosen)
        - total(tuned.model, row.prompt, row.rejected) + total(model, row.prompt, row.rejected)
        for row in held
    ]  # fmt: skip
    return tuned, found.metrics["implicit_reward_accuracy"], sum(gaps) / len(gaps)


@pytest.mark.parametrize("loss", ["kto", pytest.param("apo_zero_unpaired", marks=pytest.mark.slow)])
def test_a_planted_preference_is_learned_and_a_lot_teaches_nothing(
    loss, model, labelled, pairs, by_lot, tmp_path
):
    """One word is always good: on prompts that were never seen it wins, too. With each reply up as often as
    down, chance is all that is left, and the two stay about as far apart as they were.
    """
    run, held = Log(tmp_path / "a"), pairs(48, start=96)
    tuned, found, gap = held_out(model, labelled(96), held, run, loss=loss)
    assert found.low > 0.9
    assert tuned.metrics["train_accuracy"].value > 0.95
    assert tuned.metrics["train_margin"].value > 0.5
    assert run.rows[-1]["loss"] < 0.75 * run.rows[0]["loss"]
    assert all(estimate.method == "point" for estimate in tuned.metrics.values())
    assert any("training replies" in caveat for caveat in tuned.caveats)
    held = pairs(48, start=96, lot=True)
    _, found, nothing = held_out(model, labelled(96, lot=True), held, Log(tmp_path / "b"), loss=loss)
    by_lot(found.value, 48)
    assert abs(nothing) < 0.2 * gap  # over five seeds .01 to .03 of it


@pytest.mark.slow
def test_ten_to_one_is_learned_with_solved_weights(model, labelled, pairs, tmp_path):
    rows = labelled(99, down=11)
    up = sum(row.label for row in rows)
    assert up == 10 * (len(rows) - up)
    tuned, found, _ = held_out(model, rows, pairs(48, start=99), Log(tmp_path))
    assert found.low > 0.9
    assert tuned.metrics["undesirable_weight"].value == pytest.approx(7.5)
    assert not any("outside of" in caveat for caveat in tuned.caveats)
