"""Campaigns against garak and Inspect: attempts a second on a scripted target, its replies judged and stored.

Each side attacks with as many prompts as it takes to be measured well; equal share of hits is asserted, and
what is compared is seconds an attempt. Without latency those are CPU seconds of the process (one thread);
with 50 ms a reply they are wall-clock seconds, at equal concurrency. Imports and set-up are outside the
clock, the last writing of results inside. garak runs its own harness, evaluator and report; Inspect runs
``eval`` with its log, at its defaults and at its best (no log while it runs, more samples at once).

Then the store: 100,000 attempts resumed within 10 s, and the most memory at 100,000 over that at 10,000.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from _race import Row, finish, is_quick, make_row, say
from _train_peer import Worker, in_turn, peer_python, peer_version

OURS = 20_000
RESUME, GROWTH = 10.0, 1.5
"""Limits: seconds, and times the memory of a tenth."""


class Peer(NamedTuple):
    """Another tool, and how much it is given."""

    title: str
    script: str
    attempts: int
    latency: float
    parallel: int
    target: float
    best: bool = True


PEERS = (
    Peer("garak", "_worker_garak.py", 2000, 0.0, 1, 20.0),
    Peer("Inspect, its defaults", "_worker_inspect.py", 300, 0.0, 10, 20.0, best=False),
    Peer("Inspect, its best", "_worker_inspect.py", 300, 0.0, 10, 20.0),
    Peer("garak, 50 ms a reply, 16 at once", "_worker_garak.py", 640, 0.05, 16, 0.0),
    Peer("Inspect, 50 ms a reply, 16 at once", "_worker_inspect.py", 640, 0.05, 16, 0.0),
)


def race(peer: Peer, folder: Path, rounds: int) -> Row:
    """Take turns, and compare seconds an attempt."""
    shared = {"latency": peer.latency, "parallel": peer.parallel, "best": peer.best}
    mine = shared | {"n": peer.attempts if peer.latency else OURS, "folder": str(folder / "ours")}
    theirs = shared | {"n": peer.attempts, "folder": str(folder / "theirs")}
    python = peer_python("garak") if "garak" in peer.script else Path(sys.executable)
    with (
        Worker(Path(sys.executable), "_worker_campaign.py", mine, folder / "a") as one,
        Worker(python, peer.script, theirs, folder / "b") as two,
    ):
        told = in_turn(([one.next()], [two.next()]), (one, two), rounds)
    clock = "took" if peer.latency else "cpu"
    each: list[list[float]] = []
    for side, job in zip(told, (mine, theirs), strict=True):
        assert all(block["attempts"] == job["n"] for block in side), f"{peer.title}: attempts are missing"
        assert all(2 * block["hits"] == job["n"] for block in side), f"{peer.title}: other hits"
        each.append([block[clock] / job["n"] for block in side[1:]])
    say(f"  attempts a second: ours {1 / min(each[0]):,.0f}, peer {1 / min(each[1]):,.0f}")
    ratios = [b / a for a, b in zip(*each, strict=True)]
    memory = told[1][-1]["peak"] / told[0][-1]["peak"]
    row = make_row(
        f"campaign against {peer.title}", ratios, equal=True, memory_ratio=memory, target=peer.target
    )
    name = "garak" if "garak" in peer.script else "inspect-ai"
    return row._replace(versions=row.versions | {name: _version(name)})


def _version(name: str) -> str:
    if name == "garak":
        return peer_version("garak", "garak")
    return version(name)


def stored(folder: Path, attempts: int, rounds: int) -> tuple[list[float], int]:
    """Seconds of each resumption of so many attempts, and the most memory that a process held."""
    job: dict[str, Any] = {"latency": 0.0, "parallel": 1, "held": True, "n": attempts}
    with Worker(
        Path(sys.executable), "_worker_campaign.py", job | {"folder": str(folder / "held")}, folder
    ) as one:
        first = one.next()
        assert first["attempts"] == attempts, "attempts are missing"
        told = [one.next() for _ in range(rounds)]
    assert all(block["attempts"] == attempts and block["hits"] == first["hits"] for block in told)
    say(f"  {attempts:,} attempts: stored in {first['took']:.1f} s, resumed in {told[0]['took']:.1f} s")
    return [block["took"] for block in told], int(told[-1]["peak"])


def main() -> None:
    """Race, then resume."""
    quick = is_quick(__doc__)
    rounds = 1 if quick else 10
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = [
            race(peer, folder / str(number), rounds)
            for number, peer in enumerate(PEERS[:3] if quick else PEERS)
        ]
        many = 20_000 if quick else 100_000
        took, peak = stored(folder / "many", many, rounds)
        _, small = stored(folder / "few", many // 10, 1)
    rows.append(make_row(f"resume {many:,} attempts within 10 s", [RESUME / s for s in took], equal=True))
    title = f"memory at {many:,} attempts within 1.5 of that at {many // 10:,}"
    ratio = GROWTH * small / peak  # one measurement a process: no spread to speak of
    row = make_row(title, [ratio], equal=True)
    rows.append(row if quick else row._replace(low=ratio, high=ratio))
    finish(rows)


if __name__ == "__main__":
    main()
