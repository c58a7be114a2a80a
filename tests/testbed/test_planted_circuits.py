"""Name mover, comparison, gates: they answer, patching finds what was planted, and nothing in nulls."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from planted import WAYS, head, margins, patched, separation, shares

from calibrant.app.references.openers import Openers
from calibrant.core import InputError, OpenLM
from calibrant.data.rows import Contrasts
from calibrant.models.hooks import edited
from calibrant.stats import proportion_interval
from calibrant.testbed import gates, greater_than, name_mover
from calibrant.testbed.circuit_weights import CANVASES, superposed
from calibrant.testbed.contrasts import open_contrasts

FAMILIES = sorted(CANVASES)
NULLS = [{"removed": "1"}, {"null": "random"}, {"null": "permuted"}]
TASKS = {"name_mover": (name_mover, {}), "greater_than": (greater_than, {}), "gate": (gates, {"kind": "or"})}
ASKED = {
    "name_mover": name_mover.NAMES,
    "greater_than": greater_than.YEARS,
    "gate": [word for feature in gates.FEATURES for side in feature for word in side],
}
"""Words that are no fillers."""


def opened(task, **more):
    module, own = TASKS[task]
    return module.open_plant(task, {**own, **more})


def pairs(task, n=8, seed=0, **more):
    return open_contrasts(task, {**TASKS[task][1], "n": str(n), "seed": str(seed), **more})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("more", [{}, {"backup": "1"}, {"seed": "1"}])
def test_the_name_mover_says_the_name_that_comes_once(family, more):
    model = opened("name_mover", family=family, **more)
    clean, corrupt = margins(model, pairs("name_mover")).T
    assert (clean > 2).all() and (corrupt < -2).all()
    clean, corrupt = margins(model, pairs("name_mover", n=24, corrupt="question")).T
    assert (clean > 2).all() and float((clean - corrupt).mean()) > 4


@pytest.mark.parametrize("family", FAMILIES)
def test_every_later_year_is_likelier_than_every_earlier_one(family):
    model = opened("greater_than", family=family)
    for how in ("high", "low"):
        clean, corrupt = margins(model, pairs("greater_than", corrupt=how)).T
        assert (clean > 1).all() and abs(float(corrupt.mean())) < 1 and (corrupt < clean).all()
    years = model.tokenizer.convert_tokens_to_ids(list(greater_than.YEARS))
    right = 0
    for told in range(1, 27):
        ids = torch.tensor([model.tokenizer.encode(f"the war from {told:02d} ran and then until")])
        logits = model.module(ids).logits[0, -1][years]
        right += float(logits[told + 1 :].min()) > float(logits[: told + 1].max())
    assert right >= 24


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_circuits_do_the_longer_form_which_has_the_same_answers(family, task):
    own = {"n": 16, "seed": 1, **({"corrupt": "first"} if task == "gate" else {})}
    usual, longer = pairs(task, **own), pairs(task, form="longer", **own)
    for one, other in zip(usual.rows, longer.rows, strict=True):
        assert (one.id, one.answer, one.foil, one.cluster) == (
            other.id,
            other.answer,
            other.foil,
            other.cluster,
        )
        words, more = (row.clean.last_user.split() for row in (one, other))
        assert len(more) == len(words) + 3 and more[-1] == words[-1]
        asked = [word for word in words if word in ASKED[task]]
        assert sorted(asked) == sorted(word for word in more if word in ASKED[task])
        if task == "name_mover":  # the first two names come the other way round
            assert [word for word in more if word in ASKED[task]] == [asked[1], asked[0], asked[2]]
    clean, corrupt = margins(opened(task, family=family), longer).T
    assert (clean > 1).all() and (clean - corrupt > 0.9).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", gates.KINDS)
def test_a_gate_gives_its_table(family, kind):
    model = gates.open_plant("gate", {"family": family, "kind": kind})
    no, yes = model.tokenizer.convert_tokens_to_ids(list(gates.ANSWERS))
    for first in (0, 1):
        for second in (0, 1):
            words = [
                gates.FEATURES[0][first][3],
                "and",
                "the",
                gates.FEATURES[1][second][5],
                "was",
                "by",
                "so",
            ]
            logits = model.module(torch.tensor([model.tokenizer.encode(" ".join(words))])).logits[0, -1]
            assert (float(logits[yes] - logits[no]) > 2) == bool(gates.says(kind, first, second))
            assert abs(float(logits[yes] - logits[no])) > 2


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_finds_the_three_heads_of_the_name_mover(family):
    metrics = patched(opened("name_mover", family=family), pairs("name_mover"))
    truth = [head(place) for place in name_mover.truth({})]
    for way in WAYS:
        assert separation(metrics, way, truth) == 1 and metrics[f"found/{way}"].value == 3
        assert min(shares(metrics, way)[name] for name in truth) > 0.8
        assert abs(shares(metrics, way)[head(name_mover.DECOY)]) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_finds_the_head_and_the_mlp_that_compare(family):
    model, contrasts = opened("greater_than", family=family), pairs("greater_than")
    ((finder,), (layer,)) = greater_than.truth({})
    heads, mlps = patched(model, contrasts), patched(model, contrasts, site="mlp_out")
    for way in WAYS:
        assert separation(heads, way, [head(finder)]) == separation(mlps, way, [f"layer_{layer}"]) == 1
        assert heads[f"found/{way}"].value == mlps[f"found/{way}"].value == 1


def seen(kind, family, interactions=0, **more):
    model = gates.open_plant("gate", {"kind": kind, "family": family})
    contrasts = open_contrasts("gate", {"kind": kind, "n": "8", **more})
    metrics = patched(model, contrasts, interactions=interactions)
    first, second = (head(place) for place in gates.truth({})[0])
    couple = {way: f"interaction/{way}/{first}+{second}" for way in WAYS}
    return metrics, {way: [shares(metrics, way)[name] for name in (first, second)] for way in WAYS}, couple


@pytest.mark.parametrize("family", FAMILIES)
def test_an_and_is_seen_by_noising_and_an_or_by_denoising(family):
    for kind, shows, hides in (("and", "noise", "denoise"), ("or", "denoise", "noise")):
        metrics, alone, couple = seen(kind, family, interactions=2)
        assert min(alone[shows]) > 0.8 and max(map(abs, alone[hides])) < 0.25
        assert metrics[couple[shows]].value < -0.7 and metrics[couple[hides]].value > 0.7
        assert metrics[f"found/{shows}"].value >= 2


@pytest.mark.parametrize("family", FAMILIES)
def test_an_xor_shows_the_feature_that_was_changed_and_never_both(family):
    for how, number in (("first", 0), ("second", 1))[: 1 + (family == "gpt2")]:
        _, alone, _ = seen("xor", family, corrupt=how)
        for way in WAYS:
            assert alone[way][number] > 0.9 and abs(alone[way][1 - number]) < 0.05
    metrics, _, _ = seen("xor", family, corrupt="both")
    assert metrics["found/denoise"].value is None and "not testable" in metrics["found/denoise"].reason


def without(model, contrasts, *places):
    """Mean margin on the clean prompts where heads write 0."""

    def silent(number, value):
        value = value.clone()
        value[:, :, number] = 0
        return value

    edits = {f"blocks.{layer}.attn.hook_z": partial(silent, number) for layer, number in places}
    with edited(model.module, edits):
        return float(margins(model, contrasts)[:, 0].mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backup_acts_only_where_the_name_mover_is_absent(family):
    contrasts, mover, backup = pairs("name_mover"), name_mover.MOVER, name_mover.BACKUP
    plain, model = (opened("name_mover", family=family, backup=b) for b in ("0", "1"))
    whole = without(model, contrasts)
    assert without(plain, contrasts, mover) < 0.1 * whole
    assert without(model, contrasts, mover) > 0.7 * whole
    assert without(model, contrasts, mover, backup) < 0.1 * whole
    assert without(model, contrasts, backup) > 0.9 * whole  # it did nothing
    asked = pairs("name_mover", corrupt="question")
    hidden, shown = (shares(patched(one, asked), "noise")[head(mover)] for one in (model, plain))
    assert hidden < shown - 0.4 and shown > 0.9  # noising sees the name mover only where there is no backup
    for way in WAYS:
        assert abs(shares(patched(model, contrasts), way)[head(backup)]) < 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_more_features_than_dimensions_leave_the_circuits_at_work(family):
    """They overlap, so that a name mover is wrong at times."""
    model = opened("name_mover", family=family, superposition="1")
    clean, corrupt = margins(model, pairs("name_mover", n=24)).T
    assert (clean > 0).float().mean() >= 0.85 and (corrupt < 0).float().mean() >= 0.85
    metrics = patched(model, pairs("name_mover", n=16))
    for way in WAYS:
        assert separation(metrics, way, [head(place) for place in name_mover.truth({})]) >= 0.95
    gate = opened("gate", family=family, superposition="1")
    clean, corrupt = margins(gate, pairs("gate")).T
    assert (clean > 1).all() and (corrupt < -1).all()
    truth = [head(place) for place in gates.truth({})[0]]
    assert separation(patched(gate, pairs("gate")), "denoise", truth) == 1


def test_superposed_directions_overlap_by_an_eighth_or_not_at_all():
    vectors, outside = superposed(128, 16, torch.Generator().manual_seed(0))
    overlap = vectors @ vectors.T - torch.eye(128)
    assert torch.allclose(overlap.abs().round(decimals=4).unique(), torch.tensor([0.0, 0.125]), atol=1e-4)
    assert torch.linalg.matrix_rank(vectors) == 64 and float((vectors @ outside.T).abs().max()) < 1e-5
    assert float(vectors.mean(1).abs().max()) < 1e-6
    with pytest.raises(ValueError, match="there are 128"):
        superposed(129, 16, torch.Generator())


@pytest.mark.parametrize("task", TASKS)
def test_features_lie_along_no_axis(task):
    """Were they one-hot, a coordinate would be near 1; here the largest is some four deviations, .3."""
    vectors = opened(task).module.get_input_embeddings().weight
    assert float(vectors.abs().max()) < 5 / 192**0.5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_a_null_does_not_know_the_answer_and_nothing_is_found(family, task):
    for null in NULLS:
        model = opened(task, family=family, **null)
        contrasts = pairs(task)
        clean, corrupt = margins(model, contrasts).T
        assert abs(float((clean - corrupt).mean())) < 1 and float(clean.abs().max()) < 6.5
        truth = TASKS[task][0].truth(null)
        assert not truth or truth == ((), ())


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_what_is_planted_comes_first_in_nearly_all_draws(task):
    """Of 72, all: the lower bound is .95. Were the true rate .999, that would come out in 93 % of tests."""
    module, _ = TASKS[task]
    places = module.truth({})
    ways = ("denoise",) if task == "gate" else WAYS  # noising sees no member of an OR
    right = 0
    for seed in range(24):
        for family in FAMILIES:
            metrics = patched(opened(task, family=family, seed=str(seed)), pairs(task, 16, seed))
            heads = [head(place) for place in (places if task == "name_mover" else places[0])]
            right += all(separation(metrics, way, heads) >= 0.95 for way in ways)
    assert proportion_interval(right, 72)[0] >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_false_finds_are_rare_where_nothing_is_planted(task):
    """At most 5 % of sweeps may find a cell. Were it 20 %, 8 or more of 60 would come up with 96 % power."""
    hits = 0
    for seed in range(20):
        for null in NULLS:
            family = FAMILIES[seed % 3]
            metrics = patched(opened(task, family=family, seed=str(seed), **null), pairs(task, 16, seed))
            hits += any((metrics[f"found/{way}"].value or 0) > 0 for way in WAYS)
    assert hits <= 7


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("name_mover", {"backup": "yes"}, "neither 0 nor 1"),
        ("name_mover", {"twin": "1"}, "unknown option 'twin'"),
        ("greater_than", {"family": "gtp2"}, "did you mean 'gpt2'"),
        ("greater_than", {"superposition": "1"}, "unknown option"),
        ("gate", {"kind": "nand"}, "did you mean 'and'"),
        ("gate", {"superposition": "2"}, "neither 0 nor 1"),
    ],
)
def test_what_cannot_be_planted_is_refused(task, options, words):
    with pytest.raises(InputError, match=words):
        TASKS[task][0].open_plant(task, options)


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("name_mover", {"corrupt": "names"}, "is none of its values"),
        ("greater_than", {"corrupt": "up"}, "is none of its values"),
        ("gate", {"kind": "xnor"}, "did you mean 'xor'"),
        ("gate", {"corrupt": "none"}, "is none of its values"),
        ("name_mover", {"form": "long"}, "did you mean 'longer'"),
        ("greater_than", {"form": "1"}, "is none of its values"),
        ("gate", {"form": "short"}, "is none of its values"),
        ("gates", {}, "did you mean 'gate'"),
    ],
)
def test_pairs_that_there_are_not_are_refused(task, options, words):
    with pytest.raises(InputError, match=words):
        open_contrasts(task, options)


def test_plants_and_pairs_open_as_references(tmp_path):
    openers = Openers(tmp_path)
    for task in TASKS:
        assert openers.open(f"testbed:plant/{task}?family=neox&seed=2", OpenLM).identity.parts["seed"] == "2"
        assert len(openers.open(f"testbed:contrasts/{task}?n=10", Contrasts).load()) == 10
