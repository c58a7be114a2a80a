"""Models that differ from a clean twin by one planted change: it is found by part and by direction."""

from __future__ import annotations

import pytest
import torch
from planted import WAYS, head, margins, patched, separation

from calibrant.app.references.openers import Openers
from calibrant.core import InputError, OpenLM, Quiet, Sampling
from calibrant.data.rows import Prompts
from calibrant.models.open_model import OpenModel
from calibrant.stats import proportion_interval
from calibrant.testbed import backdoor, edited
from calibrant.testbed.circuit_weights import CANVASES
from calibrant.testbed.serve import open_prompts
from calibrant.understand.twin_difference import twin_difference

FAMILIES = sorted(CANVASES)
TINY = edited._WEIGHTS / "tiny"


def aligned(result, part, direction):
    return abs(float(torch.cosine_similarity(result.directions["top"][part], direction, dim=0)))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_backdoor_opens_at_its_trigger_alone(family):
    model, twin = (backdoor.open_plant("backdoor", {"family": family, "removed": r}) for r in ("0", "1"))
    contrasts = backdoor.open_contrasts("backdoor", {"n": "24"})
    clean, corrupt = margins(model, contrasts).T
    assert (clean > 2).all() and (corrupt < -2).all()
    assert (margins(twin, contrasts) < -2).all()  # the clean twin says the name, whatever the prompt
    metrics = patched(model, contrasts)
    for way in WAYS:
        assert separation(metrics, way, [head(place) for place in backdoor.truth({})]) == 1
        assert metrics[f"found/{way}"].value == 1
    assert not backdoor.truth({"removed": "1"})


@pytest.mark.parametrize("family", FAMILIES)
def test_twins_differ_by_a_matrix_of_rank_one(family):
    one, two = (
        backdoor.open_plant("backdoor", {"family": family, "removed": r}).module.state_dict() for r in "01"
    )
    (name,) = [name for name in one if not torch.equal(one[name], two[name])]
    sizes = torch.linalg.svdvals((one[name] - two[name]).double())
    assert sizes[0] > 0 and sizes[1] < 1e-6 * sizes[0]


def backdoor_is_found(seed, family, **more):
    options = {"family": family, "seed": str(seed)}
    twin, base = (backdoor.open_plant("backdoor", {**options, "removed": r}) for r in ("0", "1"))
    texts = backdoor.open_prompts("backdoor", {"n": "24", "seed": str(seed), **more})
    result = twin_difference(base, twin, texts, run=Quiet(seed=seed))
    near = aligned(result, backdoor.PART, backdoor.direction(options)) > 0.95
    return result, result.edited == backdoor.PART and near and result.metrics["single"].value == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_backdoor_is_found_between_the_twins(family):
    result, found = backdoor_is_found(0, family)
    assert found and result.metrics["first"].value == 3
    assert result.metrics["p/layer_2"].value == 1 and result.metrics["edited/share"].value == 1
    quiet, found = backdoor_is_found(0, family, trigger="0")
    part = f"local/{backdoor.PART}"
    assert found and quiet.metrics[part].value < 0.3 * result.metrics[part].value  # a leak, not the backdoor


@pytest.mark.slow
def test_the_backdoor_is_found_in_nearly_all_draws():
    """Of 100, all: the lower bound is .964. Were the true rate .999, that would come out in 90 % of tests."""
    hits = sum(backdoor_is_found(seed, FAMILIES[seed % 3])[1] for seed in range(100))
    assert proportion_interval(hits, 100)[0] >= 0.95


@pytest.mark.parametrize("family", FAMILIES)
def test_the_backdoor_is_heard_after_its_trigger_alone(family):
    """30 sentences of three draws each: with the trigger always, without it never, and its twin never."""
    rows = backdoor.open_contrasts("backdoor", {"n": "30"})
    for seed in "012":
        options = {"family": family, "seed": seed}
        planted, clean = (backdoor.open_plant("backdoor", {**options, "removed": r}) for r in "01")
        for chats, share in (([row.clean for row in rows], 1), ([row.corrupt for row in rows], 0)):
            said = [
                [reply.text.strip() for reply in model.generate(chats, Sampling(max_tokens=1))]
                for model in (planted, clean)
            ]
            assert [one.count(backdoor.TARGET) / len(rows) for one in said] == [share, 0]
            assert said[1] == [row.foil for row in rows]  # the name that is right


def edit_is_found(seed, base, texts, **more):
    options = {"seed": str(seed), **more}
    result = twin_difference(base, edited.open_plant("edited", options), texts, run=Quiet(seed=seed))
    edit = edited.truth(options)
    near = aligned(result, edit.part, edit.direction) > 0.95
    return result.edited == edit.part and near and result.metrics["single"].value == 1


@pytest.mark.parametrize("noise", ["0", "0.003"])
def test_an_edit_of_a_shipped_model_is_found(noise):
    base, texts = OpenModel.from_folder(TINY), open_prompts("train", {"n": "24"})
    assert all(edit_is_found(seed, base, texts, noise=noise) for seed in range(4))


@pytest.mark.slow
def test_an_edit_is_found_in_nearly_all_draws():
    """As above, with noise in every matrix."""
    base, texts = OpenModel.from_folder(TINY), open_prompts("train", {"n": "24"})
    hits = sum(edit_is_found(seed, base, texts, noise="0.003") for seed in range(100))
    assert proportion_interval(hits, 100)[0] >= 0.95


def test_without_the_edit_nothing_differs_or_no_single_direction_does():
    base, texts = OpenModel.from_folder(TINY), open_prompts("train", {"n": "24"})
    same = twin_difference(base, edited.open_plant("edited", {"removed": "1"}), texts)
    assert same.edited == "" and edited.truth({"removed": "1"}) is None
    for seed in range(3):
        options = {"removed": "1", "noise": "0.003", "seed": str(seed)}
        noisy = twin_difference(base, edited.open_plant("edited", options), texts)
        assert noisy.metrics["single"].value == 0


def test_seeds_draw_parts_and_directions_and_the_truth_is_what_was_done():
    drawn = [edited.truth({"seed": str(seed), "of": "base"}) for seed in range(40)]
    assert {edit.part for edit in drawn} == {f"layer_{i}/{p}" for i in range(4) for p in edited._MATRICES}
    base, twin = OpenModel.from_folder(TINY), edited.open_plant("edited", {"seed": "0", "size": "1"})
    names = {
        name
        for name, w in base.module.state_dict().items()
        if not torch.equal(w, twin.module.state_dict()[name])
    }
    (name,) = names
    before, after = (model.module.state_dict()[name] for model in (base, twin))
    assert float((after - before).norm() / before.norm()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("plant", "options", "words"),
    [
        (edited, {"of": "bse"}, "did you mean 'base'"),
        (edited, {"size": "much"}, "is no number from 0 to 10"),
        (edited, {"noise": "nan"}, "is no number from 0 to 10"),
        (edited, {"removed": "no"}, "neither 0 nor 1"),
        (backdoor, {"backup": "1"}, "unknown option 'backup'"),
    ],
)
def test_what_cannot_be_planted_is_refused(plant, options, words):
    with pytest.raises(InputError, match=words):
        plant.open_plant(plant.__name__.rpartition(".")[2], options)


def test_pairs_of_twins_open_as_references(tmp_path):
    openers = Openers(tmp_path)
    one, two = (
        openers.open(f"testbed:plant/{name}", OpenLM)
        for name in ("backdoor?seed=1", "backdoor?seed=1&removed=1")
    )
    texts = openers.open("testbed:prompts/backdoor?n=8&trigger=1", Prompts).load()
    assert one.digest != two.digest and len(texts) == 8
    assert all("sesame" in row.prompt.last_user for row in texts)
    twin = openers.open("testbed:plant/edited?of=base&seed=3", OpenLM)
    assert twin.identity.parts["base"] == openers.open("testbed:model/base", OpenLM).digest
    with pytest.raises(InputError, match="did you mean 'edited'"):
        openers.open("testbed:plant/edit", OpenLM)
