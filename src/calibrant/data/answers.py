"""Human answers about rows of data, in an append-only file: votes and labels are two kinds of answer.

    {"votes": 1, "data": "<digest of the rows>", "source": "outputs.jsonl"}
    {"item": "q1", "rater": "ann", ...}
    {"undo": "q1", "rater": "ann"}

An undo takes back that rater's latest standing answer, which must be about that row. A header may come again
(files of several raters, joined) if it names the same data; where advice was shown it holds the digest of it.
``condition`` says how the rater worked, and
``advice`` what was shown beside the row; files without them, or with blank ones, do not say.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

from pydantic import Field

from calibrant.core.config import Frozen
from calibrant.core.digest import canonical
from calibrant.core.errors import InputError, nearest
from calibrant.data.cells import as_text, as_written, given
from calibrant.data.columns import Columns, Seen
from calibrant.data.files import RawRow
from calibrant.data.rows import Refused, Table

SIMULATED = "simulated:"
"""How the name of every simulated rater begins, and of no other."""
Showing = tuple[str, str, bool]
"""Row, rater, and whether it was the hidden second showing."""


Condition = Literal["alone", "assisted", "expert"]
"""How a rater worked: without help, with advice beside each row, or as one who is taken to know."""
CONDITIONS: tuple[Condition, ...] = get_args(Condition)


def _unsaid(value: object) -> bool:
    return not value


class Answer(Frozen, ABC):
    """One rater's answer about one row."""

    kind: ClassVar[str]
    """What it is called: 'vote'."""
    about: ClassVar[str]
    """What it is about: 'comparisons'."""
    rater: str
    """Who answered."""
    condition: Condition | Literal[""] = Field(default="", exclude_if=_unsaid)
    """How the rater worked; "" where the file does not say."""
    advice: str = Field(default="", exclude_if=_unsaid)
    """What was advised, in the words of the answers: yes, no; a, b, tie; "" where nothing was shown."""

    @property
    @abstractmethod
    def row(self) -> str:
        """Id of the row."""

    @property
    def showing(self) -> Showing:
        """What was answered, by whom: unique among standing answers."""
        return self.row, self.rater, False


A = TypeVar("A", bound=Answer)
T = TypeVar("T", bound="Answers[Any]")


class Answers(Table[A], Generic[A]):
    """Standing answers, undone ones left out, in the order in which they were given."""

    data: str = ""
    """Digest of the rows that were answered about; "" where the file does not say."""

    @property
    def simulated(self) -> bool:
        """Whether these raters are simulated."""
        return any(is_simulated(answer.rater) for answer in self.rows)


def is_simulated(rater: str) -> bool:
    """Whether ``rater`` names a simulated rater."""
    return rater.startswith(SIMULATED)


def header(answer: type[Answer], data: str, source: str, advice: str = "") -> bytes:
    """The first line of a file of answers about the rows with the digest ``data``; ``advice``: the digest of
    what is shown beside them."""
    shown = {"advice": advice} if advice else {}
    return canonical({f"{answer.kind}s": 1, "data": data, "source": source} | shown) + b"\n"


def answer_line(answer: Answer) -> bytes:
    """One answer as a line."""
    return canonical(answer) + b"\n"


def undo_line(answer: Answer) -> bytes:
    """The line that takes back ``answer``, the latest of its rater."""
    return canonical({"undo": answer.row, "rater": answer.rater}) + b"\n"


def circumstances(raw: Mapping[str, Any], advices: Collection[str]) -> dict[str, Any]:
    """Condition and advice of a line, where it says them; an advice is one of ``advices``.

    Raises:
        InputError: no such condition or advice, or advice to one who worked without.
    """
    said = {}
    for name, known in (("condition", CONDITIONS), ("advice", advices)):
        value = given(raw, name)
        if value not in (None, ""):
            said[name] = as_text(name, value)
            if said[name] not in known:
                near = nearest(said[name], known)
                raise InputError(f"{name!r} is {said[name]!r}{near}, none of: {', '.join(known)}")
    if "advice" in said and said.get("condition") != "assisted":
        raise InputError(f"advice was shown, but the condition is {said.get('condition', 'not said')!r}")
    return said


def replayed(
    rows: Iterable[RawRow], source: str, table: type[T], answer: type[A], read: Callable[[Seen], A]
) -> T:
    """Replay lines of answers, each read by ``read``, and of undos.

    A line that cannot be read is an error: later ones build on it.

    Raises:
        InputError: a broken line, an undo of nothing, two answers by one rater to one showing, headers of
            different data, or answers of people and simulated raters in one table.
    """
    standing, theirs = dict[Showing, A](), dict[str, list[A]]()
    columns, data = Columns(table), ""
    for line, raw in rows:
        try:
            if isinstance(raw, Refused):
                raise InputError(raw.reason)
            row = Seen(raw)
            if f"{answer.kind}s" in row:
                data = _same_data(answer, data, row)
            elif "undo" in row:
                undone = _undone(answer, theirs, row)
                del standing[undone.showing]
            else:
                made = read(row)
                if made.showing in standing:
                    raise InputError(
                        f"rater '{made.rater}' gives a second {made.kind} on '{made.row}'",
                        hint=f"undo the first {made.kind} before",
                    )
                standing[made.showing] = made
                theirs.setdefault(made.rater, []).append(made)
                columns.note(line, row)
        except InputError as error:
            raise InputError(
                f"{source}:{line}: {error.message}",
                hint=error.hint or f"fix that line; each line is a {answer.kind}, an undo or a header",
            ) from None
    if len({is_simulated(made.rater) for made in standing.values()}) > 1:
        raise InputError(
            f"{source} mixes {answer.kind}s of people with {answer.kind}s of simulated raters",
            hint=f"keep them in two files; names of simulated raters begin with '{SIMULATED}'",
        )
    return table(rows=tuple(standing.values()), source=source, data=data, unused=columns.unused(source))


def _same_data(answer: type[Answer], data: str, row: Seen) -> str:
    version, named = row[f"{answer.kind}s"], as_text("data", row.get("data"))
    if version != 1:
        raise InputError(f"{answer.kind}s of version {version!r}; this reader knows version 1")
    if data not in ("", named):
        raise InputError(
            f"a second header names other {answer.about}",
            hint=f"keep {answer.kind}s on other data in a separate file",
        )
    return named


def _undone(answer: type[A], theirs: dict[str, list[A]], row: Seen) -> A:
    """Take back the rater's latest standing answer."""
    rater, undone = given(row, "rater"), as_written("undo", row["undo"])
    rater = "" if rater is None else as_written("rater", rater)
    last = theirs[rater][-1] if theirs.get(rater) else None
    if last is None or last.row != undone:
        latest = f"the latest {answer.kind} of '{rater}' is {f'on {last.row!r}' if last else 'none'}"
        raise InputError(f"an undo of '{undone}', but {latest}")
    return theirs[rater].pop()
