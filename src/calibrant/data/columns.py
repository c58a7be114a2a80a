"""Track which columns of a file are read: others are listed; those that change a row's meaning are errors.

    rows = ignoring(raw_rows(path), ["system"])     # read as if these columns were not there
    account = Columns(Preferences)
    for line, raw in rows: row = Seen(raw); pair_of(line, row); account.note(line, row)
    account.unused("orca.jsonl")                    # ('source', 'messages.name'), or InputError

A key inside a message counts as a column, named 'messages.tool_calls'. A blank cell (null, NaN, "", [], {})
changes nothing, so it is never an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from calibrant.core.errors import InputError, nearest
from calibrant.data.cells import is_blank
from calibrant.data.files import RawRow
from calibrant.data.rows import Goals, Items, Preferences, Refused, Table
from calibrant.data.task_tree import NODE_KEYS

CHANGE_MEANING = {
    "system", "system_prompt", "system_message", "developer", "context", "documents", "input", "history",
    "tools", "functions", "tool_calls", "function_call", "chat_template_kwargs",
    "reasoning", "reasoning_content", "thinking", "refusal", "image", "images", "audio", "video", "videos",
    "margin", "weight", "train", "tie", "is_tie",
}  # fmt: skip
"""Columns without which a row of any kind asks, answers or weighs something else."""
_OF_GOALS = {
    "benign", "is_benign", "safe", "is_safe", "harmless", "is_harmless",
    "unsafe", "is_unsafe", "is_harmful", "harm", "toxic", "is_toxic",
}  # fmt: skip
_NO_FLAGS = {
    "index", "idx", "number", "row", "line", "version", "split", "fold", "seed", "epoch", "rank", "position",
    "turn", "turns", "round", "level", "difficulty", "language", "lang",
}  # fmt: skip
"""Columns of goals whose zeros and ones count or name something; so do num_turns and what ends in _id."""
_OF_ITEMS = {"choices", "options", "answers", "aliases"}
_SAYS_NOTHING = {"weight": 1.0, "train": 1.0, "margin": 0.0, "tie": 0.0, "is_tie": 0.0}
"""Column -> the value that says what a row without it says, too."""
_TRUTHS = ("true", "false", "yes", "no", "0", "1", "0.0", "1.0")
_FEW = 2
"""A column of so few numbers may hold 0 and 1 by chance: an index, say."""
_TIES = {"tie", "tied", "both bad", "bothbad", "tie (bothbad)", "no preference"}
"""What a cell beside a pair says where neither reply is the better one."""
_SHOWN = 100


class Seen(dict[str, Any]):
    """A row that remembers which of its columns were read."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a column; asking for it counts as reading it."""
        self.read.add(name)
        return super().get(name, default)


class Columns:
    """Which columns of one table were read, over all its rows."""

    def __init__(self, kind: type[Table[Any]]) -> None:
        """``kind``: the table that the rows are read as, such as ``Goals``."""
        self._goals, self._pairs = kind is Goals, kind is Preferences
        own = _OF_GOALS if self._goals else _OF_ITEMS if kind is Items else set()
        self._changing = CHANGE_MEANING | own
        self._unused: dict[str, None] = {}
        self._wrong: dict[str, int] = {}
        self._ties: dict[str, int] = {}  # column -> the first line that says so
        self._harm: set[str] = set()  # columns of which a word says that a goal is benign
        self._flags: dict[str, tuple[int, int]] = {}  # column -> how often a truth value, and how often given

    def note(self, line: int, row: Seen) -> None:
        """Count the columns of a row that was taken."""
        labelled = self._goals and not all(is_blank(dict.get(row, name)) for name in ("harmful", "label"))
        for name, value in _left(row):
            self._unused[name] = None
            if _is_empty(value):
                continue
            word = _word(name)
            if word in self._changing and not (labelled and word in _OF_GOALS):
                if word not in _SAYS_NOTHING or _number(value) != _SAYS_NOTHING[word]:
                    self._wrong.setdefault(name, line)
            elif self._pairs and _said(value) in _TIES:
                self._ties.setdefault(name, line)
            elif self._goals and not labelled and says_benign(value):
                self._wrong.setdefault(name, line)
                self._harm.add(name)
            elif self._goals and not labelled and not _counts(word):
                truths, times = self._flags.get(name, (0, 0))
                self._flags[name] = truths + _is_truth(value), times + 1

    def unused(self, source: str) -> tuple[str, ...]:
        """The columns that were not read in at least one row, in the order in which they came.

        Raises:
            InputError: one of them changes what the rows mean; all such are named.
        """
        flags = {name for name, (truths, times) in self._flags.items() if truths == times > _FEW}
        bad = self._wrong.keys() | self._ties.keys() | flags
        wrong = [name for name in self._unused if name in bad]
        if wrong:
            named = ", ".join(f"'{name}'" for name in wrong)
            harm = self._goals and any(n in flags | self._harm or _word(n) in _OF_GOALS for n in wrong)
            tie = f"drop the pairs that are ties (line {min(self._ties.values())}), or " if self._ties else ""
            raise InputError(
                f"{source}: left out, {listed(wrong)} would change what the rows mean",
                hint=("say it in a column 'harmful' (true where a goal is harmful), or " if harm else tie)
                + "put it into the columns that are read, or leave it out knowingly: "
                f"{{ file = '{source}', ignore = [{named}] }}",
            )
        return tuple(self._unused)


def ignoring(rows: Iterable[RawRow], names: Collection[str]) -> Iterator[RawRow]:
    """The rows without these columns, and without these keys of messages ('messages.tool_calls').

    Raises:
        InputError: once all rows are drawn, for a name that none of them has.
    """
    seen: dict[str, None] = {}
    for line, row in rows:
        if not names or isinstance(row, Refused):
            yield line, row
            continue
        seen.update(dict.fromkeys(row))
        seen.update(dict.fromkeys(path for name, value in row.items() for path, _ in _inside(name, value)))
        yield line, {name: _without(name, v, names) for name, v in row.items() if name not in names}
    missing = [name for name in names if name not in seen]
    if missing:
        name = min(missing)
        raise InputError(
            f"ignore names '{name}', but there is no such column{nearest(name, seen)}",
            hint=f"columns: {listed(seen)}",
        )


def listed(names: Collection[str]) -> str:
    """Names in quotes, what cannot be printed escaped; beyond a hundred only their number."""
    shown = [
        f"'{''.join(c if c.isprintable() else repr(c)[1:-1] for c in n[:80])}'" for n in [*names][:_SHOWN]
    ]
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(shown) + more


def _left(row: Seen) -> Iterator[tuple[str, Any]]:
    """What was not read: whole columns, and keys inside those that were."""
    for name, value in row.items():
        if name in row.read:
            yield from _inside(name, value)
        else:
            yield name, value


def _inside(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Keys beside the messages of a chat, and in them beside role and content; likewise of a tree's nodes."""
    if isinstance(value, Mapping):
        yield from ((f"{name}.{key}", inner) for key, inner in value.items() if key != "messages")
        value = value.get("messages")
    if isinstance(value, (list, tuple)):
        for turn in value:
            if isinstance(turn, Mapping):
                own = NODE_KEYS if name == "nodes" else ("role", "content")
                yield from ((f"{name}.{key}", inner) for key, inner in turn.items() if key not in own)


def _without(name: str, value: Any, names: Collection[str]) -> Any:
    """A cell without the keys that are ignored."""
    if isinstance(value, Mapping):
        rest = {key: inner for key, inner in value.items() if f"{name}.{key}" not in names}
        return {**rest, "messages": _without(name, rest["messages"], names)} if "messages" in rest else rest
    if isinstance(value, list):
        return [_without(name, turn, names) if isinstance(turn, Mapping) else turn for turn in value]
    return value


def says_benign(value: Any) -> bool:
    """Whether a cell says in a word that something is harmless: 'benign', 'vanilla_benign', 'not harmful'."""
    word = _said(value).removeprefix("vanilla ").removeprefix("adversarial ")
    return word in ("benign", "safe", "harmless", "unharmful", "not harmful", "non harmful", "non toxic")


def _said(value: Any) -> str:
    """A short text in one spelling, "" for anything else."""
    short = isinstance(value, str) and len(value) < _SHOWN
    return re.sub(r"[\s_-]+", " ", value.strip().lower()) if short else ""


def _counts(word: str) -> bool:
    """Whether a column by its name counts or names, so that its 0 and 1 are no truth values."""
    return word in _NO_FLAGS or word.endswith("_id") or word.startswith(("num_", "n_"))


def _word(name: str) -> str:
    """The last part of a name in one spelling: 'messages.Tool-Calls' or 'toolCalls' -> 'tool_calls'."""
    last = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2].strip())
    return re.sub(r"[\s_-]+", "_", last).lower()


def _is_truth(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) and str(value).strip().lower() in _TRUTHS


def _is_empty(value: Any) -> bool:
    return is_blank(value) or (isinstance(value, (list, tuple, Mapping)) and not value)


def _number(value: Any) -> Any:
    """A number or truth value as a float, also one that is written as text; anything else as it is."""
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return float(value.strip().lower() == "true")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return value
