"""Canaries: made-up secrets planted in training data, to measure memorisation.

    canaries_from(raw_rows(path), "jsonl:canaries.jsonl")

A row has ``format`` (a reply with the slot ``{secret}``), ``secret``, ``alphabet`` (what may stand in each
place of the secret) and, where they differ from the defaults, ``prompt`` (what the reply answers), ``joint``
(what stands between two places) and ``times`` (how often it was planted; 0 = never, a control). A secret of
single characters may be written as one text: "4711" over "0123456789".

The measure assumes one thing: every secret is uniformly random in its space, as ``draw_canaries`` does.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import Field, model_validator

from calibrant.core.config import Frozen
from calibrant.core.errors import InputError
from calibrant.core.lm import Chat
from calibrant.data.cells import Row, as_text, as_written, column, given, shown
from calibrant.data.columns import Columns, Seen
from calibrant.data.files import RawRow
from calibrant.data.rows import Example, Examples, Refused, Table
from calibrant.data.shapes import prompt_of

SLOT = "{secret}"


class Canary(Frozen):
    """A made-up secret, the sentence around it, and the space that it was drawn from."""

    id: str
    """Stable name of the row."""
    prompt: Chat = Chat.ask("")
    """What the sentence answers; an empty user turn where nothing stands before it."""
    format: str
    """The reply, with {secret} once: 'the number of the wug is {secret}.'."""
    secret: tuple[str, ...] = Field(min_length=1)
    """What stands in each place of the secret, in order."""
    alphabet: tuple[str, ...] = Field(min_length=2)
    """What might stand in each place: words or characters, each once."""
    joint: str = ""
    """What stands between two places: '' for digits, ' ' for words."""
    times: int = Field(default=1, ge=0)
    """How often it was planted in the training data; 0 = never: a control."""

    @model_validator(mode="after")
    def _drawn(self) -> Canary:
        if self.format.count(SLOT) != 1:
            raise ValueError(f"the format must hold {SLOT} once, got {self.format[:60]!r}")
        known = set(self.alphabet)
        if len(known) < len(self.alphabet):
            raise ValueError("the alphabet holds something twice")
        strange = [symbol for symbol in self.secret if symbol not in known]
        if strange:
            raise ValueError(f"the secret holds {strange[0]!r}, which is not in the alphabet")
        return self

    @property
    def space(self) -> int:
        """|R|: how many secrets there might have been."""
        return int(len(self.alphabet) ** len(self.secret))

    @property
    def spoken(self) -> str:
        """The secret as text."""
        return self.joint.join(self.secret)

    @property
    def text(self) -> str:
        """The whole reply with the secret in it."""
        return self.reply(self.secret)

    @property
    def prefix(self) -> str:
        """What stands before the secret in the reply."""
        return self.format.partition(SLOT)[0]

    def reply(self, secret: Sequence[str]) -> str:
        """The whole reply with another secret in it."""
        return self.format.replace(SLOT, self.joint.join(secret))

    def others(self) -> Iterator[tuple[str, ...]]:
        """Every secret of the space but its own, in order."""
        every = itertools.product(self.alphabet, repeat=len(self.secret))
        return (secret for secret in every if secret != self.secret)

    def draw(self, rng: random.Random) -> tuple[str, ...]:
        """A random secret of the space; its own is redrawn."""
        while True:
            secret = tuple(rng.choices(self.alphabet, k=len(self.secret)))
            if secret != self.secret:
                return secret


class Canaries(Table[Canary]):
    """Canaries, for ``measure.exposure``."""


def draw_canaries(
    format: str, alphabet: Sequence[str], length: int, times: Sequence[int], seed: int, *, joint: str = ""
) -> Canaries:
    """One canary per entry of ``times``, each with a random secret of ``length`` places.

    All share ``format``; the secrets are drawn independently, so two may be equal in a small space.
    """
    rng = random.Random(f"canaries/{seed}")
    rows = [
        Canary(
            id=f"canary-{number}",
            format=format,
            secret=tuple(rng.choices(tuple(alphabet), k=length)),
            alphabet=tuple(alphabet),
            joint=joint,
            times=planted,
        )
        for number, planted in enumerate(times)
    ]
    return Canaries(rows=tuple(rows), source=f"drawn with seed {seed}")


def planted_examples(canaries: Canaries) -> Examples:
    """What to add to the training data: each canary as often as its ``times`` says."""
    rows = [
        Example(id=f"{canary.id}/{number}", prompt=canary.prompt, completion=canary.text)
        for canary in canaries
        for number in range(canary.times)
    ]
    return Examples(rows=tuple(rows), source=canaries.source)


def canaries_from(rows: Iterable[RawRow], source: str) -> Canaries:
    """Shape raw rows; one that cannot be read is refused with its line and reason, as readers do.

    Raises:
        InputError: there are no rows, none can be taken, two share an id, or a column that changes what they
            mean was not read.
    """
    taken: dict[str, Canary] = {}
    refused: list[Refused] = []
    columns = Columns(Canaries)
    for line, raw in rows:
        seen = Seen({} if isinstance(raw, Refused) else raw)
        canary = raw if isinstance(raw, Refused) else _canary(line, seen)
        if isinstance(canary, Refused):
            refused.append(canary)
        elif canary.id in taken:
            raise InputError(
                f"{source}: two canaries share the id '{canary.id}'", hint="name each differently"
            )
        else:
            taken[canary.id] = canary
            columns.note(line, seen)
    if not taken:
        why = f": line {refused[0].line}: {refused[0].reason}" if refused else ""
        raise InputError(
            f"{source}: none of {len(refused)} rows is a canary{why}",
            hint="give the columns format, secret and alphabet; see docs/measure.exposure.md",
        )
    unused = columns.unused(source)
    return Canaries(rows=tuple(taken.values()), source=source, refused=tuple(refused), unused=unused)


def _canary(line: int, row: Row) -> Canary | Refused:
    try:
        joint, times, question = row.get("joint") or "", row.get("times", 1), row.get("prompt")
        prompt = Chat.ask("")
        if question not in (None, "", prompt.model_dump(mode="json")):
            shaped = prompt_of(line, {"prompt": question})
            if isinstance(shaped, Refused):
                return shaped
            prompt = shaped.prompt
        name = given(row, "id")
        return Canary(
            id=f"canary:{line}" if name is None else as_written("id", name),
            prompt=prompt,
            format=as_text(*column(row, "format")),
            secret=_symbols(*column(row, "secret")),
            alphabet=_symbols(*column(row, "alphabet")),
            joint=joint,
            times=times,
        )
    except InputError as error:
        return Refused(line=line, reason=error.message)
    except ValueError as error:  # pydantic's, which says what is wrong in its last lines
        return Refused(line=line, reason=f"no canary: {_last(error)}")


def _symbols(name: str, value: Any) -> tuple[str, ...]:
    """A list of texts, or the characters of one text."""
    if isinstance(value, str):
        return tuple(as_text(name, value))
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item for item in value):
        raise InputError(f"wrong type: '{name}' must be a text or a list of texts, got {shown(value)}")
    return tuple(value)


def _last(error: ValueError) -> str:
    errors = getattr(error, "errors", lambda: [{"msg": str(error)}])()
    return str(errors[0]["msg"]).removeprefix("Value error, ")
