"""People say yes, no or unsure to single replies: blind, in an order of their own, resumable.

    with LabelSession(read_queue(file), labels, rater="ann") as session:
        while shown := session.next():
            session.label(True)

What ``annotate.py`` is for two outputs, this is for one: each answer is on the disk before the next reply
is shown.
"""

from __future__ import annotations

import random
from pathlib import Path
from types import TracebackType

from calibrant.app.people.answer_file import AnswerFile
from calibrant.core import Estimate, InputError, unknown
from calibrant.data.human_labels import (
    HumanLabel,
    HumanLabels,
    Queue,
    Queued,
    header,
    label_line,
    labels_from,
    latest,
    undo_line,
)
from calibrant.data.votes import SIMULATED, is_simulated
from calibrant.stats.agreement import agreement, ratings


class LabelSession:
    """One rater's session. It holds the file of labels until it is closed."""

    def __init__(self, queue: Queue, labels: Path, rater: str, *, seed: int = 0) -> None:
        """Open or make the file ``labels`` and go on where this rater left off.

        Args:
            queue: what is labelled, see ``data.human_labels``.
            labels: a .jsonl file; several raters may write into it, one at a time.
            rater: who labels.
            seed: decides the order, together with the queue and the rater's name.

        Raises:
            InputError: a bad rater or file; labels on another queue or by simulated raters; a file that
                another session holds, or that cannot be written.
        """
        if not rater.strip() or is_simulated(rater):
            raise InputError(
                f"a rater cannot be called {rater!r}", hint=f"any name that does not begin with '{SIMULATED}'"
            )
        self.rater = rater
        about = queue.digest, queue.source
        self._file = AnswerFile(labels, labels_from, header(*about), about)
        self._labels = list(self._file.held)
        lot = random.Random(f"{queue.digest}/{rater}/{seed}")
        self._order = lot.sample(queue.rows, len(queue))

    def __enter__(self) -> LabelSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    @property
    def total(self) -> int:
        """Replies in all."""
        return len(self._order)

    @property
    def done(self) -> int:
        """Replies that this rater has answered."""
        return len(self._own)

    @property
    def labels(self) -> HumanLabels:
        """All standing labels of the file, other raters' included."""
        return self._file.held.model_copy(update={"rows": tuple(self._labels)})

    def next(self) -> Queued | None:
        """The first open reply; None when there is none."""
        answered = self._own
        return next((queued for queued in self._order if queued.id not in answered), None)

    def label(self, human: bool | None) -> None:
        """Answer what ``next`` shows, None for unsure; it is on the disk when this returns.

        Raises:
            InputError: nothing is left to answer, or the disk refuses (the label is then not given).
        """
        shown = self.next()
        if shown is None:
            raise InputError("there is nothing left to label", hint="undo takes back the latest label")
        label = HumanLabel(id=shown.id, human=human, rater=self.rater)
        self._file.append(label_line(label))
        self._labels.append(label)

    def undo(self) -> bool:
        """Take back this rater's latest label, which is then shown again; False when there is none."""
        last = latest(self._labels, self.rater)
        if last is None:
            return False
        self._file.append(undo_line(last))
        self._labels.remove(last)
        return True

    def agreement(self) -> Estimate:
        """How often two raters of a reply gave the same answer, yes or no."""
        triples = [(x.id, x.rater, "yes" if x.human else "no") for x in self._labels if x.human is not None]
        if len({rater for _, rater, _ in triples}) < 2:
            return unknown("fewer than two people have labelled", n=max(self.total, 1), unit="reply")
        return agreement(ratings(triples, ("yes", "no")))

    @property
    def _own(self) -> set[str]:
        return {label.id for label in self._labels if label.rater == self.rater}
