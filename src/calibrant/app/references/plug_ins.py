"""Behaviours of external code: ``python:MODULE:FUNCTION``, and packages that add names.

Such code says of itself what it likes, so three things are taken out of its hands. Its identity also holds a
digest of its source, so that an edit makes another judge or guard; a judge is uncalibrated, whatever it calls
itself, until ``measure.calibrated_judge`` gives it a card; and it cannot end the program, whose exit status
is a verdict.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from calibrant.core import (
    CapabilityError,
    Chat,
    Completion,
    ConfigError,
    Goal,
    Guard,
    Identity,
    Judge,
    Monitor,
    Reward,
    Scores,
    Side,
    Verdict,
    Watcher,
    digest,
)
from calibrant.core.digest import digest_file
from calibrant.defend._by_list import by_list

UNVOUCHED = "uncalibrated (code from elsewhere does not vouch for itself: give it a card)"


def plug_in(behaviour: Any, module: str) -> Any:
    """``behaviour``, which ``module`` built, behind an identity that its source is part of.

    Raises:
        ConfigError: there is no source to be read. CapabilityError: it is nothing of the kind.
    """
    kinds = [mixin for protocol, mixin in _KINDS if isinstance(behaviour, protocol)]
    if _Monitor in kinds:  # a reward's method has the same name, and takes other things; it has no threshold
        other = _Reward if isinstance(behaviour.threshold, int | float) else _Monitor
        kinds = [mixin for mixin in kinds if mixin is not other]
    if not kinds:  # what is none now may call itself one a moment later, and would then vouch for itself
        raise CapabilityError(
            f"'{module}' makes no judge, guard, reward, watcher or monitor", hint="see `calibrant ls`"
        )
    names = dict.fromkeys((module, type(behaviour).__module__))
    plugin_type: Any = type("PlugIn", (*kinds, _PlugIn), {})
    return plugin_type(behaviour, digest([_source(name) for name in names]))


@cache
def _source(module: str) -> str:
    """Digest of the Python files of the package that ``module`` belongs to, or of its one file."""
    top = sys.modules.get(module.partition(".")[0])
    roots = [Path(folder) for folder in getattr(top, "__path__", ())]
    files = {path.relative_to(root).as_posix(): path for root in roots for path in sorted(root.rglob("*.py"))}
    if not files:
        try:
            files = {"": Path(inspect.getfile(sys.modules[module]))}
        except (KeyError, TypeError):
            raise ConfigError(
                f"'{module}' has no source file, so changes of it are not detectable",
                hint="put the function into a .py file on PYTHONPATH",
            ) from None
    return digest({name: digest_file(path) for name, path in files.items()})


@contextmanager
def staying() -> Iterator[None]:
    """Inside the block other people's code runs: ``sys.exit`` there is a crash, and no verdict.

    Raises:
        RuntimeError: in the place of SystemExit.
    """
    try:
        yield
    except SystemExit as left:
        raise RuntimeError(f"code that was run called exit({left.code!r})") from left


class _PlugIn:
    """What all kinds share."""

    def __init__(self, made: Any, code: str) -> None:
        self._made, self._code = made, code

    @property
    def identity(self) -> Identity:
        own = self._made.identity
        # Made anew: a class of its own could tell any digest.
        return Identity(name=own.name, kind=own.kind, parts={**own.parts, "code": self._code})


class _Judge(_PlugIn):
    calibration = UNVOUCHED

    @property
    def question(self) -> str:
        return str(getattr(self._made, "question", ""))

    def judge(
        self, goals: Sequence[Goal], chats: Sequence[Chat], completions: Sequence[Completion]
    ) -> list[Verdict]:
        verdicts: list[Verdict] = self._made.judge(goals, chats, completions)
        return verdicts


class _Guard(_PlugIn):
    @property
    def sides(self) -> tuple[str, ...]:
        return tuple(getattr(self._made, "sides", ("input", "output")))

    def ask(self, chats: Sequence[Chat], side: Side) -> list[Verdict]:
        verdicts: list[Verdict] = by_list(self._made).ask(chats, side)
        return verdicts


class _Reward(_PlugIn):
    def __getattr__(self, name: str) -> Any:
        """Faster ways to score; never what a judge or a guard would claim."""
        if name in ("errors", "shown", "calibration", "question", "judge", "ask", "see"):
            raise AttributeError(name)
        return getattr(self._made, name)

    def score(self, chats: Sequence[Chat], replies: Sequence[str]) -> Scores:
        scores: Scores = self._made.score(chats, replies)
        return scores


class _Watcher(_PlugIn):
    def see(self, step: int, policy: Any, rollouts: Any) -> Verdict:
        verdict: Verdict = self._made.see(step, policy, rollouts)
        return verdict


class _Monitor(_PlugIn):
    @property
    def threshold(self) -> float:
        return float(self._made.threshold)

    def score(self, chats: Sequence[Chat]) -> list[float | None]:
        scores: list[float | None] = self._made.score(chats)
        return scores


_KINDS = ((Judge, _Judge), (Guard, _Guard), (Reward, _Reward), (Watcher, _Watcher), (Monitor, _Monitor))
"""What an object can serve as, and what stands in front of it then; it may be several."""
