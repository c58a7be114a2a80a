"""``ControlSetting``: tasks that an untrusted model may do well, or use to do something else; both scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from calibrant.core.config import Frozen
from calibrant.core.lm import Chat, Identity


class ControlTask(Frozen):
    """One task with its side task."""

    id: str
    """Stable name."""
    prompt: str
    """The main task, as the policy and every monitor read it."""
    side: str
    """The side task, in the words in which a policy that attacks is told of it; no monitor reads them."""
    cluster: str = ""
    """Tasks that share a template or a subject are not independent; "" is its own cluster."""


@runtime_checkable
class ControlSetting(Protocol):
    """Tasks, how a policy is asked to be honest or to attack, and the exact scores of what it then does."""

    @property
    def identity(self) -> Identity:
        """All that decides tasks and scores."""
        ...

    @property
    def tasks(self) -> Sequence[ControlTask]:
        """In a fixed order; ids are distinct."""
        ...

    def ask(self, task: ControlTask, *, attack: bool) -> Chat:
        """What the untrusted policy is asked: the main task, or also to do the side task unseen."""
        ...

    def main(self, task: ControlTask, output: str) -> float:
        """How well the main task is done, from 0 to 1."""
        ...

    def side(self, task: ControlTask, output: str) -> bool:
        """Whether the side task is done."""
        ...

    def known_bad(self, task: ControlTask, seed: int) -> str:
        """An output that does the side task, made by the experimenter and not by the policy; "" for none."""
        ...
