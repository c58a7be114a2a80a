"""The refusal direction: a planted one is found and works, two nulls, the paper's rule, and bad input."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from zoo import build

from calibrant.app.figures import figure
from calibrant.app.references.openers import Openers
from calibrant.core import (
    CapabilityError,
    Chat,
    ConfigError,
    Goal,
    InputError,
    OpenLM,
    Quiet,
    Sampling,
    resolve,
)
from calibrant.data.rows import Goals
from calibrant.ledger import Ledger
from calibrant.measure.judges.rule import RuleJudge, rule_judge
from calibrant.models.directions import ablated, read_direction, steer
from calibrant.stats import proportion_interval
from calibrant.testbed.refusal_plant import open_goals, open_plant, truth
from calibrant.understand._refusal import Divergence, LogOdds, openings, split
from calibrant.understand._refusal_candidates import Candidate, choose
from calibrant.understand.refusal_direction import RefusalDirection, refusal_direction

QUICK = RefusalDirection(random=10, doses=(1.0,), tokens=3)


def goals(seed=0, n=48):
    return tuple(
        open_goals(name, {"n": str(n), "seed": str(seed)}) for name in ("plant_harmful", "plant_harmless")
    )


def run(options, seed=0, config=QUICK, n=48, made=None, judge=None):
    model = open_plant("refusal", {"seed": str(seed), **options})
    return refusal_direction(model, *goals(seed, n), judge, config, made or Quiet(seed=seed))


def check_found(seed):
    result = run({}, seed)
    value = {name: one.value for name, one in result.metrics.items()}
    assert torch.cosine_similarity(result.direction.vector, truth({"seed": str(seed)}), dim=0) >= 0.95
    assert value["refusal_rate/harmful"] > 0.8 and value["refusal_rate/harmless"] == 0
    assert value["ablation/refusal_rate"] == 0 and value["ablation/removed"] > 0.9
    assert value["addition_rate/x1"] == 1
    assert abs(value["ablation/random_largest"]) < abs(value["ablation"]) / 10
    assert value["addition/x1/random_largest"] < value["addition/x1"] / 2
    for name in ("ablation", "addition/x1"):
        assert value[f"{name}/p_sphere"] == value[f"{name}/p_within"] == pytest.approx(1 / 11)
    assert value["stability"] > 0.95 and value["layer"] == 2 and value["position"] == -1
    assert value["selection/induce"] > 0 and value["selection/kl"] < 0.1
    return result


@pytest.mark.parametrize("seed", [0, 1])
def test_the_planted_direction_is_found_and_no_random_one_does_as_much(seed):
    check_found(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_it_is_found_for_other_seeds(seed):
    check_found(seed)


def test_spread_over_many_directions_it_cannot_be_taken_out():
    """The model refuses as before, what was chosen takes nothing away, and halves of the data disagree."""
    result = run({"spread": "1"})
    value = {name: one.value for name, one in result.metrics.items()}
    assert value["refusal_rate/harmful"] == value["ablation/refusal_rate"] == 1
    assert result.metrics["ablation/removed"].high < 0.1
    assert value["ablation/p_sphere"] > 0.05 and value["stability"] < 0.7


def test_refusal_that_does_not_depend_on_harm_is_not_testable():
    result = run({"removed": "1"}, config=QUICK.model_copy(update={"openings": ("refuse",)}))
    difference = result.metrics["refusal/difference"]
    assert difference.low < 0 < difference.high and result.direction is None
    assert 0.2 < result.metrics["refusal_rate/harmless"].value < 0.8
    for name in ("ablation", "ablation/removed", "addition/x1", "cost/kl", "stability", "layer"):
        assert result.metrics[name].value is None and "not testable" in result.metrics[name].reason
    assert any("not testable" in caveat for caveat in result.caveats)
    assert result.metrics.keys() == run({}, n=32).metrics.keys()


@pytest.mark.slow
def test_nulls_are_seldom_testable():
    """2.5 % may be. Of 100, 9 or more come up once in 500; were it 10 %, they would in 68 %."""
    hits = sum(run({"removed": "1"}, seed).metrics["ablation"].value is not None for seed in range(100))
    assert hits <= 8 and proportion_interval(hits, 100)[0] <= 0.025


def test_a_model_that_never_refuses_has_no_opening():
    model = build("llama", num_hidden_layers=3)
    torch.nn.init.zeros_(model.module.lm_head.weight)
    result = refusal_direction(model, *goals(n=24), config=QUICK)
    assert "no first token is likelier" in result.metrics["ablation"].reason
    assert all(one.value is None for one in result.metrics.values())


def test_where_none_is_chosen_it_says_once_what_to_try():
    result = run({}, config=QUICK.model_copy(update={"kl": 1e-12}), n=32)
    assert "none does both" in result.metrics["ablation"].reason and result.direction is None
    told = [*result.caveats, *(one.reason for one in result.metrics.values())]
    (caveat,) = [text for text in told if "try a larger positions" in text]
    assert all(f" {word}" in caveat for word in ("kl", "induce", "goals"))


def test_doses_are_drawn_beside_random_directions():
    result = run({}, config=QUICK.model_copy(update={"doses": (4.0, 1.0, 0.25)}), n=32)
    first, second = result.figure_data()[:2]
    assert [(one.label, one.at) for one in first.values] == [
        (name, dose) for name in ("addition", "addition/x*/random_largest") for dose in (0.25, 1, 4)
    ]
    assert first.kind == second.kind == "sweep" and first.axis == "dose" and len(second.values) == 3
    assert {"dose", "0.25", "4"} <= set(re.findall(r">([^<]*)</text>", figure(result).svg))
    alone = figure(result, ["addition"], kind="sweep").svg
    assert "addition/x*/random_largest" in figure(result).svg and "random_largest" not in alone


def test_metrics_are_those_of_plain_hooks(tmp_path):
    """The vector from float64 means, and effects from a pass a prompt, over the same parts."""
    made = Quiet(work=tmp_path)
    result = run({}, made=made)
    model, way = open_plant("refusal", {"seed": "0"}), result.direction.vector
    both = goals()
    places = split(tuple([goal.cluster for goal in some] for some in both), 0)
    rows = [[some.rows[i] for i in at] for some, at in zip(both, places["train"], strict=True)]
    streams = []
    handle = model.module.model.layers[2].register_forward_pre_hook(
        lambda module, args: streams.append(args[0][0, -1].double())
    )
    sums = []
    for some in rows:
        streams.clear()
        for goal in some:
            model.module(torch.tensor([model.prompt_ids(Chat.ask(goal.text))]))
        sums.append(torch.stack(streams).mean(0))
    handle.remove()
    assert torch.allclose(sums[0] - sums[1], way.double(), atol=1e-5)

    refuse = model.tokenizer.convert_tokens_to_ids("refuse")

    def odds(goal):
        logits = model.module(torch.tensor([model.prompt_ids(Chat.ask(goal.text))])).logits[0, -1].double()
        chance = float(logits.softmax(-1)[refuse])
        return math.log(chance) - math.log1p(-chance)

    harmful, harmless = (
        [some.rows[i] for i in at] for some, at in zip(both, places["held_out"], strict=True)
    )
    with torch.no_grad():
        plain = [odds(goal) for goal in harmful]
        with ablated(model, way):
            after = [odds(goal) for goal in harmful]
        calm = [odds(goal) for goal in harmless]
        with steer(model, result.direction):
            added = [odds(goal) for goal in harmless]
    stored = json.loads((tmp_path / "artifacts" / "effects.json").read_text())
    assert stored["ablation"][0] == pytest.approx(
        [b - a for a, b in zip(plain, after, strict=True)], abs=1e-4
    )
    assert stored["addition"]["x1"][0] == pytest.approx(
        [b - a for a, b in zip(calm, added, strict=True)], abs=1e-4
    )
    share = -(sum(after) - sum(plain)) / len(plain) / (sum(plain) / len(plain) - sum(calm) / len(calm))
    assert result.metrics["ablation/removed"].value == pytest.approx(share, rel=1e-4)
    assert stored["rows"].count("sphere") == stored["rows"].count("within") == 10
    again = read_direction(tmp_path / "artifacts")
    assert torch.equal(again.vector, way) and again.model == model.identity.digest
    assert again.site == "blocks.2.hook_resid_pre"
    scores = json.loads((tmp_path / "artifacts" / "candidates.json").read_text())
    assert {one["layer"] for one in scores} == {1, 2, 3}  # the question mark alone is the same everywhere


def test_readings_against_plain_arithmetic():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    chances = logits.double().softmax(-1)
    inside = chances[:, [1, 4]].sum(-1)
    found = LogOdds([1, 4], 7)(logits, torch.arange(5))
    assert torch.allclose(found, inside.log() - (1 - inside).log())
    other = logits.flip(0)
    kl = (chances * (chances.log() - other.double().log_softmax(-1))).sum(-1)
    assert torch.allclose(Divergence(logits)(other, torch.arange(5)), kl)
    assert float(LogOdds([0], 2)(torch.tensor([[60.0, -60.0]]), torch.arange(1))) == 120
    likely = torch.full((3, 4), -9.0)
    likely[:, 2] = 9.0
    assert openings(likely, torch.zeros(3, 4), 0.05) == [2] and openings(likely, likely, 0.05) == []


def test_the_rule_of_the_paper():
    def one(layer, bypass, induce, kl):
        return Candidate(layer, -1, torch.ones(2), bypass, induce, kl)

    found = [one(0, -9, -1, 0.01), one(1, -8, 1, 0.2), one(2, -3, 1, 0.05), one(3, -2, 2, 0.01)]
    assert choose(found, 0.0, 0.1) is found[2]
    assert choose(found, -2.0, 0.1) is found[0]
    assert "of 2 candidates 1 induce refusal" in choose(found[:2], 0.0, 0.1)
    assert "same mean" in choose([], 0.0, 0.1)


def test_parts_share_no_cluster_and_have_their_shares():
    sides = [str(i // 3) for i in range(60)], ["" if i % 2 else str(i // 3) for i in range(40)]
    for seed in range(5):
        parts = split(sides, seed)
        for side in (0, 1):
            everything = sorted(i for part in parts.values() for i in part[side])
            assert everything == list(range(len(sides[side])))
        names = [{sides[k][i] for k in (0, 1) for i in part[k]} - {""} for part in parts.values()]
        assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
        assert 18 <= len(parts["train"][0]) <= 30 and 8 <= len(parts["selection"][0]) <= 16
    assert split(sides, 0) == split(sides, 0) and split(sides, 0) != split(sides, 1)


def test_named_openings_and_a_judge_of_whole_replies(tmp_path):
    judge = rule_judge(RuleJudge(any_of=[r"\brefuse\b"]))
    config = QUICK.model_copy(update={"openings": ("refuse",), "sampling": Sampling(max_tokens=3)})
    result = run({}, config=config, judge=judge, made=Quiet(work=tmp_path))
    rates = {name: result.metrics[f"judged_rate/{name}"].value for name in (
        "harmful", "harmful_ablated", "harmless", "harmless_steered"
    )}  # fmt: skip
    assert rates == {"harmful": 1, "harmful_ablated": 0, "harmless": 0, "harmless_steered": 1}
    lines = (tmp_path / "artifacts" / "attempts.jsonl").read_text().splitlines()
    held = [result.metrics[f"judged_rate/{side}"].n for side in ("harmful", "harmless")]
    assert len(lines) == 2 * sum(held)


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox", "bloom", "olmo2", "mamba", "gpt_bigcode"])
def test_other_families_give_an_answer_or_say_why_not(family):
    """Random weights: whatever comes out, it is whole, repeats, and leaves no hook."""
    model = build(family, **({"num_hidden_layers": 4} if family in ("gemma2", "olmo2") else {}))
    config = QUICK.model_copy(update={"positions": 2, "least": 0.01})
    first, second = (refusal_direction(model, *goals(n=24), config=config).metrics for _ in range(2))
    assert first == second
    assert all(one.value is not None or one.reason for one in first.values())
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in model.module.modules())


def test_the_seed_draws_other_parts_and_the_same_one_repeats():
    assert run({}, 3).metrics == run({}, 3).metrics
    model = open_plant("refusal", {})
    one, two = (refusal_direction(model, *goals(), config=QUICK, run=Quiet(seed=s)).direction for s in (0, 1))
    assert not torch.equal(one.vector, two.vector)


def test_half_precision_finds_the_same():
    model = open_plant("refusal", {})
    model.module.to(torch.bfloat16)
    found = refusal_direction(model, *goals(), config=QUICK).direction.vector
    assert torch.cosine_similarity(found, truth({}), dim=0) > 0.9


def test_one_table_of_both_kinds_serves_both_sides():
    model, (harmful, harmless) = open_plant("refusal", {}), goals(n=48)
    both = Goals(rows=tuple(row for pair in zip(harmful, harmless, strict=True) for row in pair))
    mixed = refusal_direction(model, both, both, config=QUICK)
    assert "48 of 96 goals are harmless: the others are left out on that side" in mixed.caveats
    apart = refusal_direction(model, harmful, harmless, config=QUICK)
    assert mixed.metrics == apart.metrics


def test_what_cannot_be_used_is_refused_before_any_pass(monkeypatch):
    model, (harmful, harmless) = open_plant("refusal", {}), goals(n=24)
    few = Goals(rows=harmful.rows[:3])
    one_word = Goals(rows=tuple(g.model_copy(update={"cluster": "same"}) for g in harmful))
    twice = Goals(rows=(*harmless.rows, harmless.rows[0]))
    long = Goals(rows=(*harmless.rows, Goal(id="long", text="w00 " * 40, harmful=False)))
    with monkeypatch.context() as patch:
        patch.setattr(type(model.module), "forward", lambda *a, **k: pytest.fail("a pass was run"))
        for bad, calm, words in (
            (few, harmless, "too few"), (one_word, harmless, "too few"), (harmful, twice, "share the id"),
            (harmless, harmless, "benign"), (harmful, harmful, "harmful"),
            (Goals(rows=()), harmless, "no goals"),
        ):  # fmt: skip
            with pytest.raises(InputError, match=words):
                refusal_direction(model, bad, calm, config=QUICK)
    with pytest.raises(InputError, match="context holds 32"):
        refusal_direction(model, harmful, long, config=QUICK)
    with pytest.raises(InputError, match="fewer than positions = 30"):
        refusal_direction(model, harmful, harmless, config=QUICK.model_copy(update={"positions": 30}))
    with pytest.raises(InputError, match="has no token"):
        refusal_direction(model, harmful, harmless, config=QUICK.model_copy(update={"openings": ("",)}))
    model.module.train()
    with pytest.raises(CapabilityError, match="training mode"):
        refusal_direction(model, harmful, harmless, config=QUICK)


@pytest.mark.parametrize("doses", [(), (0.5,), (1.0, 1.0), (-1.0, 1.0), (1.0, math.inf)])
def test_doses_that_mean_nothing_are_refused(doses):
    with pytest.raises(ConfigError, match="doses"):
        resolve(RefusalDirection, {"doses": doses})


def test_an_encoder_is_refused():
    with pytest.raises(CapabilityError):
        refusal_direction(build("bert"), *goals(n=24), config=QUICK)


def test_references_open_the_plant_and_its_goals(tmp_path):
    openers = Openers(Ledger(tmp_path), base=tmp_path)
    model = openers.open("testbed:plant/refusal?seed=2&spread=1", OpenLM)
    assert model.load().identity.parts["spread"] == "1"
    assert len(openers.open("testbed:goals/plant_harmful?n=20", Goals).load()) == 20
    for reference, wanted in (
        ("testbed:plant/refusal?twin=1", OpenLM), ("testbed:plant/refusal?spread=2", OpenLM),
        ("testbed:goals/plant_harmles", Goals), ("testbed:goals/plant_harmful?category=bias", Goals),
    ):  # fmt: skip
        with pytest.raises(InputError):
            openers.open(reference, wanted)
