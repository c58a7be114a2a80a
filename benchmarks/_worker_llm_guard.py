"""LLM Guard's side of the race of guards by rule: scans a job's texts, tells verdicts. See ``_pace.py``."""

from __future__ import annotations

from typing import Any

from _pace import Pace, read_job
from llm_guard import scan_prompt
from llm_guard.input_scanners import BanSubstrings, InvisibleText, Regex
from llm_guard.util import configure_logger


def main() -> None:
    """Scan every text once a round."""
    job = read_job()
    configure_logger("ERROR")  # its default writes a line for each scan
    patterns = Regex([rf"(?i)\b{rule}(?:s|ing)?\b" for rule in job["rules"]])
    words = BanSubstrings(job["rules"], match_type="word")
    alone: dict[str, Any] = {"patterns": patterns, "patterns as written": patterns, "words": words}
    pace = Pace(1, 1)
    for _ in range(job["rounds"]):
        if job["way"] == "stack":
            scanners = [InvisibleText(), words, patterns]
            scanned = [scan_prompt(scanners, text, fail_fast=True)[1] for text in job["texts"]]
            valid = [all(one.values()) for one in scanned]
        else:
            valid = [alone[job["way"]].scan(text)[1] for text in job["texts"]]
        pace.step([int(one) for one in valid])  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
