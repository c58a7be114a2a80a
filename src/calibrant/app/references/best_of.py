"""``best_of:N/REWARD#MODEL``: best-of-n sampling: the reply of highest reward among N.

REWARD is a reference up to the first '#', so a job's reward is that of the job's own seed; MODEL is any
reference to a model.
"""

from __future__ import annotations

from calibrant.app.references.opened import STAND_INS, Opened, identified, talks_only
from calibrant.app.references.scheme import MODELS, Checks, Opens, Reference, Scheme, too_deep
from calibrant.core import LM, ConfigError, OpenLM, Reward, ScoringLM
from calibrant.models.best_of_n import BestOfN

_DRAWS = 10_000
_NESTED = 16


def taken_apart(reference: str) -> tuple[int, str, str]:
    """N and the references of reward and model. Raises ConfigError where one of them is missing."""
    if reference.count("best_of:") > _NESTED:
        raise too_deep(reference)
    draws, _, rest = reference.partition(":")[2].partition("/")
    reward, _, model = rest.partition("#")
    n = int(draws) if draws.isascii() and draws.isdigit() and len(draws) < 6 else 0
    if not (0 < n <= _DRAWS and reward and model):
        raise ConfigError(
            f"'{reference}' is no best-of-n model",
            hint=f"write best_of:N/REWARD#MODEL with N from 1 to {_DRAWS:,}: "
            "best_of:16/record:reward/reward#record:dpo/model",
        )
    return n, reward, model


def check(reference: Reference, study: Checks) -> None:
    """The reward and the model. Raises CapabilityError where log-probs or weights are wanted."""
    if reference.wanted in (ScoringLM, OpenLM):
        raise talks_only(reference.text, reference.wanted)
    _, reward, model = taken_apart(reference.text)
    study.check(reward, Reward)
    study.check(model, LM)


def open(reference: Reference, openers: Opens) -> Opened:
    """The model; its identity is of N, the reward and the model, neither of which is loaded yet."""
    n, reward_reference, model_reference = taken_apart(reference.text)
    if reference.wanted in (ScoringLM, OpenLM):
        raise talks_only(reference.text, reference.wanted)
    reward, model = openers.open(reward_reference, Reward), openers.open(model_reference, LM)
    identity = BestOfN(STAND_INS[LM](model), STAND_INS[Reward](reward), n).identity
    return identified(
        identity, lambda: BestOfN(model.load(), reward.load(), n), reference.text, reference.wanted
    )


BEST_OF = Scheme(MODELS, check, open)
