"""A run that keeps what was logged and spent."""

from __future__ import annotations

from calibrant.core import Quiet


class Log(Quiet):
    """Keeps what was logged and spent."""

    def __init__(self, work, seed=0):
        super().__init__(seed=seed, work=work)
        self.rows, self.tokens = [], 0

    def log(self, step, **metrics):
        self.rows.append(metrics)

    def spend(self, *, tokens=0, queries=0, flops=0.0):
        self.tokens += tokens
