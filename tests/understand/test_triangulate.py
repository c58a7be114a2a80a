"""A claim that is true of a planted circuit is supported; a false one, or one on a null, is not."""

from __future__ import annotations

import json
import re

import pytest
import torch

from calibrant.core import ConfigError, Quiet, resolve
from calibrant.data.rows import Contrasts
from calibrant.testbed.circuits import open_contrasts, open_plant, truth
from calibrant.understand.triangulate import Claim, other_sets, triangulate

FAMILIES = ["gpt2", "llama", "neox"]


def names(*places):
    return tuple(f"layer_{layer}/head_{head}" for layer, head in places)


def pairs(seed, how="earlier", n=16):
    return open_contrasts("induction", {"n": str(n), "seed": str(seed), "corrupt": how})


def judged(options, cells, how="earlier", made=None, **config):
    return triangulate(
        open_plant("induction", options),
        pairs(0, how),
        pairs(1, how),
        config=Claim(cells=cells, **config),
        run=made or Quiet(),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_planted_heads_are_supported(family):
    result = judged({"family": family}, names((0, 1), (1, 2)))
    assert result.finding == "supported" and result.metrics["supported"].value == 1
    assert result.metrics["effect/denoise"].value > 0.9 and result.metrics["effect/noise"].value > 0.9
    assert result.metrics["families"].value >= 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoy_is_contradicted_however_much_it_attends(family):
    result = judged({"family": family}, names((1, 0), (0, 4)))
    assert result.finding == "contradicted" and result.metrics["supported"].value == 0
    assert result.metrics["effect/attention"].value > 0.5 > 0.1 > result.metrics["effect/denoise"].value


def test_a_half_true_claim_is_suggestive_and_the_idle_head_is_named():
    result = judged({}, names((1, 2), (0, 4)))
    assert result.finding == "suggestive"
    assert any("layer_0/head_4 by itself is not shown to do its part" in caveat for caveat in result.caveats)


def test_a_corruption_that_does_not_show_a_head_supports_no_claim_on_it():
    result = judged({}, names((0, 1), (1, 2)), how="answer")
    assert result.finding == "suggestive"
    assert any("layer_0/head_1 by itself is not shown" in caveat for caveat in result.caveats)


def test_a_head_that_works_against_the_answer_is_contradicted():
    assert judged({"negative": "1"}, names((2, 4), (0, 5))).finding == "contradicted"


@pytest.mark.parametrize("null", [{"removed": "1"}, {"null": "permuted"}])
def test_nothing_is_testable_on_a_null(null):
    result = judged(null, names((0, 1), (1, 2)))
    assert result.finding == "not testable" and truth(null) == ()
    assert result.metrics["supported"].value is None
    assert "not testable" in result.metrics["effect/denoise"].reason


def test_too_few_other_sets_are_too_few_to_compare_with():
    result = judged({}, names((1, 2)))
    assert result.finding == "not testable" and any(
        "11 other sets of 1 cells are compared with, and 19 are needed: the model has no more" in c
        for c in result.caveats
    )


def test_more_sets_are_asked_for_where_there_are_more():
    result = judged({}, names((0, 1), (1, 2)), sets=25, level=0.03)
    assert any(caveat.endswith("25 other sets of 2 cells are compared with, and 33 are needed: raise 'sets'")
               for caveat in result.caveats)  # fmt: skip


def test_the_cells_stand_beside_the_words():
    """Words and cells may differ, and only the cells are tested."""
    result = judged({}, names((0, 1), (1, 2)), says="the answer is carried by heads 0.0 and 3.2")
    cells = "[what is tested: layer_0/head_1, layer_1/head_2]"
    assert result.caveats[0] == f"supported: the answer is carried by heads 0.0 and 3.2 {cells}"
    layers = judged({}, ("layer_0", "layer_1"), site="attn_out", positions="last", says="attention does it")
    assert "[what is tested: layer_0, layer_1 (attn_out), at the last position]" in layers.caveats[0]


def test_the_rule_prints_its_own_errors_and_not_under_other_thresholds(tmp_path):
    made = Quiet(work=tmp_path)
    result = judged({}, names((0, 1), (1, 2)), made=made)
    assert re.search(r"supports \d+ of \d+ false claims \(at most [\d.]+%;", " ".join(result.caveats))
    assert result.metrics["rule/false_positive_rate"].high < 0.01 < 0.9 < result.metrics["rule/power"].low
    stored = json.loads((tmp_path / "artifacts" / "claim.json").read_text())
    assert stored["finding"] == "supported" and stored["claim"]["cells"] == list(names((0, 1), (1, 2)))
    other = judged({}, names((0, 1), (1, 2)), floor=0.4)
    assert other.metrics["rule/power"].value is None
    assert "other thresholds" in other.metrics["rule/power"].reason


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ((), "names no cells"),
        (("layer_1/head_9",), r"no cell 'layer_1/head_9' \(did you mean 'layer_1/head_5'"),
        (("layer_7",), "no cell 'layer_7'"),
    ],
)
def test_cells_that_are_not_there_are_refused(cells, words):
    with pytest.raises(ConfigError, match=words):
        judged({}, cells)


def test_a_cell_named_twice_and_too_few_sets_are_refused():
    for wrong in ({"cells": ["layer_0", "layer_0"]}, {"cells": ["layer_0"], "sets": 10}):
        with pytest.raises(ConfigError):
            resolve(Claim, wrong, where="claim")


def test_held_out_pairs_are_other_pairs():
    model = open_plant("induction", {})
    with pytest.raises(ConfigError, match="has the prompts of"):
        triangulate(model, pairs(0), pairs(0), config=Claim(cells=names((1, 2))))


def test_other_sets_are_distinct_and_drawn_by_seed():
    few = other_sets([1, 2, 3], 2, 40, 0)
    assert few == [[1, 2], [1, 3], [2, 3]]
    many = other_sets(range(100), 3, 40, 0)
    assert len({tuple(one) for one in many}) == 40
    assert many == other_sets(range(100), 3, 40, 0) != other_sets(range(100), 3, 40, 1)


def swapped(contrasts, *, prompts=False):
    """Answer and foil, or the two prompts, the other way round."""
    names = ("clean", "corrupt") if prompts else ("answer", "foil")
    rows = tuple(
        row.model_copy(update={names[0]: getattr(row, names[1]), names[1]: getattr(row, names[0])})
        for row in contrasts.rows
    )
    return Contrasts(rows=rows)


@pytest.mark.parametrize("prompts", [False, True])
def test_held_out_pairs_of_the_other_sign_do_not_repeat_a_claim(prompts):
    claim = Claim(cells=names((0, 1), (1, 2)))
    model = open_plant("induction", {})
    result = triangulate(model, pairs(0), swapped(pairs(1), prompts=prompts), config=claim)
    assert result.finding == "not testable" and any("swapped?" in caveat for caveat in result.caveats)
    result = triangulate(model, swapped(pairs(0)), swapped(pairs(1)), config=claim)
    assert result.finding == "not testable"


def test_the_same_prompts_the_other_way_round_are_no_other_pairs():
    with pytest.raises(ConfigError, match="has the prompts of"):
        triangulate(
            open_plant("induction", {}),
            pairs(0),
            swapped(pairs(0), prompts=True),
            config=Claim(cells=names((1, 2))),
        )


def test_a_head_that_works_against_the_answer_is_no_part_of_what_carries_it():
    result = judged({"negative": "1"}, names((0, 1), (1, 2), (2, 4)))
    assert result.finding == "suggestive"
    assert any("layer_2/head_4 by itself is not shown to do its part" in caveat for caveat in result.caveats)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bottleneck_with_a_helper_is_not_the_circuit(family):
    """Nine tenths are done by a head that the claim leaves out."""
    options = {"family": family, "share": "0.1"}
    assert judged(options, names((0, 1), (1, 3))).finding == "suggestive"


def test_five_pairs_are_too_few_to_say_that_a_head_does_nothing():
    few = [pairs(seed, n=5) for seed in (0, 1)]
    result = triangulate(open_plant("induction", {}), *few, config=Claim(cells=names((0, 1), (1, 2))))
    assert result.finding == "not testable" and any("5 pairs, or clusters" in c for c in result.caveats)


def test_attention_alone_contradicts_nothing():
    """The head attends everywhere but to the match, and writes minus what it sees: it carries the answer."""
    model = open_plant("induction", {})
    attention = model.module.transformer.h[1].attn
    size = 32
    here = slice(2 * size, 3 * size)
    with torch.no_grad():
        attention.c_attn.weight[:, here] *= -1  # its queries
        attention.c_proj.weight[here] *= -10
    result = triangulate(model, pairs(0, n=24), pairs(1, n=24), config=Claim(cells=names((0, 1), (1, 2))))
    assert result.metrics["effect/attention"].value < 0 < result.metrics["effect/denoise"].low
    assert result.finding in ("supported", "suggestive")


@pytest.mark.parametrize("other", [{"site": "attn_out"}, {"positions": "last"}])
def test_rates_of_claims_that_the_card_does_not_know_are_unknown(other):
    cells = ("layer_1",) if "site" in other else names((0, 1), (1, 2))
    result = judged({}, cells, **other)
    assert result.metrics["rule/false_positive_rate"].value is None
    assert any("the card is of heads" in caveat for caveat in result.caveats)
