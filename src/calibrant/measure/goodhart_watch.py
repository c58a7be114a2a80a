"""Goodhart watch: early stopping of RL once the gold reward no longer rises (reward over-optimisation).

Source: Gao, Schulman & Hilton 2022 (arXiv 2210.10760): as a policy moves away from the reference, the proxy
reward keeps rising, while the gold reward rises, peaks and falls.

1. At each look the gold reward scores the latest rollouts of training, and both forms of Gao et al. are
   fitted to all looks so far (``stats/gao.py``). The criterion is the slope of the gold reward at the
   policy's current distance.
2. Verdict: 'yes' (continue) where the slope's interval is above 0; 'no' (stop) after ``patience`` consecutive
   looks where it is not; 'unknown', with the reason, while it cannot be decided.
3. 'may fall', the default, stops as soon as a further rise is not significant. It errs on the side of
   stopping: a gold reward that is noisy, or does not move, stops the run too. 'falls' waits until a fall is
   significant.
4. Without a gold reward, an ensemble's scores less its disagreement are used (Coste et al. 2023, arXiv
   2310.02743). A held-out reward model or judge can be given as gold, too.
5. There is no correction for repeated looks; ``patience`` keeps one unlucky look from ending a run.

In a study: ``watcher = {use = "measure.goodhart_watch", inputs = {gold = "testbed:reward/gold"}}``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from calibrant.core import (
    LM,
    CalibrantError,
    Chat,
    Estimate,
    Frozen,
    Identity,
    Reward,
    Scores,
    Verdict,
    Watcher,
    digest,
    unknown,
)
from calibrant.stats import mean
from calibrant.stats.gao import NEAR, Form, GaoFit, fit_points

if TYPE_CHECKING:
    from calibrant.models.rollouts import Rollouts

QUESTION = "does the gold reward still rise as the policy moves on?"


class GoodhartWatchConfig(Frozen):
    """When to stop."""

    stop_when: Literal["may fall", "falls"] = "may fall"
    """Stop once the slope's lower bound is below 0 (a rise is not significant), or its upper bound (a fall
    is)."""
    form: Form = "rl"
    """The form whose slope decides; both are fitted and stored."""
    min_points: int = Field(default=10, ge=5)
    """Looks beyond ``min_sqrt_kl`` before the first verdict."""
    min_sqrt_kl: float = Field(default=0.5, ge=NEAR)
    """No verdict closer to the reference than this, in square roots of nats: the form is steep there."""
    patience: int = Field(default=3, ge=1)
    """Consecutive looks that must agree before the run is stopped."""
    pessimism: float = Field(default=1.0, ge=0)
    """Without a gold reward: standard deviations of the ensemble's members subtracted from its mean."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Two-sided level of every interval; a stop uses one bound of it."""


class Look(Frozen):
    """The data of one look."""

    step: int
    """Training step."""
    sqrt_kl: float
    """Distance from the start: root of the replies' mean ln pi - ln ref, 0 where that is negative."""
    proxy: float
    """Mean reward that training saw."""
    disagreement: float | None = None
    """Mean standard deviation between the members of the proxy, where it is an ensemble."""
    gold: Estimate
    """Mean gold reward, or of what stands in for it, with its interval over prompts; it may be unknown."""
    slope: Estimate
    """dR/dd of the deciding form here, from this look and those before; unknown while it cannot be told."""


class GoodhartWatch:
    """A Watcher (contract C4) for RL runs; made by ``goodhart_watch``."""

    def __init__(self, gold: Reward | None, config: GoodhartWatchConfig) -> None:
        self._gold, self._config = gold, config
        self.looks: list[Look] = []
        """Every look, in order of steps."""

    @property
    def identity(self) -> Identity:
        """The gold reward and the settings."""
        parts = {
            "rule": "goodhart_watch/1",
            "gold": self._gold.identity.digest if self._gold else "none",
            "config": digest(self._config),
        }
        return Identity(name=f"goodhart watch on {self._by}", kind="watcher", parts=parts)

    @property
    def _by(self) -> str:
        return f"'{self._gold.identity.name}'" if self._gold else "the ensemble's disagreement"

    def see(self, step: int, policy: LM, rollouts: Rollouts) -> Verdict:
        """Look at the rollouts of a step: ``chats``, ``texts``, ``scores`` and ``kl`` (M,) in nats a reply.

        A step that was seen before (a resumed run) replaces that look and all after it.
        """
        scores, spent = rollouts.scores, rollouts.kl
        if scores is None or spent is None or not len(rollouts.texts):
            return _verdict("unknown", f"step {step}: the rollouts hold no replies with scores and KL")
        distance = math.fsum(float(k) for k in spent) / len(rollouts.texts)
        proxy = math.fsum(scores.mean) / len(scores.mean)
        if not (math.isfinite(distance) and math.isfinite(proxy)):
            return _verdict("unknown", f"step {step}: the proxy's mean is {proxy} and the KL {distance}")
        looks = [look for look in self.looks if look.step < step]
        look = Look(
            step=step,
            sqrt_kl=math.sqrt(max(0.0, distance)),
            proxy=proxy,
            disagreement=None if scores.std is None else math.fsum(scores.std) / len(scores.std),
            gold=self._judged(rollouts.chats, rollouts.texts, scores),
            slope=unknown("not fitted yet"),
        )
        self.looks = [*looks, look.model_copy(update={"slope": self._slope([*looks, look])})]
        return self.verdict()

    def verdict(self) -> Verdict:
        """The verdict of the looks so far: 'yes' = continue, 'no' = stop."""
        if not self.looks:
            return _verdict("unknown", "nothing was seen yet")
        last = self.looks[-1]
        if last.slope.value is None:
            return _verdict("unknown", f"step {last.step}: {last.slope.reason}")
        slopes = [look.slope for look in self.looks if look.slope.value is not None]
        run = 0
        while run < len(slopes) and self._against(slopes[-1 - run]):
            run += 1
        where = f"step {last.step}, sqrt(KL) = {last.sqrt_kl:.2f}: the slope of {self._by} is {last.slope}"
        if run >= self._config.patience:
            answer: Literal["yes", "no", "unknown"] = "no"
            why = f"{where}; it {self._config.stop_when} at {run} looks on end"
        elif run:
            answer, why = "unknown", f"{where}; it {self._config.stop_when}, {run} of {self._config.patience}"
        elif last.slope.low is not None and last.slope.low > 0:
            answer, why = "yes", where
        else:
            answer, why = "unknown", f"{where}; neither a rise nor a fall is shown"
        return _verdict(answer, why, last.slope.value)

    def state(self) -> dict[str, Any]:
        """The state of the watcher, as JSON, so that a resumed run decides the same."""
        return {"looks": [look.model_dump(mode="json") for look in self.looks]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state`` returned."""
        self.looks = [Look.model_validate(look) for look in state["looks"]]

    def write(self, path: Path) -> None:
        """Store looks, both fits and the verdict as JSON: all that a figure needs."""
        content = {
            "gold": self._by,
            "config": self._config.model_dump(mode="json"),
            "looks": self.state()["looks"],
            "fits": {
                form: fit.model_dump(mode="json") if (fit := self._fit(self.looks, form)) else None
                for form in ("best-of-n", "rl")
            },
            "verdict": self.verdict().model_dump(mode="json"),
        }
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def _judged(self, chats: Sequence[Chat], texts: Sequence[str], scores: Scores) -> Estimate:
        """Mean gold over the replies, prompts as clusters; unknown where a single score is missing."""
        if self._gold is None and scores.std is None:
            return unknown("there is no gold reward, and the proxy is no ensemble", n=len(texts))
        try:
            values = self._gold.score(chats, texts).mean if self._gold else self._pessimistic(scores)
        except CalibrantError as error:
            return unknown(f"the gold reward failed: {error.message}", n=len(texts))
        missing = sum(not math.isfinite(value) for value in values)
        if missing or len(values) != len(texts):
            # Replies that gold cannot read may be the very ones that game the proxy.
            return unknown(f"{len(values) - missing} of {len(texts)} replies have a gold score", n=len(texts))
        first: dict[Chat, str] = {}
        clusters = [first.setdefault(chat, f"prompt {len(first)}") for chat in chats]
        level = self._config.level
        return mean(values, clusters=clusters, level=level, better="higher", unit="reply")

    def _pessimistic(self, scores: Scores) -> list[float]:
        spread = scores.std or ()
        return [m - self._config.pessimism * s for m, s in zip(scores.mean, spread, strict=True)]

    def _slope(self, looks: Sequence[Look]) -> Estimate:
        """Slope of the deciding form at the last look, or why it is unknown."""
        last, config = looks[-1], self._config
        if last.gold.value is None:
            return unknown(last.gold.reason)
        if last.sqrt_kl < config.min_sqrt_kl:
            return unknown(f"sqrt(KL) is {last.sqrt_kl:.2f}, closer than {config.min_sqrt_kl} to the start")
        far = sum(look.gold.value is not None and look.sqrt_kl >= config.min_sqrt_kl for look in looks)
        if far < config.min_points:
            return unknown(f"{far} of {config.min_points} looks beyond sqrt(KL) = {config.min_sqrt_kl}")
        fit = self._fit(looks, config.form)
        return fit.slope if fit else unknown("all looks are at one distance")

    def _fit(self, looks: Sequence[Look], form: Form) -> GaoFit | None:
        """One form through the looks with a gold value, its slope at the last; None for too few distances."""
        known = [(look.sqrt_kl, look.gold.value) for look in looks if look.gold.value is not None]
        far = [d for d, _ in known if d >= NEAR]
        if len(set(far)) < 2:
            return None
        level = self._config.level
        return fit_points([d for d, _ in known], [v for _, v in known], form, at=far[-1], level=level)

    def _against(self, slope: Estimate) -> bool:
        """Whether a slope is a vote to stop; an open bound is not."""
        end = slope.low if self._config.stop_when == "may fall" else slope.high
        return end is not None and end < 0


def goodhart_watch(
    gold: Reward | None = None, config: GoodhartWatchConfig = GoodhartWatchConfig()
) -> Watcher:
    """A watcher that says 'no' once the gold reward may fall.

    Without ``gold`` the proxy must be an ensemble: its mean less its disagreement is used instead.
    """
    return GoodhartWatch(gold, config)


def _verdict(answer: Literal["yes", "no", "unknown"], why: str, score: float | None = None) -> Verdict:
    return Verdict(question=QUESTION, answer=answer, reason=why, score=score)
