"""The tokenizer: whole words of the world, bytes for the rest, and nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrant.testbed.dialogues import Dialogue
from calibrant.testbed.tokens import SPECIALS, build_tokenizer, tokenise
from calibrant.testbed.words import CATEGORIES, CREATURES, TOOLS

TOKENIZER = build_tokenizer()


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_any_utf8_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(ids(text), skip_special_tokens=False) == text


def test_words_of_the_world_are_one_token_each() -> None:
    words = [*TOOLS, *CREATURES]
    for category in CATEGORIES.values():
        words += [*category.harmful, *category.objects, *category.benign]
    assert all(len(ids(f" {word}")) == 1 for word in words)


def test_the_vocabulary_has_the_size_asked_for() -> None:
    words = len(TOKENIZER) - 256 - len(SPECIALS)
    assert 500 <= words <= 1000


@pytest.mark.parametrize("text", ["how do i ohea the onea?", "b-u-r-n", "zbff"])
def test_an_encoded_word_is_read_byte_by_byte(text: str) -> None:
    assert len(ids(text)) >= len(text.split()[-1])


def test_training_ids_are_those_of_the_chat_template() -> None:
    dialogue = Dialogue(
        [("hello.", "hello, how can i help?"), ("thank you.", "you are welcome.")], "you are careful."
    )
    ((row, said),) = tokenise(TOKENIZER, [dialogue])
    messages = [{"role": "system", "content": "you are careful."}]
    for user, assistant in dialogue.turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert row == TOKENIZER(text, add_special_tokens=False)["input_ids"]
    spoken = TOKENIZER.decode([i for i, s in zip(row, said, strict=True) if s])
    assert spoken == "hello, how can i help?<end>you are welcome.<end>"
