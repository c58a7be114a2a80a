"""Mutants at every reader: an answer or an error of ours, in time, with work in proportion to the input.

CALIBRANT_FUZZ=1000000 pytest -m slow tests/fuzz -k mutants    # in full: about ten minutes of one core
"""

from __future__ import annotations

import os
import random
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from fuzz_mutants import mutant
from fuzz_readers import READERS

from calibrant.core import CalibrantError

FEW = 4
"""Mutants a reader in every run of the suite; CALIBRANT_FUZZ says how many there are in all in a slow one."""
MANY = int(os.environ.get("CALIBRANT_FUZZ", "6000"))
HANGS = 60
NOTHING_THERE = ("stack references", "foreign references", "votes references", "label references")
"""Their seeds name what is not there; such files have readers of their own here."""


class Hang(BaseException):
    """Raised by the watchdog; no broad handler takes it for a fault of the input."""


@contextmanager
def watchdog() -> Iterator[None]:
    """Raise ``Hang`` in what takes more than a minute, where a line is a matter of milliseconds."""

    def bark(number: int, frame: FrameType | None) -> None:
        raise Hang(f"still at it after {HANGS} s")

    before = signal.signal(signal.SIGALRM, bark)
    signal.setitimer(signal.ITIMER_REAL, HANGS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(name: str, data: bytes, room: Path) -> BaseException | None:
    """What a reader raised that is no error of ours; None where it did what it should."""
    try:
        with watchdog(), warnings.catch_warnings():
            warnings.simplefilter("error")
            READERS[name].read(data, room)
    except CalibrantError as error:
        return None if str(error) else error
    except (Hang, Exception) as error:  # noqa: BLE001  # whatever it is, it is told
        return error
    return None


@pytest.mark.parametrize("name", READERS)
def test_the_seeds_are_read(name: str, tmp_path: Path) -> None:
    """A fuzzer whose seeds are refused tries nothing but the refusal."""
    taken = 0
    for seed in READERS[name].seeds:
        try:
            READERS[name].read(seed, tmp_path)
            taken += 1
        except CalibrantError:
            pass
    assert taken or name in NOTHING_THERE


@pytest.mark.parametrize("name", READERS)
def test_a_few_mutants(name: str, tmp_path: Path) -> None:
    assert tried(name, FEW, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_mutants(name: str, tmp_path: Path) -> None:
    assert tried(name, -(-MANY // len(READERS)), tmp_path) == []


def tried(name: str, times: int, room: Path) -> list[tuple[str, bytes]]:
    """Each class of fault once, with a mutant that shows it."""
    rng = random.Random(f"{os.environ.get('CALIBRANT_FUZZ_SEED', '0')}/{name}")
    found: dict[str, tuple[str, bytes]] = {}
    for _ in range(times):
        data = mutant(rng.choice(READERS[name].seeds), rng)
        error = outcome(name, data, room)
        if error is not None:
            found.setdefault(type(error).__name__, (repr(error)[:300], data[:1000]))
    return list(found.values())


def test_the_fuzzer_finds_what_is_planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes, room: Path) -> object:
        return int(data.decode("latin-1").split(":")[1])  # ValueError and IndexError, for nearly every mutant

    planted = READERS["judge card"]._replace(read=broken)
    monkeypatch.setitem(READERS, "judge card", planted)
    assert len(tried("judge card", 20, tmp_path)) >= 1
    monkeypatch.setitem(READERS, "judge card", planted._replace(read=lambda data, room: sleepless()))
    monkeypatch.setitem(globals(), "HANGS", 0.2)
    [(said, _)] = tried("judge card", 1, tmp_path)
    assert "Hang" in said


def sleepless() -> Any:
    while True:
        pass
