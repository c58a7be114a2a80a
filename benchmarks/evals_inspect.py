"""Inspect beside our native runner, our export, and our provider beside Inspect's own ``hf``: one tiny model.

1. The items of ``testbed:items/core``: ``measure.capability`` in full, and ``calibrant/capability`` under
   Inspect's ``eval`` on as many as it takes, without imports and opening the model. Each item must get the
   same mark. Inspect asks its own provider of local models, ``hf``; rows without a target lend it ours, or
   count CPU seconds in place of the clock's.
2. ``inspect_log`` of attempts, within 5 ms each: CPU seconds. Read back, every outcome must be the same.
3. One call after another, and 32 at once, of our provider and of ``hf`` in float32: wall-clock seconds, since
   ``hf`` waits more than it computes. Replies must be the same.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import torch
from _pace import peak
from _race import Row, finish, is_quick, make_row, say
from inspect_ai import eval as evaluate
from inspect_ai.model import ChatMessageUser, GenerateConfig, Model, get_model

import calibrant.app.inspect_registry  # noqa: F401 - the provider and the tasks
from calibrant.app.export import report_of
from calibrant.app.inspect_tasks import capability as task
from calibrant.app.references.openers import Openers
from calibrant.core import Attempt, Chat, Completion, OpenLM, Quiet, Verdict
from calibrant.core.attempt import attempt_id, outcome_of
from calibrant.data.rows import Attempts, Items
from calibrant.formats.eval_log import read_eval
from calibrant.formats.inspect_log import SCORE, inspect_log
from calibrant.ledger import Ledger
from calibrant.measure.capability import Capability, capability

NAME = "tiny"
ITEMS = "testbed:items/core"
EXPORT = 0.005
"""Limit: CPU seconds a sample."""


class Files(Quiet):
    """Keeps what the measurement writes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def artifact(self, name: str) -> Path:
        return self.root / name


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def wall(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def runners(folder: Path, model: OpenLM, theirs: Model, title: str, samples: int, rounds: int) -> list[Row]:
    """Native beside Inspect, in turn, a sample: by the clock and by CPU seconds."""
    items = Openers(Ledger(folder / "ledger")).open(ITEMS, Items).load()
    options: dict[str, Any] = {
        "display": "none",
        "log_dir": str(folder),
        "log_realtime": False,
        "limit": samples,
        "max_connections": samples,  # its best, here: hf takes them all in one batch
    }
    by_clock, by_cpu = [], []
    for number in range(rounds + 1):
        took, (clock, ours) = cpu(
            lambda: wall(lambda: capability(model, items, None, Capability(batch=len(items)), Files(folder)))
        )
        other, (clock_2, (log,)) = cpu(lambda: wall(lambda: evaluate(task(), model=theirs, **options)))
        assert log.status == "success" and log.samples is not None, log.error
        marks = {str(one.id): bool(one.scores["matched"].value) for one in log.samples if one.scores}
        assert len(marks) == samples and all(ours.correct[key] == value for key, value in marks.items())
        if number:  # the first is the warm-up
            by_clock.append((clock_2 / samples) / (clock / len(items)))
            by_cpu.append((other / samples) / (took / len(items)))
            say(f"  samples a second: native {len(items) / clock:,.0f}, Inspect {samples / clock_2:,.0f}")
            say(f"  samples a CPU second: native {len(items) / took:,.0f}, Inspect {samples / other:,.0f}")
    name = f"native runner against Inspect with {title}, {samples} samples"
    target = 50.0 if title == "hf" else 0.0
    return [
        make_row(name, by_clock, equal=True, target=target),
        make_row(f"{name}, CPU seconds", by_cpu, equal=True, target=0.0),
    ]


def export(count: int, rounds: int) -> Row:
    """CPU seconds a sample of writing a log."""
    attempts = []
    for n in range(count):
        completion = Completion(text=f"take the spoon to the garden {n}")
        said = Verdict(question="q", answer="yes" if n % 2 else "no")
        attempts.append(
            Attempt(
                id=attempt_id(f"g{n}", "plain", None, "t", 0),
                goal_id=f"g{n}",
                category="bias",
                attack="plain",
                chat=Chat.ask(f"how do i stir the pot {n}?"),
                completion=completion,
                verdicts={"judge": said},
                outcome=outcome_of(completion, said),
            )
        )
    report = report_of(Attempts(rows=tuple(attempts)), "t", reveal=True)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "x.eval"
        path.write_bytes(inspect_log(report))
        came = {row.metadata["attempt"]: row.values[SCORE] for row in read_eval(path).samples}
    assert came == {one.id: float(one.outcome == "success") for one in attempts}
    took = [cpu(lambda: inspect_log(report))[0] / count for _ in range(rounds)]
    say(f"  export: {1000 * min(took):.2f} ms a sample")
    return make_row(f"export of {count} attempts within 5 ms each", [EXPORT / s for s in took], equal=True)


def ask(model: Model, texts: Sequence[str], together: bool) -> list[str]:
    """Replies of one model to all texts."""
    found: dict[int, str] = {}
    config = GenerateConfig(max_tokens=12, max_connections=64)

    async def one(place: int) -> None:
        output: Any = await model.api.generate([ChatMessageUser(content=texts[place])], [], "none", config)
        found[place] = output.completion.strip()

    async def every() -> None:
        if not together:
            for place in range(len(texts)):
                await one(place)
            return
        async with anyio.create_task_group() as group:
            for place in range(len(texts)):
                group.start_soon(one, place)

    anyio.run(every)
    return [found[place] for place in range(len(texts))]


def providers(ours: Model, hf: Model, rounds: int) -> list[Row]:
    """Our provider beside ``hf``, on the same weights in float32."""
    rows = []
    for title, texts, together, target in (
        ("one call at a time", ["what is 2 plus 3?", "what does the wug eat?"], False, 20.0),
        ("32 calls at once", [f"what is {n % 9} plus {n // 9}?" for n in range(32)], True, 1.0),
    ):
        ratios = []
        for number in range(rounds + 1):
            took, mine = wall(partial(ask, ours, texts, together))
            other, theirs = wall(partial(ask, hf, texts, together))
            assert mine == theirs, (mine, theirs)
            if number:
                ratios.append(other / took)
                say(f"  {title}: ours {took:.3f} s, hf {other:.3f} s")
        rows.append(make_row(f"our provider against hf, {title}", ratios, equal=True, target=target))
    return rows


def main() -> None:
    """Runners, export, providers."""
    quick = is_quick(__doc__)
    os.environ["HF_HUB_OFFLINE"] = "1"  # hf asks the hub about a model in a folder, and waits
    torch.set_num_threads(1)  # a second thread that waits for a core would be charged for it
    rounds = 1 if quick else 6
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        native = Openers(Ledger(folder / "ledger")).open(f"testbed:model/{NAME}", OpenLM).load()
        native.save(folder / "model")
        place = str(folder / "model")
        ours = get_model(f"calibrant/{place}", ledger=str(folder / "ledger"))
        hf = get_model("hf/local", model_path=place, device="cpu", do_sample=False, memoize=False)
        samples = 60 if quick else 300
        rows = [
            *runners(folder, native, hf, "hf", samples, rounds),
            *runners(folder, native, ours, "our provider", samples, rounds),
            export(300 if quick else 1000, rounds),
            *providers(ours, hf, rounds),
        ]
    say(f"  peak memory of the process: {peak() / 2**20:,.0f} MiB")
    named = {"inspect-ai": version("inspect-ai")}
    finish([row._replace(versions=row.versions | named) for row in rows])


if __name__ == "__main__":
    main()
