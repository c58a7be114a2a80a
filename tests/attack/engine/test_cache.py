"""Where answers are written down: found again by key, cut lines taken off, damage named, memory flat."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc

import pytest

from calibrant.attack.engine import cache
from calibrant.attack.engine.cache import AttemptCache, Lines
from calibrant.core import Attempt, Completion, EvidenceError


def key(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def line(name, text=""):
    return json.dumps({"id": name, "text": text}, separators=(",", ":")).encode()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lines.jsonl"


def written(path, lines):
    path.write_bytes(b"".join(each + b"\n" for each in lines))
    return Lines(path)


def test_what_was_added_is_found_by_the_next_who_opens(path):
    first = Lines(path)
    assert len(first) == 0 and first.find(key(0)) is None
    places = first.add([line(key(n), "x" * n) for n in range(5)])
    places += first.add([line(key(5), "ö")])
    assert first.add([]) == []
    first.sync()
    first.close()
    again = Lines(path)
    assert len(again) == 6
    for number, place in enumerate(places):
        text = "ö" if number == 5 else "x" * number
        assert again.find(key(number)) == (place, line(key(number), text) + b"\n")
        assert again.read(place) == line(key(number), text) + b"\n"
    assert again.find(key(6)) is None
    again.close()


def test_another_process_sees_a_line_at_once(path):
    lines = Lines(path)
    lines.add([line(key(0))])
    assert path.read_bytes() == line(key(0)) + b"\n"  # neither synced nor closed
    lines.close()


def test_it_goes_on_at_the_end(path):
    held = [line(key(0)), line(key(1))]
    lines = written(path, held)
    (place,) = lines.add([line(key(2))])
    assert place == sum(len(each) + 1 for each in held)
    lines.close()
    assert path.read_bytes() == b"".join(each + b"\n" for each in [*held, line(key(2))])


@pytest.mark.parametrize("cut", [1, 30, 60])
def test_a_line_cut_short_is_taken_off(path, cut):
    whole, last = line(key(0)) + b"\n", line(key(1)) + b"\n"
    path.write_bytes(whole + last[:-cut])
    lines = Lines(path)
    assert path.read_bytes() == whole
    assert len(lines) == 1 and lines.find(key(1)) is None
    lines.add([line(key(2))])
    lines.close()
    assert path.read_bytes() == whole + line(key(2)) + b"\n"


@pytest.mark.parametrize("bad", [b"nonsense", b"", b'{"chat":1}', b'{"id":"no hex at all, not one digit"}'])
def test_a_damaged_line_is_named_with_its_place(path, bad):
    first = line(key(0))
    path.write_bytes(first + b"\n" + bad + b"\n" + line(key(1)) + b"\n")
    with pytest.raises(
        EvidenceError, match=rf"lines\.jsonl: the line at byte {len(first) + 1} cannot be read"
    ):
        Lines(path)


def test_of_two_lines_with_one_key_the_later_counts(path):
    lines = written(path, [line(key(0), "old"), line(key(1)), line(key(0), "new"), line(key(2))])
    place, found = lines.find(key(0))
    assert found == line(key(0), "new") + b"\n" == lines.read(place)
    lines.close()


def test_keys_that_begin_alike_are_told_apart(path):
    """Sixteen digits are kept in memory; the other 48 are read from the file."""
    alike = ["ab" * 8 + str(n) * 48 for n in range(4)]
    order = [alike[n] for n in (2, 0, 3, 1, 0)]
    lines = written(path, [line(key(9)), *(line(name, str(n)) for n, name in enumerate(order)), line(key(8))])
    assert [json.loads(lines.find(name)[1])["text"] for name in alike] == ["4", "3", "0", "2"]
    assert lines.find("ab" * 8 + "7" * 48) is None
    lines.close()


def test_the_largest_and_smallest_keys(path):
    names = ["f" * 64, "0" * 64]
    lines = written(path, [line(name) for name in names])
    assert all(lines.find(name) for name in names)
    lines.close()


# The store of a campaign.


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
    with pytest.raises(EvidenceError, match=r"attempts\.jsonl: the line at byte 0 cannot be read"):
        again.attempt(made[0].id)
    assert again.attempt(made[1].id)[1] == made[1]
    with pytest.raises(EvidenceError, match=r"moves\.jsonl: the line at byte 0 cannot be read"):
        again.move(key(0))
    again.close()


def test_the_disk_is_asked_at_most_once_a_second(tmp_path, made, monkeypatch):
    now, synced = [100.0], []
    monkeypatch.setattr(cache.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "fsync", synced.append)
    one = AttemptCache(tmp_path)
    for each in made[:6]:
        one.add([each])
        one.sync()
        now[0] += 0.4
    assert len(synced) == 1
    one.close()
    assert len(synced) == 2  # and at the end, whatever the time


def test_many_lines_are_found_by_one_read_each_with_flat_memory(tmp_path, goals, attempt, monkeypatch):
    count, some = 20_000, attempt(goals.rows[0], "failure")
    rest = some.model_dump_json(exclude={"id"})[1:]
    path = tmp_path / "attempts.jsonl"
    path.write_text("".join(f'{{"id":"{key(n)}",{rest}\n' for n in range(count)), encoding="utf-8")
    assert path.stat().st_size > 10_000_000
    reads, read = [], cache.Lines.read
    monkeypatch.setattr(cache.Lines, "read", lambda lines, place: reads.append(place) or read(lines, place))
    one = AttemptCache(tmp_path)
    assert one.held == count and not reads  # opening reads keys alone
    assert all(one.attempt(key(n)) for n in range(0, count, 100))
    one.close()
    assert len(reads) == count / 100
    tracemalloc.start()
    one = AttemptCache(tmp_path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one.close()
    assert held < 20 * count  # 16 bytes an attempt, and some buffers
    assert peak < 4_000_000
