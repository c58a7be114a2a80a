"""One rater's session: answers to an append-only file that is held until the session is closed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Self, TypeVar

from calibrant.core import InputError, digest
from calibrant.data.advice import Advised
from calibrant.data.answers import (
    SIMULATED,
    Answer,
    Answers,
    Condition,
    answer_line,
    header,
    is_simulated,
    undo_line,
)
from calibrant.data.files import RawRow, raw_rows
from calibrant.data.rows import Table
from calibrant.ledger.lines import Lines

A = TypeVar("A", bound=Answer)


class Worked(NamedTuple):
    """How a rater works."""

    condition: Condition | Literal[""] = ""
    """Alone, assisted, or as an expert; "" is not said."""
    advice: Mapping[str, Advised] = {}
    """Row -> what is shown beside it where the rater is assisted."""


class AnswerSession(Generic[A]):
    """What votes and labels share: every answer is on the disk before the next row is shown."""

    def __init__(
        self,
        table: Table[Any],
        path: Path,
        rater: str,
        seed: int,
        answer: type[A],
        read: Callable[[Iterable[RawRow], str], Answers[A]],
        worked: Worked = Worked(),
    ) -> None:
        """Open or make ``path`` and go on where this rater left off.

        Args:
            table: the rows that are answered about.
            path: a .jsonl file; several raters may write into it, one at a time.
            rater: who answers.
            seed: decides the order, together with the rows and the rater's name.
            answer: the kind of answer.
            read: replays the file.
            worked: how the rater works, and the advice that is shown.

        Raises:
            InputError: a bad rater or file; advice on none of the rows; answers on other data, of people who
                worked otherwise or saw other advice, or by simulated raters; a file that another session
                holds, or that cannot be written.
        """
        if not rater.strip() or is_simulated(rater):
            raise InputError(
                f"a rater cannot be called {rater!r}", hint=f"any name that does not begin with '{SIMULATED}'"
            )
        self.rater, self.worked = rater, worked
        shown = self._shown(table)
        self._random = random.Random(f"{table.digest}/{rater}/{seed}")
        self._file = Lines(path)
        try:
            first = header(answer, table.digest, table.source, shown).rstrip()
            if first.startswith(self._file.torn) and not any(self._file):
                self._file.add([first])
            rows = list(raw_rows(path))
            if rows and self._file.torn.strip():  # a byte order mark alone is no row
                rows.pop()  # a kill cut it short, so it was never given
            self._held = read(rows, str(path))
            self._check(table, answer)
            self._check_advice(rows, f"{answer.kind}s", shown)
        except BaseException:
            self.close()
            raise
        self._answers = {answer.showing: answer for answer in self._held}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    @property
    def answers(self) -> Answers[A]:
        """All standing answers of the file, other raters' included."""
        return self._held.model_copy(update={"rows": tuple(self._answers.values())})

    def undo(self) -> bool:
        """Take back this rater's latest answer, which is then asked for again; False when there is none."""
        last = next((one for one in reversed(self._answers.values()) if one.rater == self.rater), None)
        if last is None:
            return False
        self._file.add([undo_line(last).rstrip()])
        del self._answers[last.showing]
        return True

    def advised(self, row: str) -> Advised | None:
        """The advice on a row; None where none is shown."""
        return self.worked.advice.get(row) if self.worked.condition == "assisted" else None

    def _give(self, answer: A) -> None:
        """Have an answer on the disk, with how it was made."""
        advised = self.advised(answer.row)
        update = {"condition": self.worked.condition, "advice": advised.says if advised else ""}
        answer = answer.model_copy(update=update)
        self._file.add([answer_line(answer).rstrip()])
        self._answers[answer.showing] = answer

    def _shown(self, table: Table[Any]) -> str:
        """Digest of the advice on the rows; "" where none is shown. Raises InputError where none has any."""
        if self.worked.condition != "assisted":
            return ""
        found = {row.id: self.worked.advice[row.id] for row in table.rows if row.id in self.worked.advice}
        if table.rows and not any(one.says or one.text for one in found.values()):
            some = next(iter(self.worked.advice), "")
            raise InputError(
                f"the advice is on none of the rows of {table.source}",
                hint=f"are the ids the same? advice is on '{some}', the first row is '{table.rows[0].id}'",
            )
        return digest([[name, one.says, one.text] for name, one in sorted(found.items())])

    def _check_advice(self, rows: Iterable[RawRow], kinds: str, shown: str) -> None:
        """Nobody goes on with other advice; older files do not say which they had."""
        for _, raw in rows:
            if isinstance(raw, Mapping) and kinds in raw and raw.get("advice") not in (None, shown):
                raise InputError(
                    f"{self._file.path} was begun with other advice",
                    hint="give the advice of then, or name a new file",
                )

    def _check(self, table: Table[Any], answer: type[A]) -> None:
        """Nothing is written to a file that is about something else."""
        if self._held.data != table.digest:
            why = f"is about other {answer.about}" if self._held.data else "does not say what it is about"
            raise InputError(
                f"{self._file.path} {why}, not those of {table.source}",
                hint=f"the data must be unchanged; for other data name a new file of {answer.kind}s",
            )
        other = next((one for one in self._held if one.condition != self.worked.condition), None)
        if other is not None:
            was, now = (one or "not said" for one in (other.condition, self.worked.condition))
            raise InputError(
                f"{self._file.path} holds {answer.kind}s of the condition {was!r}, and this one is {now!r}",
                hint="give each condition a file of its own",
            )
        if self._held.simulated:
            raise InputError(
                f"{self._file.path} holds {answer.kind}s of simulated raters",
                hint=f"people's {answer.kind}s go to another file",
            )
