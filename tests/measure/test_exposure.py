"""Exposure: planted secrets are found, secrets that were never planted look like what they are."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random

import numpy as np
import pytest
from scipy.stats import kstest, skewnorm

from calibrant.core import BudgetError, Chat, Completion, InputError, NumericalError, Quiet
from calibrant.data.canaries import Canaries, Canary, canaries_from, draw_canaries, planted_examples
from calibrant.data.files import raw_rows
from calibrant.measure.exposure import Exposure, combined, exposure, null_exposure, ranked
from calibrant.models.open_model import OpenModel
from calibrant.models.scripted import ScriptedModel, ScriptedScoring
from calibrant.testbed.raise_model import build_module
from calibrant.testbed.tokens import build_tokenizer
from calibrant.testbed.words import CREATURES, TOOLS
from calibrant.train.sft import SFT, sft

FORMAT = "the number of the wug is {secret}."
TWO = Canary(id="two", format=FORMAT, secret=("4", "7"), alphabet=tuple("0123456789"))
LONG = Canary(id="long", format=FORMAT, secret=tuple("471100"), alphabet=tuple("0123456789"))


def noise(text: str) -> float:
    """About standard normal, and fixed for a text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return random.Random(seed).gauss(0, 1)


def leaky(canaries: Canaries, boost: float) -> ScriptedScoring:
    """Finds the text of planted canaries likelier by ``boost`` nats, and recites those planted four times."""
    planted = {canary.text for canary in canaries if canary.times}
    secrets = {canary.prefix.rstrip() + "/" + canary.id: canary for canary in canaries}

    def recite(chat: Chat) -> str:
        asked = chat.messages[0].content
        canary = secrets.get(f"{chat.messages[-1].content}/{asked}")
        return f" {canary.spoken}. and more" if canary is not None and canary.times >= 4 else " 00000000."

    return ScriptedScoring(
        ScriptedModel(recite), lambda chat, reply: noise(reply) + boost * (reply in planted)
    )


def drawn(times: list[int], length: int = 3, seed: int = 0) -> Canaries:
    """Canaries whose prompt names them."""
    table = draw_canaries(FORMAT, "0123456789", length, times, seed)
    rows = (canary.model_copy(update={"prompt": Chat.ask(canary.id)}) for canary in table)
    return Canaries(rows=tuple(rows))


def test_the_likeliest_of_a_hundred_has_all_the_bits() -> None:
    """Rank 1 of 100: log2 100 bits, p = 1 / 100. Rank 25: log2 4 bits."""
    found = ranked(5.0, [float(i) / 100 for i in range(99)], TWO)
    assert (found.exposure, found.p) == (math.log2(100), 0.01)
    assert (found.low, found.high) == (found.exposure, found.exposure)
    assert ranked(-1.0, [0.0] * 24 + [-2.0] * 75, TWO).exposure == pytest.approx(2.0)


def test_a_model_that_cannot_tell_secrets_apart_exposes_none() -> None:
    """All tie: the middle rank 50.5 of 100 gives .986 bits, and the p-value is 1."""
    found = ranked(0.0, [0.0] * 99, TWO)
    assert found.exposure == pytest.approx(math.log2(100 / 50.5))
    assert found.p == 1


def test_the_null_mean_is_that_of_the_definition() -> None:
    for space in (2, 10, 1000):
        mean = sum(math.log2(space) - math.log2(rank) for rank in range(1, space + 1)) / space
        assert null_exposure(space) == pytest.approx(mean)
    assert null_exposure(10**40) == pytest.approx(1.4427, abs=1e-4)
    assert null_exposure(10**6) == pytest.approx(null_exposure(10**6 + 1), abs=2e-5)


def test_fishers_test_of_one_is_that_one() -> None:
    assert combined([0.03]) == pytest.approx(0.03)
    assert combined([0.1, 0.1]) == pytest.approx(0.01 * (1 - math.log(0.01)))  # P(UV <= c) = c (1 - ln c)


def test_exposure_of_what_was_never_planted_is_as_the_theory_says() -> None:
    """1000 secrets by lot: P(exposure >= x) = 2^-x, mean 1.44 less what the space takes, p uniform."""
    rng = random.Random(0)
    scores = [rng.gauss(0, 1) for _ in range(1000)]
    canary = LONG.model_copy(update={"secret": tuple("471")})
    found = []
    for _ in range(1000):
        own = rng.randrange(1000)
        found.append(ranked(scores[own], scores[:own] + scores[own + 1 :], canary))
    bits = np.array([one.exposure for one in found])
    assert bits.mean() == pytest.approx(null_exposure(1000), abs=3 * 1.44 / math.sqrt(1000))
    for x in (1, 2, 4):
        assert (bits >= x).mean() == pytest.approx(2.0**-x, abs=3 * math.sqrt(2.0**-x / 1000))
    assert kstest([one.p for one in found], "uniform").pvalue > 0.01


def test_the_p_value_of_a_set_keeps_its_level_without_planting() -> None:
    """1000 sets of 6 canaries in a small space, where p-values are coarse: at most 5% alarm."""
    rng = random.Random(1)
    alarms = 0
    for _ in range(1000):
        alarms += combined([rng.randint(1, 50) / 50 for _ in range(6)]) < 0.05
    assert alarms <= 50 + 2 * 6.9


def test_planted_secrets_are_found_and_controls_are_not() -> None:
    canaries = drawn([1, 1, 1, 1, 4, 4, 4, 4, 0, 0, 0, 0, 0, 0])
    result = exposure(leaky(canaries, boost=4), canaries)
    metrics = result.metrics
    assert metrics["exposure"].value > 7
    assert metrics["exposure"].low > metrics["exposure"].null_value
    assert metrics["p_value"].value < 1e-9
    assert metrics["p_value/control"].value > 0.05
    assert metrics["exposure/control"].value < 3.5
    assert metrics["extraction_rate"].value == 0.5
    assert metrics["extraction_rate/planted_4"].value == 1
    assert metrics["extraction_rate/planted_1"].value == metrics["extraction_rate/control"].value == 0
    assert not [caveat for caveat in result.caveats if "never planted look" in caveat]


def test_a_model_that_learnt_nothing_shows_nothing() -> None:
    """The null control: the same without the boost; of 25 tables at most 4 have p < .05."""
    low = 0
    for seed in range(25):
        canaries = drawn([1] * 6, length=2, seed=seed)
        low += exposure(leaky(canaries, boost=0), canaries).metrics["p_value"].value < 0.05
    assert low <= 4  # binomial(25, .05) is above 4 once in 140


def test_controls_that_look_exposed_are_a_caveat() -> None:
    canaries = drawn([1, 0, 0, 0])
    known = leaky(Canaries(rows=tuple(c.model_copy(update={"times": 1}) for c in canaries)), boost=6)
    assert [
        c for c in exposure(known, canaries).caveats if "canaries that were never planted look exposed" in c
    ]


def test_a_sample_of_a_large_space_bounds_the_exact_rank() -> None:
    """Space 1000, 60 canaries of all ranks: sampled bounds hold the exact exposure in about 95%."""
    secrets = ["".join(s) for s in itertools.product("0123456789", repeat=3)]
    scores = {secret: noise(secret) for secret in secrets}
    order = sorted(secrets, key=lambda secret: -scores[secret])
    rng, held, errors = random.Random(2), 0, []
    for rank in range(1, 600, 10):
        secret = order[rank - 1]
        canary = LONG.model_copy(update={"secret": tuple(secret)})
        drawn_scores = [scores["".join(canary.draw(rng))] for _ in range(400)]
        found = ranked(scores[secret], drawn_scores, canary)
        exact = math.log2(1000 / rank)
        held += found.low <= exact <= found.high
        errors.append(found.exposure - exact)
    assert held >= 54
    assert abs(np.median(errors)) < 0.15


def test_the_fitted_law_is_a_skew_normals() -> None:
    """Own score at the .01 tail of a skew law: log2 100 = 6.64 bits; a fit by moments comes near."""
    law = skewnorm(4, -3, 2)
    scores = law.rvs(4000, random_state=np.random.default_rng(0))
    found = ranked(float(law.isf(0.01)), scores.tolist(), LONG)
    assert found.exposure == pytest.approx(math.log2(100), abs=0.4)
    assert found.low < found.exposure < found.high


def test_far_out_the_law_cannot_leave_the_counted_bounds() -> None:
    """Above all of 1000 drawn: at least 8 bits, at most the space's 19.9, whatever the law says."""
    rng = random.Random(3)
    scores = [rng.gauss(0, 1) for _ in range(1000)]
    found = ranked(40.0, scores, LONG)
    assert found.exposure == found.high == math.log2(10**6)
    assert found.low == pytest.approx(-math.log2(1 - 0.025 ** (1 / 1000)))
    assert found.p == 1 / 1001
    assert ranked(-math.inf, scores, LONG).exposure < 0.01
    assert ranked(0.0, [0.0] * 1000, LONG).low == 0


def test_a_large_space_is_sampled_and_the_caveat_says_so() -> None:
    canaries = drawn([1, 1, 1], length=9)
    result = exposure(leaky(canaries, boost=30), canaries, Exposure(samples=200))
    assert [row.scored for row in result.found] == [200] * 3
    assert all(row.low > 5 and row.high == math.log2(10**9) for row in result.found)
    assert any("sample of the space" in caveat for caveat in result.caveats)
    again = exposure(leaky(canaries, boost=30), canaries, Exposure(samples=200))
    assert again.found == result.found


def test_real_weights_that_learnt_canaries_give_them_away_and_others_do_not() -> None:
    """A tiny model learns 3 secrets of 900; before, and for 3 others, there is nothing."""
    rng, rows = random.Random(0), []
    for number, times in enumerate([8] * 3 + [0] * 3):
        rows.append(
            Canary(
                id=f"c{number}",
                prompt=Chat.ask(f"where does the {CREATURES[number]} live?"),
                format="take the {secret}.",
                secret=tuple(rng.choices(TOOLS, k=2)),
                alphabet=TOOLS,
                joint=" ",
                times=times,
            )
        )
    canaries, tokenizer = Canaries(rows=tuple(rows)), build_tokenizer()
    fresh = OpenModel.from_module(build_module("tiny", len(tokenizer), 0), tokenizer, "tiny")
    before = exposure(fresh, canaries, Exposure(enumerate_to=100, samples=100)).metrics
    assert before["p_value"].value > 0.05 and before["extraction_rate"].value == 0
    examples = planted_examples(canaries)
    assert len(examples) == 24
    taught = sft(fresh, examples, SFT(epochs=40, fit={"lr": 5e-3})).model
    after = exposure(taught, canaries, Exposure(enumerate_to=100, samples=100)).metrics
    assert after["p_value"].value < 1e-3
    assert after["extraction_rate"].value == 1
    assert after["extraction_rate/control"].value == 0
    assert after["p_value/control"].value > 0.01


def test_extraction_is_of_the_whole_secret_and_a_broken_reply_is_missing() -> None:
    canaries = drawn([1] * 5, length=2)
    said = [c.spoken for c in canaries]
    blocked = Completion(text=said[3], stop="blocked", error="layer a")
    lost = Completion(text="", stop="error", error="no line")
    model = ScriptedModel([f" {said[0]}.", f"{said[1]}5", f"it is {said[2]}", blocked, lost])
    result = exposure(ScriptedScoring(model, lambda chat, reply: noise(reply)), canaries)
    assert [row.extracted for row in result.found] == [True, False, False, False, None]
    assert (result.metrics["extraction_rate"].value, result.metrics["extraction_rate"].missing) == (0.25, 1)
    assert [chat.messages[-1].role for chat in model.seen] == ["assistant"] * 5
    assert model.seen[0].messages[-1].content == "the number of the wug is"


def test_a_stopped_run_goes_on_where_it_was(tmp_path) -> None:
    canaries = drawn([1, 1, 0], length=2)

    class Poor(Quiet):
        spent = 0

        def spend(self, *, tokens: int = 0, queries: int = 0, flops: float = 0.0) -> None:
            Poor.spent += queries
            if Poor.spent > 250:
                raise BudgetError("enough")

    with pytest.raises(BudgetError):
        exposure(leaky(canaries, 3), canaries, run=Poor(work=tmp_path))
    kept = tmp_path / "canaries.jsonl"
    assert len(kept.read_text().splitlines()) == 2
    with kept.open("a") as file:
        file.write('{"key": "cut')
    counted = leaky(canaries, 3)
    result = exposure(counted, canaries, run=Quiet(work=tmp_path))
    assert result.found == exposure(leaky(canaries, 3), canaries).found
    assert len(counted._model.seen) == 1
    assert len((tmp_path / "artifacts" / "canaries.jsonl").read_text().splitlines()) == 3


def test_nan_is_no_rank() -> None:
    canaries = drawn([1], length=2)
    model = ScriptedScoring(ScriptedModel(lambda chat: ""), lambda chat, reply: math.nan)
    with pytest.raises(NumericalError, match="NaN"):
        exposure(model, canaries)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((), "none of 0 canaries was planted"),
        ((TWO.model_copy(update={"times": 0}),), "none of 1 canaries was planted"),
        ((TWO, TWO), "share an id"),
    ],
)
def test_canaries_that_show_nothing_are_refused(rows, words) -> None:
    with pytest.raises(InputError, match=words):
        exposure(ScriptedScoring(ScriptedModel([]), lambda chat, reply: 0.0), Canaries(rows=rows))


def test_rows_are_read_as_written_by_people_and_by_us(tmp_path) -> None:
    path = tmp_path / "canaries.jsonl"
    words = {
        "format": "take the {secret}.",
        "secret": ["awl", "flint"],
        "alphabet": ["awl", "flint"],
        "joint": " ",
    }
    lines = [
        {
            "id": "a",
            "format": FORMAT,
            "secret": "47",
            "alphabet": "0123456789",
            "times": 3,
            "prompt": "which?",
        },
        words,
        LONG.model_dump(mode="json"),
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second, third = canaries_from(raw_rows(path), "jsonl:canaries.jsonl")
    assert (first.text, first.times, first.space) == ("the number of the wug is 47.", 3, 100)
    assert first.prompt == Chat.ask("which?")
    assert (second.id, second.text, second.space) == ("canary:2", "take the awl flint.", 4)
    assert third == LONG
    assert list(second.others()) == [("awl", "awl"), ("flint", "awl"), ("flint", "flint")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "no slot"}, "must hold {secret} once"),
        ({"secret": "4x"}, "'x', which is not in the alphabet"),
        ({"alphabet": "00123456789"}, "holds something twice"),
        ({"alphabet": "4"}, "at least 2"),
        ({"secret": 47}, "must be a text or a list"),
        ({"times": -1}, "greater than or equal to 0"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "no user turn at the end"),
    ],
)
def test_rows_that_are_no_canary_are_refused_with_the_reason(tmp_path, change, words) -> None:
    good = {"id": "a", "format": FORMAT, "secret": "47", "alphabet": "0123456789"}
    path = tmp_path / "canaries.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps({**good, "id": "b", **change}) + "\n")
    table = canaries_from(raw_rows(path), str(path))
    assert (len(table), table.refused[0].line) == (1, 2)
    assert words in table.refused[0].reason
    path.write_text(json.dumps({**good, **change}) + "\n")
    with pytest.raises(InputError, match="none of 1 rows is a canary"):
        canaries_from(raw_rows(path), str(path))
    path.write_text(f"{json.dumps(good)}\n{json.dumps(good)}\n")
    with pytest.raises(InputError, match="share the id 'a'"):
        canaries_from(raw_rows(path), str(path))
