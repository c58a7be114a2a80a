"""What every benchmark shares: a fair race, peak memory, the ratio's interval, and the rows (contract C9).

A benchmark prints its story to stderr and one JSON list of rows to stdout:

    .venv/bin/python benchmarks/WING_NAME.py            # full: intervals
    .venv/bin/python benchmarks/WING_NAME.py --quick    # within a minute: point ratios, low = high = None

A ratio is the peer's time over ours, so above 1 we are faster; for an absolute limit it is limit over
measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from calibrant import stats

Work = Callable[[], Any]


class Row(NamedTuple):
    """One line of the results; ``low`` and ``high`` are the 95 % interval, None after a quick run."""

    name: str
    target: float
    ratio: float
    low: float | None
    high: float | None
    equal: bool
    memory_ratio: float | None
    versions: dict[str, str]


def is_quick(about: str | None) -> bool:
    """Read the command line: whether ``--quick`` was asked for."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="point ratios within a minute")
    return bool(parser.parse_args().quick)


def say(text: str) -> None:
    """Tell the person who waits; stdout is kept for the rows."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def seconds(work: Work, clock: Callable[[], float] = time.perf_counter) -> float:
    """Wall-clock seconds of one call, with the garbage of earlier calls swept first."""
    gc.collect()
    start = clock()
    work()
    return clock() - start


def race(ours: Work, peers: Work, pairs: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Ratio of peer's seconds to ours in each of ``pairs`` rounds.

    Who goes first alternates, so that a machine that grows hotter or busier favours neither. Both are warm:
    a benchmark has run them to see that they agree.
    """
    ratios = []
    for number in range(pairs):
        if number % 2:
            theirs = seconds(peers, clock)
            ratios.append(theirs / seconds(ours, clock))
        else:
            mine = seconds(ours, clock)
            ratios.append(seconds(peers, clock) / mine)
    return ratios


def quickest(choices: Mapping[str, Work], rounds: int, clock: Callable[[], float] = time.perf_counter) -> str:
    """The peer's best: the choice with the least time over ``rounds`` rounds."""
    least = {name: min(seconds(work, clock) for _ in range(rounds)) for name, work in choices.items()}
    for name, took in least.items():
        say(f"  {name}: {took:.3f} s")
    return min(least, key=least.__getitem__)


def make_row(
    name: str, ratios: Sequence[float], *, equal: bool, memory_ratio: float | None = None, target: float = 1.0
) -> Row:
    """Geometric mean of the ratios; from five on with a bootstrap-t interval over them."""
    logs = [math.log(ratio) for ratio in ratios]
    found = stats.mean(logs, better="higher", unit="log ratio") if len(logs) >= 5 else None
    low, high = (_exp(found.low), _exp(found.high)) if found else (None, None)
    ratio = math.exp(math.fsum(logs) / len(logs))
    bounds = f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None else ""
    say(f"{name}: {ratio:.2f}{bounds}, target {target:g}")
    return Row(name, target, ratio, low, high, equal, memory_ratio, versions())


def versions() -> dict[str, str]:
    """Of whatever can move a time."""
    names = ("calibrant", "torch", "transformers")
    threads = str(torch.get_num_threads())
    return {name: version(name) for name in names} | {
        "python": platform.python_version(), "machine": platform.machine(), "threads": threads,
    }  # fmt: skip


def finish(rows: Sequence[Row]) -> None:
    """Print the rows as one JSON list: the last thing that a benchmark does."""
    sys.stdout.write(json.dumps([row._asdict() for row in rows], indent=1) + "\n")


def peak_bytes(work: Work) -> int:
    """Most bytes of tensors made during ``work`` that were alive at once.

    It follows tensors, not the process: the same on every run, and blind to what the allocator keeps and to
    the scratch space inside a kernel.
    """
    gc.collect()
    living = _Living()
    with living:
        work()
    return living.peak


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds the bytes of every new storage, takes them off when it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(s): s for s in map(_storage, tree_iter((args, kwargs)))}
        out = func(*args, **(kwargs or {}))
        for storage in map(_storage, tree_iter(out)):
            if storage is None or id(storage) in given or id(storage) in self._seen:
                continue
            size = storage.nbytes()
            self._seen.add(id(storage))
            weakref.finalize(storage, self._free, id(storage), size)
            self.now += size
            self.peak = max(self.peak, self.now)
        return out

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _storage(value: Any) -> torch.UntypedStorage | None:
    return value.untyped_storage() if isinstance(value, torch.Tensor) else None


def _exp(value: float | None) -> float | None:
    return None if value is None else math.exp(value)
