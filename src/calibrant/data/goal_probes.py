"""Goal probes: something to choose, and which choice an intended goal makes, and which a proxy of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, model_validator

from calibrant.core.config import Frozen
from calibrant.core.errors import InputError
from calibrant.core.lm import Chat
from calibrant.data.cells import Row, as_text, as_written, column, given, shown
from calibrant.data.columns import Columns, Seen
from calibrant.data.distinct import plain
from calibrant.data.files import RawRow
from calibrant.data.rows import Refused, Table
from calibrant.data.turns import prompt_in

Kind = Literal["agree", "apart", "goal_only", "proxy_only", "neither"]
KINDS: tuple[Kind, ...] = ("agree", "apart", "goal_only", "proxy_only", "neither")
"""Goal and proxy choose the same; each its own; only one of them chooses; or neither does."""


class GoalProbe(Frozen):
    """A situation with options: one may be what the goal asks for, one may have the proxy's cue."""

    id: str
    """Stable name of the row."""
    chat: Chat
    """The situation, as the model reads it."""
    options: tuple[str, ...] = Field(min_length=2)
    """The reply that takes each option, competently and to the end, in the order in which it is shown."""
    goal: str = ""
    """The option that the intended goal takes; "" where none of them is it."""
    proxy: str = ""
    """The option with the cue that went with the goal in training; "" where none has it."""
    match: Literal["exact", "contains"] = "exact"
    """Compare whole replies (case and outer space aside), or look for an option as a phrase."""
    cluster: str = ""
    """Probes that share a situation or a subject are not independent; "" is its own cluster."""

    @model_validator(mode="after")
    def _are_options(self) -> GoalProbe:
        texts = [plain(one) for one in self.options]
        if "" in texts or len(set(texts)) < len(texts):
            raise ValueError("two options are the same but for case, spaces or a final mark, or one is blank")
        for name, one in (("goal", self.goal), ("proxy", self.proxy)):
            if one and one not in self.options:
                raise ValueError(f"'{name}' is none of the options")
        return self

    @property
    def kind(self) -> Kind:
        """How goal and proxy stand to each other here."""
        if self.goal and self.proxy:
            return "agree" if self.goal == self.proxy else "apart"
        return "goal_only" if self.goal else "proxy_only" if self.proxy else "neither"


class GoalProbes(Table[GoalProbe]):
    """Goal probes, for ``measure.goal_misgeneralisation``."""


def goal_probes_from(rows: Iterable[RawRow], source: str) -> GoalProbes:
    """Shape raw rows: question (or prompt, chat), options, goal, proxy; match, cluster and id if given.

    A row that cannot be read is refused with its line and reason, as readers do.

    Raises:
        InputError: there are no rows, none can be taken, two share an id, or a column that changes what they
            mean was not read.
    """
    taken: dict[str, GoalProbe] = {}
    refused: list[Refused] = []
    columns = Columns(GoalProbes)
    for line, raw in rows:
        seen = Seen({} if isinstance(raw, Refused) else raw)
        probe = raw if isinstance(raw, Refused) else _probe(line, seen)
        if isinstance(probe, Refused):
            refused.append(probe)
        elif probe.id in taken:
            raise InputError(f"{source}: two probes share the id '{probe.id}'", hint="name each differently")
        else:
            taken[probe.id] = probe
            columns.note(line, seen)
    if not taken:
        why = f": line {refused[0].line}: {refused[0].reason}" if refused else ""
        raise InputError(
            f"{source}: none of {len(refused)} rows is a goal probe{why}",
            hint="give the columns question, options, goal and proxy; see measure.goal_misgeneralisation",
        )
    unused = columns.unused(source)
    return GoalProbes(rows=tuple(taken.values()), source=source, refused=tuple(refused), unused=unused)


def _probe(line: int, row: Row) -> GoalProbe | Refused:
    try:
        name = given(row, "id")
        wanted = {key: given(row, key) for key in ("goal", "proxy", "match", "cluster")}
        words = {key: "" if one is None else as_written(key, one) for key, one in wanted.items()}
        return GoalProbe.model_validate(
            {
                "id": f"probe:{line}" if name is None else as_written("id", name),
                "chat": prompt_in(row, "question", "prompt", "chat", "messages"),
                "options": _options(*column(row, "options")),
                "goal": words["goal"],
                "proxy": words["proxy"],
                "match": words["match"] or "exact",
                "cluster": words["cluster"],
            }
        )
    except InputError as error:
        return Refused(line=line, reason=error.message)
    except ValueError as error:  # pydantic's, which says what is wrong in its last lines
        return Refused(line=line, reason=f"no probe: {_last(error)}")


def _last(error: ValueError) -> str:
    errors = getattr(error, "errors", lambda: [{"msg": "unreadable"}])()
    return str(errors[0]["msg"]).removeprefix("Value error, ")


def _options(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"wrong type: '{name}' must be a list of texts, got {shown(value)}")
    return tuple(as_text(name, one) for one in value)
