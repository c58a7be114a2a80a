"""Planted circuits do what they are said to do, in every class; the nulls do not."""

from __future__ import annotations

import pytest
import torch

from calibrant.app.references import schemes
from calibrant.core import ConfigError, InputError
from calibrant.data.planted import Plants
from calibrant.testbed.circuit_weights import CANVASES, FORMS
from calibrant.testbed.circuits import CircuitPlants, open_contrasts, open_plant, truth

FAMILIES = sorted(CANVASES)


def margins(model, contrasts):
    """Logit of the answer less that of the foil after the clean prompt, and after the corrupted one."""
    found = []
    for row in contrasts.rows:
        answer, foil = (model.reply_ids(word)[0] for word in (row.answer, row.foil))
        for chat in (row.clean, row.corrupt):
            logits = model.module(torch.tensor([model.prompt_ids(chat)])).logits[0, -1]
            found.append(float(logits[answer] - logits[foil]))
    return torch.tensor(found).view(-1, 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("more", [{}, {"twin": "1"}, {"share": "0.1"}, {"negative": "1"}])
def test_the_circuit_answers_and_the_corruption_undoes_it(family, more):
    model = open_plant("induction", {"family": family, **more})
    for how in ("earlier", "answer"):
        clean, corrupt = margins(model, open_contrasts("induction", {"n": "12", "corrupt": how})).T
        assert (clean > 2).all() and (clean - corrupt > 2).all() and corrupt.mean() < 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("null", [{"removed": "1"}, {"null": "random"}, {"null": "permuted"}])
def test_a_null_does_not_know_the_answer(family, null):
    """Of 48 answers a guess gets half right; 38 or more happen once in 40,000 runs."""
    model = open_plant("induction", {"family": family, **null})
    clean, _ = margins(model, open_contrasts("induction", {"n": "48"})).T
    assert int((clean > 0).sum()) < 38
    assert truth({"family": family, **null}) == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_previous_token_head_looks_one_token_back(family):
    model = open_plant("induction", {"family": family})
    model.module.set_attn_implementation("eager")
    ids = torch.tensor([list(range(12))])
    attention = model.module(ids, output_attentions=True).attentions[0][0, 1]
    assert (attention.argmax(-1)[1:] == torch.arange(11)).all() and attention[1:].amax(-1).min() > 0.9


def test_shared_keys_and_parallel_blocks_are_what_they_are():
    llama, neox = (open_plant("induction", {"family": name}).module.config for name in ("llama", "neox"))
    assert llama.num_key_value_heads < llama.num_attention_heads and neox.use_parallel_residual


def test_plants_are_drawn_anew_by_seed_and_named_by_their_point():
    plants = CircuitPlants("induction", {"n": "4"})
    assert isinstance(plants, Plants)
    cases = list(plants.cases(0))
    assert len({case.name for case in cases}) == len(cases) == 30
    assert {case.null for case in cases if not case.heads} == {"removed", "random", "permuted", "shuffled"}
    other = next(iter(plants.cases(1)))
    assert other.contrasts.rows != cases[0].contrasts.rows != cases[0].heldout.rows
    assert not torch.equal(
        other.model.module.get_input_embeddings().weight, cases[0].model.module.get_input_embeddings().weight
    )


@pytest.mark.parametrize("how", ["earlier", "answer"])
def test_the_longer_form_asks_the_same_in_other_words_at_another_distance(how):
    asked = {"n": "40", "seed": "3", "corrupt": how}
    usual, longer = (open_contrasts("induction", {**asked, "form": form}).rows for form in FORMS)
    assert usual == open_contrasts("induction", asked).rows
    for one, other in zip(usual, longer, strict=True):
        assert (one.id, one.answer, one.foil) == (other.id, other.answer, other.foil)
        sides = [[side.last_user.split() for side in (row.clean, row.corrupt)] for row in (one, other)]
        words, more = sides[0][0], sides[1][0]
        assert len(more) == len(words) + 3
        gaps = [len(said) - said.index(row.answer) for said, row in ((words, one), (more, other))]
        assert more[-1] == words[-1] == more[more.index(other.answer) - 1] and gaps[0] != gaps[1]
        shared = {one.answer, words[-1]} | ({one.foil} if how == "earlier" else set())
        assert set(more) & set(words) == shared and len(set(more)) == len(more) - 1
        swaps = [{(a, b) for a, b in zip(*side, strict=True) if a != b} for side in sides]
        assert swaps[0] == swaps[1] and len(swaps[0]) == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("more", [{}, {"negative": "1"}])
def test_the_circuit_does_the_longer_form_too(family, more):
    model = open_plant("induction", {"family": family, **more})
    for how in ("earlier", "answer"):
        contrasts = open_contrasts("induction", {"n": "12", "corrupt": how, "form": "longer"})
        clean, corrupt = margins(model, contrasts).T
        assert (clean > 2).all() and (clean > corrupt).all() and corrupt.mean() < 1


def test_a_form_that_there_is_not_is_refused():
    with pytest.raises(InputError, match="did you mean 'longer'"):
        open_contrasts("induction", {"form": "long"})


def test_cases_have_their_pairs_in_the_other_form_as_well():
    for case in CircuitPlants("induction", {"n": "6", "family": "gpt2"}).cases(2):
        for one, other in zip(case.contrasts.rows, case.reworded.rows, strict=True):
            assert (one.id, one.answer, one.foil) == (other.id, other.answer, other.foil)
            assert len(other.clean.last_user.split()) == len(one.clean.last_user.split()) + 3


def test_shuffled_answers_belong_to_other_pairs():
    case = next(c for c in CircuitPlants("induction", {"n": "12"}).cases(0) if c.null == "shuffled")
    plain = open_contrasts("induction", {"n": "12"})
    assert sorted(r.answer for r in case.contrasts.rows) == sorted(r.answer for r in plain.rows)
    assert sum(a.answer == b.answer for a, b in zip(case.contrasts.rows, plain.rows, strict=True)) < 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"family": "gtp2"}, "did you mean 'gpt2'"),
        ({"null": "zero"}, "no such name"),
        ({"share": "1.5"}, "is no part of the whole"),
        ({"share": "nan"}, "is no part of the whole"),
        ({"share": "much"}, "is no part of the whole"),
        ({"negative": "yes"}, "neither 0 nor 1"),
        ({"twins": "1"}, "unknown option 'twins'"),
    ],
)
def test_what_cannot_be_planted_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        open_plant("induction", options)


def test_plants_open_as_a_reference(tmp_path):
    row, parsed = schemes.read("testbed:plants/induction?n=4", Plants, tmp_path, {})
    found = row.open(parsed, None)
    assert found.kind == "plants" and found.load().pairs == 4
    with pytest.raises(ConfigError, match="no set of plants"):
        row, parsed = schemes.read("testbed:plant/induction", Plants, tmp_path, {})
        row.open(parsed, None)
