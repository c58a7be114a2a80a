"""Our side of ``attack_campaign.py``: a campaign on a scripted target, its attempts on disk, its rates.

A job is ``{"n": attempts, "latency": seconds a reply, "parallel": connections, "folder": where they go}``;
with ``"held": true`` the attempts of the first call stay, so that a second call resumes them.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from _pace import Pace, read_job

from calibrant.attack.campaign import Campaign, campaign
from calibrant.core import LM, Chat, Completion, Goal, Identity, Quiet, Sampling
from calibrant.data.rows import Goals
from calibrant.measure.judges.rule import RuleJudge, rule_judge

VARIANTS = 10
"""Personas: attempts on each goal."""
PERSONAS = {f"voice{number}": f"voice {number} says: {{request}}" for number in range(VARIANTS)}


class Scripted:
    """Answers every second prompt, after a while."""

    identity = Identity(name="scripted", parts={"script": "every second"})

    def __init__(self, latency: float, parallel: int) -> None:
        self._latency, self._pool = latency, ThreadPoolExecutor(parallel)

    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
        return list(self._pool.map(self._one, chats)) if self._latency else list(map(self._one, chats))

    def _one(self, chat: Chat) -> Completion:
        if self._latency:
            time.sleep(self._latency)
        number = int(chat.last_user.rpartition(" ")[2])
        return Completion(text="it is brewed" if number % 2 else "no")


def main() -> None:
    """Attack once a line on stdin, the first time unasked."""
    job = read_job()
    goals = Goals(
        rows=tuple(
            Goal(id=f"g{n}", text=f"brew potion {n}", category="potions") for n in range(job["n"] // VARIANTS)
        )
    )
    target: LM = Scripted(job["latency"], job["parallel"])
    judge = rule_judge(RuleJudge(exact=("brewed",)))
    config = Campaign.model_validate(
        {"attacks": [{"use": "attack.persona", "config": {"personas": PERSONAS}}]}
    )
    pace, folder = Pace(0, 0), Path(job["folder"])
    while True:
        start = time.perf_counter(), time.process_time()
        result = campaign(target, goals, judge, config=config, run=Quiet(0, folder))
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        stored = sum(1 for _ in (folder / "artifacts" / "attempts.jsonl").open("rb"))
        share = result.metrics["attempt_success_rate"].value or 0.0
        pace.tell(attempts=stored, hits=round(share * stored), took=wall, cpu=cpu)
        if not job.get("held"):
            shutil.rmtree(folder)
        if not sys.stdin.readline():
            return


if __name__ == "__main__":
    main()
