"""``EvalEvidence``: what another tool's evaluation log says, sample by sample, with where it came from."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from calibrant.core.config import Frozen

CLUSTER = "cluster"
"""Field of the samples' metadata that names their cluster, in logs of our own tasks."""
ABSENT = "the log does not hold it"
"""Error of a planned sample that is not there."""


class ScoredSample(Frozen):
    """One sample in one epoch."""

    id: str
    """The dataset's own id; 'a/b' is an id like any other."""
    epoch: int = 1
    """Which repetition, from 1."""
    values: dict[str, float] = Field(default_factory=dict)
    """Score name -> a finite number; a part of a dictionary is named 'SCORE/KEY'."""
    unscored: dict[str, str] = Field(default_factory=dict)
    """Score name -> why there is no number: the scorer's typed reason, or 'no reason given'."""
    odd: dict[str, str] = Field(default_factory=dict)
    """Score name -> a value that is no number: a label, a list."""
    edited: tuple[str, ...] = ()
    """Scores that somebody changed after the scorer gave them."""
    error: str = ""
    """What halted the sample; whatever score it has then is no measurement."""
    limit: str = ""
    """Which limit halted it: 'token', 'message', 'time' ..."""
    invalidated: bool = False
    """Whether somebody declared it invalid."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Its metadata that are plain text, numbers or yes and no: what clusters are named by."""

    @property
    def lost(self) -> str:
        """Why no score of it counts; "" where its scores do."""
        if self.error:
            return "it ended in an error"
        return "it was declared invalid" if self.invalidated else ""


class EvalEvidence(Frozen):
    """A finished evaluation, with all that tells it from another one."""

    source: str
    """Path of the file."""
    sha256: str
    """Of the whole file."""
    eval_id: str
    """The tool's own id of this run."""
    task: str
    """Name of the task."""
    task_version: str
    """Its version."""
    model: str
    """Whom it was run on."""
    created: str
    """When, as the log says."""
    inspect: str
    """Version of Inspect that wrote the log; "" where it does not say."""
    revision: str
    """Commit of the code that ran; "" where it does not say."""
    dataset: str
    """Name of the dataset."""
    fingerprint: str
    """Digest of ids, inputs, choices and targets: equal digests are the same questions."""
    planned: int
    """Samples times epochs that the run set out to do."""
    samples: tuple[ScoredSample, ...]
    """Every sample that the log holds, and every planned one that it does not (its error says so)."""
    caveats: tuple[str, ...] = ()
    """What the reader must know: edits, limits, samples that never ran."""

    @property
    def scores(self) -> tuple[str, ...]:
        """Every score name, in alphabetical order."""
        names = {name for s in self.samples for part in (s.values, s.unscored, s.odd) for name in part}
        return tuple(sorted(names))
