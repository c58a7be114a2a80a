"""The slot of a suffix: its pieces rebuild the prompt; only ids that come back from their text survive."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from calibrant.attack.suffix.slot import alone, in_context, with_suffix
from calibrant.core import Chat, InputError
from calibrant.models.open_model import OpenModel

ASKED = Chat.ask("what is the sky?")
SUFFIX = " cat dog sky one"


@pytest.fixture(params=["plain", "chat", "metaspace"])
def model(request, tiny, chatml):
    if request.param == "metaspace":
        return metaspace(tiny("llama").module)
    return tiny("llama", chatml if request.param == "chat" else None)


def metaspace(module):
    """Words behind a low line and a space put before every text, as in SentencePiece."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    lines = ["what is the sky? the cat and the dog, one two three", "dig down or dart about: zany!"] * 3
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "</s>"], show_progress=False)
    core.train_from_iterator(lines, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")
    return OpenModel.from_module(module, tokenizer, "metaspace")


def test_the_pieces_rebuild_the_prompt(model):
    slot = in_context(model, ASKED, SUFFIX, " the sky is blue")
    whole = model.prompt_ids(with_suffix(ASKED, SUFFIX))
    assert [*slot.frame.before, *slot.ids, *slot.frame.after] == whole
    assert slot.text(slot.ids) == SUFFIX
    assert slot.frame.target == model.reply_ids(" the sky is blue")
    assert slot.survives(torch.tensor([slot.ids])).all()


def test_survivors_are_exactly_those_that_the_whole_prompt_gives_back(model):
    slot = in_context(model, ASKED, SUFFIX, "a")
    allowed = torch.tensor(sorted(set(range(len(model.tokenizer))) - set(slot.forbidden.tolist())))
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(0, len(allowed), (300, len(slot.ids)), generator=generator)
    rows = torch.cat([allowed[picks], torch.tensor([slot.ids])])
    survive = slot.survives(rows)
    assert 0 < int(survive.sum()) < len(rows)
    for row, fine in zip(rows.tolist(), survive.tolist(), strict=True):
        got = model.prompt_ids(with_suffix(ASKED, slot.text(row)))
        assert fine == (got == [*slot.frame.before, *row, *slot.frame.after])


def test_only_the_whole_prompt_shows_that_a_suffix_goes_on_with_the_last_word(tiny, chatml):
    """After 'the s', 'ky' is read as the end of ' sky'; by itself, as nanoGCG checks it, it stands."""
    model = tiny("llama", chatml)
    asked, row = Chat.ask("the s"), torch.tensor([model.reply_ids("ky")])
    assert alone(model, asked, " one two", "a").survives(row).all()
    assert not in_context(model, asked, " one two", "a").survives(row).any()


def test_only_printable_ascii_is_drawn_and_never_a_special_token(model):
    slot = in_context(model, ASKED, SUFFIX, "a")
    forbidden = set(slot.forbidden.tolist())
    assert set(model.tokenizer.all_special_ids) <= forbidden
    assert set(model.tokenizer.get_added_vocab().values()) <= forbidden
    for token in set(range(len(model.tokenizer))) - forbidden:
        piece = slot.text([token])
        assert piece.isascii() and piece.isprintable() and piece
    free = in_context(model, ASKED, SUFFIX, "a", ascii_only=False)
    assert set(free.forbidden.tolist()) <= forbidden
    assert set(model.tokenizer.all_special_ids) <= set(free.forbidden.tolist())


def test_rows_of_the_embedding_without_a_token_are_never_drawn(tiny):
    model = tiny("llama", vocab_size=320)
    slot = in_context(model, ASKED, SUFFIX, "a")
    assert set(range(len(model.tokenizer), 320)) <= set(slot.forbidden.tolist())


def test_a_conversation_keeps_its_turns(tiny, chatml):
    model = tiny("llama", chatml)
    chat = Chat.ask("one", system="the cat").then("assistant", "two").then("user", "three")
    slot = in_context(model, chat, SUFFIX, "a")
    assert [*slot.frame.before, *slot.ids, *slot.frame.after] == model.prompt_ids(with_suffix(chat, SUFFIX))
    assert slot.frame.after == model.tokenizer("<|end|><|assistant|>", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("asked", "suffix"), [("what i", "s"), ("the ca", "t one")])
def test_a_suffix_that_merges_with_the_request_is_refused(tiny, asked, suffix):
    with pytest.raises(InputError, match="tokens of its own"):
        in_context(tiny("llama"), Chat.ask(asked), suffix, "a")


def test_a_tokenizer_that_does_not_round_trip_is_refused(tiny):
    """It writes everything small, so a capital letter never comes back."""
    model = tiny("llama")
    model.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert in_context(model, ASKED, SUFFIX, "a").text([]) == ""
    with pytest.raises(InputError, match="tokens of its own"):
        in_context(model, ASKED, " Cat", "a")


def test_a_template_that_strips_the_turn_refuses_a_suffix_that_ends_in_spaces(tiny, chatml):
    model = tiny("llama", chatml.replace("m['content']", "m['content'].strip()"))
    with pytest.raises(InputError, match="tokens of its own"):
        in_context(model, ASKED, " cat  ", "a")


def test_too_long_for_the_context_is_refused(tiny):
    with pytest.raises(InputError, match="context holds 64"):
        in_context(tiny("llama"), ASKED, " cat" * 70, "a")


def test_alone_cuts_as_nanogcg_does(tiny, chatml):
    """Three pieces by themselves; what precedes with special tokens, <s> put before it by the tokenizer."""
    model = tiny("llama", "<s>" + chatml)
    slot = alone(model, Chat.ask("the sky "), "cat dog", "blue")

    def ids(text):
        return model.tokenizer(text, add_special_tokens=False)["input_ids"]

    assert slot.frame.before == [0, *ids("<|user|>the sky ")]
    assert slot.frame.after == ids("<|end|><|assistant|>")
    assert (slot.ids, slot.frame.target) == (ids("cat dog"), ids("blue"))
    assert not model.tokenizer.chat_template.startswith("{% for")  # the template is left alone
