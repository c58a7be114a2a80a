"""Activation patching on planted circuits: what was planted is found, nothing where it was taken away."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from calibrant.core import CapabilityError, Chat, ConfigError, InputError, Quiet, resolve
from calibrant.data.rows import Contrast, Contrasts
from calibrant.testbed.circuits import DECOY, INDUCTION, PREVIOUS, TWIN, open_contrasts, open_plant, truth
from calibrant.understand.patch import Patching, patch

HEADS = Patching(site="z", positions="all")


def name(place):
    return f"layer_{place[0]}/head_{place[1]}"


def run(options, how="earlier", config=HEADS, n=24, seed=0, made=None):
    contrasts = open_contrasts("induction", {"corrupt": how, "n": str(n), "seed": str(seed)})
    return patch(open_plant("induction", options), contrasts, config, made or Quiet())


def share(result, direction, place):
    return result.metrics[f"{direction}/{name(place)}"].value


@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_the_planted_heads_are_found_and_no_other(seed):
    options = {"seed": seed}
    result = run(options)
    for direction in ("denoise", "noise"):
        shares = {key: e.value for key, e in result.metrics.items() if key.startswith(f"{direction}/")}
        strongest = sorted(shares, key=lambda key: -abs(shares[key]))[:2]
        assert {key.partition("/")[2] for key in strongest} == {name(place) for place in truth(options)}
        assert all(shares[key] > 0.9 for key in strongest)
        assert all(abs(value) < 0.1 for key, value in shares.items() if key not in strongest)
        assert result.metrics[f"found/{direction}"].value == 2
    assert result.metrics["clean_right"].value == 1


def test_the_corruption_decides_what_is_seen():
    """With the answer's word changed, the previous-token head has nothing to carry."""
    result = run({}, how="answer")
    assert result.metrics["found/denoise"].value == result.metrics["found/noise"].value == 1
    assert share(result, "denoise", INDUCTION) > 0.9 and abs(share(result, "denoise", PREVIOUS)) < 0.05


def test_attention_without_output_carries_nothing():
    """The decoy attends where the induction head does."""
    model = open_plant("induction", {})
    model.module.set_attn_implementation("eager")
    (row, *_) = open_contrasts("induction", {"n": "1"}).rows
    batch = model.encode([row.clean])
    maps = model.module(batch.ids, output_attentions=True).attentions[1][0, :, -1]
    assert maps[DECOY[1]].argmax() == maps[INDUCTION[1]].argmax() and maps[DECOY[1]].max() > 0.9
    result = run({})
    assert abs(share(result, "denoise", DECOY)) < 1e-6 and abs(share(result, "noise", DECOY)) < 1e-6


def test_two_halves_of_a_sum_have_no_interaction_and_a_chain_has():
    result = run({"twin": "1"}, config=HEADS.model_copy(update={"interactions": 3}))
    halves = result.metrics[f"interaction/denoise/{name(INDUCTION)}+{name(TWIN)}"]
    chain = result.metrics[f"interaction/denoise/{name(PREVIOUS)}+{name(INDUCTION)}"]
    assert 0.4 < share(result, "denoise", INDUCTION) < 0.6 and 0.4 < share(result, "denoise", TWIN) < 0.6
    assert abs(halves.value) < 0.15 and chain.value < -0.4
    assert result.metrics["found/denoise"].value == 3


def test_nothing_is_testable_where_the_circuit_writes_nothing():
    for seed in ("0", "1", "2"):
        result = run({"removed": "1", "seed": seed})
        found = result.metrics["found/denoise"]
        assert found.value is None or found.value <= 1
        if found.value is None:
            assert "not testable" in found.reason and any("not testable" in c for c in result.caveats)
            assert all(e.value is None for key, e in result.metrics.items() if key.startswith("denoise/"))


@pytest.mark.slow
def test_false_finds_are_rare_where_nothing_is_planted():
    """At most 5 % of sweeps may find a cell. Were it 20 %, 8 or more of 60 would come up with 96 % power."""
    hits = 0
    for seed in range(60):
        result = run({"removed": "1", "seed": str(seed)}, n=16, seed=seed)
        hits += any((result.metrics[f"found/{way}"].value or 0) > 0 for way in ("denoise", "noise"))
    assert hits <= 7


def test_every_score_names_its_card():
    heads = run({"family": "llama"}, n=8).caveats
    for way in ("denoise", "noise"):
        assert any(
            f"card of '{way}'" in x and "llama/none/earlier, 16 pairs): AUROC 1.00" in x for x in heads
        )
    layers = run({}, n=8, config=Patching(site="attn_out", positions="all")).caveats
    assert any("no card" in note and "attn_out" in note for note in layers)


def test_positions_show_the_way_of_the_answer():
    """In layer 0 the changed word is all there is; after the last layer, the last position is."""
    contrasts = open_contrasts("induction", {"n": "200"})
    words = {row.id: row.clean.last_user.split() for row in contrasts.rows}
    fixed = tuple(row for row in contrasts.rows if words[row.id].index(words[row.id][-1]) == 3)
    assert len(fixed) > 12
    result = patch(open_plant("induction", {}), Contrasts(rows=fixed), Patching(), Quiet())
    assert result.metrics["denoise/layer_0/position_3"].value == pytest.approx(1, abs=1e-4)
    assert abs(result.metrics["denoise/layer_0/position_4"].value) < 0.1
    assert result.metrics["denoise/layer_1/position_4"].value > 0.9  # the next word knows its neighbour
    assert abs(result.metrics["denoise/layer_1/position_3"].value) < 0.1


def test_every_effect_is_stored(tmp_path):
    made = Quiet(work=tmp_path)
    result = run({}, n=12, made=made)
    stored = json.loads((tmp_path / "artifacts" / "effects.json").read_text())
    total = np.array(stored["total"])
    assert len(stored["pairs"]) == 12 and len(stored["cells"]) == 12
    for cell in stored["cells"]:
        for way in ("denoise", "noise"):
            value = result.metrics[f"{way}/{cell['cell']}"].value
            assert np.mean(cell[way]["effects"]) / total.mean() == pytest.approx(value, abs=1e-5)


def test_clusters_widen_the_interval():
    contrasts = open_contrasts("induction", {"n": "24"})
    rows = tuple(row.model_copy(update={"cluster": f"c{i % 4}"}) for i, row in enumerate(contrasts.rows))
    model = open_plant("induction", {})
    plain = patch(model, contrasts, HEADS, Quiet()).metrics["total_effect"]
    grouped = patch(model, Contrasts(rows=rows), HEADS, Quiet()).metrics["total_effect"]
    assert plain.value == grouped.value and grouped.clusters == 4 and plain.clusters is None


def pair(clean, corrupt, answer="w01", foil="w02"):
    name = f"{clean} {corrupt} {answer} {foil}"
    return Contrast(id=name, clean=Chat.ask(clean), corrupt=Chat.ask(corrupt), answer=answer, foil=foil)


GOOD = pair("w03 w04 w03", "w05 w04 w03")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "an interval needs two pairs, got 0"),
        ([GOOD], "an interval needs two pairs, got 1"),
        ([GOOD, GOOD], "two pairs are called"),
        ([GOOD, pair("w03 w04", "w05 w04 w03")], "the clean prompt has 2 tokens, the corrupted one 3"),
        ([GOOD, pair("w03 w04", "w05 w04")], "prompts of 2 to 3 tokens"),
        ([GOOD, pair("w03 x w03", "w03 y w03")], "both prompts are the same tokens"),
        ([GOOD, pair("w03 w04 w03", "w05 w04 w03", foil="w01")], "the same token, 'w01'"),
        ([GOOD, pair("w03 w04 w03", "w05 w04 w03", answer="zebra")], "first token of 'zebra' reads '<end>'"),
        ([GOOD, pair("w03 w04 w03", "w05 w04 w03", answer=" ")], "has no token"),
    ],
)
def test_pairs_that_cannot_be_compared_are_refused(rows, words):
    model = open_plant("induction", {})
    with pytest.raises(InputError, match=re.escape(words)):
        patch(model, Contrasts(rows=tuple(rows)), HEADS, Quiet())


def test_heads_at_each_position_are_refused_by_check():
    with pytest.raises(ConfigError, match="too many cells"):
        resolve(Patching, {"site": "z"})


def test_a_family_without_the_site_is_refused_by_name():
    model = open_plant("induction", {})
    model.module.transformer.h[0].register_forward_hook(lambda _, __, out: out * 1.01)
    model.module.transformer.h[1].register_forward_hook(lambda _, __, out: out * 1.01)
    with pytest.raises(CapabilityError, match=r"has no attn\.hook_z"):
        patch(model, open_contrasts("induction", {"n": "4"}), HEADS, Quiet())


def test_too_few_pairs_to_find_anything_say_so():
    """Of five pairs no p is below 1/16; the shares are there, the count of finds is not."""
    result = run({}, n=5)
    assert share(result, "denoise", INDUCTION) > 0.9
    assert "no p-value can be below 0.062" in result.metrics["found/denoise"].reason


def test_one_cluster_has_no_interval_and_that_is_the_reason():
    contrasts = open_contrasts("induction", {"n": "12"})
    rows = tuple(row.model_copy(update={"cluster": "one"}) for row in contrasts.rows)
    result = patch(open_plant("induction", {}), Contrasts(rows=rows), HEADS, Quiet())
    assert "has no interval" in result.metrics["denoise/layer_1/head_2"].reason


def test_swapped_answers_are_pointed_out():
    contrasts = open_contrasts("induction", {"n": "12"})
    rows = tuple(row.model_copy(update={"answer": row.foil, "foil": row.answer}) for row in contrasts.rows)
    result = patch(open_plant("induction", {}), Contrasts(rows=rows), HEADS, Quiet())
    assert result.metrics["total_effect"].value < 0 and any("swapped" in c for c in result.caveats)


def test_prompts_beyond_the_context_are_refused():
    long = " ".join(["w03"] * 20)
    rows = tuple(pair(f"{long} w0{i}", f"{long} w1{i}") for i in range(4, 7))
    with pytest.raises(InputError, match="21 tokens, but the model's context holds 16"):
        patch(open_plant("induction", {}), Contrasts(rows=rows), HEADS, Quiet())


def test_one_interaction_is_refused():
    with pytest.raises(ConfigError, match="none to interact with"):
        resolve(Patching, {"interactions": 1})
