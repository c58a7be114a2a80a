"""nanoGCG as a worker: run by ``.peers/nanogcg/bin/python``, reads a job, searches, tells losses and costs.

    .peers/nanogcg/bin/python benchmarks/_worker_nanogcg.py JOB.json

The job: ``model`` (a folder), ``tasks`` (a list of ``message``, ``target``, ``seed``), ``options`` (of
nanoGCG's config), ``warm`` and ``block`` (steps between stops; 0 never stops), ``core``, and optionally
``save`` (a file for what the first task saw, as arrays). Told at the end of each task: ``ids`` at the start
of each step, ``string``, ``best``, and ``all`` losses. Nothing of nanoGCG is replaced: its functions are
listened to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nanogcg
import numpy as np
import torch
from _pace import Pace, read_job
from nanogcg import gcg
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


class Listener:
    """Hears what goes through nanoGCG's functions."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.heard: dict[str, list[Any]] = {}
        self.sample, self.filter = gcg.sample_ids_from_grad, gcg.filter_ids
        self.score = gcg.GCG._compute_candidates_loss_original
        gcg.sample_ids_from_grad, gcg.filter_ids = self.sampled, self.filtered
        listener = self

        # nanoGCG looks at the names of the parameters.
        def scored(searcher: Any, search_batch_size: int, input_embeds: Any) -> Any:
            found = listener.score(searcher, search_batch_size, input_embeds)
            listener.note("losses", found)
            return found

        gcg.GCG._compute_candidates_loss_original = scored
        gcg.tqdm = self.steps

    def note(self, name: str, value: Any) -> None:
        self.heard.setdefault(name, []).append(value.detach().clone())

    def sampled(self, ids: Any, grad: Any, *args: Any, **kwargs: Any) -> Any:
        self.note("ids", ids)
        if len(self.heard["ids"]) == 1:
            self.note("gradient", grad)
        found = self.sample(ids, grad, *args, **kwargs)
        self.note("candidates", found)
        return found

    def filtered(self, *args: Any) -> Any:
        found = self.filter(*args)
        self.note("kept", found)
        return found

    def steps(self, steps: Iterable[int]) -> Iterator[int]:
        for step in steps:
            yield step
            self.pace.step(float(self.heard["losses"][-1].min()))


def open_tokenizer(folder: Path) -> Any:
    """The saved tokenizer: this transformers does not know the class that a newer one has written."""
    named = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = {key: value for key, value in named.items() if key.endswith("_token") and isinstance(value, str)}
    path = str(folder / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=path, **tokens)  # type: ignore[no-untyped-call]
    template = folder / "chat_template.jinja"
    if template.exists():
        tokenizer.chat_template = template.read_text()
    return tokenizer


def main() -> None:
    """Search as the job says."""
    job = read_job()
    pace = Pace(job["warm"], job["block"])
    folder = Path(job["model"])
    model = LlamaForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    model.eval()  # type: ignore[no-untyped-call]
    tokenizer = open_tokenizer(folder)
    listener = Listener(pace)
    for number, task in enumerate(job["tasks"]):
        listener.heard = {}
        config = nanogcg.GCGConfig(seed=task["seed"], verbosity="ERROR", **job["options"])
        found = nanogcg.run(model, tokenizer, task["message"], task["target"], config)
        if number == 0 and job.get("save"):
            arrays = {
                f"{name} {step}": value.numpy()
                for name, values in listener.heard.items()
                for step, value in enumerate(values)
            }
            np.savez(job["save"], **arrays)
        ids = [row.tolist() for row in listener.heard["ids"]]
        pace.tell(ids=ids, string=found.best_string, best=found.best_loss, all=found.losses)


if __name__ == "__main__":
    main()
