"""`calibrant annotate`: compare two outputs, or label single replies. Works with piped input too."""

from __future__ import annotations

import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from calibrant.app import catalog
from calibrant.cli import render
from calibrant.cli._options import LEDGER, Where
from calibrant.core import Chat, InputError
from calibrant.core.errors import nearest
from calibrant.core.shown import visible
from calibrant.data.answers import CONDITIONS
from calibrant.data.columns import listed
from calibrant.data.human_labels import Queue, Queued, is_queue, read_queue
from calibrant.data.rows import Pair, Preferences, Table
from calibrant.data.votes import Choice, read_comparisons
from calibrant.ledger import Ledger

if TYPE_CHECKING:  # what it needs to know of agreement is loaded when someone annotates
    from calibrant.app.people.annotate import Session, Shown
    from calibrant.app.people.answer_file import Worked
    from calibrant.app.people.labelling import LabelSession
    from calibrant.data.advice import Advised

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
    assist: Annotated[
        str, typer.Option("--assist", help="Show this advice: a job, record:JOB/FILE, or a file.")
    ] = "",
    condition: Annotated[
        str, typer.Option("--condition", help="How you work, for the record: alone or expert.")
    ] = "",
    study: Annotated[str, typer.Option("--study", help="Name of the study whose job --assist means.")] = "",
    ledger: Where = LEDGER,
) -> None:
    """Compare two outputs, or label the replies of a queue, blind; run it again to resume."""
    if not rater and pairs is None:
        raise InputError("nothing to do without --rater and --pairs", hint="give --rater NAME to vote")
    if pairs is not None and pairs.resolve() in (file.resolve(), votes.resolve()):
        raise InputError(f"--pairs {pairs} would overwrite what it is made from", hint="name another file")
    if is_queue(file):
        if pairs is not None or not rater:
            raise InputError(f"{file} is a queue of single replies", hint="give --rater NAME, and no --pairs")
        worked = _worked(assist, condition, ("yes", "no"), (), ledger, study)
        _label(read_queue(file, ignore or ()), votes, rater, seed, worked)
        return
    comparisons = read_comparisons(file, ignore or ())
    tell_unused(comparisons)
    if comparisons.refused:
        first = comparisons.refused[0]
        _say(f"{len(comparisons.refused)} rows left out, first line {first.line}: {first.reason}")
    if rater:
        worked = _worked(assist, condition, ("a", "b", "tie"), comparisons.rows, ledger, study)
        with catalog.load("calibrant.app.people.annotate:Session")(
            comparisons, votes, rater, seed=seed, repeats=repeats, worked=worked
        ) as session:
            _tell_advice(comparisons, worked)
            _sit(session)
            _summary(session)
    if pairs is not None:
        _export(comparisons, votes, pairs)


def _worked(
    assist: str, condition: str, answers: tuple[str, ...], pairs: Sequence[Pair], ledger: Path, study: str
) -> Worked:
    """How the rater works. Raises InputError for a condition that there is not, or advice to one alone."""
    made = catalog.load("calibrant.app.people.answer_file:Worked")
    if condition not in ("", *CONDITIONS):
        raise InputError(
            f"no condition '{condition}'{nearest(condition, CONDITIONS)}",
            hint=f"one of: {', '.join(CONDITIONS)}",
        )
    if bool(assist) != (condition == "assisted") and (condition or not assist):
        raise InputError(
            f"--condition {condition} goes {'without' if assist else 'with'} --assist",
            hint="with --assist the condition is assisted, and needs no --condition",
        )
    if not assist:
        return made(condition)  # type: ignore[no-any-return]
    find = catalog.load("calibrant.app.people.assist:assisting")
    advice = find(assist, answers, pairs, Ledger(ledger), study)
    return made("assisted", advice)  # type: ignore[no-any-return]


def tell_unused(table: Table[Any]) -> None:
    """Name the columns that no row was read by."""
    if table.unused:
        _say(f"columns not used: {listed(table.unused)}")


def _label(queue: Queue, votes: Path, rater: str, seed: int, worked: Worked) -> None:
    """Label the replies of a queue."""
    tell_unused(queue)
    with catalog.load("calibrant.app.people.labelling:LabelSession")(
        queue, votes, rater, seed=seed, worked=worked
    ) as session:
        _tell_advice(queue, worked)
        _label_all(session)
        _say(f"\n{session.done} of {session.total} labelled by {visible(rater)}")
        if len({label.rater for label in session.answers}) > 1:
            _say(f"between raters: {session.agreement()}")


def _label_all(session: LabelSession) -> None:
    while (item := session.next()) is not None:
        _show_one(item, session.done + 1, session.total)
        _advise(session.advised(item.id), session.worked)
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
        _advise(item.advice, session.worked)
        typed = _typed(HELP, KEYS, session)
        if typed is None:
            return
        if typed in KEYS:
            session.vote(KEYS[typed])


def _tell_advice(table: Table[Any], worked: Worked) -> None:
    """How many rows have advice."""
    if worked.condition == "assisted":
        said = [worked.advice.get(row.id) for row in table.rows]
        count = sum(one is not None and bool(one.says or one.text) for one in said)
        _say(f"there is advice on {count} of {len(said)} rows")


def _advise(advised: Advised | None, worked: Worked) -> None:
    """Show the advice; where there is none, say so, lest its absence be read as a no."""
    if worked.condition != "assisted":
        return
    if advised is None or not (advised.says or advised.text):
        _say("[advice]\nnone on this one\n")
        return
    says = {"first": "1 is better", "second": "2 is better", "tie": "neither is better"}
    words = f"\n{visible(advised.text)}" if advised.text.strip() else ""
    _say(f"[advice]\n{says.get(advised.says, advised.says) or 'it does not say'}{words}\n")


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
