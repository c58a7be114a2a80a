"""TRL's trainers as a worker: run by ``.peers/trl/bin/python``, reads a job, trains, tells losses and costs.

    .peers/trl/bin/python benchmarks/_worker_trl.py JOB.json

The job: ``technique`` ("dpo", "kto", "reward"), ``model`` (a folder), ``rows`` (JSON lines in TRL's
conversational form, in the order of training), ``options`` (of TRL's config), ``warm`` and ``block`` (steps
between stops), ``core``, and optionally ``save`` (a folder for the trained weights). Nothing of Calibrant is
imported.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from _pace import Pace, read_job
from datasets import Dataset, disable_caching, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer

TRAINERS: dict[str, tuple[Any, Any, Any]] = {
    "dpo": (DPOTrainer, DPOConfig, AutoModelForCausalLM),
    "kto": (KTOTrainer, KTOConfig, AutoModelForCausalLM),
    "reward": (RewardTrainer, RewardConfig, AutoModelForSequenceClassification),
}
ALWAYS = {
    "num_train_epochs": 1,
    "report_to": "none",
    "save_strategy": "no",
    "lr_scheduler_type": "constant",
    "use_cpu": True,
}
"""Whatever the setting: one pass in the order given, no files."""


def paced(base: Any, pace: Pace) -> Any:
    """The trainer class ``base`` that tells ``pace`` of its steps and of its reference pass."""

    class Paced(base):  # type: ignore[misc]
        seen: Any = None

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.seen = super().compute_loss(*args, **kwargs)
            return self.seen

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            with pace.setup():
                return super()._precompute_ref_logps(*args, **kwargs)

    Paced.__name__ = base.__name__
    return Paced


class Steps(TrainerCallback):
    """Passes the end of each optimiser step on."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.trainer: Any = None

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.pace.step(float(self.trainer.seen.detach()))


def main() -> None:
    """Train as the job says."""
    job = read_job()
    pace = Pace(job["warm"], job["block"])
    disable_caching()
    trainer_class, config_class, auto = TRAINERS[job["technique"]]
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    shape = {"num_labels": 1} if job["technique"] == "reward" else {}
    with tempfile.TemporaryDirectory() as folder:
        model = auto.from_pretrained(job["model"], dtype=torch.float32, **shape)
        rows: Dataset = load_dataset("json", data_files=job["rows"], split="train", cache_dir=folder)
        steps = Steps(pace)
        trainer = paced(trainer_class, pace)(
            model=model,
            args=config_class(output_dir=folder, **ALWAYS | job["options"]),
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[steps],
        )
        steps.trainer = trainer
        trainer.train()
        if job.get("save"):
            model.save_pretrained(job["save"])
        pace.tell(history=[row for row in trainer.state.log_history if "loss" in row])


if __name__ == "__main__":
    main()
