"""BestOfN: best-of-n sampling as a model: the reply of highest reward among n.

    sharper = BestOfN(lm, reward, 16)        # in a study: best_of:16/REWARD#MODEL

It is an ``LM``, so that best-of-n can be measured, attacked and gated like its base model.

1. Draws take the place of n equal chats, so seeds and batches work as in the model below.
2. Ties go to the first sample. A greedy request samples once, since n greedy replies are equal.
3. Where one sample failed or has no reward, the item is an error: the best of fewer is another model.
4. Log-probs of the model below are not those of best-of-n and are left out.
5. A run that counts queries and tokens sees one reply an item; n times as much was generated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from calibrant.core import (
    LM,
    CalibrantError,
    Chat,
    Completion,
    Identity,
    InputError,
    Reward,
    Sampling,
)
from calibrant.core.behaviours import same_number


class BestOfN:
    """The best of ``n`` samples by ``reward``, as an ``LM``."""

    def __init__(self, lm: LM, reward: Reward, n: int) -> None:
        """Draw from ``lm``. Raises InputError for n below 1."""
        if n < 1:
            raise InputError(f"best of {n} draws", hint="give n = 1 or more")
        self._lm, self._reward, self.n = lm, reward, n

    @property
    def identity(self) -> Identity:
        """Model, reward and n."""
        parts = {
            "model": self._lm.identity.digest,
            "reward": self._reward.identity.digest,
            "n": str(self.n),
        }
        name = f"best of {self.n} of {self._lm.identity.name} by {self._reward.identity.name}"
        return Identity(name=name, kind="best-of-n", parts=parts)

    def generate(self, chats: Sequence[Chat], sampling: Sampling = Sampling()) -> list[Completion]:
        """One completion a chat, in order.

        Raises:
            CapabilityError: the model or the reward returned the wrong number of answers.
        """
        n = self.n if sampling.temperature > 0 else 1
        repeated = [chat for chat in chats for _ in range(n)]
        drawn = self._lm.generate(repeated, sampling)
        same_number(f"model '{self._lm.identity.name}'", len(drawn), len(repeated))
        valid = [(chat, reply) for chat, reply in zip(repeated, drawn, strict=True) if reply.stop != "error"]
        scores, why = self._scores([chat for chat, _ in valid], [reply.text for _, reply in valid])
        values = iter(scores)
        scored = [math.nan if reply.stop == "error" else next(values) for reply in drawn]
        starts = range(0, len(drawn), n)
        return [_best(drawn[start : start + n], scored[start : start + n], why) for start in starts]

    def _scores(self, chats: list[Chat], replies: list[str]) -> tuple[Sequence[float], str]:
        """One score a reply, and what to say of a NaN among them."""
        if not replies:
            return (), ""
        try:
            scores = self._reward.score(chats, replies).mean
        except CalibrantError as error:
            return [math.nan] * len(replies), f"the reward failed: {error.message}"
        same_number(f"reward '{self._reward.identity.name}'", len(scores), len(replies))
        return scores, "its reward is NaN"


def _best(draws: Sequence[Completion], scores: Sequence[float], why: str) -> Completion:
    """The first of the draws that score highest, or an error where one has no score."""
    for number, (reply, score) in enumerate(zip(draws, scores, strict=True), start=1):
        if math.isnan(score):
            message = f"it failed: {reply.error}" if reply.stop == "error" else why
            return Completion(
                text="", stop="error", error=f"draw {number} of {len(draws)} cannot be compared: {message}"
            )
    best = max(range(len(draws)), key=lambda i: scores[i])  # max keeps the first of equals
    return draws[best].model_copy(update={"logprobs": None})
