"""Human labels of single replies: yes, no or unsure; blind, in random order, resumable.

    with LabelSession(read_queue(file), labels, rater="ann") as session:
        while shown := session.next():
            session.label(True)

What ``annotate.py`` is for two outputs, this is for one: each answer is on the disk before the next reply
is shown.
"""

from __future__ import annotations

from pathlib import Path

from calibrant.app.people.answer_file import AnswerSession, Worked
from calibrant.core import Estimate, InputError, unknown
from calibrant.data.human_labels import HumanLabel, Queue, Queued, labels_from
from calibrant.stats.agreement import agreement, ratings


class LabelSession(AnswerSession[HumanLabel]):
    """One rater's session. It holds the file of labels until it is closed."""

    def __init__(
        self, queue: Queue, labels: Path, rater: str, *, seed: int = 0, worked: Worked = Worked()
    ) -> None:
        """Open or make the file ``labels`` for a queue, see ``data.human_labels``.

        Raises:
            InputError: see ``AnswerSession``.
        """
        super().__init__(queue, labels, rater, seed, HumanLabel, labels_from, worked)
        self._order = self._random.sample(queue.rows, len(queue))

    @property
    def total(self) -> int:
        """Replies in all."""
        return len(self._order)

    @property
    def done(self) -> int:
        """Replies that this rater has answered."""
        return len(self._own)

    def next(self) -> Queued | None:
        """The first open reply; None when there is none."""
        answered = self._own
        return next((queued for queued in self._order if queued.id not in answered), None)

    def label(self, human: bool | None) -> None:
        """Answer what ``next`` shows, None for unsure; it is on the disk when this returns.

        Raises:
            InputError: nothing is left to answer, or the disk refuses (the label is then not given).
        """
        row = self.next()
        if row is None:
            raise InputError("there is nothing left to label", hint="undo takes back the latest label")
        self._give(HumanLabel(id=row.id, human=human, rater=self.rater))

    def agreement(self) -> Estimate:
        """How often two raters of a reply gave the same answer, yes or no."""
        labels = [label for label in self._answers.values() if label.human is not None]
        triples = [(x.id, x.rater, "yes" if x.human else "no") for x in labels]
        if len({rater for _, rater, _ in triples}) < 2:
            return unknown("fewer than two people have labelled", n=max(self.total, 1), unit="reply")
        return agreement(ratings(triples, ("yes", "no")))

    @property
    def _own(self) -> set[str]:
        return {label.id for label in self._answers.values() if label.rater == self.rater}
