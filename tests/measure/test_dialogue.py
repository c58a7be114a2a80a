"""Stages of chats: a killed run goes on where it stopped, pays the same, and never reuses what failed."""

from __future__ import annotations

import pytest

from calibrant.core import Chat, Completion, EvidenceError, Quiet, Sampling
from calibrant.measure._dialogue import Talk
from calibrant.models.scripted import ScriptedModel

CHATS = [Chat.ask(f"question {at}?") for at in range(6)]
WARM = Sampling(max_tokens=8, temperature=1.0)


class Priced(Quiet):
    """Counts what is charged."""

    def __init__(self, work):
        super().__init__(work=work)
        self.spent = [0, 0]

    def spend(self, *, tokens=0, queries=0, flops=0.0):
        self.spent = [self.spent[0] + tokens, self.spent[1] + queries]


def player(name="m"):
    return ScriptedModel(lambda chat: Completion(text=f"re {chat.last_user}", tokens=3), name=name)


def test_what_was_said_is_not_asked_again_and_costs_the_same(tmp_path):
    first, again, runs = player(), player(), [Priced(tmp_path), Priced(tmp_path)]
    said = [
        Talk(model, WARM, run, 12).put("plain", CHATS)
        for model, run in zip((first, again), runs, strict=True)
    ]
    assert said[0] == said[1] and len(first.seen) == 6 and not again.seen
    assert runs[0].spent == runs[1].spent == [18, 6]


def test_another_stage_model_chat_or_sampling_is_asked(tmp_path):
    run = Quiet(work=tmp_path)
    Talk(player(), WARM, run, 12).put("plain", CHATS)
    for model, sampling, stage, chats in (
        (player(), WARM, "again", CHATS),
        (player("other"), WARM, "plain", CHATS),
        (player(), WARM.model_copy(update={"max_tokens": 9}), "plain", CHATS),
        (player(), WARM, "plain", CHATS[:5]),
    ):
        Talk(model, sampling, run, 12).put(stage, chats)
        assert len(model.seen) == len(chats)


def test_a_chunk_with_an_error_is_asked_again(tmp_path):
    down = ScriptedModel(lambda chat: Completion(text="", stop="error", error="down"), name="m")
    Talk(down, WARM, Quiet(work=tmp_path), 12).put("plain", CHATS)
    again = player()
    Talk(again, WARM, Quiet(work=tmp_path), 12).put("plain", CHATS)
    assert len(again.seen) == 6


def test_a_cut_last_line_is_asked_again_and_a_damaged_one_is_told(tmp_path):
    path = tmp_path / "replies.jsonl"
    Talk(player(), WARM, Quiet(work=tmp_path), 12).put("plain", CHATS)
    path.write_bytes(path.read_bytes()[:-20])
    again = player()
    Talk(again, WARM, Quiet(work=tmp_path), 12).put("plain", CHATS)
    assert len(again.seen) == 6
    path.write_bytes(b'{"no": 1}\n')
    with pytest.raises(EvidenceError, match="a chunk of replies"):
        Talk(player(), WARM, Quiet(work=tmp_path), 12)
