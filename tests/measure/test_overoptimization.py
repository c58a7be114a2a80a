"""Over-optimisation: a planted hump is found, its nulls are not, and a killed run asks for nothing twice."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from calibrant.core import (
    BudgetError,
    CapabilityError,
    Chat,
    Completion,
    EvidenceError,
    Identity,
    InputError,
    Quiet,
    Sampling,
    Scores,
    digest,
    resolve,
)
from calibrant.core.errors import ConfigError
from calibrant.data.rows import Prompt, Prompts
from calibrant.measure.overoptimization import Overoptimization, overoptimization
from calibrant.models.seeds import item_seeds
from calibrant.stats import mean
from calibrant.stats.best_of_n import best_of_n_kl, expected
from calibrant.stats.gao import GaoFit


class Numbers:
    """Answers every chat with a standard normal number, seeded per item as models do."""

    def __init__(self, name="numbers", fails=()):
        self.identity = Identity(name=name, parts={"name": name})
        self.fails, self.asked = set(fails), 0

    def generate(self, chats, sampling=Sampling()):
        self.asked += len(chats)
        return [
            Completion(text="", stop="error", error="line down")
            if chat.last_user in self.fails
            else Completion(text=repr(random.Random(seed).gauss(0, 1)), ids=(1, 2))
            for chat, seed in zip(chats, item_seeds(chats, sampling.seed), strict=True)
        ]


class By:
    """Scores a number by a function of it (and of a seeded lot, ``luck``)."""

    def __init__(self, name, score, std=False):
        self.identity = Identity(name=name, kind="reward", parts={"name": name})
        self._score, self._std, self.scored = score, std, 0

    def score(self, chats, replies):
        self.scored += len(replies)
        found = tuple(float(self._score(float(text))) for text in replies)
        return Scores(mean=found, std=tuple(abs(x) for x in found) if self._std else None)


def luck(x):
    return random.Random(repr(x)).gauss(0, 1)


def table(count, start=0):
    rows = tuple(Prompt(id=f"p{i}", prompt=Chat.ask(f"say {i}")) for i in range(start, start + count))
    return Prompts(rows=rows, source="numbers")


PROXY = By("proxy", lambda x: 10 * x)
HUMP = By("hump", lambda x: x - 0.45 * x**2)
RISES = By("rises", lambda x: x + luck(x))
NOISE = By("noise", luck)
SMALL = Overoptimization(samples=8)


def run_in(path, **more):
    return Quiet(work=path, **more)


def found_with(gold, path, count=80, samples=64):
    return overoptimization(
        Numbers(), table(count), PROXY, gold, Overoptimization(samples=samples), run_in(path)
    )


def test_a_planted_hump_is_found(tmp_path):
    """The true curve, by 100,000 draws of its own: from -.45 up to .36 at n = 6, down to -.22 at n = 64."""
    draws = np.random.default_rng(0).standard_normal((100_000, 64))
    best = {n: float(HUMP._score(draws[:, :n].max(1)).mean()) for n in (1, 4, 6, 9, 64)}
    assert max(best, key=best.get) == 6
    truth = [best[1], best[64]]
    found = found_with(HUMP, tmp_path).metrics
    assert found["gold_at_1"].low < truth[0] < found["gold_at_1"].high
    assert found["gold_at_n"].low < truth[1] < found["gold_at_n"].high
    assert found["peak_sqrt_kl"].value == pytest.approx(math.sqrt(best_of_n_kl(6)), abs=0.05)
    assert found["peak_gold_gain"].value == pytest.approx(best[6] - best[1], abs=0.1)
    assert found["gold_slope_end"].high < 0
    assert found["gold_last_doubling"].high < 0
    assert found["gold_loss_from_peak"].low > 0
    assert found["gap_at_n"].low > 1
    assert found["fit_r2"].value > 0.9
    assert found["gold_at_n"].n == 80


@pytest.mark.parametrize("gold", [RISES, NOISE], ids=["rises", "noise"])
def test_without_a_hump_no_peak_is_claimed(gold, tmp_path):
    found = found_with(gold, tmp_path).metrics
    assert found["peak_sqrt_kl"].value is None
    assert found["gold_loss_from_peak"].value is None
    assert found["gold_slope_end"].high > 0
    assert (found["gold_gain"].low > 0) == (gold is RISES)


def test_proxy_against_itself_has_no_gap(tmp_path):
    found = found_with(By("same", lambda x: 3 * x + 1), tmp_path, count=10).metrics
    assert found["gap_at_n"].value == pytest.approx(0, abs=1e-12)


def test_numbers_by_another_route(tmp_path):
    """From the stored replies: the estimator over the parquet's rows gives the metrics."""
    found = found_with(RISES, tmp_path, count=12, samples=16).metrics
    rows = pq.read_table(tmp_path / "artifacts/samples.parquet").to_pydict()
    assert rows["id"][:17] == ["p0"] * 16 + ["p1"]
    assert rows["sample"][:3] == [0, 1, 2]
    assert rows["proxy"] == [10 * float(x) for x in rows["reply"]]
    proxy, gold = (np.reshape(rows[name], (12, 16)) for name in ("proxy", "gold"))
    values = expected(proxy, gold, [1, 8, 16])
    assert found["gold_at_n"] == mean(values[:, 2].tolist(), better="higher", unit="prompt")
    assert found["gold_last_doubling"].value == pytest.approx((values[:, 2] - values[:, 1]).mean())
    gains = [(t[:, 1] - t[:, 0]) / s.std() for t, s in (
        (expected(proxy, proxy, [1, 16]), proxy), (expected(proxy, gold, [1, 16]), gold)
    )]  # fmt: skip
    assert found["gap_at_n"].value == pytest.approx((gains[0] - gains[1]).mean())


def test_the_figure_finds_all_that_it_needs(tmp_path):
    result = found_with(HUMP, tmp_path, count=20, samples=20)
    curve = json.loads((tmp_path / "artifacts/curve.json").read_text())
    assert curve["n"] == [1, 2, 4, 8, 16]
    assert curve["sqrt_kl"] == pytest.approx([math.sqrt(best_of_n_kl(n)) for n in curve["n"]])
    assert (curve["prompts"], curve["samples"]) == (20, 20)
    for name in ("proxy", "gold"):
        assert all(len(curve[name][end]) == 5 for end in ("value", "low", "high"))
    for form, fit in curve["fits"].items():
        assert GaoFit.model_validate(fit) == result.fits[form]
        assert len(fit["sqrt_kl"]) == len(fit["value"]) == len(fit["low"]) == len(fit["high"])
        assert fit["value"][0] == pytest.approx(curve["gold"]["value"][0])


def test_disagreement_is_stored(tmp_path):
    overoptimization(Numbers(), table(3), By("ensemble", float, std=True), RISES, SMALL, run_in(tmp_path))
    rows = pq.read_table(tmp_path / "artifacts/samples.parquet").to_pydict()
    assert rows["std"] == [abs(x) for x in rows["proxy"]]


def test_a_seed_decides_and_the_order_of_prompts_does_not(tmp_path):
    def values(name, prompts, seed=0):
        result = overoptimization(Numbers(), prompts, PROXY, RISES, SMALL, run_in(tmp_path / name, seed=seed))
        return {key: e.value for key, e in result.metrics.items()}

    turned = Prompts(rows=tuple(reversed(table(6).rows)))
    one = values("a", table(6))
    assert one == pytest.approx(values("b", turned), abs=1e-12, nan_ok=True)
    assert one == values("c", table(6))
    assert one["gold_at_n"] != values("d", table(6), seed=1)["gold_at_n"]


class Limited(Quiet):
    """A run with a budget of queries."""

    def __init__(self, work, most):
        super().__init__(work=work)
        self.most, self.queries, self.tokens = most, 0, 0

    def spend(self, *, tokens=0, queries=0, flops=0.0):
        if self.queries + queries > self.most:
            raise BudgetError("enough queries")
        self.queries += queries
        self.tokens += tokens


def test_a_killed_run_asks_and_scores_nothing_twice(tmp_path):
    """40 prompts of 64 replies, asked four prompts at a time; the first run is stopped after 12 prompts."""
    config, prompts = Overoptimization(samples=64), table(40)
    whole = overoptimization(Numbers(), prompts, PROXY, RISES, config, run_in(tmp_path / "whole"))
    model, gold = Numbers(), By("rises", RISES._score)
    with pytest.raises(BudgetError):
        overoptimization(model, prompts, PROXY, gold, config, Limited(tmp_path / "cut", 12 * 64))
    assert model.asked == gold.scored == 12 * 64
    log = tmp_path / "cut/samples.jsonl"
    log.write_bytes(log.read_bytes()[:-100])  # and the kill came while a line was being written
    run = Limited(tmp_path / "cut", 10**6)
    again = overoptimization(model, prompts, PROXY, gold, config, run)
    assert model.asked == gold.scored == (12 + 29) * 64
    assert (run.queries, run.tokens) == (40 * 64, 2 * 40 * 64)
    assert again.metrics == whole.metrics
    for name in ("curve.json", "samples.parquet"):
        parts = [(tmp_path / place / "artifacts" / name).read_bytes() for place in ("cut", "whole")]
        assert parts[0] == parts[1]


def test_other_questions_find_no_answers_of_these(tmp_path):
    """Another model, reward, number or seed in the same folder is drawn anew."""
    prompts, run = table(2), run_in(tmp_path)
    for model, proxy, samples in (
        (Numbers(), PROXY, 8), (Numbers("other"), PROXY, 8), (Numbers(), HUMP, 8), (Numbers(), PROXY, 4)
    ):  # fmt: skip
        overoptimization(model, prompts, proxy, RISES, Overoptimization(samples=samples), run)
        assert model.asked == 2 * samples
    again = Numbers()
    overoptimization(again, prompts, PROXY, RISES, SMALL, run)
    assert again.asked == 0


def test_a_damaged_file_is_said(tmp_path):
    (tmp_path / "samples.jsonl").write_text("{}\n")
    with pytest.raises(EvidenceError, match="line 1 is not a set of replies"):
        overoptimization(Numbers(), table(2), PROXY, RISES, SMALL, run_in(tmp_path))


def test_a_prompt_with_a_hole_is_missing_as_a_whole(tmp_path):
    """p1 never answers; and gold cannot read numbers above 2, about one in forty."""
    model = Numbers(fails=["say 1"])
    gold = By("holes", lambda x: math.nan if x > 2 else x)
    result = overoptimization(model, table(30), PROXY, gold, SMALL, run_in(tmp_path))
    rows = pq.read_table(tmp_path / "artifacts/samples.parquet").to_pydict()
    holes = {name for name, score in zip(rows["id"], rows["gold"], strict=True) if score is None}
    assert "p1" in holes
    assert 1 < len(holes) < 30
    for name in ("gold_at_n", "proxy_at_n", "gap_at_n", "gold_slope_end"):
        assert (result.metrics[name].n, result.metrics[name].missing) == (30, len(holes))
    again = Numbers()
    overoptimization(again, table(30), PROXY, gold, SMALL, run_in(tmp_path))
    assert again.asked == 8 * len(holes)  # what failed is asked again


def test_nothing_measured_is_an_error(tmp_path):
    silent = Numbers(fails=[f"say {i}" for i in range(3)])
    with pytest.raises(InputError, match=r"not one of 3 prompts.*line down"):
        overoptimization(silent, table(3), PROXY, RISES, SMALL, run_in(tmp_path))


def test_repeated_prompts_are_asked_once_and_said(tmp_path):
    rows = (*table(4).rows, Prompt(id="again", prompt=Chat.ask("say 0")))
    result = overoptimization(Numbers(), Prompts(rows=rows), PROXY, RISES, SMALL, run_in(tmp_path))
    assert result.metrics["gold_at_n"].n == 4
    assert any(caveat.startswith("1 prompts repeat") for caveat in result.caveats)


def test_a_constant_reward_is_unknown_where_it_must_be(tmp_path):
    found = overoptimization(
        Numbers(), table(5), PROXY, By("flat", lambda x: 1.0), SMALL, run_in(tmp_path)
    ).metrics
    assert found["gap_at_n"].value is None
    assert "the gold gives every reply the same score" in found["gap_at_n"].reason
    assert found["fit_r2"].value is None
    assert found["gold_at_n"].value == pytest.approx(1)
    json.loads((tmp_path / "artifacts/curve.json").read_text())


def test_one_prompt_gives_values_without_intervals(tmp_path):
    found = overoptimization(Numbers(), table(1), PROXY, RISES, SMALL, run_in(tmp_path)).metrics
    assert found["gold_at_n"].value is not None
    assert found["gold_at_n"].low is found["gold_slope_end"].low is None


def test_half_a_character_can_be_stored(tmp_path):
    class Odd(Numbers):
        def generate(self, chats, sampling=Sampling()):
            return [
                c.model_copy(update={"text": c.text + "\ud800"}) for c in super().generate(chats, sampling)
            ]

    def strip(x):
        return x

    class Lenient(By):
        def score(self, chats, replies):
            return super().score(chats, [reply.rstrip("\ud800") for reply in replies])

    overoptimization(Odd(), table(2), Lenient("p", strip), Lenient("g", strip), SMALL, run_in(tmp_path))
    rows = pq.read_table(tmp_path / "artifacts/samples.parquet").to_pydict()
    assert rows["reply"][0].endswith("?")


def test_bad_input(tmp_path):
    twice = Prompts(rows=(Prompt(id="a", prompt=Chat.ask("x")), Prompt(id="a", prompt=Chat.ask("y"))))
    for prompts, words in ((Prompts(rows=()), "no prompts"), (twice, "share the id 'a'")):
        with pytest.raises(InputError, match=words):
            overoptimization(Numbers(), prompts, PROXY, RISES, SMALL, run_in(tmp_path))
    with pytest.raises(ConfigError, match="one reply"):
        resolve(Overoptimization, {"sampling": {"temperature": 0.0}})

    class Short(By):
        def score(self, chats, replies):
            return Scores(mean=(1.0,))

    with pytest.raises(CapabilityError, match="returned 1 answers to 16"):
        overoptimization(Numbers(), table(2), Short("s", float), RISES, SMALL, run_in(tmp_path))


def test_defaults():
    assert digest(Overoptimization()) == digest(Overoptimization(samples=64))
    assert Overoptimization().sampling.temperature == 1.0
