"""SFT: the loss by a slow route, what must not matter, a planted habit and its null."""

from __future__ import annotations

import math

import pytest

from calibrant.core import BudgetError, Chat, InputError, Quiet, Sampling
from calibrant.data.rows import Example, Examples
from calibrant.models.fit import Fit
from calibrant.models.fitting import length
from calibrant.models.open_model import OpenModel
from calibrant.stats import rate
from calibrant.train.sft import SFT, sft

FAST = SFT(batch_size=8, fit=Fit(lr=3e-3))
THOROUGH = SFT(batch_size=16, epochs=10, fit=Fit(lr=5e-3))


class Log(Quiet):
    """Keeps what was logged and spent."""

    def __init__(self, work):
        super().__init__(work=work)
        self.losses, self.tokens = [], 0

    def log(self, step, **metrics):
        self.losses.append(metrics["loss"])

    def spend(self, *, tokens=0, queries=0, flops=0.0):
        self.tokens += tokens


def uneven():
    """Prompts and replies of many lengths."""
    texts = ["how", "where is the barn?", "who", "how do i mend the old mill?"]
    replies = ["ember", "no the barn is dusk", "", "say it is dusk"]
    rows = [Example(id=t, prompt=Chat.ask(t), completion=r) for t, r in zip(texts, replies, strict=True)]
    return Examples(rows=tuple(rows), source="uneven")


def by_rows(model, table):
    """Nats per token over all reply tokens, each row scored alone."""
    scored = [model.logprobs([row.prompt], [row.completion])[0] for row in table]
    return -sum(s.total for s in scored) / sum(len(s.ids) for s in scored)


def test_the_loss_by_a_slow_route(model, tmp_path):
    """One batch twice: the first loss is the model's own, the second that of the once-tuned model."""
    constant = Fit(schedule="constant")
    one = sft(model, uneven(), SFT(batch_size=4, fit=constant), Quiet(work=tmp_path))
    run = Log(tmp_path)
    two = sft(model, uneven(), SFT(batch_size=4, epochs=2, fit=constant), run)
    assert run.losses[0] == pytest.approx(by_rows(model, uneven()), abs=1e-5)
    assert run.losses[1] == pytest.approx(by_rows(one.model, uneven()), abs=1e-5)
    assert two.metrics["loss_first"].value == run.losses[0]
    assert two.metrics["loss_last"].value == pytest.approx(sum(run.losses) / 2)


def test_order_within_a_batch_does_not_matter(model, tmp_path):
    runs = Log(tmp_path / "a"), Log(tmp_path / "b")
    config = SFT(batch_size=4, epochs=4, fit=Fit(lr=1e-3))
    sft(model, uneven(), config, runs[0])
    sft(model, Examples(rows=uneven().rows[::-1]), config, runs[1])
    assert runs[0].losses == pytest.approx(runs[1].losses, abs=1e-4)
    assert runs[0].losses[-1] < runs[0].losses[0]


def test_the_prompt_carries_no_loss(model, weights, tmp_path):
    """Only the reply and its end token are scored: an empty reply leaves exactly the end token."""
    row = Example(id="a", prompt=Chat.ask("how do i mend the old mill?"), completion="")
    run = Log(tmp_path)
    sft(model, Examples(rows=(row,)), SFT(), run)
    (end,) = model.logprobs([row.prompt], [""])[0].logprobs
    assert run.losses == [pytest.approx(-end, abs=1e-5)]


def test_the_model_that_came_in_is_unchanged(model, examples, weights, tmp_path):
    before = weights(model)
    result = sft(model, examples(16), FAST, Quiet(work=tmp_path))
    assert weights(model) == before != weights(result.model)
    for lm in (model, result.model):
        assert not lm.module.training
        assert all(not p.requires_grad and p.grad is None for p in lm.module.parameters())


def test_the_tuned_model_is_another_model(model, examples, tmp_path):
    tuned = sft(model, examples(8), FAST, Quiet(work=tmp_path)).model
    assert tuned.identity.digest != model.identity.digest
    assert tuned.identity.name == "tiny after sft"


def test_same_seed_same_bits(model, examples, weights, tmp_path):
    first, again, other = (
        weights(sft(model, examples(24), FAST, Quiet(seed=seed, work=tmp_path)).model) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_tokens_are_charged_before_they_are_used(model, examples, weights, tmp_path):
    table, run, before = examples(12), Log(tmp_path), weights(model)
    sft(model, table, SFT(batch_size=5, epochs=2), run)
    assert run.tokens == 2 * sum(length(model, row.prompt, row.completion) for row in table)

    class Poor(Quiet):
        def spend(self, *, tokens=0, queries=0, flops=0.0):
            raise BudgetError("no tokens left")

    with pytest.raises(BudgetError):
        sft(model, table, SFT(), Poor(work=tmp_path / "poor"))
    assert weights(model) == before
    assert not (tmp_path / "poor" / "artifacts").exists()


def test_a_row_too_long_is_left_out_and_counted(model, examples, weights, tmp_path):
    """Training with it in the table is training without it, to the bit."""
    table = examples(9)
    long = Example(id="long", prompt=Chat.ask("how"), completion="dusk " * 40)
    config = SFT(batch_size=4, max_length=20)
    with_it = sft(model, Examples(rows=(long, *table.rows)), config, Quiet(work=tmp_path))
    without = sft(model, table, config, Quiet(work=tmp_path))
    assert with_it.metrics["dropped_for_length"].value == pytest.approx(0.1)
    assert weights(with_it.model) == weights(without.model)


@pytest.mark.parametrize(("n", "said"), [(4, "none of 4 rows fits 3 tokens"), (0, "there are no rows")])
def test_nothing_to_learn_from(model, examples, n, said):
    with pytest.raises(InputError, match=said):
        sft(model, examples(n), SFT(max_length=3))


def test_what_is_saved_opens_again_and_says_the_same(model, examples, tmp_path):
    run, table = Quiet(work=tmp_path), examples(8)
    result = sft(model, table, FAST, run)
    opened = OpenModel.from_folder(run.artifact("model"))
    asked = [row.prompt for row in table], [row.completion for row in table]
    assert opened.logprobs(*asked) == result.model.logprobs(*asked)
    assert opened.logprobs(*asked) != model.logprobs(*asked)


def right(model, held):
    """Share of held-out requests that are answered as the table has it."""
    replies = model.generate([row.prompt for row in held], Sampling(max_tokens=4))
    return rate(
        [r.text == row.completion for r, row in zip(replies, held, strict=True)], better="higher", unit="item"
    )


def test_a_planted_habit_is_learned(model, examples, tmp_path):
    """Every request is answered with one word: so are requests that were never seen."""
    held = examples(64, start=96)
    tuned = sft(model, examples(96), THOROUGH, Quiet(work=tmp_path)).model
    assert right(model, held).value == 0.0
    assert right(tuned, held).value == 1.0
    assert by_rows(tuned, held) < 0.1


def test_words_by_lot_teach_no_more_than_their_shares(model, examples, by_lot, tmp_path):
    """One of four words by lot: the answers become such words, but which one cannot be known.

    No model beats ln 4 nats a reply on average, so held-out replies must cost about that or more.
    """
    held = examples(64, start=96, lot=True)
    tuned = sft(model, examples(96, lot=True), THOROUGH, Quiet(work=tmp_path)).model
    by_lot(right(tuned, held).value, 64, 0.25)
    assert 2 * by_rows(tuned, held) > 0.9 * math.log(4)
