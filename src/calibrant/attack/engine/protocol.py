"""The protocol of attacks: a generator of moves that yields what to ask and does no I/O itself.

    def episode(goals: Sequence[Goal], config: Pair, tools: Tools) -> Episode:
        (answer,) = yield [AskAttacker(first_prompt(goals[0]))]
        (response,) = yield [AskTarget(goals[0], Chat.ask(answer.text))]
        if response.outcome == "success":
            return

An *episode* is one attack on one goal with one seed. It yields a list of moves and receives one answer per
move, in order. ``calibrant.attack.engine.run`` runs many episodes concurrently: it batches their queries,
charges the budget, judges replies, and logs every answer before it returns it. So an attack of forty lines
gets batching, a budget, resume after a kill and a dry run for free; a resumed episode receives the logged
answers, so it must depend only on its arguments and the answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from calibrant.core import LM, Chat, Completion, Frozen, Goal, Identity, OpenLM, Sampling, Verdict
from calibrant.core.attempt import Access, Outcome

Family = Literal[
    "plain", "transform", "persona", "many-shot", "prefill", "search", "LM-made", "multi-turn", "gradient"
]
"""Technique families: the second axis of every report."""


class AskTarget(NamedTuple):
    """Send ``chat`` to the target. Answered with ``Response``; becomes an attempt."""

    goal: Goal
    """The goal, also for the judge."""
    chat: Chat
    """What is sent. One that ends with an assistant turn is continued from there (prefill)."""
    variant: str = ""
    """Name of the attack's variant: 'rot13'. Stored as 'attack.encode/rot13'."""
    parent: str | None = None
    """Id of the attempt that it is derived from."""
    draw: int = 0
    """Number of the sample, where one chat is sent several times at a temperature above 0."""


class AskAttacker(NamedTuple):
    """Ask the attacker model. Answered with its ``Completion``."""

    chat: Chat
    """The prompt for the attacker."""
    sampling: Sampling = Sampling(max_tokens=512, temperature=1.0)
    """How its reply is sampled. Give streams with equal prompts different seeds; the run's seed and the
    repetition's are added."""


class Score(NamedTuple):
    """Ask for the log-prob of ``reply`` as the first words of a reply to ``chat`` under the surrogate model.

    Answered with a float, nats.

    It counts as a query to the target.
    """

    chat: Chat
    """What would be sent."""
    reply: str
    """The target prefix."""


class Computed(NamedTuple):
    """Result and cost of a ``Compute``."""

    value: Any
    """JSON-ready."""
    flops: float = 0.0
    """Floating-point operations, approximately."""


class Compute(NamedTuple):
    """Compute something once: a resumed episode receives the stored value.

    Answered with ``Computed.value``.
    """

    what: str
    """In words, for the progress line: 'gcg steps 0-19'."""
    compute: Callable[[], Computed]
    """Called unless an earlier run has stored the result."""


class Response(NamedTuple):
    """The target's reply and the judge's verdict."""

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
"""Yields moves; receives a list with a Response, Completion, float or JSON value for each."""


@dataclass(frozen=True)
class Tools:
    """What an episode may use besides its goals and config. Only ``rng`` has state."""

    seed: int
    """Seed of this episode; runs, goals and repetitions have different ones."""
    rng: random.Random
    """Seeded with ``seed``."""
    target: Identity
    """The attacked model."""
    sampling: Sampling
    """How the target's replies are sampled."""
    surrogate: OpenLM | None = None
    """Model with weights for gradient and log-prob attacks: the target itself, or another."""
    attacker: LM | None = None
    """The attacker model; call it with ``AskAttacker``, so that it is charged and logged."""


class Attack(NamedTuple):
    """An attack as a campaign uses it."""

    name: str
    """Name of the technique: 'attack.pair'."""
    family: Family
    """Technique family."""
    config: type[Frozen]
    """Its settings; default-constructible."""
    episode: Callable[[Sequence[Goal], Any, Tools], Episode]
    """Creates the episode."""
    queries: Callable[[Any], int]
    """Config -> most queries to the target (generations and scores) of an episode per goal, for dry runs."""
    consults: Callable[[Any], int] = lambda config: 0
    """Config -> most calls to the attacker model, likewise; above 0: it needs one."""
    access: Access = "black box"
    """Access to the target; 'log-probs' and 'weights' need a surrogate."""
    together: bool = False
    """One episode over all goals (an archive, a universal suffix), instead of one a goal."""


def check_named(kind: str, texts: Mapping[str, str]) -> None:
    """Raise ValueError unless there is a text, and each has a name for a variant: not blank, without '/'."""
    if not texts:
        raise ValueError(f"at least one {kind} is needed")
    for name, text in texts.items():
        if not name.strip() or "/" in name or not text.strip():
            raise ValueError(f"{kind} '{name}': its name or text is blank, or the name holds a '/'")


def check_templates(kind: str, templates: Mapping[str, str]) -> None:
    """Raise ValueError as ``check_named``, and unless each template contains {request}."""
    check_named(kind, templates)
    for name, template in templates.items():
        if "{request}" not in template:
            raise ValueError(f"the template of {kind} '{name}' does not contain {{request}}")
