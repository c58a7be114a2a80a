"""TensorBoard event files of the logs of jobs: ``calibrant run STUDY --tensorboard DIR``.

One folder a job and seed. The ledger does not need them, and they may be deleted at any time. Loaded through
the catalogue, since it needs torch and the extra ``tensorboard``.
"""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from calibrant.core import Job


class Board:
    """Event files of one job."""

    def __init__(self, folder: Path, job: Job) -> None:
        self._folder = folder / job.id / f"seed{job.seed}"
        self._writer: SummaryWriter | None = None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add scalars. The first step hides what an earlier, killed try wrote from there on."""
        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Finish the files."""
        if self._writer is not None:
            self._writer.close()
