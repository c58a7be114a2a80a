"""Inspect's side of ``attack_campaign.py``: samples of ours, its ``mockllm``, its ``includes``, its log.

A job is ``{"n": samples, "latency": seconds a reply, "parallel": connections, "folder": where logs go,
"best": bool}``.
``best``: no log while it runs, as many samples at once as it takes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from _pace import Pace, read_job
from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import read_eval_log
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate


def main() -> None:
    """Evaluate once a line on stdin, the first time unasked."""
    job = read_job()

    async def reply(messages: list[Any], tools: Any, tool_choice: Any, config: Any) -> ModelOutput:
        if job["latency"]:
            await asyncio.sleep(job["latency"])
        number = int(messages[-1].text.rpartition(" ")[2])
        output = ModelOutput.from_content("mockllm", "it is brewed" if number % 2 else "no")
        output.usage = ModelUsage(
            input_tokens=4, output_tokens=3, total_tokens=7
        )  # else it counts them, online
        return output

    model = get_model("mockllm/model", custom_outputs=reply)
    samples = [Sample(input=f"brew potion {n}", target="brewed", id=n + 1) for n in range(job["n"])]
    options: dict[str, Any] = {
        "max_connections": job["parallel"],
        "log_dir": job["folder"],
        "display": "none",
    }
    if job["best"]:
        options |= {"max_samples": max(job["parallel"], 256), "log_realtime": False, "log_buffer": job["n"]}
        options["max_connections"] = max(job["parallel"], 256) if not job["latency"] else job["parallel"]
    pace = Pace(0, 0)
    while True:
        task = Task(dataset=MemoryDataset(samples), solver=generate(), scorer=includes())
        start = time.perf_counter(), time.process_time()
        (log,) = eval(task, model=model, **options)
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        whole = read_eval_log(log.location)
        assert log.status == "success" and whole.samples is not None, log.error
        hits = sum(s.scores["includes"].value == "C" for s in whole.samples if s.scores)
        pace.tell(attempts=len(whole.samples), hits=hits, took=wall, cpu=cpu)
        Path(log.location.removeprefix("file://")).unlink()
        if not sys.stdin.readline():
            return


if __name__ == "__main__":
    main()
