"""Floor 0: the types that every part shares."""

from calibrant.core.attempt import Attempt, Cost, attempt_id, outcome_of
from calibrant.core.behaviours import (
    CalibratedJudge,
    Goal,
    Guard,
    Judge,
    JudgeErrors,
    Monitor,
    Reward,
    Scores,
    Side,
    Watcher,
)
from calibrant.core.config import Frozen, resolve
from calibrant.core.digest import digest
from calibrant.core.errors import (
    BudgetError,
    CalibrantError,
    CapabilityError,
    ConfigError,
    EvidenceError,
    InputError,
    NumericalError,
)
from calibrant.core.estimate import Estimate, point, unknown
from calibrant.core.lm import (
    LM,
    Batch,
    Chat,
    Completion,
    Identity,
    Message,
    OpenLM,
    Sampling,
    Scored,
    ScoringLM,
)
from calibrant.core.record import Entry, Evidence, Record
from calibrant.core.run import Budget, Job, Quiet, Result, Run, technique
from calibrant.core.verdict import LayerVerdict, Verdict

__all__ = [
    "LM", "Attempt", "Batch", "Budget", "BudgetError", "CalibrantError", "CalibratedJudge",
    "CapabilityError", "Chat",
    "Completion", "ConfigError", "Cost", "Entry", "Estimate", "Evidence", "EvidenceError", "Frozen",
    "Goal", "Guard",
    "Identity", "InputError", "Job", "Judge", "JudgeErrors", "LayerVerdict", "Message", "Monitor",
    "NumericalError",
    "OpenLM", "Quiet", "Record", "Result", "Reward", "Run", "Sampling", "Scored", "Scores", "ScoringLM",
    "Side", "Verdict", "Watcher", "attempt_id", "digest", "outcome_of", "point", "resolve", "technique",
    "unknown",
]  # fmt: skip
