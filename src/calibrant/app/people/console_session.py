"""Carry out a ``Console``'s effects: query the target, judge, write attempts, return text.

    with ConsoleSession(target, path, goals, judge=judge) as session:
        for line in lines:
            for text in session.hear(line):
                ...

Every attempt is on the disk before the next thing happens. The file is held by one session at a time; opened
again, it is gone on with. It reads as the input type ``Attempts`` (reference ``jsonl:PATH``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from calibrant.app.people.console import Ask, Console, Effect, Judge, Keep, Show, Stop
from calibrant.core import LM, Attempt, CapabilityError, Sampling
from calibrant.core import Judge as Judging
from calibrant.core.behaviours import same_number
from calibrant.core.digest import canonical
from calibrant.data.rows import Goals
from calibrant.evals.judging import verdicts
from calibrant.ledger.lines import Lines, replay


class ConsoleSession:
    """One person at one target."""

    def __init__(
        self,
        target: LM,
        path: Path,
        goals: Goals | None = None,
        *,
        judge: Judging | None = None,
        sampling: Sampling = Sampling(max_tokens=256),
        show_layers: bool = False,
    ) -> None:
        """Open the file and go on where it ends.

        Raises:
            InputError: see ``Lines`` and ``Console``. EvidenceError: a line is not an attempt.
        """
        self._target, self._judge = target, judge
        self._file = Lines(path)
        try:
            held = {a.id: a for a in replay(self._file, Attempt.model_validate_json, "an attempt")}
            self.console = Console(
                target.identity,
                goals or (),
                held=list(held.values()),  # of two lines with one id the later counts
                judge=None if judge is None else judge.identity,
                sampling=sampling,
                show_layers=show_layers,
            )
        except BaseException:
            self._file.close()
            raise
        self.over = False
        """Whether the person has left."""

    def __enter__(self) -> ConsoleSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def hear(self, line: str) -> Iterator[str]:
        """Carry out one line; yields what the person is to read, as it comes."""
        waiting = self.console.hear(line)
        while waiting:
            effect, *waiting = waiting
            if isinstance(effect, Show):
                yield effect.text
            elif isinstance(effect, Keep):
                self._file.add([canonical(effect.attempt)])
            elif isinstance(effect, Stop):
                self.over = True
            else:
                waiting = [*self._carried(effect), *waiting]

    def _carried(self, effect: Effect) -> list[Effect]:
        """Ask the target or the judge."""
        if isinstance(effect, Ask):
            replies = self._target.generate([effect.chat], effect.sampling)
            same_number(f"model '{self._target.identity.name}'", len(replies), 1)
            return self.console.answered(replies[0])
        assert isinstance(effect, Judge), effect
        if self._judge is None:
            raise CapabilityError("there is no judge to ask")
        attempt = effect.attempt
        [verdict] = verdicts(self._judge, [effect.goal], [attempt.chat], [attempt.completion])
        return self.console.judged(effect, verdict)
