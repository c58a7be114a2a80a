"""Reward models: a step by a slow route, what must not matter, ties, lists, a planted truth and its null."""

from __future__ import annotations

import math
import random

import pyarrow.parquet as pq
import pytest
import torch
from kept import Log

from calibrant.core import Chat, ConfigError, InputError, NumericalError, Quiet, resolve
from calibrant.data.rows import Pair, Preferences
from calibrant.models.classifier import Classifier
from calibrant.models.fit import Fit
from calibrant.models.reward_folder import reward_identity
from calibrant.models.reward_model import open_reward
from calibrant.train.reward import RewardConfig, reward

FAST = RewardConfig(batch_size=8, fit=Fit(lr=1e-3))
STILL = Fit(lr=1e-12, schedule="constant")  # steps too small to change a number here
WORDS = ("ember", "dusk", "no the barn", "say it is dusk", "well", "good morning to you")


def train(model, table, config, run, **more):
    return reward(model, table, config=config, run=run, **more)


def uneven():
    """Prompts and replies of many lengths; those of the fourth pair are the same."""
    texts = ["how", "where is the barn?", "who", "how do i mend the old mill?", "what", "is it you?"]
    rows = [
        Pair(id=text, prompt=Chat.ask(text), chosen=a, rejected=b)
        for text, a, b in zip(texts, WORDS, ("", *reversed(WORDS[1:])), strict=True)
    ]
    return Preferences(rows=tuple(rows), source="uneven")


def raw(model, prompt, reply, heads=1, seed=0):
    """Scores of one reply alone before training: no batch, no padding, no sharing."""
    made = Classifier.from_lm(model, heads, seed)
    (asked,), (said,) = made.ids([prompt], [reply])
    with torch.no_grad():
        hidden = made.backbone(input_ids=torch.tensor([asked + said])).last_hidden_state
        return (hidden[0, -1] @ made.head.weight.T).tolist()


def sigma(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    "options", [{}, {"margin": 0.3, "label_smoothing": 0.1, "centring": 0.05}, {"heads": 3}]
)
def test_the_first_step_by_a_slow_route(model, options, tmp_path):
    table, run = uneven(), Log(tmp_path)
    train(model, table, RewardConfig(batch_size=6, fit=STILL, **options), run)
    heads, e = options.get("heads", 1), options.get("label_smoothing", 0.0)
    losses, gaps = [], []
    for row in table:
        won, lost = (raw(model, row.prompt, reply, heads) for reply in (row.chosen, row.rejected))
        gaps.append(sum(w - b for w, b in zip(won, lost, strict=True)) / heads)
        for w, b in zip(won, lost, strict=True):
            p = sigma(w - b - options.get("margin", 0.0))
            losses.append(
                -(1 - e) * math.log(p) - e * math.log(1 - p) + options.get("centring", 0.0) * (w + b) ** 2
            )
    assert run.rows[0]["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert run.rows[0]["margin"] == pytest.approx(sum(gaps) / 6, abs=1e-4)
    assert run.rows[0]["accuracy"] == pytest.approx(sum(gap > 0 for gap in gaps) / 6 + 1 / 12)
    assert ("disagreement" in run.rows[0]) == (heads > 1)


def ranked():
    """One prompt with four replies, best first, as all its six pairs; another with one pair."""
    replies = WORDS[:4]
    rows = [
        Pair(id=f"a{i}{j}", prompt=Chat.ask("how"), chosen=replies[i], rejected=replies[j])
        for i in range(4)
        for j in range(i + 1, 4)
    ]
    rows.insert(3, Pair(id="b", prompt=Chat.ask("who"), chosen="ember", rejected="well"))
    return Preferences(rows=tuple(rows), source="ranked")


def test_a_ranked_list_counts_once(model, tmp_path):
    """unit = prompt: (mean of six + one) / 2; unit = pair: the mean of seven. Replies are read once."""
    table, seen = ranked(), {}
    for unit in ("pair", "prompt"):
        seen[unit] = Log(tmp_path / unit)
        train(model, table, RewardConfig(unit=unit, batch_size=7, fit=STILL), seen[unit])
    each = {}
    for row in table:
        gap = raw(model, row.prompt, row.chosen)[0] - raw(model, row.prompt, row.rejected)[0]
        each.setdefault(row.prompt.last_user, []).append(-math.log(sigma(gap)))
    by_prompt = [sum(losses) / len(losses) for losses in each.values()]
    assert seen["prompt"].rows[0]["loss"] == pytest.approx(sum(by_prompt) / 2, abs=1e-4)
    assert seen["pair"].rows[0]["loss"] == pytest.approx(sum(map(sum, each.values())) / 7, abs=1e-4)
    counts = [len(model.prompt_ids(Chat.ask("how")))] + [len(model.reply_ids(text)) + 1 for text in WORDS[:4]]
    other = len(model.prompt_ids(Chat.ask("who"))) + sum(
        len(model.reply_ids(t)) + 1 for t in ("ember", "well")
    )
    assert seen["prompt"].tokens == sum(counts) + other


def test_ties_have_a_likelihood_of_their_own(model, tmp_path):
    """Threshold h: a tie costs -ln[1 - sigma(d - h) - sigma(-d - h)], a win -ln sigma(d - h)."""
    won = Preferences(rows=uneven().rows[:2])
    tied = Preferences(rows=uneven().rows[2:3])
    for margin, h in ((None, 0.5), (1.2, 1.2)):
        run = Log(tmp_path / str(h))
        train(model, won, RewardConfig(batch_size=3, margin=margin, fit=STILL), run, ties=tied)
        losses = []
        for row in (*won, *tied):
            d = raw(model, row.prompt, row.chosen)[0] - raw(model, row.prompt, row.rejected)[0]
            tie = -math.log(1 - sigma(d - h) - sigma(-d - h))
            losses.append(tie if row in tied.rows else -math.log(sigma(d - h)))
        assert run.rows[0]["loss"] == pytest.approx(sum(losses) / 3, abs=1e-4)
    with pytest.raises(ConfigError, match="ties are impossible"):
        train(model, won, RewardConfig(margin=0.0), Quiet(work=tmp_path), ties=tied)


def test_ties_teach_that_replies_are_equal(model, pairs, tmp_path):
    """'ember' beats 'no the barn' and 'dusk' is called its equal: that dusk beats the barn is learned."""
    table = pairs(64)
    equal = Preferences(
        rows=tuple(row.model_copy(update={"id": f"{row.id}=", "rejected": "dusk"}) for row in table)
    )
    made = train(
        model, table, RewardConfig(epochs=3, fit=Fit(lr=1e-3)), Quiet(work=tmp_path), ties=equal
    ).reward
    asked = [row.prompt for row in pairs(20, start=96)]
    ember, dusk, barn = (sum(made.score(asked, [r] * 20).mean) / 20 for r in ("ember", "dusk", "no the barn"))
    assert abs(ember - dusk) < 0.2 * (ember - barn)


def test_how_a_batch_is_cut_and_ordered_does_not_matter(model, tmp_path):
    table, runs = ranked(), []
    for rows, most in ((table.rows, None), (table.rows[::-1], None), (table.rows, 25)):
        runs.append(Log(tmp_path / str(len(runs))))
        config = RewardConfig(batch_size=7, epochs=3, heads=2, fit=Fit(lr=1e-3, micro_tokens=most))
        train(model, Preferences(rows=rows), config, runs[-1])
    for rows in zip(*(run.rows for run in runs), strict=True):
        for name in ("loss", "margin", "accuracy", "disagreement"):
            assert [row[name] for row in rows] == pytest.approx([rows[0][name]] * 3, abs=2e-4)


def test_the_model_that_came_in_is_unchanged(model, pairs, weights, tmp_path):
    before, world = weights(model), torch.get_rng_state()
    made = train(model, pairs(16), FAST, Quiet(work=tmp_path), held_out=pairs(8, start=16)).reward
    assert weights(model) == before
    assert torch.equal(torch.get_rng_state(), world)
    for module in (model.module, made.classifier.module):
        assert not module.training
        assert all(not p.requires_grad and p.grad is None for p in module.parameters())


def test_same_seed_same_bits(model, pairs, weights, tmp_path):
    config = FAST.model_copy(update={"heads": 2, "bootstrap": True})
    first, again, other = (
        weights(train(model, pairs(24), config, Quiet(seed=seed, work=tmp_path)).reward.classifier)
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_bootstrap_gives_each_head_its_own_data(model, pairs, tmp_path):
    """By lot the heads learn different labels by heart, so they disagree more than without."""
    spread = []
    for bootstrap in (False, True):
        config = RewardConfig(heads=4, bootstrap=bootstrap, epochs=3, fit=Fit(lr=1e-3))
        made = train(model, pairs(48, lot=True), config, Quiet(work=tmp_path)).reward
        found = made.score([row.prompt for row in pairs(30)] * 2, ["ember"] * 30 + ["no the barn"] * 30)
        raw = torch.tensor(found.members) * torch.tensor(made.scales)[:, None]
        spread.append(float((raw[:, :30] - raw[:, 30:]).std(0).mean()))
    assert spread[1] > 1.5 * spread[0]


def test_the_artefact_is_the_reward(model, pairs, tmp_path):
    run, held = Quiet(work=tmp_path), pairs(40, start=64, lot=True)
    result = train(model, pairs(64), FAST, run, held_out=held)
    opened = open_reward(run.artifact("reward"))
    asked = [row.prompt for row in held], [row.chosen for row in held]
    assert opened.score(*asked).mean == pytest.approx(result.reward.score(*asked).mean, abs=1e-4)
    assert opened.identity.digest == result.reward.identity.digest
    assert opened.identity.digest == reward_identity(run.artifact("reward")).digest
    assert opened.card == result.reward.card
    card = opened.card
    assert (card.kind, card.members, card.end_id) == ("single", 1, model.chat_tokens.end_id)
    assert card.template
    assert card.calibration == {name: result.metrics[name] for name in card.calibration}
    assert set(card.calibration) == {"held_out_accuracy", "ece", "brier", "temperature", "length_slope"}


def test_the_normaliser_is_that_of_the_training_replies(model, pairs, tmp_path):
    table = pairs(20)
    made = train(model, table, FAST, Quiet(work=tmp_path)).reward
    chats = [row.prompt for row in table for _ in range(2)]
    found = made.score(chats, [reply for row in table for reply in (row.chosen, row.rejected)]).mean
    assert sum(found) / 40 == pytest.approx(0.0, abs=1e-4)
    assert torch.tensor(found).std().item() == pytest.approx(1.0, abs=1e-4)
    assert (made.normaliser.n, made.normaliser.data) == (40, table.digest)


def test_every_comparison_is_logged(model, tmp_path):
    run = Log(tmp_path)
    train(model, uneven(), RewardConfig(batch_size=4, epochs=2, fit=STILL), run)
    table = pq.read_table(run.artifact("examples.parquet")).to_pylist()
    assert len(table) == 12
    assert {row["id"] for row in table} == {row.id for row in uneven()}
    for step, logged in enumerate(run.rows):
        rows = [row for row in table if row["step"] == step]
        assert logged["loss"] == pytest.approx(sum(row["loss"] for row in rows) / len(rows), abs=1e-5)
        margins = [row["chosen_score"] - row["rejected_score"] for row in rows]
        assert logged["margin"] == pytest.approx(sum(margins) / len(rows), abs=1e-4)


def test_without_held_out_pairs_the_card_is_unknown(model, pairs, tmp_path):
    result = train(model, pairs(8), FAST, Quiet(work=tmp_path))
    for name in ("held_out_accuracy", "ece", "brier", "temperature", "length_slope"):
        assert result.metrics[name].value is None
        assert "held-out" in result.metrics[name].reason
    assert all(len(caveat.split()) >= 4 for caveat in result.caveats)


def test_a_prompt_on_both_sides_is_said(model, pairs, tmp_path):
    run = Quiet(work=tmp_path)
    assert any(
        "5 held-out pairs" in c
        for c in train(model, pairs(10), FAST, run, held_out=pairs(9, start=5)).caveats
    )
    assert not any(
        "held-out" in c for c in train(model, pairs(10), FAST, run, held_out=pairs(9, start=10)).caveats
    )


def test_a_pair_too_long_is_left_out_and_counted(model, pairs, weights, tmp_path):
    table = pairs(9)
    long = Pair(id="long", prompt=Chat.ask("how " * 30), chosen="ember", rejected="no")
    mixed = Preferences(rows=(long, *table.rows))
    config = FAST.model_copy(update={"max_length": 20})
    with_it, without = (train(model, rows, config, Quiet(work=tmp_path)) for rows in (mixed, table))
    assert with_it.metrics["dropped_for_length"].value == pytest.approx(0.1)
    assert without.metrics["dropped_for_length"].value == 0.0
    assert weights(with_it.reward.classifier) == weights(without.reward.classifier)


def test_bad_input(model, pairs, tmp_path):
    for n, most, said in ((4, 3, "none of 4 rows fits 3 tokens"), (0, None, "there are no rows")):
        with pytest.raises(InputError, match=said):
            train(model, pairs(n), RewardConfig(max_length=most), Quiet(work=tmp_path))
    broken = model.copy()
    with torch.no_grad():
        broken.module.model.norm.weight.fill_(math.nan)
    with pytest.raises(NumericalError):
        train(broken, pairs(4), FAST, Quiet(work=tmp_path / "broken"))
    assert not (tmp_path / "broken" / "artifacts").exists()


def test_replies_that_are_the_same_teach_nothing_and_break_nothing(model, tmp_path):
    """One pair, chosen = rejected: margin 0, loss ln 2, a tie, and no spread to scale by."""
    table = Preferences(rows=(Pair(id="a", prompt=Chat.ask("how"), chosen="ember", rejected="ember"),))
    run = Log(tmp_path)
    result = train(model, table, FAST, run, held_out=table)
    assert run.rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert result.metrics["held_out_accuracy"].value == 0.5
    assert result.reward.normaliser.std == (1.0,)


def test_trl_names_are_taken():
    found = resolve(RewardConfig, {"center_rewards_coefficient": 0.01, "learning_rate": 1e-5})
    assert (found.centring, found.fit.lr) == (0.01, 1e-5)


def test_a_planted_preference_is_learned(model, pairs, tmp_path):
    result = train(
        model,
        pairs(96),
        RewardConfig(epochs=2, fit=Fit(lr=1e-3)),
        Quiet(work=tmp_path),
        held_out=pairs(64, start=96),
    )
    assert result.metrics["held_out_accuracy"].low > 0.9
    assert result.metrics["brier"].high < 0.05
    assert result.metrics["train_accuracy"].value == 1.0


def test_labels_by_lot_teach_nothing(model, pairs, by_lot, tmp_path):
    config = RewardConfig(epochs=2, fit=Fit(lr=1e-3))
    result = train(
        model,
        pairs(96, lot=True),
        config,
        Quiet(work=tmp_path),
        held_out=pairs(64, start=96, lot=True),
    )
    by_lot(result.metrics["held_out_accuracy"].value, 64)
    assert result.metrics["brier"].high > 0.24


def test_length_is_caught_where_it_was_what_the_pairs_showed(model, tmp_path):
    """Trained on longer-wins, measured where length and quality go apart: the slope stands out."""
    rng, long = random.Random(1), "where is the barn and the old mill?"
    texts = [f"how {a} {b}" for a in WORDS for b in WORDS] * 2

    def table(start, lot):
        rows = []
        for i, text in enumerate(texts[start : start + 36]):
            sides = [long if i % 2 else "say it is dusk now", "well" if i % 2 else "ember"]
            if lot and rng.random() < 0.5:
                sides.reverse()
            rows.append(Pair(id=str(i), prompt=Chat.ask(text), chosen=sides[0], rejected=sides[1]))
        return Preferences(rows=tuple(rows))

    config = RewardConfig(epochs=4, fit=Fit(lr=1e-3))
    found = train(model, table(0, False), config, Quiet(work=tmp_path), held_out=table(36, True)).metrics
    assert found["length_slope"].value > 0.3
    assert found["held_out_accuracy"].low < 0.6


@pytest.mark.parametrize("e", [0.0, 0.1])
def test_soft_labels_by_a_slow_route(model, e, tmp_path):
    """Each pair's own probability, beside label smoothing: the share of wrong labels of both together."""
    probabilities = (1.0, 0.9, 0.5, 0.75, 0.6, 1.0)
    rows = [
        row.model_copy(update={"chosen_probability": p})
        for row, p in zip(uneven(), probabilities, strict=True)
    ]
    run = Log(tmp_path)
    config = RewardConfig(batch_size=6, fit=STILL, label_smoothing=e)
    train(model, Preferences(rows=tuple(rows)), config, run)
    losses = []
    for row, p in zip(rows, probabilities, strict=True):
        (won,), (lost,) = (raw(model, row.prompt, reply) for reply in (row.chosen, row.rejected))
        right = p * (1 - e) + (1 - p) * e
        losses.append(-right * math.log(sigma(won - lost)) - (1 - right) * math.log(1 - sigma(won - lost)))
    assert run.rows[0]["loss"] == pytest.approx(sum(losses) / 6, abs=1e-4)


def test_planted_a_reward_learns_the_labels_probability(model, tmp_path):
    """One comparison, labelled .8: the gap goes to ln(.8/.2), not to infinity."""
    rows = [
        Pair(id=str(at), prompt=Chat.ask("how"), chosen="ember", rejected="dusk", chosen_probability=0.8)
        for at in range(8)
    ]
    run = Log(tmp_path)
    train(model, Preferences(rows=tuple(rows)), RewardConfig(batch_size=8, epochs=120, fit=Fit(lr=3e-3)), run)
    assert run.rows[-1]["margin"] == pytest.approx(math.log(4), abs=0.15)
