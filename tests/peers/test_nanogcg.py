"""attack.gcg in its exact mode against nanoGCG 0.3.0, rung by rung: draws, gradient, losses, trajectories.

Both load one folder: a Llama with random weights and a byte-level BPE. nanoGCG runs in its own environment
with transformers 4.47.1; nothing of it is replaced, its functions are listened to. Messages and replies are
made-up words.
"""

from __future__ import annotations

import json
import random
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from calibrant.attack.gcg import GCG, optimise
from calibrant.attack.suffix.search import Search, found, over
from calibrant.core import Chat
from calibrant.maths.gcg import sample
from calibrant.models.open_model import OpenModel

pytestmark = pytest.mark.peers

SEED, STEPS, WIDTH, START = 5, 20, 64, " x" * 20
TASK = {
    "message": "Debari sanili kimu nakux boto remamu tineto bapoma lovo fofila sadeta bi goru",
    "target": " kibasahi kakefura kuzize mufokovi",
    "seed": SEED,
}
SETTINGS = {
    "plain": ({}, {}),
    "buffer": ({"buffer_size": 6}, {"buffer": 6}),
    "mellowmax": ({"use_mellowmax": True, "mellowmax_alpha": 2.0}, {"mellowmax": 2.0}),
    "replace": ({"n_replace": 3}, {"replace": 3}),
    "any characters": ({"allow_non_ascii": True}, {"ascii": False}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, ask, peer):
    """``folders("11M")``: a model of that shape, made once."""
    peer("nanogcg")
    made = {}

    def folder(shape):
        if shape not in made:
            made[shape] = tmp_path_factory.mktemp("models") / shape
            ask("", "benchmarks/_gcg_peer.py", made[shape], shape)
        return made[shape]

    return folder


@pytest.fixture(scope="module")
def theirs(ask, tmp_path_factory):
    """``theirs(folder, tasks, options)``: what nanoGCG tells of each task, and what it saw in the first."""

    def run(folder, tasks, options):
        place = tmp_path_factory.mktemp("nanogcg")
        job = {"model": str(folder), "tasks": tasks, "warm": 0, "block": 0, "save": str(place / "seen.npz")}
        (place / "job.json").write_text(json.dumps(job | {"options": options}))
        told = ask("nanogcg", "benchmarks/_worker_nanogcg.py", place / "job.json").splitlines()
        seen = {name: torch.from_numpy(value) for name, value in np.load(place / "seen.npz").items()}
        return [json.loads(line) for line in told[-len(tasks) :]], seen

    return run


@pytest.fixture(scope="module")
def first(folders, theirs):
    """The first rungs' run: 11 million parameters, everything at its default but the width."""
    options = {"num_steps": STEPS, "search_width": WIDTH, "optim_str_init": START, "batch_size": WIDTH}
    model = OpenModel.from_folder(folders("11M"))
    told, seen = theirs(folders("11M"), [TASK], options)
    config = GCG(steps=STEPS, width=WIDTH, suffix=START, exact=True, stop=False)
    return told[0], seen, Search(model, Chat.ask(TASK["message"]), TASK["target"], config)


def trajectory(search):
    """Ids before each step, losses, and the string at the end."""
    generator, ids = torch.Generator().manual_seed(SEED), []
    state = search.begin(generator)
    while not over(state, search.config):
        ids.append(list(state.ids))
        state = search.step(state, generator)
    return ids, list(state.losses), found(search.slot, state)


def test_rung_1_the_same_seed_ids_and_gradient_give_the_same_candidates(first):
    _, seen, search = first
    ours = sample(
        seen["ids 0"],
        seen["gradient 0"],
        search.slot.forbidden,
        width=WIDTH,
        top_k=256,
        replace=1,
        generator=torch.Generator().manual_seed(SEED),
    )
    assert torch.equal(ours, seen["candidates 0"])
    assert torch.equal(ours[search.slot.survives(ours)], seen["kept 0"])


def test_rung_2_the_gradient(first):
    _, seen, search = first
    ours, theirs = search.scorer.gradient(seen["ids 0"]), seen["gradient 0"]
    assert_close(ours, theirs, rtol=1e-4, atol=1e-6 * float(theirs.abs().max()))
    for one, other in zip(
        (-ours).topk(256).indices.tolist(), (-theirs).topk(256).indices.tolist(), strict=True
    ):
        assert len({*one} & {*other}) / len({*one} | {*other}) >= 0.99


def test_rung_3_the_candidates_losses(first):
    """At each step; nanoGCG scores its starting suffix first."""
    _, seen, search = first
    for step in range(STEPS):
        losses, _ = search.scorer.losses(seen[f"kept {step}"], seen[f"ids {step}"])
        assert_close(losses, seen[f"losses {step + 1}"], atol=1e-5, rtol=0)


def test_rung_4_twenty_steps(first):
    check(first[0], first[1], first[2])


@pytest.mark.parametrize("name", SETTINGS)
def test_rung_4_with_every_setting(folders, theirs, name):
    """On two million parameters."""
    options, changes = SETTINGS[name]
    options = {"num_steps": STEPS, "search_width": WIDTH, "optim_str_init": START, **options}
    told, seen = theirs(folders("2M"), [TASK], options)
    config = GCG(steps=STEPS, width=WIDTH, suffix=START, exact=True, stop=False, **changes)
    model = OpenModel.from_folder(folders("2M"))
    check(told[0], seen, Search(model, Chat.ask(TASK["message"]), TASK["target"], config))


def check(told, seen, search):
    """The same ids and losses within 1e-5, up to a step whose two best candidates nearly tie."""
    ids, losses, best = trajectory(search)
    for step in range(STEPS):
        assert abs(losses[step] - told["all"][step]) <= 1e-5
        if step + 1 < STEPS and ids[step + 1] != told["ids"][step + 1]:
            two = seen[f"losses {step + 1}"].unique().topk(2, largest=False).values
            assert two[1] - two[0] < 1e-5, f"step {step} chose another candidate"
            return
    assert best.text == told["string"]
    assert best.loss == pytest.approx(told["best"], abs=1e-5)


@pytest.mark.slow
def test_rung_5_the_default_mode_is_no_worse(folders, theirs):
    """Thirty goals by three seeds: final loss after a few steps, in context and alone, paired by goal."""
    rng, steps = random.Random(0), 4
    words = TASK["message"].split() + TASK["target"].split()
    goals = [(rng.choices(words, k=9), rng.choices(words, k=3)) for _ in range(30)]
    tasks = [
        {"message": " ".join(asked), "target": " " + " ".join(wanted), "seed": seed}
        for asked, wanted in goals
        for seed in range(3)
    ]
    options = {"num_steps": steps, "search_width": 32, "optim_str_init": START}
    told, _ = theirs(folders("2M"), tasks, options)
    model, config = (
        OpenModel.from_folder(folders("2M")),
        GCG(steps=steps, width=32, suffix=START, stop=False),
    )
    worse = []
    for task, other in zip(tasks, told, strict=True):
        generator = torch.Generator().manual_seed(task["seed"])
        ours = optimise(model, Chat.ask(task["message"]), task["target"], config, generator)
        worse.append(ours.loss - other["best"])
    by_goal = [sum(worse[place : place + 3]) / 3 for place in range(0, len(worse), 3)]
    # Nearly all pairs tie, so no bootstrap: a plain one-sided bound on the mean over goals.
    assert mean(by_goal) + 1.7 * stdev(by_goal) / len(by_goal) ** 0.5 < 0.02
