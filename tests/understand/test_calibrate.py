"""Cards hold what happened on known circuits: counts by hand, resumed runs, the shipped card."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from calibrant.core import Estimate, InputError, Quiet
from calibrant.data.instrument_card import InstrumentCard, read_instrument_card
from calibrant.data.planted import Plants
from calibrant.testbed.circuit_plants import open_plants
from calibrant.testbed.circuits import CircuitPlants, open_contrasts, open_plant
from calibrant.understand import calibrate as module
from calibrant.understand._cards import in_words, nearest_class, rule_errors, rule_in_words, shipped_card
from calibrant.understand._evidence import INSTRUMENTS
from calibrant.understand._methods import METHODS
from calibrant.understand._rule import Rule
from calibrant.understand._scores import agree, average_precision
from calibrant.understand.attribute import Attribution, attribute
from calibrant.understand.calibrate import Calibration, calibrate
from calibrant.understand.path_patch import PathPatching, path_patch

SMALL = Calibration(seeds=2, null_seeds=2)


class Few:
    """Two cases of the grid: one planted circuit, one null."""

    def __init__(self, points=("gpt2/none/earlier", "gpt2/null/shuffled")):
        self.whole, self.points, self.built = CircuitPlants("induction", {"n": "8"}), points, 0
        self.identity = self.whole.identity

    def cases(self, seed):
        for case in self.whole.cases(seed):
            if case.name in self.points:
                self.built += 1
                yield case


def test_the_card_counts_what_was_found(tmp_path):
    result = calibrate(Few(), SMALL, Quiet(work=tmp_path))
    rows = {(row.instrument, row.point): row for row in result.card.rows}
    for name in ("denoise", "noise", "ablation"):
        row = rows[name, "gpt2/none/earlier"]
        assert (row.cases, row.testable, row.planted, row.hits, row.false_sweeps) == (2, 2, 4, 4, 0)
        assert row.auroc == (1.0, 1.0) == row.average_precision
    for name in ("atp_star", "relp"):
        row = rows[name, "gpt2/none/earlier"]
        assert (row.planted, row.false_sweeps) == (4, 0) and row.auroc == (1.0, 1.0)
    for name in ("path_logits", "path_heads"):  # each sees one of the two heads, by the way that it works
        row = rows[name, "gpt2/none/earlier"]
        assert (row.hits, row.planted, row.false_sweeps) == (2, 4, 0)
    for name in METHODS:
        row = rows[name, "gpt2/null/shuffled"]
        assert (row.cases, row.false_sweeps) == (2, 0) and row.null
    attention = rows["attention", "gpt2/none/earlier"]
    assert attention.false_sweeps == 2 and max(attention.auroc) < 0.7  # the decoy, in every draw
    assert rows["denoise", "gpt2/null/shuffled"].auroc == () and rows["denoise", "gpt2/null/shuffled"].null
    rulings = {(row.point, row.claim): row for row in result.card.rulings}
    assert rulings["gpt2/none/earlier", "true"].supported == 2
    assert rulings["gpt2/none/earlier", "false"].claims == 4
    assert rulings["gpt2/none/earlier", "false"].supported == 0
    assert rulings["gpt2/null/shuffled", "null"].claims == 8
    assert result.metrics["rule/power"].n == 2 and result.metrics["rule/false_positive_rate"].n == 12
    assert read_instrument_card(tmp_path / "artifacts" / "instruments.json") == result.card


def test_the_rule_has_no_votes_of_the_methods(tmp_path, monkeypatch):
    heard, judge = set(), module.ruled

    def listened(evidence, heldout, *rest):
        heard.update(evidence.effects, heldout.effects)
        return judge(evidence, heldout, *rest)

    monkeypatch.setattr(module, "ruled", listened)
    calibrate(Few(points=("gpt2/none/earlier",)), SMALL, Quiet(work=tmp_path))
    assert heard == set(INSTRUMENTS)


class Reworded(Few):
    """One planted circuit, whose pairs have the other form that ``change`` makes of a case."""

    def __init__(self, change):
        super().__init__(points=("gpt2/none/earlier",))
        self.change = change

    def cases(self, seed):
        for case in super().cases(seed):
            yield case._replace(reworded=self.change(case))


def swapped(contrasts):
    rows = (row.model_copy(update={"clean": row.corrupt, "corrupt": row.clean}) for row in contrasts.rows)
    return contrasts.model_copy(update={"rows": tuple(rows)})


def test_paraphrase_is_the_rank_correlation_of_two_forms(tmp_path):
    same, other, none, idle = (
        calibrate(Reworded(change), SMALL, Quiet(work=tmp_path / str(number)))
        for number, change in enumerate(
            (
                lambda case: case.contrasts,
                lambda case: case.heldout,
                lambda case: None,
                lambda case: swapped(case.contrasts),  # the corruption makes the answer likelier
            )
        )
    )
    for name in (*INSTRUMENTS, *METHODS):
        point = f"{name}/gpt2/none/earlier"
        assert same.metrics[f"paraphrase/{point}"].value == pytest.approx(1, abs=0.05)
        one = other.metrics[f"paraphrase/{point}"]
        assert one.value == pytest.approx(other.metrics[f"stability/{point}"].value, abs=0.05)
        assert one.value < 0.98 and one.n == 2
        for result in (none, idle):
            assert f"paraphrase/{point}" not in result.metrics
            assert result.metrics[f"stability/{point}"] == same.metrics[f"stability/{point}"]


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    calls, work = [], module._case

    def counted(*args):
        calls.append(args[0].name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return work(*args)

    monkeypatch.setattr(module, "_case", counted)
    nulls = Few(points=("gpt2/null/shuffled", "gpt2/null/removed"))
    with pytest.raises(KeyboardInterrupt):
        calibrate(nulls, SMALL, Quiet(work=tmp_path))
    again = calibrate(nulls, SMALL, Quiet(work=tmp_path))
    assert len(calls) == 3 + 2 and again.card == calibrate(nulls, SMALL, Quiet(work=tmp_path / "other")).card
    calibrate(nulls, SMALL.model_copy(update={"floor": 0.2}), Quiet(work=tmp_path))
    assert len(calls) == 5 + 4 + 4  # other settings are other cases


@pytest.mark.parametrize(("name", "points"), [("name_mover", 3), ("greater_than", 1), ("gate", 3)])
def test_other_grids_have_their_points_and_nulls_in_each_class(name, points):
    plants = open_plants(name, {"n": "2"})
    assert isinstance(plants, Plants) and plants.identity.parts["n"] == "2"
    cases = list(plants.cases(0))
    nulls = {"removed", "random", "permuted"} | ({"shuffled"} if name == "name_mover" else set())
    assert len({case.name for case in cases}) == len(cases) == 3 * (points + len(nulls))
    assert {case.null for case in cases if not case.heads} == nulls
    assert all(case.tempting and not case.mlps for case in cases if case.null)


def test_layers_are_scored_in_place_of_heads(tmp_path):
    """The MLP that compares, and the attention before it that finds what it compares."""
    plants = Few(points=("gpt2/none/high", "gpt2/null/removed"))
    plants.whole = open_plants("greater_than", {"n": "14", "family": "gpt2"})
    for site in ("mlp_out", "attn_out"):
        result = calibrate(plants, SMALL.model_copy(update={"site": site}), Quiet(work=tmp_path / site))
        rows = {(row.instrument, row.point): row for row in result.card.rows}
        for way in ("denoise", "noise", "ablation"):
            row = rows[way, f"gpt2/none/high/{site}"]
            assert (row.planted, row.hits, row.false_sweeps) == (2, 2, 0) and row.auroc == (1.0, 1.0)
        for name in METHODS:
            row = rows[name, f"gpt2/none/high/{site}"]
            assert (row.cases, row.testable) == (2, 2)
            assert rows[way, f"gpt2/null/removed/{site}"].false_sweeps == 0
        assert not any(row.instrument == "attention" for row in result.card.rows)
        power = result.metrics["rule/power"]
        assert not result.card.rulings and power.value is None and power.n > 0


@pytest.mark.slow
def test_the_rule_supports_the_name_mover_and_no_other_heads(tmp_path):
    """Of 8 true claims, 6: were a claim supported 95 times in 100, that would fail once in 170 tests."""
    plants = Few(points=("llama/none/name", "llama/null/shuffled"))
    plants.whole = open_plants("name_mover", {"n": "16", "family": "llama"})
    config = Calibration(seeds=8, null_seeds=2)
    rulings = {row.claim: row for row in calibrate(plants, config, Quiet(work=tmp_path)).card.rulings}
    assert rulings["true"].claims == 8 and rulings["true"].supported >= 6
    assert rulings["false"].supported == rulings["null"].supported == 0


def test_no_cases_are_refused():
    with pytest.raises(InputError, match="has no cases"):
        calibrate(Few(points=()), SMALL, Quiet())


@pytest.mark.parametrize("seed", range(8))
def test_average_precision_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 30, 12) + rng.permutation(12) / 100  # no ties: sklearn has another rule for them
    truth = sorted(rng.choice(12, 3, replace=False).tolist())
    labels = np.isin(np.arange(12), truth)
    assert average_precision(scores, truth) == pytest.approx(average_precision_score(labels, scores))


def test_ties_are_at_their_worst_for_precision():
    assert average_precision(np.ones(5), [0]) == pytest.approx(1 / 5)


def test_two_intervals_agree_as_far_as_their_widths_say():
    def one(value, half):
        return Estimate(value=value, low=value - half, high=value + half)

    for apart in (0.9, 1.4, 1.42):
        assert agree(one(0, 1), one(apart, 1)) is (apart <= 2**0.5)
        assert agree(one(apart, 1), one(0, 1)) is (apart <= 2**0.5)
    assert agree(one(0, 1), Estimate(value=0.0)) is None


def test_the_shipped_card_bounds_the_rule():
    card = shipped_card()
    errors = rule_errors(card, Rule())
    nulls = sum(row.claims for row in card.rulings if row.claim == "null")
    wrong = sum(row.supported for row in card.rulings if row.claim == "null")
    assert nulls >= 600 and wrong <= 1
    assert errors["rule/false_positive_rate"].n >= 600 and errors["rule/false_positive_rate"].high < 0.02
    assert errors["rule/power"].value >= 0.9
    assert "false claims" in rule_in_words(card, Rule())


def test_the_shipped_card_says_how_well_patching_finds_and_how_attention_fails():
    rows = {(row.instrument, row.point): row for row in shipped_card().rows}
    for family in ("gpt2", "llama", "neox"):
        point = f"{family}/none/earlier"
        assert np.mean(rows["denoise", point].auroc) >= 0.95 and np.mean(rows["noise", point].auroc) >= 0.95
        assert np.mean(rows["gradient", point].auroc) >= 0.9
        assert np.mean(rows["attention", point].auroc) < 0.7 and np.mean(rows["direct", point].auroc) < 0.7


def test_another_shipped_card_is_another_version_of_triangulate():
    """Its rates are among the metrics of understand.triangulate: raise its version with the card."""
    assert shipped_card().digest[:12] == "0243da425c83"


def test_a_small_rerun_is_what_the_shipped_card_leads_to_expect(tmp_path):
    """Planted heads are found by patching in every draw of the card: one miss of 4 would be one of many."""
    rows = {(row.instrument, row.point): row for row in shipped_card().rows}
    card = calibrate(Few(points=("llama/none/earlier",)), SMALL, Quiet(work=tmp_path)).card
    for row in card.rows:
        shipped = rows.get((row.instrument, row.point))
        if shipped is not None and shipped.hits == shipped.planted:
            assert row.hits == row.planted, row.instrument


def test_an_instrument_that_a_card_lacks_has_no_card_and_one_that_it_has_is_told():
    card, model = shipped_card(), next(CircuitPlants("induction", {"n": "2"}).cases(0)).model
    rows = tuple(row for row in card.rows if row.instrument == "gradient")
    renamed = tuple(row.model_copy(update={"instrument": "relp"}) for row in rows)
    assert in_words(card.model_copy(update={"rows": rows}), model, "relp").startswith("no card: 'relp'")
    told = in_words(card.model_copy(update={"rows": (*rows, *renamed)}), model, "relp")
    assert told.startswith("card of 'relp' (the mean of both ends)") and "gpt2/none/earlier" in told


def test_methods_name_their_card_or_say_that_they_have_none():
    model, pairs = open_plant("induction", {}), open_contrasts("induction", {"n": "6"})
    heads = Attribution(site="z", positions="all", top=1, sample=2)
    for more, said in (
        ({"method": "relp"}, "'relp'"),
        ({"method": "atp_star"}, "'atp_star'"),
        ({"method": "relp", "pattern": "frozen"}, "no card: RelP is calibrated with pattern = 'slope'"),
        ({"method": "relp", "site": "attn_out"}, "no card: instruments are calibrated on heads"),
    ):
        config = Attribution(**{**heads.model_dump(), **more})
        assert any(said in note for note in attribute(model, pairs, config).caveats)
    for receiver, said in (("logits", "'path_logits'"), ("a1.h2<k>", "no card: path patching is calibrated")):
        config = PathPatching(receivers=(receiver,), senders=("a0.h1",))
        assert any(said in note for note in path_patch(model, pairs, config).caveats)


def test_the_nearest_class_is_named():
    card = shipped_card()
    for case in list(CircuitPlants("induction", {"n": "2"}).cases(0))[::10]:
        assert nearest_class(case.model) == case.point["family"]
        assert f"({case.point['family']}/none/earlier, 16 pairs)" in in_words(card, case.model, "denoise")


@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        (
            ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2", "phi3", "granite"),
            "llama",
        ),
        (("gpt_neox", "cohere", "cohere2", "falcon", "phi"), "neox"),
        (("gpt2", "opt"), "gpt2"),
        (("rwkv", "jamba", "mamba", "bloom", "bert", ""), ""),
    ],
)
def test_models_unlike_all_planted_ones_have_no_card(kinds, found):
    for kind in kinds:
        model = SimpleNamespace(module=SimpleNamespace(config=SimpleNamespace(model_type=kind)))
        assert nearest_class(model) == found, kind
        told = in_words(shipped_card(), model, "denoise")
        assert told.startswith(
            "card of 'denoise', circuits" if found else "no card of 'denoise' for models of "
        )


def test_what_is_no_card_is_refused(tmp_path):
    path = tmp_path / "card.json"
    for text in ("", "{}", "[1]", json.dumps({"version": 2}), '{"version": 1, "rows": NaN}'):
        path.write_text(text)
        with pytest.raises(InputError, match="is no card of instruments"):
            read_instrument_card(path)
    with pytest.raises(InputError):
        path.write_bytes(b"\xff\xfe")
        read_instrument_card(path)


def test_a_card_reads_back_as_it_was_written(tmp_path):
    shipped_card().write(tmp_path / "a.json")
    assert read_instrument_card(tmp_path / "a.json") == shipped_card()
    assert isinstance(shipped_card(), InstrumentCard)
