"""What a job logs, as TensorBoard reads it."""

from __future__ import annotations

import warnings

from calibrant.app.study import run_study
from calibrant.app.study_file import load_study
from calibrant.ledger import Ledger

STUDY = """
name = "board"
[[job]]
id = "sft"
use = "train.sft"
seeds = [0, 1]
inputs = { model = "testbed:model/tiny", examples = "testbed:pairs/tone[:32]" }
"""


def test_event_files_hold_what_the_log_holds(tmp_path):
    with warnings.catch_warnings():  # TensorBoard's reader is of another time
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "board.toml").write_text(STUDY)
    ledger = Ledger(tmp_path / "ledger")
    outcome = run_study(load_study(str(tmp_path / "board.toml"), []), ledger, board=tmp_path / "events")
    for job, entry in outcome.runs:
        held = EventAccumulator(str(tmp_path / "events" / "sft" / f"seed{job.seed}"))
        held.Reload()
        loss = [event.value for event in held.Scalars("loss")]
        log = next(a for a in entry.record.artifacts if a.name == "log.jsonl")
        assert len(loss) == len(ledger.open(log).read_text().splitlines()) == 2
        assert abs(loss[0] - entry.record.metrics["loss_first"].value) < 1e-6
