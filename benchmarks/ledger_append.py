"""The ledger against absolute limits: append of the 1,000th record in 20 ms, verify of 1,000 in 2 s.

The records are like those of the demo: three inputs, six metrics and a small artefact each. An append
counts with everything that makes it durable; a verification hashes every stored byte. The ratio is limit
over measured.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from _race import finish, is_quick, make_row, say, seconds

from calibrant.core import Estimate, Record
from calibrant.core.record import Artifact, Input, job_digest, result_digest
from calibrant.ledger import Ledger, verify

RECORDS = 1000
APPEND, VERIFY = 0.020, 2.0
"""Limits in seconds."""


def make_record(number: int, artifact: Artifact) -> Record:
    """A finished record of a make-believe technique."""
    config: dict[str, Any] = {"sampling": {"max_tokens": 64, "temperature": 0.0, "top_p": 1.0, "seed": 0}}
    part = {"weights": "a" * 64, "tokenizer": "b" * 64, "template": "c" * 64}
    inputs = {
        name: Input(reference=f"testbed:{name}", digest=name[0] * 64, kind="model", parts=part, name=name)
        for name in ("alder", "birch", "cedar")
    }
    metrics = {
        f"rate_{k}": Estimate(value=k / 7, low=k / 8, high=k / 6, n=100 + number, method="wilson")
        for k in range(1, 7)
    }
    digests = {name: found.digest for name, found in inputs.items()}
    return Record(
        technique="benchmark.append", version=1, status="finished", seed=number, config=config, inputs=inputs,
        metrics=metrics, artifacts=(artifact,), recorded_at="2026-01-01T00:00:00Z", seconds=1.0,
        job=job_digest("benchmark.append", 1, config, digests, number),
        result=result_digest(metrics, (artifact,)),
    )  # fmt: skip


def fill(root: Path, count: int) -> None:
    """A ledger of ``count`` records with an artefact each."""
    ledger, file = Ledger(root), root.with_suffix(".txt")
    for number in range(count):
        file.write_text(f"attempt {number}\n" * 40, encoding="utf-8")
        ledger.append(make_record(number, ledger.store(file, "attempts.jsonl")))


def main() -> None:
    """Fill a ledger, then time the last append on copies of it, and its verification."""
    rounds = 3 if is_quick(__doc__) else 20
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "ledger"
        fill(root, RECORDS - 1)
        last = make_record(RECORDS - 1, Ledger(root).entries()[0].record.artifacts[0])
        appended = []
        for number in range(rounds):
            copy = Path(folder) / f"copy_{number}"
            shutil.copytree(root, copy)
            appended.append(seconds(partial(Ledger(copy).append, last)))
            assert Ledger(copy).entries()[-1].record == last, "the record does not read back as written"
            shutil.rmtree(copy)
        Ledger(root).append(last)
        report = verify(root)
        assert report.verdict.answer == "yes" and report.records == RECORDS, report.verdict.reason
        verified = [seconds(partial(verify, root)) for _ in range(rounds)]
    say(f"slowest append {max(appended) * 1000:.1f} ms, slowest verification {max(verified):.2f} s")
    finish(
        [
            make_row(
                "ledger.append, 1,000th record within 20 ms", [APPEND / s for s in appended], equal=True
            ),
            make_row("ledger.verify, 1,000 records within 2 s", [VERIFY / s for s in verified], equal=True),
        ]
    )


if __name__ == "__main__":
    main()
