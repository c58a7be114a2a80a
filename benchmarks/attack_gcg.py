"""attack.gcg against nanoGCG 0.3.0: one step of the search, on one trajectory.

Llamas with random weights, a suffix of 20 tokens, a reply of 13, one pinned core, one thread. Ours runs in
its exact mode, so both sides take the same steps: every loss of every step must agree to 1e-5. nanoGCG runs
in two ways:

- *default*: all 512 candidates in one batch;
- *best*: the batch size, of three, that takes it the least time here.

In its environment it has the transformers that it needs (4.47.1). 41 million parameters have no target.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from _gcg_peer import save_model, text
from _race import Row, finish, is_quick, say
from _train_peer import Told, Worker, agree, core, in_turn, peer_python, peer_version, versus
from transformers import AutoTokenizer

TOLERANCE = 1e-5
"""Most difference of any two losses, in nats: sums in another order."""
START, REPLY = " x" * 20, 13
BATCHES = (32, 64, 128)
WARM, ROUNDS = 1, 6
"""Steps before the clock, and steps on it; a quick race has 1 and 1."""


class Course(NamedTuple):
    """What both sides search on."""

    shape: str
    """Of the model."""
    prefix: int
    """Tokens before the suffix."""
    width: int
    """Candidates in a step."""
    target: float
    """Ratio to reach against the best; 0 where there is none."""
    default: bool
    """Whether to race the peer's default, too."""


COURSES = (
    Course("11M", 70, 512, 2.0, True),
    Course("11M", 400, 512, 1.4, True),
    Course("41M", 70, 128, 0.0, False),
)


class Race:
    """The workers of one course."""

    def __init__(self, course: Course, model: Path, folder: Path, pinned: int | None) -> None:
        """``model``: a folder that both open; ``folder``: for the workers' files."""
        tokenizer: Any = AutoTokenizer.from_pretrained(model)
        message = text(tokenizer, course.prefix - 1, seed=1)  # the template puts <user> before it
        task = {"message": message, "target": text(tokenizer, REPLY, seed=2), "seed": 0}
        self.course, self.folder = course, folder
        self.job: dict[str, Any] = {"model": str(model), "tasks": [task], "block": 1, "core": pinned}

    def ours(self, warm: int, rounds: int) -> Worker:
        """Our search."""
        config = {"suffix": START, "width": self.course.width, "steps": warm + rounds}
        job = self.job | {"warm": warm, "config": config | {"exact": True, "stop": False}}
        return Worker(Path(sys.executable), "_worker_gcg.py", job, self.folder / "ours")

    def peer(self, warm: int, rounds: int, batch: int | None) -> Worker:
        """nanoGCG with a batch size; None is its default."""
        options = {"optim_str_init": START, "search_width": self.course.width, "num_steps": warm + rounds}
        job = self.job | {"warm": warm, "options": options | {"batch_size": batch}}
        return Worker(peer_python("nanogcg"), "_worker_nanogcg.py", job, self.folder / f"peer {batch}")

    def quickest(self) -> int:
        """The batch size with which a step takes nanoGCG the least CPU time."""
        took = {}
        for batch in BATCHES:
            with self.peer(1, 2, batch) as worker:
                worker.next()
                took[batch] = worker.next()["seconds"]
            say(f"  nanoGCG in batches of {batch}: {took[batch]:.2f} s a step")
        return min(took, key=took.__getitem__)

    def run(self, batch: int | None, warm: int, rounds: int) -> Row:
        """Both in turn, step by step."""
        course, how = self.course, "default" if batch is None else f"best (batches of {batch})"
        name = f"attack.gcg, {course.shape}, prefix {course.prefix}, {course.width} candidates, "
        name += f"against nanoGCG's {how}"
        with ExitStack() as stack:
            workers = (
                stack.enter_context(self.ours(warm, rounds)),
                stack.enter_context(self.peer(warm, rounds, batch)),
            )
            start: list[list[Told]] = [[worker.next()] for worker in workers]
            agree(name, start[0][0], start[1][0], TOLERANCE)
            mine, theirs = in_turn(start, workers, rounds)
            for one, other in zip(mine, theirs, strict=True):
                agree(name, one, other, TOLERANCE)
        row = versus(name, mine, theirs, warm + rounds, course.target)
        return row._replace(versions=row.versions | {"nanogcg": peer_version("nanogcg", "nanogcg")})


def main() -> None:
    """Race every course."""
    quick = is_quick(__doc__)
    warm, rounds = (1, 1) if quick else (WARM, ROUNDS)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        models = dict[str, Path]()
        for number, course in enumerate(COURSES[: 2 if quick else None]):
            if course.shape not in models:
                models[course.shape] = save_model(Path(temporary) / course.shape, course.shape)
            course = course._replace(width=64) if quick else course
            folder = Path(temporary) / str(number)
            race = Race(course, models[course.shape], folder, None if quick else core())
            rows.append(race.run(64 if quick else race.quickest(), warm, rounds))
            if course.default and not quick:
                rows.append(race.run(None, warm, rounds))
    finish(rows)


if __name__ == "__main__":
    main()
