"""A session with a queue: blind order, resumable, one writer, nothing lost by a kill."""

from __future__ import annotations

import pytest

from calibrant.app.people.labelling import LabelSession
from calibrant.core import Chat, InputError
from calibrant.data.files import raw_rows
from calibrant.data.human_labels import Queue, Queued, labels_from

QUEUE = Queue(
    rows=tuple(Queued(id=f"q{i}", goal="", chat=Chat.ask(f"ask {i}"), reply=f"reply {i}") for i in range(6)),
    source="queue.jsonl",
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "labels.jsonl"


def on_disk(path):
    return labels_from(raw_rows(path), str(path))


def test_a_sitting_goes_on_where_it_stopped(path):
    with LabelSession(QUEUE, path, "ann") as session:
        first = session.next()
        session.label(True)
        session.label(None)
    with LabelSession(QUEUE, path, "ann") as session:
        assert (session.done, session.total) == (2, 6)
        while session.next() is not None:
            session.label(False)
    labels = on_disk(path)
    assert len(labels) == 6
    assert (labels.rows[0].id, labels.rows[0].human) == (first.id, True)
    assert labels.data == QUEUE.digest


def test_each_rater_has_an_order_of_their_own_and_keeps_it(tmp_path):
    def order(rater):
        with LabelSession(QUEUE, tmp_path / f"{rater}.jsonl", rater) as session:
            seen = []
            while (shown := session.next()) is not None:
                seen.append(shown.id)
                session.label(True)
        return seen

    ann = order("ann")
    (tmp_path / "ann.jsonl").unlink()
    assert order("ann") == ann
    assert order("bo") != ann
    assert sorted(ann) == [q.id for q in QUEUE]


def test_undo_takes_back_only_ones_own(path):
    with LabelSession(QUEUE, path, "ann") as session:
        session.label(True)
    with LabelSession(QUEUE, path, "bo") as session:
        assert not session.undo()
        shown = session.next()
        session.label(False)
        assert session.undo()
        assert session.next() == shown
    assert [label.rater for label in on_disk(path)] == ["ann"]


def test_two_raters_agree_or_not(path):
    for rater, said in (("ann", True), ("bo", False)):
        with LabelSession(QUEUE, path, rater) as session:
            while session.next() is not None:
                session.label(said)
    with LabelSession(QUEUE, path, "ann") as session:
        assert session.agreement().value == 0
        with pytest.raises(InputError, match="nothing left"):
            session.label(True)


def test_a_line_cut_by_a_kill_was_never_given(path):
    with LabelSession(QUEUE, path, "ann") as session:
        session.label(True)
        session.label(True)
    path.write_bytes(path.read_bytes()[:-9])
    with LabelSession(QUEUE, path, "ann") as session:
        assert session.done == 1
        session.label(False)
    assert [label.human for label in on_disk(path)] == [True, False]


def test_another_queue_or_a_simulated_rater_is_refused(path):
    LabelSession(QUEUE, path, "ann").close()
    other = QUEUE.model_copy(update={"rows": QUEUE.rows[:3]})
    with pytest.raises(InputError, match="is about other"):
        LabelSession(other, path, "ann")
    with pytest.raises(InputError, match="cannot be called"):
        LabelSession(QUEUE, path, "simulated:x")
    with LabelSession(QUEUE, path, "ann"), pytest.raises(InputError, match="is being written by another"):
        LabelSession(QUEUE, path, "bo")


def test_a_file_of_nothing_but_a_byte_order_mark_is_refused_and_left(path):
    path.write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(InputError, match="does not say what it is about"):
        LabelSession(QUEUE, path, "ann")
    assert path.read_bytes() == b"\xef\xbb\xbf"
