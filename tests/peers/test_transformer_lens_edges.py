"""Edge scores and circuits against TransformerLens's, on a GPT-2 with random weights."""

from __future__ import annotations

import json
import random

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from calibrant.testbed.tokens import build_tokenizer
from calibrant.understand._engine.find_graph import graph_of

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edges")
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=300, n_positions=16, n_embd=64, n_layer=3, n_head=4, initializer_range=0.1,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    clean = torch.randint(2, 300, (2, 7))
    corrupt = clean.clone()
    corrupt[:, 2] = (clean[:, 2] + 5) % 300
    names = list(graph_of(model).names)
    random.Random(0).shuffle(names)
    return folder, {
        "model": str(folder / "model"), "warm": 1, "rounds": 0, "core": None, "clean": clean.tolist(),
        "corrupt": corrupt.tolist(), "answers": [11, 12], "foils": [21, 22],
    }, [names[:count] for count in (0, 20, 90, 200, len(names))]  # fmt: skip


def told(ask, job, where, **more):
    path = where / "job.json"
    path.write_text(json.dumps(job | more), encoding="utf-8")
    sides = (("", "_worker_edges.py"), ("transformer_lens", "_worker_transformer_lens_edges.py"))
    return [
        json.loads(ask(peer, f"benchmarks/{script}", path).splitlines()[-1])["losses"][0]
        for peer, script in sides
    ]


def test_every_edges_score_equals_theirs(ask, job, tmp_path):
    ours, theirs = told(ask, job[1], tmp_path, circuits=[], way="helper")
    assert ours.keys() == theirs.keys()
    largest = max(abs(score) for score in ours.values())
    assert max(abs(ours[name] - theirs[name]) for name in ours) < 1e-5 * max(1, largest)


def test_what_circuits_keep_equals_theirs(ask, job, tmp_path):
    ours, theirs = told(ask, job[1], tmp_path, circuits=job[2], way="helper")
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=1e-4)
    assert ours[0] == pytest.approx([0, 0], abs=1e-4) and ours[-1] == pytest.approx([1, 1], abs=1e-4)
