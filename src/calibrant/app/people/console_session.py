"""Carries out what a ``Console`` wants: asks the target, runs the judge, writes attempts, hands back texts.

    with Sitting(target, path, goals, judge=judge) as sitting:
        for line in lines:
            for text in sitting.hear(line):
                ...

Every attempt is on the disk before the next thing happens. The file is held by one sitting at a time; opened
again, it is gone on with. It reads as the input type ``Attempts`` (reference ``jsonl:PATH``).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from calibrant.app.people.answer_file import writing
from calibrant.app.people.console import Ask, Console, Effect, Judge, Keep, Show, Stop
from calibrant.core import LM, Attempt, CapabilityError, InputError, Sampling
from calibrant.core import Judge as Judging
from calibrant.core.behaviours import same_number
from calibrant.core.digest import canonical
from calibrant.data.rows import Goals
from calibrant.evals.attempts import read_attempts
from calibrant.evals.judging import verdicts


class AttemptFile:
    """An append-only file of attempts, held until it is closed."""

    def __init__(self, path: Path) -> None:
        """Open or make ``path``; a last line that a kill cut short is taken off.

        Raises:
            InputError: no .jsonl file, held by another process, or refused by the disk.
            EvidenceError: a line is not an attempt.
        """
        if path.suffix != ".jsonl":
            raise InputError(f"{path}: attempts are written as JSON lines", hint=f"name it {path.stem}.jsonl")
        self.path = path
        with writing(path):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self.held = self._begin()
        except BaseException:
            self.close()
            raise

    def append(self, attempt: Attempt) -> None:
        """Write one line and see it to the disk, or leave the file as it was."""
        size = os.fstat(self._handle).st_size
        with writing(self.path):
            try:
                rest = canonical(attempt) + b"\n"
                while rest:
                    rest = rest[os.write(self._handle, rest) :]
                os.fsync(self._handle)
            except OSError:
                os.ftruncate(self._handle, size)
                raise

    def close(self) -> None:
        """Let go; closing twice does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _begin(self) -> list[Attempt]:
        """Lock the file and read what is in it; of two lines with one id the later counts."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.path} is being written by another sitting", hint="wait, or give each person a file"
            ) from None
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        with writing(self.path):
            if _is_attempt(data[whole:]):
                os.write(self._handle, b"\n")
            else:
                os.ftruncate(self._handle, whole)
        latest = {attempt.id: attempt for attempt in read_attempts(self.path)}
        return list(latest.values())


def _is_attempt(line: bytes) -> bool:
    """Whether a line that lacks only its end is whole."""
    try:
        Attempt.model_validate_json(line)
    except ValidationError:
        return False
    return True


class Sitting:
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
            InputError: see ``AttemptFile`` and ``Console``. EvidenceError: a line is not an attempt.
        """
        self._target, self._judge = target, judge
        self._file = AttemptFile(path)
        try:
            self.console = Console(
                target.identity,
                goals or (),
                held=self._file.held,
                judge=None if judge is None else judge.identity,
                sampling=sampling,
                show_layers=show_layers,
            )
        except BaseException:
            self._file.close()
            raise
        self.over = False
        """Whether the person has left."""

    def __enter__(self) -> Sitting:
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
                self._file.append(effect.attempt)
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
