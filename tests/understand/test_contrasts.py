"""Pairs of prompts: a pair and its swap are one observation, wherever pairs are read."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from calibrant.core import Chat, Quiet
from calibrant.data.rows import Contrast, Contrasts
from calibrant.models.open_model import OpenModel
from calibrant.testbed.circuits import tokenizer
from calibrant.understand._contrasts import encode
from calibrant.understand.attention import attention
from calibrant.understand.edges import edges
from calibrant.understand.patch import Patching, patch

WORDS = ("red", "blue", "green", "grey", "the", "is")
HEADS = Patching(site="z", positions="all", interactions=0)


def random_model(seed):
    """A Llama with nothing in it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(WORDS) + 1, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, initializer_range=0.25, eos_token_id=len(WORDS),
        )  # fmt: skip
        return OpenModel.from_module(LlamaForCausalLM(config), tokenizer(WORDS), f"random/{seed}")


def table(couples, clusters=()):
    def row(at, one, other):
        clean, corrupt = (Chat.ask(f"the {word} is the") for word in (one, other))
        name = clusters[at] if clusters else ""
        return Contrast(id=f"{at}", clean=clean, corrupt=corrupt, answer=one, foil=other, cluster=name)

    return Contrasts(rows=tuple(row(at, *words) for at, words in enumerate(couples)))


BOTH_WAYS = table(permutations(WORDS[:4], 2))
ONE_WAY = table(combinations(WORDS[:4], 2))


def test_a_pair_and_its_swap_are_one_cluster_and_distinct_pairs_are_none():
    model = random_model(0)
    pairs = encode(model, BOTH_WAYS)
    of = dict(zip([(row.answer, row.foil) for row in pairs.rows], pairs.clusters, strict=True))
    assert len(set(of.values())) == 6 and all(of[one, other] == of[other, one] for one, other in of)
    assert pairs.notes[0].startswith("6 of 12 pairs have the prompts of an earlier pair")
    assert encode(model, ONE_WAY).clusters is None and not encode(model, ONE_WAY).notes


def test_swaps_join_the_clusters_that_they_stand_in():
    couples = [("red", "blue"), ("green", "grey"), ("blue", "red"), ("red", "green")]
    pairs = encode(random_model(0), table(couples, ["a", "b", "c", "c"]))
    one, other, *rest = pairs.clusters
    assert rest == [one, one] and other != one and pairs.repeats == 1
    named = encode(random_model(0), table(couples, ["a", "b", "a", ""]))
    assert len(set(named.clusters)) == 3 and not named.notes


@pytest.mark.parametrize("sweep", [patch, edges, attention])
def test_every_sweep_counts_a_pair_and_its_swap_once_and_says_so(sweep):
    result = sweep(random_model(0), BOTH_WAYS, run=Quiet())
    assert result.metrics["total_effect"].clusters == 6
    assert any("such pairs count as one, which leaves 6" in note for note in result.caveats)


def test_shared_keys_and_values_are_told_beside_the_drawn_edges():
    """What enters a1.h1<v> leaves as a1.h2: four query heads share two heads of values."""
    result = edges(random_model(0), ONE_WAY, run=Quiet())
    (note,) = [one for one in result.caveats if one.startswith("keys and values are shared by 2 query heads")]
    assert "a0.h1<v> serves a0.h2 to a0.h3" in note
    assert next(one for one in result.figure_data() if one.kind == "graph").caption == note


@pytest.mark.slow
def test_swapped_pairs_on_random_models_find_no_more_than_chance():
    """At most 5 % of sweeps may find a head. Each pair counted twice, 15 of 60 find one."""
    hits = 0
    for seed in range(60):
        result = patch(random_model(seed), BOTH_WAYS, HEADS, Quiet())
        hits += any((result.metrics[f"found/{way}"].value or 0) > 0 for way in ("denoise", "noise"))
    assert hits <= 6, f"{hits} of 60"
