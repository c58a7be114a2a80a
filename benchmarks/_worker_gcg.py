"""Our GCG as a worker, as ``_worker_nanogcg.py`` is for nanoGCG: reads a job, searches, tells its costs.

    .venv/bin/python benchmarks/_worker_gcg.py JOB.json

The job: ``model``, ``tasks``, ``config`` (of ``attack.gcg``), ``warm``, ``block`` and ``core``.
"""

from __future__ import annotations

import torch
from _pace import Pace, read_job

from calibrant.attack.gcg import GCG
from calibrant.attack.suffix.search import Search, found, over
from calibrant.core import Chat
from calibrant.models.open_model import OpenModel


def main() -> None:
    """Search as the job says."""
    job = read_job()
    pace = Pace(job["warm"], job["block"])
    model, config = OpenModel.from_folder(job["model"]), GCG(**job["config"])
    for task in job["tasks"]:
        generator = torch.Generator().manual_seed(task["seed"])
        search = Search(model, Chat.ask(task["message"]), task["target"], config)
        state, ids = search.begin(generator), []
        while not over(state, config):
            ids.append(list(state.ids))
            state = search.step(state, generator)
            pace.step(state.losses[-1])
        best = found(search.slot, state)
        pace.tell(ids=ids, string=best.text, best=best.loss, all=list(state.losses))


if __name__ == "__main__":
    main()
