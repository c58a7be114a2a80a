"""A guard that blocks text whose perplexity is too high: suffixes found by gradients read like no language.

1. Perplexity of a whole text (Alon & Kamfonas 2023, arXiv:2308.14132), or the highest of any ``window``
   tokens in a row (Jain et al. 2023, arXiv:2309.00614, section 4.1): behind a long text a short suffix moves
   the whole little.
2. Each message is read by itself, and the highest counts. Nothing is truncated: a long text is read in chunks
   that overlap.
3. ``fit_threshold`` sets the threshold at a stated rate of false alarms on benign texts, with the interval of
   the rate that new texts see.
4. What cannot be read is 'unknown', which blocks: no token, no Unicode, log-probabilities that are not
   finite.

Not covered: attacks in fluent language (PAIR, personas), and suffixes that were optimised to be fluent. A
short text has few tokens and a noisy perplexity; it is scored like any other, for a limit below which
everything passes would be an open door.

In a stack file: ``guard = {use = "defend.perplexity_guard", config = {threshold = 200.0}, inputs = {model =
"hf:..."}}``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field
from scipy.special import betaincinv

from calibrant.core import (
    CalibrantError,
    Chat,
    ConfigError,
    Frozen,
    Guard,
    Identity,
    InputError,
    OpenLM,
    Side,
    Verdict,
    digest,
)
from calibrant.defend._perplexity import perplexity, surprisals
from calibrant.defend._reading import NO_REPLY, QUESTION, ends_with_reply


class PerplexityGuard(Frozen):
    """What is too surprising."""

    threshold: float | None = Field(default=None, gt=1.0, allow_inf_nan=False)
    """Perplexity above which a text is blocked; it must be given: ``fit_threshold`` finds it for a rate of
    false alarms."""
    window: int | None = Field(default=None, ge=1)
    """Tokens in a row of which the most surprising are judged; none: the text as a whole."""


class FittedThreshold(Frozen):
    """A threshold, and how often benign texts like those that it was fitted to are blocked."""

    threshold: float
    """Perplexity; for ``PerplexityGuard``."""
    window: int | None
    """Tokens in a row; for ``PerplexityGuard``."""
    expected: float
    """Expected rate of false alarms on a new text, at most the one that was asked for."""
    low: float
    """Lower end of the 95 % interval of that rate."""
    high: float
    """Upper end."""
    n: int
    """Benign texts that were read."""


def perplexity_guard(model: OpenLM, config: PerplexityGuard = PerplexityGuard()) -> Guard:
    """A guard that answers 'no' where the perplexity under ``model`` is above the threshold, else 'yes'.

    Raises:
        ConfigError: there is no threshold.
    """
    if config.threshold is None:
        raise ConfigError(
            "a perplexity guard without a threshold would let everything pass",
            hint="give 'threshold'; fit_threshold finds it from benign texts for a rate of false alarms",
        )
    return _Perplexity(model=model, threshold=config.threshold, config=config)


def fit_threshold(
    model: OpenLM, texts: Sequence[str], false_alarms: float = 0.01, window: int | None = None
) -> FittedThreshold:
    """The threshold above which at most a share ``false_alarms`` of new benign texts is expected.

    It is the ceil((n + 1) (1 - false_alarms))-th least perplexity of the texts (split conformal: Vovk et al.
    2005). If new texts are exchangeable with these, the rate has a Beta distribution (order statistics; ties
    make it smaller), whose 2.5 and 97.5 % points are the interval.

    Raises:
        InputError: a rate outside (0, 1), a window below 1, too few texts for that rate, or a text that the
            model cannot read (named by its place).
    """
    if not 0 < false_alarms < 1 or (window is not None and window < 1):
        raise InputError(
            f"a threshold for a rate of {false_alarms} and a window of {window}",
            hint="give a rate between 0 and 1, and a window of 1 token or more",
        )
    n = len(texts)
    rank = math.ceil((n + 1) * (1 - false_alarms) - 1e-9)
    if rank > n:
        raise InputError(
            f"{n} texts cannot set a rate of {false_alarms:g}",
            hint=f"give {math.ceil(1 / false_alarms) - 1} or more",
        )
    found = []
    for place, text in enumerate(texts, 1):
        try:
            surprised = surprisals(model, text)
        except CalibrantError as error:
            raise InputError(f"text {place}: {error.message}", hint=error.hint) from None
        if not surprised:
            raise InputError(f"text {place} has no token", hint="leave it out")
        found.append(perplexity(surprised, window))
    above = n + 1 - rank
    low, high = (float(betaincinv(above, rank, q)) for q in (0.025, 0.975))
    return FittedThreshold(
        threshold=sorted(found)[rank - 1], window=window, expected=above / (n + 1), low=low, high=high, n=n
    )


@dataclass(frozen=True)
class _Perplexity:
    """The guard that ``perplexity_guard`` makes."""

    model: OpenLM
    threshold: float
    config: PerplexityGuard

    @property
    def identity(self) -> Identity:
        parts = {
            "rule": "perplexity_guard/1",
            "config": digest(self.config),
            "model": self.model.identity.digest,
        }
        return Identity(name=f"perplexity guard ({self.model.identity.name})", kind="guard", parts=parts)

    def ask(self, chats: Sequence[Chat], side: Side) -> list[Verdict]:
        if side not in ("input", "output"):
            raise InputError(f"a guard was asked about side {side!r}", hint="ask about 'input' or 'output'")
        known: dict[str, float | str] = {}
        return [self._verdict(chat, side, known) for chat in chats]

    def _verdict(self, chat: Chat, side: Side, known: dict[str, float | str]) -> Verdict:
        if side == "output" and not ends_with_reply(chat):
            return NO_REPLY
        messages = chat.messages[-1:] if side == "output" else chat.messages
        worst, where, unread = 0.0, "", ""
        for place, message in enumerate(messages, 1):
            here = f"message {place} ({message.role})"
            if not message.content.strip():
                continue
            if message.content not in known:
                known[message.content] = self._perplexity(message.content)
            found = known[message.content]
            if isinstance(found, str):
                unread = unread or f"{here}: {found}"
            elif found > worst:
                worst, where = found, here
        over = "" if self.config.window is None else f" of {self.config.window} tokens in a row"
        reason = f"the highest perplexity{over} is {worst:.1f} ({where}), blocked above {self.threshold:g}"
        if worst > self.threshold:
            return Verdict(question=QUESTION, answer="no", reason=reason, score=worst)
        if unread or not where:
            return Verdict(question=QUESTION, answer="unknown", reason=unread or "there is no text to read")
        return Verdict(question=QUESTION, answer="yes", reason=reason, score=worst)

    def _perplexity(self, text: str) -> float | str:
        """Of a text, or why there is none."""
        try:
            surprised = surprisals(self.model, text)
        except CalibrantError as error:
            return f"the model cannot read it: {error.message}"
        return perplexity(surprised, self.config.window) if surprised else "it has no token"
