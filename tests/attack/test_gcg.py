"""GCG: reaches replies that a suffix can bring about, and none where the suffix has no say; loses no step."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from calibrant.attack import gcg as gcg_module
from calibrant.attack.gcg import ATTACK, GCG, gcg, optimise
from calibrant.attack.suffix.search import Probe, Search, State, over, restored
from calibrant.attack.suffix.slot import with_suffix
from calibrant.core import (
    CapabilityError,
    Chat,
    Goal,
    Identity,
    InputError,
    NumericalError,
    Quiet,
    Sampling,
    Verdict,
    digest,
)
from calibrant.data.rows import Goals
from calibrant.models.open_model import OpenModel
from calibrant.models.scripted import ScriptedModel

WORDS = (
    *("cat", "dog", "moon", "sun", "tree", "rain", "song", "king"),
    *("ship", "gold", "salt", "leaf", "bird", "lamp", "fish", "door"),
)
TEMPLATE = "{% for m in messages %}<user>{{ m['content'] }}<end>{% endfor %}<assistant>"
SMALL = GCG(suffix=" cat" * 8, steps=40, width=24, top_k=16, block=7, sampling=Sampling(max_tokens=4))


def tokens():
    pieces = ["<end>", "<user>", "<assistant>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [f"Ġ{word}" for word in WORDS]
    inner = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", additional_special_tokens=["<user>", "<assistant>"]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def weights(seed=1, deaf=False):
    """Random weights: what they say hangs on every token; ``deaf``: on the last alone, for values are 0."""
    tokenizer = tokens()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96, initializer_range=0.2,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = LlamaForCausalLM(config)
    module.requires_grad_(False)
    module.lm_head.weight[: -len(WORDS)] = 0.0  # it speaks in words and never stops by itself
    for layer in module.model.layers if deaf else ():
        layer.self_attn.v_proj.weight.zero_()
    return OpenModel.from_module(module, tokenizer, "deaf" if deaf else "small")


def said(model, suffix, request="tell me"):
    return model.generate([Chat.ask(request + suffix)], Sampling(max_tokens=3))[0].text


def planted(model):
    """What the model says after a suffix that nobody will be told, and does not say without one."""
    reply = said(model, " moon gold rain bird")
    assert not said(model, SMALL.suffix).startswith(reply)
    return reply


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Truth:
    """The wished-for reply itself is the harm."""

    calibration = "exact"

    def __init__(self, reply):
        self.reply, self.identity = reply, Identity(name="truth", kind="judge", parts={"reply": reply})

    def judge(self, goals, chats, completions):
        return [
            Verdict(question="said?", answer="yes" if c.text.startswith(self.reply) else "no")
            for c in completions
        ]


GOALS = Goals(rows=(Goal(id="g", text="tell me", category="c"),))


@pytest.mark.parametrize("seed", [1, 2])
def test_reaches_a_reply_that_some_suffix_brings_about(seed):
    model = weights(seed)
    reply = planted(model)
    found = optimise(model, Chat.ask("tell me"), reply, SMALL, seeded())
    assert found.reached and len(found.losses) <= SMALL.steps
    assert said(model, found.text).startswith(reply)
    whole = model.prompt_ids(Chat.ask("tell me" + found.text))
    assert tuple(whole[3 : 3 + len(found.ids)]) != found.ids  # bytes of 'tell me' come first
    assert any(tuple(whole[i : i + len(found.ids)]) == found.ids for i in range(len(whole)))


def test_finds_nothing_where_the_suffix_has_no_say():
    model = weights(deaf=True)
    reply = " moon gold"
    assert said(model, "") == said(model, SMALL.suffix) == said(model, " gold rain sun moon") != reply
    found = optimise(model, Chat.ask("tell me"), reply, SMALL.model_copy(update={"steps": 5}), seeded())
    assert not found.reached
    assert max(found.losses) - min(found.losses) < 1e-5


def test_zero_steps_find_nothing():
    model = weights()
    found = optimise(
        model, Chat.ask("tell me"), planted(model), SMALL.model_copy(update={"steps": 0}), seeded()
    )
    assert (found.text, found.losses, found.reached) == (SMALL.suffix, (), False)


def test_the_gradient_earns_its_keep():
    """The same episode with a gradient of another reply ends at a higher loss."""
    model, config = weights(3), SMALL.model_copy(update={"steps": 12, "top_k": 8, "width": 24, "stop": False})
    reply = planted(model)

    def lowest(search):
        state = search.begin(seeded())
        while not over(state, config):
            state = search.step(state, generator)
        return state.loss

    losses = []
    for wrong in (False, True):
        found = []
        for seed in range(3):
            generator = seeded(seed)
            search = Search(model, Chat.ask("tell me"), reply, config)
            if wrong:
                plain = search.scorer.gradient
                search.scorer.gradient = lambda ids, plain=plain: -plain(ids)
            found.append(lowest(search))
        losses.append(sum(found) / 3)
    assert losses[0] < losses[1] - 0.1


@pytest.mark.parametrize(
    "changes",
    [{}, {"exact": True}, {"buffer": 4}, {"buffer": 4, "exact": True}, {"mellowmax": 1.0}, {"replace": 2}],
)
def test_what_is_returned_has_the_loss_that_is_claimed(changes):
    model = weights()
    config = SMALL.model_copy(update={"steps": 8, "stop": False, **changes})
    reply = planted(model)
    found = optimise(model, Chat.ask("tell me"), reply, config, seeded())
    search = Search(model, Chat.ask("tell me"), reply, config)
    again, _ = search.scorer.losses(torch.tensor([found.ids]))
    assert float(again) == pytest.approx(found.loss, abs=1e-5)
    assert len(found.losses) == 8
    lowest = min(found.losses)
    assert found.loss == lowest if changes.get("exact") else found.loss <= lowest


def test_a_seed_is_a_trajectory_and_the_global_generator_is_left_alone():
    model, config = weights(), SMALL.model_copy(update={"steps": 5})
    before = torch.get_rng_state()
    one, two, other = (
        optimise(model, Chat.ask("tell me"), planted(model), config, seeded(seed)) for seed in (1, 1, 2)
    )
    assert one == two != other
    assert torch.equal(torch.get_rng_state(), before)


def test_a_search_taken_up_from_its_stored_state_goes_the_same_way():
    model, config = weights(), SMALL.model_copy(update={"steps": 6, "stop": False, "buffer": 3})
    search = Search(model, Chat.ask("tell me"), planted(model), config)
    generator = seeded()
    states = [search.begin(generator)]
    for _ in range(6):
        states.append(search.step(states[-1], generator))
    stored = State.model_validate(json.loads(states[3].model_dump_json()))
    later = torch.Generator()
    restored(stored, later)
    for _ in range(3):
        stored = search.step(stored, later)
    assert stored == states[6]


def test_a_draft_that_is_the_model_itself_sifts_without_loss():
    """It agrees with itself, so it hands on its favourite: the best of all candidates."""
    model, config = weights(), SMALL.model_copy(update={"steps": 6, "stop": False, "probe": Probe(share=4)})
    reply = planted(model)
    plain = optimise(model, Chat.ask("tell me"), reply, config, seeded())
    sifted = optimise(model, Chat.ask("tell me"), reply, config, seeded(), draft=model)
    assert sifted.losses[0] == pytest.approx(plain.losses[0], abs=1e-6)


def test_a_draft_with_another_tokenizer_is_refused():
    other = weights()
    other = OpenModel.from_module(other.module, tokens(), "other")
    other.identity = other.identity.model_copy(
        update={"parts": other.identity.parts | {"tokenizer": "another"}}
    )
    with pytest.raises(CapabilityError, match="read other token ids"):
        optimise(weights(), Chat.ask("tell me"), " cat", SMALL, seeded(), draft=other)


def test_no_survivor_is_an_error_that_says_so(monkeypatch):
    search = Search(weights(), Chat.ask("tell me"), " moon", SMALL)
    search.slot = search.slot._replace(survives=lambda rows: torch.zeros(len(rows), dtype=torch.bool))
    with pytest.raises(InputError, match="none of 24 candidates"):
        search.step(search.begin(seeded()), seeded())


def test_the_technique_asks_for_the_string_and_only_the_judge_says_that_it_worked(tmp_path):
    model = weights()
    reply = planted(model)
    config = SMALL.model_copy(update={"reply": reply})
    run = Quiet(work=tmp_path)
    result = gcg(model, GOALS, Truth(reply), config=config, run=run)
    (attempt,) = result.attempts
    assert attempt.outcome == "success" and attempt.family == "gradient" and attempt.access == "weights"
    assert attempt.cost.flops > 0 and attempt.cost.queries == ATTACK.queries(config) == 1
    assert result.metrics["attack_success_rate"].value == result.metrics["optimised_rate"].value == 1
    (line,) = map(json.loads, (tmp_path / "artifacts" / "suffixes.jsonl").read_text().splitlines())
    assert attempt.chat.last_user == "tell me" + line["text"]
    assert line["prompt_ids_digest"] == digest(model.prompt_ids(attempt.chat)) and line["in_context"]
    again = gcg(model, GOALS, Truth(reply), config=config, run=Quiet(work=tmp_path))
    assert again.metrics == result.metrics and again.attempts == result.attempts


def test_a_target_that_hears_something_else_is_not_counted():
    """The surrogate is beaten, the target is another model: by transfer, and here it does not."""
    model = weights()
    reply = planted(model)
    config = SMALL.model_copy(update={"reply": reply})
    target = ScriptedModel(lambda chat: "no.")
    result = gcg(target, GOALS, Truth(reply), surrogate=model, config=config)
    assert result.metrics["optimised_rate"].value == 1
    assert result.metrics["attack_success_rate"].value == 0
    assert any("transfer" in caveat for caveat in result.caveats)


def test_without_weights_it_says_so():
    with pytest.raises(CapabilityError, match="shows none"):
        gcg(ScriptedModel(lambda chat: "no"), GOALS, Truth("x"))


def test_a_kill_costs_no_more_than_a_block(tmp_path, monkeypatch):
    model, config = weights(), SMALL.model_copy(update={"reply": " moon gold", "steps": 20, "stop": False})
    whole = gcg(model, GOALS, Truth("?"), config=config)
    made, plain = [], Search.step

    def step(self, state, generator):
        made.append(len(state.losses))
        if len(made) == 17:
            raise KeyboardInterrupt
        return plain(self, state, generator)

    monkeypatch.setattr(Search, "step", step)
    with pytest.raises(KeyboardInterrupt):
        gcg(model, GOALS, Truth("?"), config=config, run=Quiet(work=tmp_path))
    result = gcg(model, GOALS, Truth("?"), config=config, run=Quiet(work=tmp_path))
    assert made == [*range(17), *range(14, 20)]
    assert result.attempts == whole.attempts and result.metrics == whole.metrics


def test_weights_that_are_broken_are_an_error():
    model = weights()
    model.module.lm_head.weight[40] = float("nan")
    with pytest.raises(NumericalError):
        optimise(model, Chat.ask("tell me"), " moon", SMALL, seeded())


def test_the_request_is_filled_in_and_the_suffix_goes_behind_it(monkeypatch):
    seen = []
    plain = gcg_module.Search

    def search(model, chat, reply, config, draft):
        seen.append((chat, reply))
        return plain(model, chat, reply, config, draft)

    monkeypatch.setattr(gcg_module, "Search", search)
    config = SMALL.model_copy(update={"reply": "sure, {1} {0}: {request}", "steps": 1})
    spans = Goals(rows=(GOALS.rows[0].model_copy(update={"spans": ("tell", "me")}),))
    gcg(weights(), spans, Truth("x"), config=config)
    assert seen == [(Chat.ask("tell me"), "sure, me tell: tell me")]
    with pytest.raises(InputError, match="has 0 spans"):
        gcg(weights(), GOALS, Truth("x"), config=config)
    assert with_suffix(Chat.ask("tell me"), " x") == Chat.ask("tell me x")
