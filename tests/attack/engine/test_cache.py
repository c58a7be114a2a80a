"""Where a campaign writes answers down: they come back as they were, and damage is named."""

from __future__ import annotations

import hashlib
import os

import pytest

from calibrant.attack.engine import cache
from calibrant.attack.engine.cache import AttemptCache
from calibrant.core import Attempt, Completion, EvidenceError, InputError


def key(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


@pytest.fixture
def made(goals, attempt):
    return [attempt(goal, outcome) for goal in goals for outcome in ("success", "failure", "undetermined")]


def test_attempts_come_back_as_they_were(tmp_path, made):
    one = AttemptCache(tmp_path)
    places = one.add(made)
    assert one.held == 0  # of earlier tries
    one.sync()
    one.close()
    again = AttemptCache(tmp_path)
    assert again.held == len(made)
    assert [again.attempt(each.id) for each in made] == list(zip(places, made, strict=True))
    assert again.attempt(key(0)) is None
    again.copy(places[::-1], tmp_path / "copy.jsonl")
    again.close()
    lines = (tmp_path / "copy.jsonl").read_text(encoding="utf-8").splitlines()
    assert [Attempt.model_validate_json(each) for each in lines] == made[::-1]


def test_other_answers_come_back_as_they_were(tmp_path):
    answer = {"asked": "a", "answer": {"text": "zorble, “quib” and\nmarn"}, "spent": {"flops": 1.5}}
    one = AttemptCache(tmp_path)
    one.note(key(0), answer)
    one.note(key(1), {"asked": "b", "answer": "half a pair: \ud800", "spent": {}})
    one.close()
    again = AttemptCache(tmp_path)
    assert again.move(key(0)) == {"id": key(0), **answer}
    assert again.move(key(1))["answer"] == "half a pair: ?"
    assert again.move(key(2)) is None
    again.close()


def test_a_reply_with_half_a_surrogate_pair_is_kept(tmp_path, goals, attempt):
    odd = attempt(goals.rows[0], "failure", completion=Completion(text="no \ud83d, no"))
    one = AttemptCache(tmp_path)
    one.add([odd, attempt(goals.rows[1], "failure")])
    one.close()
    again = AttemptCache(tmp_path)
    assert again.held == 2
    assert again.attempt(odd.id)[1].completion.text == "no ?, no"
    again.close()


def test_damage_behind_the_key_is_named_when_the_line_is_wanted(tmp_path, made):
    one = AttemptCache(tmp_path)
    one.add(made[:2])
    one.note(key(0), {"asked": "a"})
    one.close()
    for name in ("attempts.jsonl", "moves.jsonl"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes().replace(b'",', b'"",', 1))
    again = AttemptCache(tmp_path)
    with pytest.raises(EvidenceError, match=r"attempts\.jsonl, line 1 is not an attempt"):
        again.attempt(made[0].id)
    assert again.attempt(made[1].id)[1] == made[1]
    with pytest.raises(EvidenceError, match=r"moves\.jsonl, line 1 is not an answer"):
        again.move(key(0))
    again.close()


def test_the_disk_is_asked_at_most_once_a_second(tmp_path, made, monkeypatch):
    now, synced = [100.0], []
    monkeypatch.setattr(cache.time, "monotonic", lambda: now[0])
    one = AttemptCache(tmp_path)
    monkeypatch.setattr(os, "fsync", synced.append)
    for each in made[:6]:
        one.add([each])
        one.sync()
        now[0] += 0.4
    assert len(synced) == 1
    one.close()
    assert len(synced) == 2  # and at the end, whatever the time


def test_another_campaign_in_the_same_folder_is_refused(tmp_path, made):
    one = AttemptCache(tmp_path)
    with pytest.raises(InputError, match=r"attempts\.jsonl is being written by another"):
        AttemptCache(tmp_path)
    one.add(made)
    one.close()
    (tmp_path / "moves.jsonl").write_bytes(b"nonsense\n")
    for _ in range(2):  # the other file is let go
        with pytest.raises(EvidenceError, match=r"moves\.jsonl, line 1"):
            AttemptCache(tmp_path)
