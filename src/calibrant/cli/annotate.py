"""`calibrant annotate`: compare two outputs, or label single replies. Works with piped input too."""

from __future__ import annotations

import sys
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from calibrant.app import catalog
from calibrant.cli import render
from calibrant.core import Chat, InputError
from calibrant.core.shown import visible
from calibrant.data.columns import listed
from calibrant.data.human_labels import Queue, Queued, is_queue, read_queue
from calibrant.data.rows import Preferences, Table
from calibrant.data.votes import Choice, read_comparisons

if TYPE_CHECKING:  # what it needs to know of agreement is loaded when someone annotates
    from calibrant.app.people.annotate import Session, Shown
    from calibrant.app.people.labelling import LabelSession

KEYS: dict[str, Choice] = {
    "1": "first",
    "2": "second",
    "g": "both good",
    "b": "both bad",
    "s": "same",
}
"""What is typed -> the choice."""
HELP = "1 or 2: that one is better   g: both good   b: both bad   s: no difference   u: undo   q: stop"
LABELS: dict[str, bool | None] = {"y": True, "n": False, "s": None}
"""What is typed -> the label of a single reply."""
LABEL_HELP = "y: yes, it happened   n: no   s: unsure   u: undo   q: stop"

Ignore = Annotated[list[str] | None, typer.Option("--ignore", help="A column to ignore.")]


def annotate(
    file: Annotated[
        Path, typer.Argument(help="What to compare (prompt, a, b; or pairs), or a queue to label.")
    ],
    votes: Annotated[Path, typer.Option("--votes", help="File of votes (.jsonl), append-only.")],
    rater: Annotated[
        str, typer.Option("--rater", help="Your name; leave it out to write --pairs only.")
    ] = "",
    pairs: Annotated[Path | None, typer.Option("--pairs", help="Write the agreed pairs here.")] = None,
    repeats: Annotated[float, typer.Option("--repeats", help="Share shown again, swapped.")] = 0.1,
    seed: Annotated[int, typer.Option("--seed", help="Order, sides and repeats.")] = 0,
    ignore: Ignore = None,
) -> None:
    """Compare two outputs, or label the replies of a queue, blind; run it again to resume."""
    if not rater and pairs is None:
        raise InputError("nothing to do without --rater and --pairs", hint="give --rater NAME to vote")
    if pairs is not None and pairs.resolve() in (file.resolve(), votes.resolve()):
        raise InputError(f"--pairs {pairs} would overwrite what it is made from", hint="name another file")
    if is_queue(file):
        if pairs is not None or not rater:
            raise InputError(f"{file} is a queue of single replies", hint="give --rater NAME, and no --pairs")
        _label(read_queue(file, ignore or ()), votes, rater, seed)
        return
    comparisons = read_comparisons(file, ignore or ())
    tell_unused(comparisons)
    if comparisons.refused:
        first = comparisons.refused[0]
        _say(f"{len(comparisons.refused)} rows left out, first line {first.line}: {first.reason}")
    if rater:
        with catalog.load("calibrant.app.people.annotate:Session")(
            comparisons, votes, rater, seed=seed, repeats=repeats
        ) as session:
            _sit(session)
            _summary(session)
    if pairs is not None:
        _export(comparisons, votes, pairs)


def tell_unused(table: Table[Any]) -> None:
    """Name the columns that no row was read by."""
    if table.unused:
        _say(f"columns not used: {listed(table.unused)}")


def _label(queue: Queue, votes: Path, rater: str, seed: int) -> None:
    """Label the replies of a queue."""
    tell_unused(queue)
    with catalog.load("calibrant.app.people.labelling:LabelSession")(
        queue, votes, rater, seed=seed
    ) as session:
        _label_all(session)
        _say(f"\n{session.done} of {session.total} labelled by {visible(rater)}")
        if len({label.rater for label in session.answers}) > 1:
            _say(f"between raters: {session.agreement()}")


def _label_all(session: LabelSession) -> None:
    while (item := session.next()) is not None:
        _show_one(item, session.done + 1, session.total)
        typed = _typed(LABEL_HELP, LABELS, session)
        if typed is None:
            return
        if typed in LABELS:
            session.label(LABELS[typed])


def _show_one(item: Queued, number: int, total: int) -> None:
    goal = f"wanted: {visible(item.goal)}\n\n" if item.goal else ""
    reply = visible(item.reply) if item.reply.strip() else "(the reply is empty)"
    _say(f"\n--- {number} of {total} ---\n{goal}{_prompt(item.chat)}\n\n[reply]\n{reply}\n")


def _sit(session: Session) -> None:
    """Show and ask until all is answered, or the rater stops."""
    while (item := session.next()) is not None:
        _show(item, session.done + 1, session.total)
        typed = _typed(HELP, KEYS, session)
        if typed is None:
            return
        if typed in KEYS:
            session.vote(KEYS[typed])


class _Undoes(Protocol):
    def undo(self) -> bool: ...


def _typed(help_line: str, keys: Container[str], session: _Undoes) -> str | None:
    """One of ``keys``, or 'u' once a vote was taken back; None to stop. What is not understood is asked
    again."""
    while True:
        _say(help_line)
        line = _line()
        typed = line.strip().lower()
        if line == "" or typed == "q":
            return None
        if typed in keys:
            return typed
        if typed != "u":
            _say(f"not understood: {visible(typed[:40])}")
        elif session.undo():
            return typed
        else:
            _say("there is no vote to take back")


def _line() -> str:
    """The next line of input; "" at its end."""
    try:
        return sys.stdin.readline()
    except UnicodeDecodeError:
        raise InputError("the input is not UTF-8 text", hint="type the letters that are shown") from None


def _show(item: Shown, number: int, total: int) -> None:
    _say(f"\n--- {number} of {total} ---\n{_prompt(item.prompt)}")
    for name, text in (("1", item.first), ("2", item.second)):
        _say(f"\n[{name}]\n{visible(text)}")
    _say("")


def _prompt(chat: Chat) -> str:
    """The prompt; who speaks is named where there are several turns."""
    if len(chat.messages) == 1:
        return visible(chat.messages[0].content)
    return "\n".join(f"{turn.role}: {visible(turn.content)}" for turn in chat.messages)


def _summary(session: Session) -> None:
    """Where the session stands, and whether the rater agrees with himself and with others."""
    _say(f"\n{session.done} of {session.total} answered by {visible(session.rater)}")
    score = session.consistency()
    _say(f"with yourself, on swapped repeats: {score} of {score.n}" if score.n else f"with yourself: {score}")
    if len({vote.rater for vote in session.answers}) > 1:
        _say(f"between raters: {session.agreement()}")


def _export(comparisons: Preferences, votes: Path, pairs: Path) -> None:
    done = catalog.load("calibrant.app.people.annotate:export_pairs")(comparisons, votes, pairs)
    _say(
        f"{done.written} pairs written to {pairs}; {done.undecided} undecided, {done.unvoted} without a vote"
    )


def _say(text: str) -> None:
    render.OUT.print(text, markup=False, emoji=False)
