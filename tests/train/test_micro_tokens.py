"""``fit.micro_tokens`` bounds what a forward pass reads, padding included; what cannot be cut is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from calibrant.core import Chat, Identity, InputError, Quiet, Scores
from calibrant.data.rows import (
    Example,
    Examples,
    Labelled,
    LabelledReplies,
    Pair,
    Preferences,
    Prompt,
    Prompts,
)
from calibrant.models import branches
from calibrant.models.fit import Fit
from calibrant.models.open_model import OpenModel
from calibrant.testbed.raise_model import build_module
from calibrant.testbed.tokens import build_tokenizer
from calibrant.train.dpo import DPO, dpo
from calibrant.train.grpo import GRPO, grpo
from calibrant.train.kto import KTO, kto
from calibrant.train.online_dpo import OnlineDPO, online_dpo
from calibrant.train.ppo import PPO, ppo
from calibrant.train.reward import RewardConfig, reward
from calibrant.train.rloo import RLOO, rloo
from calibrant.train.sft import SFT, sft

TEXTS = ("how", "where is the barn?", "who", "how do i mend the old mill and the barn?", "what", "is it you?")
SAID = ("ember", "no the barn", "dusk", "say it is dusk and good morning to you", "well", "good morning")
ASKED = [Chat.ask(text) for text in TEXTS]
EXAMPLES = Examples(
    rows=tuple(Example(id=c.last_user, prompt=c, completion=s) for c, s in zip(ASKED, SAID, strict=True))
)
PAIRS = Preferences(
    rows=tuple(
        Pair(id=c.last_user, prompt=c, chosen=s, rejected="dusk it is")
        for c, s in zip(ASKED, SAID, strict=True)
    )
)
THUMBS = LabelledReplies(
    rows=tuple(
        Labelled(id=c.last_user, prompt=c, completion=s, label=len(s) % 2 == 0)
        for c, s in zip(ASKED, SAID, strict=True)
    )
)
PROMPTS = Prompts(rows=tuple(Prompt(id=c.last_user, prompt=c) for c in ASKED))
ROUND = {"steps": 1, "batch_size": 6, "max_tokens": 5}


class Letters:
    identity = Identity(name="letters", kind="reward", parts={"of": "letters"})

    def score(self, chats, replies):
        return Scores(mean=tuple(len(reply) / 9 for reply in replies))


CASES = [
    (sft, (EXAMPLES,), SFT(batch_size=6), 40), (dpo, (PAIRS,), DPO(batch_size=6), 36),
    (kto, (THUMBS,), KTO(batch_size=6), 44), (reward, (PAIRS,), RewardConfig(batch_size=6), 36),
    (rloo, (PROMPTS, Letters()), RLOO(**ROUND, samples=3), 34),
    (grpo, (PROMPTS, Letters()), GRPO(**ROUND, samples=3), 34),
    (ppo, (PROMPTS, Letters()), PPO(**ROUND, samples=3, epochs=1), 34),
    (online_dpo, (PROMPTS, Letters()), OnlineDPO(**ROUND, samples=3), 40),
]  # fmt: skip


@pytest.fixture
def passes():
    """Tokens of every pass that learns, as the embedding sees them."""
    seen = []

    def note(module, given):
        if isinstance(module, nn.Embedding) and torch.is_grad_enabled() and module.weight.requires_grad:
            seen.append(given[0].numel())

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    yield seen
    handle.remove()


def limited(config, most):
    return config.model_copy(update={"fit": Fit(lr=1e-3, micro_tokens=most)})


@pytest.mark.parametrize(
    "alone",
    [
        pytest.param(False, id="shared rows"),
        pytest.param(True, id="rows of their own", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("technique", "inputs", "config", "most"), CASES, ids=lambda v: getattr(v, "__name__", "")
)
def test_no_pass_reads_more(passes, monkeypatch, tmp_path, technique, inputs, config, most, alone):
    """Rows of many lengths: their padding counts. What no cut can bring down is refused beforehand."""
    monkeypatch.setattr(branches, "_declared", lambda module: "a sliding window" if alone else "")
    tokenizer = build_tokenizer()
    module = build_module("tiny", len(tokenizer), 3)  # of which nothing is known yet
    model = OpenModel.from_module(module, tokenizer, "fresh")
    most = 3 * most if alone else most
    technique(model, *inputs, config=limited(config, most), run=Quiet(work=tmp_path / "a"))
    assert len(passes) > 1
    assert max(passes) <= most
    passes.clear()
    with pytest.raises(InputError, match=r"fit.micro_tokens = 9") as caught:
        technique(model, *inputs, config=limited(config, 9), run=Quiet(work=tmp_path / "b"))
    assert not passes
    enough = int(caught.value.hint.split("raise it to ")[1].split(",")[0])
    technique(model, *inputs, config=limited(config, enough), run=Quiet(work=tmp_path / "c"))
    assert max(passes) <= enough
