"""No technique trains through a chat template that writes something else, unless told; a record says it."""

from __future__ import annotations

import pytest

from calibrant.app.execute import execute
from calibrant.app.references.openers import Openers
from calibrant.core import CapabilityError, Chat, Identity, Job, Quiet, Scores
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
from calibrant.ledger import Ledger
from calibrant.models.fit import Fit
from calibrant.models.open_model import OpenModel
from calibrant.testbed.tokens import TEMPLATE, build_tokenizer
from calibrant.train.dpo import DPO, dpo
from calibrant.train.grpo import GRPO, grpo
from calibrant.train.kto import KTO, kto
from calibrant.train.online_dpo import OnlineDPO, online_dpo
from calibrant.train.ppo import PPO, ppo
from calibrant.train.reward import RewardConfig, reward
from calibrant.train.reward_ensemble import RewardEnsemble, reward_ensemble
from calibrant.train.rloo import RLOO, rloo
from calibrant.train.sft import SFT, sft

ASKED = Chat.ask("how do i mend the barn?")
PAIRS = Preferences(rows=(Pair(id="a", prompt=ASKED, chosen="ember", rejected="dusk"),))
PROMPTS = Prompts(rows=(Prompt(id="a", prompt=ASKED),))
THUMBS = LabelledReplies(rows=(Labelled(id="a", prompt=ASKED, completion="ember", label=True),))
SHOWN = Examples(rows=(Example(id="a", prompt=ASKED, completion="ember"),))


class Likes:
    """A reward that is never asked here."""

    identity = Identity(name="likes", kind="reward", parts={"of": "nothing"})

    def score(self, chats, replies):
        return Scores(mean=(1.0,) * len(replies))


@pytest.fixture(scope="module")
def deaf(model):
    """The tiny model under a template that ignores add_generation_prompt."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE.split("{% if add_generation_prompt")[0]
    return OpenModel.from_module(model.module, tokenizer, "deaf")


@pytest.mark.parametrize(
    ("technique", "inputs", "config"),
    [
        (sft, (SHOWN,), SFT()), (dpo, (PAIRS,), DPO()), (kto, (THUMBS,), KTO()),
        (reward, (PAIRS,), RewardConfig()), (reward_ensemble, (PAIRS,), RewardEnsemble()),
        (ppo, (PROMPTS, Likes()), PPO()), (rloo, (PROMPTS, Likes()), RLOO()),
        (grpo, (PROMPTS, Likes()), GRPO()), (online_dpo, (PROMPTS, Likes()), OnlineDPO()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_training_is_refused(deaf, technique, inputs, config, tmp_path):
    with pytest.raises(CapabilityError, match="ignores add_generation_prompt, and puts '<assistant>'"):
        technique(deaf, *inputs, config=config, run=Quiet(work=tmp_path))
    assert not (tmp_path / "artifacts").exists()


def test_training_goes_on_when_told(deaf, tmp_path):
    result = sft(deaf, SHOWN, SFT(fit=Fit(any_template=True)), Quiet(work=tmp_path))
    assert result.metrics["loss_last"].value > 0


@pytest.mark.parametrize("kind", ["model", "deaf"])
def test_whatever_uses_such_a_model_says_so_in_its_record(request, kind, tmp_path):
    request.getfixturevalue(kind).save(tmp_path / "folder")
    job = Job(
        id="talk",
        use="measure.refusal",
        inputs={
            "model": str(tmp_path / "folder"),
            "goals": "testbed:goals/heldout?n=2",
            "judge": "testbed:judge/harmful",
        },
        config={"sampling": {"max_tokens": 2}},
    )
    record = execute(job, Openers(ledger=Ledger(tmp_path / "ledger")))
    assert record.status == "finished"
    said = [limit for limit in record.limits if "chat template of 'model' is not met exactly" in limit]
    assert len(said) == (kind == "deaf")
