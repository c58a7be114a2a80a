"""Progress: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import io

import pytest

from calibrant.cli import progress
from calibrant.cli.progress import Shown


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_one_line_a_minute_with_the_time_left(clock):
    stream = io.StringIO()
    with Shown(stream) as shown:
        for done in range(1, 131):
            clock[0] += 1
            shown("dpo", done, 200, "loss 0.1")
    first, second = stream.getvalue().splitlines()
    assert first.startswith("dpo: 60/200 loss 0.1 (about ") and second.startswith("dpo: 120/200")
    # 59 s for 59 further steps after the first; 140 are left.
    assert "(about 140 s left)" in first


def test_the_next_seed_of_a_job_starts_its_own_clock(clock):
    stream = io.StringIO()
    with Shown(stream) as shown:
        for _ in range(2):
            for done in range(1, 201):
                clock[0] += 0.1 if done < 200 else 1000
                shown("trunk", done, 200, "")
        for done in range(1, 101):
            clock[0] += 0.8
            shown("trunk", done, 200, "")
    assert stream.getvalue().splitlines()[-1].startswith("trunk: ")
    left = int(stream.getvalue().splitlines()[-1].partition("about ")[2].split()[0])
    assert left < 160


def test_nothing_is_said_in_the_first_minute(clock):
    stream = io.StringIO()
    with Shown(stream) as shown:
        clock[0] += 59
        shown("dpo", 0, 10, "")
    assert stream.getvalue() == ""


def test_nothing_done_yet_is_no_division_by_zero(clock):
    stream = io.StringIO()
    with Shown(stream) as shown:
        clock[0] += 61
        shown("dpo", 0, 10, "")
    assert "dpo: 0/10" in stream.getvalue()


def test_a_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Shown(stream) as shown:
        shown("sft", 1, 4, "loss 2")
        shown("dpo", 2, 4, "loss 1")
        shown._bar.refresh()
    assert "dpo" in stream.getvalue()
