"""How an attack is written: a generator of moves. What it needs, it asks for; it does nothing itself.

    def episode(goals: Sequence[Goal], config: Pair, tools: Tools) -> Walk:
        said = yield [Consult(first_prompt(goals[0]))]
        heard = yield [Ask(goals[0], Chat.ask(said[0].text))]
        if heard[0].outcome == "success":
            return

A *episode* is one attack on one goal with one seed. It yields a list of moves and is sent back one answer a
move, in order. ``calibrant.attack.engine.run`` runs many episodes side by side: it batches their questions,
pays for them, judges replies, and writes every answer down before it hands it over. So an attack of forty
lines gets batching, a budget, resume after a kill and a dry run for nothing; a resumed episode is simply sent
what was written down, so it must depend on nothing but its arguments and the answers that it gets.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from calibrant.core import LM, Chat, Completion, Frozen, Goal, Identity, OpenLM, Sampling, Verdict
from calibrant.core.attempt import Access, Outcome

Family = Literal[
    "plain", "transform", "persona", "many-shot", "prefill", "search", "LM-made", "multi-turn", "gradient"
]
"""Technique families: the second axis of every report."""


class AskTarget(NamedTuple):
    """Put ``chat`` to the target. Answered with ``Response``; becomes an attempt."""

    goal: Goal
    """What it is after, and what the judge judges by."""
    chat: Chat
    """What is sent. One that ends with an assistant turn is continued from there (prefill)."""
    variant: str = ""
    """What tells this from the attack's other ways: 'rot13'. Stored as 'attack.encode/rot13'."""
    parent: str | None = None
    """Id of the attempt that it grew from."""
    draw: int = 0
    """Number of the draw, where one chat is asked several times at a temperature above 0."""


class AskAttacker(NamedTuple):
    """Ask the attacking model. Answered with its ``Completion``."""

    chat: Chat
    """What it is asked."""
    sampling: Sampling = Sampling(max_tokens=512, temperature=1.0)
    """How its reply is drawn. Give streams that begin with the same words other seeds; the run's seed and the
    repetition's are added."""


class Score(NamedTuple):
    """Ask for the log-prob of ``reply`` as the beginning of an answer to ``chat`` under the surrogate.

    Answered with a float, nats.

    It counts as a query to the target: whoever attacks by log-probs pays for each of them.
    """

    chat: Chat
    """What would be sent."""
    reply: str
    """What is hoped for."""


class Computed(NamedTuple):
    """What a ``Compute`` came to, and what it cost."""

    value: Any
    """JSON-ready."""
    flops: float = 0.0
    """Floating-point operations, about."""


class Compute(NamedTuple):
    """Compute something here, once: a resumed episode is sent the stored value.

    Answered with ``Computed.value``.
    """

    what: str
    """In words, for the progress line: 'gcg steps 0-19'."""
    compute: Callable[[], Computed]
    """Called when no earlier run has done it."""


class Response(NamedTuple):
    """What the target answered, and what the judge made of it."""

    id: str
    """Id of the attempt."""
    completion: Completion
    """The reply."""
    verdict: Verdict
    """The judge's answer; its score, if any, guides a search."""
    outcome: Outcome
    """success, failure or undetermined."""


Move: TypeAlias = AskTarget | AskAttacker | Score | Compute
Episode: TypeAlias = Generator[Sequence[Move], Any, None]
"""Yields moves; is sent a list with a Heard, Completion, float or JSON value for each."""


@dataclass(frozen=True)
class Tools:
    """What an episode may use beside its goals and config. Nothing here has a memory but ``rng``."""

    seed: int
    """Of this episode alone: runs, goals and repetitions all have others."""
    rng: random.Random
    """Seeded with ``seed``."""
    target: Identity
    """Who is attacked."""
    sampling: Sampling
    """How the target's replies are sampled."""
    surrogate: OpenLM | None = None
    """Weights for gradient and log-prob attacks: the target's own, or a stand-in's."""
    attacker: LM | None = None
    """The attacking model; reach it with ``AskAttacker``, so that it is paid for and written down."""


class Attack(NamedTuple):
    """An attack as the campaign knows it."""

    name: str
    """Name of the technique: 'attack.pair'."""
    family: Family
    """Technique family."""
    config: type[Frozen]
    """Its settings; default-constructible."""
    episode: Callable[[Sequence[Goal], Any, Tools], Episode]
    """Makes the episode."""
    queries: Callable[[Any], int]
    """Config -> most queries to the target (asks and scores) in an episode, a goal: what a dry run quotes."""
    consults: Callable[[Any], int] = lambda config: 0
    """Config -> most questions to the attacking model, likewise; above 0: it needs one."""
    access: Access = "black box"
    """What the attacker sees; for 'log-probs' and 'weights' a surrogate is needed."""
    together: bool = False
    """One episode over all goals (an archive, a universal suffix), instead of one a goal."""
