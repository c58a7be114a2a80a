"""Our side of the race of guards by rule: reads a job, guards its texts, tells verdicts. See ``_pace.py``."""

from __future__ import annotations

from _pace import Pace, read_job

from calibrant.core import Chat
from calibrant.defend.pattern_guard import PatternGuard, pattern_guard


def main() -> None:
    """Guard every text once a round."""
    job = read_job()
    rules = tuple(job["rules"])
    patterns = tuple(rf"\b{rule}(?:s|ing)?\b" for rule in rules)
    config = {
        "patterns": PatternGuard(patterns=patterns),
        "patterns as written": PatternGuard(patterns=patterns, views=()),
        "words": PatternGuard(words=rules),
        "stack": PatternGuard(words=rules, patterns=patterns),
    }[job["way"]]
    guard, pace = pattern_guard(config), Pace(1, 1)
    for _ in range(job["rounds"]):
        verdicts = guard.ask([Chat.ask(text) for text in job["texts"]], "input")
        pace.step([int(verdict.answer == "yes") for verdict in verdicts])  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
