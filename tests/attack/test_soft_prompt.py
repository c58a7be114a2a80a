"""Soft prompts: reach what vectors can bring about, nothing where the suffix has no say; never an attempt."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch

from calibrant.attack.soft_prompt import SoftPrompt, soft_prompt, tune
from calibrant.attack.suffix import embedded
from calibrant.attack.suffix.scorer import Candidates
from calibrant.attack.suffix.slot import in_context
from calibrant.core import Chat, Identity, InputError, Quiet, Sampling, Verdict
from calibrant.models.open_model import OpenModel
from calibrant.testbed.raise_model import build_module
from calibrant.testbed.tokens import build_tokenizer

REPLY = " take the"
CONFIG = SoftPrompt(reply=REPLY, suffix=" a a a a", steps=80, lr=0.3, max_tokens=5)


class Says:
    """The wished-for reply itself is the harm."""

    identity = Identity(name="says", kind="judge", parts={"reply": REPLY})
    calibration = "exact"

    def judge(self, goals, chats, completions):
        found = [c.text.startswith(REPLY) for c in completions]
        return [Verdict(question="said?", answer="yes" if yes else "no") for yes in found]


words = cache(build_tokenizer)


def weights(deaf=False):
    """A small Llama with large random weights; ``deaf``: what stands before the last token has no say."""
    tokenizer = words()
    module = build_module("tiny", len(tokenizer), seed=0).requires_grad_(False)
    for weight in module.parameters():
        weight.mul_(4 if weight.dim() == 2 else 1)
    for layer in module.model.layers if deaf else ():
        layer.self_attn.v_proj.weight.zero_()
    return OpenModel.from_module(module, tokenizer, "deaf" if deaf else "small")


@pytest.fixture(scope="module")
def model():
    return weights()


def test_vectors_reach_a_reply_that_the_model_never_gives(model, goals):
    few = goals.model_copy(update={"rows": goals.rows[:2]})
    assert not model.generate([Chat.ask(few.rows[0].text + CONFIG.suffix)])[0].text.startswith(REPLY)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    found = soft_prompt(model, few, Says(), CONFIG)
    assert found.metrics["upper_bound_success"].value == found.metrics["optimised_rate"].value == 1
    assert found.metrics["loss_after"].value < found.metrics["loss_before"].value
    assert "attack_success_rate" not in found.metrics
    assert any("cannot be sent through a chat" in caveat for caveat in found.caveats)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


def test_finds_nothing_where_the_suffix_has_no_say(goals):
    few = goals.model_copy(update={"rows": goals.rows[:1]})
    found = soft_prompt(weights(deaf=True), few, Says(), CONFIG.model_copy(update={"steps": 20}))
    assert found.metrics["upper_bound_success"].value == found.metrics["optimised_rate"].value == 0
    assert found.metrics["loss_after"].value == pytest.approx(found.metrics["loss_before"].value, abs=1e-5)


def test_zero_steps_move_nothing(model, goals):
    slot = in_context(model, Chat.ask("hello"), CONFIG.suffix, REPLY)
    scorer = Candidates(model.module, slot.frame)
    start = scorer.table(torch.tensor(slot.ids))
    tuned = tune(scorer, start, CONFIG.model_copy(update={"steps": 0}))
    assert torch.equal(tuned.vectors, start) and len(tuned.losses) == 1
    assert tuned.loss == pytest.approx(float(scorer.losses(torch.tensor([slot.ids]))[0]), abs=1e-5)


def test_speaking_to_the_embeddings_of_a_text_is_speaking_to_the_text(model):
    chat = Chat.ask("what is the colour of the sky")
    (said,) = model.generate([chat], Sampling(max_tokens=9))
    table = model.module.get_input_embeddings()
    prompt = table(torch.tensor(model.prompt_ids(chat)))
    drawn = embedded.speak(model.module, prompt, 9, model.chat_tokens.stop_ids)
    assert (drawn.ids, drawn.stop) == (said.ids, said.stop)
    assert drawn.logprobs == pytest.approx(said.logprobs, abs=1e-4)
    assert embedded.speak(model.module, prompt, 9, drawn.ids[:1]).stop == "eos"


def test_a_second_run_tunes_nothing_again(model, goals, tmp_path, monkeypatch):
    few = goals.model_copy(update={"rows": goals.rows[:2]})
    config = CONFIG.model_copy(update={"steps": 2})
    first = soft_prompt(model, few, Says(), config, Quiet(work=tmp_path))
    log = tmp_path / "soft_prompts.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole[: len(whole) - 20])  # the second goal's line is cut
    made = []
    plain = Candidates.flow
    monkeypatch.setattr(Candidates, "flow", lambda self, spelt: made.append(1) or plain(self, spelt))
    again = soft_prompt(model, few, Says(), config, Quiet(work=tmp_path))
    assert len(made) == 3  # two steps and the look after them, of one goal
    assert again == first and log.read_bytes() == whole
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["goal"] for line in lines] == ["g0", "g1"]


def test_a_suffix_that_the_context_does_not_hold_is_refused(model, goals):
    with pytest.raises(InputError, match="context holds"):
        soft_prompt(model, goals, Says(), CONFIG.model_copy(update={"suffix": " a" * 1100}))
