"""Manual red-teaming: a pure state machine of input lines in and effects out.

    console = Console(target.identity, goals)
    console.hear("how do i burn the mill?")   # [Ask(chat, sampling)]
    console.answered(completion)              # [Keep(attempt), Show("[1] ...")]

``calibrant.app.people.console_session`` carries out the effects: it queries, judges, writes and shows.

1. Every turn counts, the undone ones too: it was sent, and the target answered.
2. With a judge every reply is judged at once, and the verdict is shown on request only (``/judge``): a
   person's label must not be influenced by it.
3. What a person types is of the family 'multi-turn': each line is chosen after the last reply was read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

from calibrant.app.people.conversation_tree import LABELS, ConversationTree
from calibrant.core import (
    Attempt,
    CalibrantError,
    Chat,
    Completion,
    Goal,
    Identity,
    InputError,
    Sampling,
    Verdict,
    digest,
    outcome_of,
    resolve,
)
from calibrant.core.errors import nearest
from calibrant.text.converters import CONVERTERS, converter


class Show(NamedTuple):
    """Text for the person."""

    text: str


class Ask(NamedTuple):
    """Send this to the target, and call ``answered`` with the reply."""

    chat: Chat
    sampling: Sampling


class Judge(NamedTuple):
    """Judge this, and call ``judged`` with the verdict."""

    goal: Goal
    attempt: Attempt
    aloud: bool
    """Whether the person wants to see the verdict."""


class Keep(NamedTuple):
    """Append this to the file; a later line with the same id replaces an earlier one."""

    attempt: Attempt


class Stop(NamedTuple):
    """The person leaves."""


Effect: TypeAlias = Show | Ask | Judge | Keep | Stop


class Console:
    """One person, one target, one file of attempts."""

    def __init__(
        self,
        target: Identity,
        goals: Iterable[Goal] = (),
        *,
        held: Sequence[Attempt] = (),
        judge: Identity | None = None,
        sampling: Sampling = Sampling(max_tokens=256),
        show_layers: bool = False,
    ) -> None:
        """``held`` are the attempts of earlier sessions, in order; the session continues from the latest.

        Raises:
            InputError: two goals share an id, or ``held`` is not about this target.
        """
        rows = tuple(goals)
        self.goals = {goal.id: goal for goal in rows}
        if len(self.goals) < len(rows):
            raise InputError("two goals share an id", hint="give each goal an id of its own")
        self.turns = ConversationTree(target, held)
        self.sampling, self.spec = sampling, ""
        self._own_words = not rows
        # The name of a defended system lists its guards.
        open_ = show_layers or target.kind != "defended"
        self._name = target.name if open_ else "a defended system"
        self._judge, self._layers = judge, show_layers
        self._goal = rows[0] if rows else None
        self._system: str | None = None
        self._sent: tuple[Goal, Chat, str] | None = None
        last = next((turn for turn in reversed(held) if _answered(turn)), None)
        if last is not None and last.goal_id in self.goals:
            self._stand(last)

    def greeting(self) -> str:
        """The first text of a session."""
        went = f" ({len(self.turns.rows)} turns are here already)" if self.turns.rows else ""
        return f"talking to {self._name}{went}; /help lists commands\n{self._aim()}"

    # What comes in.

    def hear(self, line: str) -> list[Effect]:
        """One line from the person: something to send, or a command."""
        text = line.strip()
        try:
            if text.startswith("/") and not text.startswith("//"):
                name, _, rest = text[1:].partition(" ")
                return self._command(name, rest.strip())
            return self._send(text.removeprefix("/"), self.spec) if text else []
        except CalibrantError as error:
            return [Show(str(error))]

    def answered(self, completion: Completion) -> list[Effect]:
        """The target's reply to the last ``Ask``."""
        assert self._sent is not None, "nothing was sent"
        (goal, chat, spec), self._sent = self._sent, None
        turn = self.turns.add(goal, chat, spec, completion, self.sampling.max_tokens)
        effects: list[Effect] = [Keep(turn), Show(self._lines(turn))]
        return effects if self._judge is None else [*effects, Judge(goal, turn, aloud=False)]

    def judged(self, request: Judge, verdict: Verdict) -> list[Effect]:
        """The judge's verdict."""
        assert self._judge is not None, "there is no judge"
        turn = self.turns.rows[request.attempt.id]
        spent = turn.cost.judge_tokens + verdict.tokens
        saved = self._keep(
            turn,
            verdicts={**turn.verdicts, self._judge.digest: verdict},
            outcome=outcome_of(turn.completion, verdict),
            cost=turn.cost.model_copy(update={"judge_tokens": spent}),
        )
        return [saved, _verdict(verdict)] if request.aloud else [saved]

    # What goes out.

    def _send(self, text: str, spec: str) -> list[Effect]:
        if spec:
            text = converter(spec).encode(text)
        request = self._ask(self.turns.chat(self._system).then("user", text), spec)
        return [Show(f"sent: {text}"), request] if spec else [request]

    def _ask(self, chat: Chat, spec: str) -> Ask:
        if self._goal is None:
            raise InputError("no goal is chosen", hint="say what you are after: /goal WORDS")
        self._sent = (self._goal, chat, spec)
        # The same words again are another draw, where there is anything to draw.
        seed = self.sampling.seed + self.turns.draws(self._goal, chat)
        return Ask(chat, self.sampling.model_copy(update={"seed": seed}))

    def _keep(self, turn: Attempt, **changes: object) -> Keep:
        self.turns.rows[turn.id] = turn.model_copy(update=changes)
        return Keep(self.turns.rows[turn.id])

    def _aim(self) -> str:
        if self._goal is None:
            return "no goal is chosen; say what you are after: /goal WORDS"
        return f"goal {self._goal.id}: {self._goal.text}"

    def _lines(self, turn: Attempt) -> str:
        reply = turn.completion
        text = f"no reply: {reply.error}" if reply.stop == "error" else reply.text
        text = "no reply: it was still reasoning" if reply.unanswered else text
        lines = [f"[{self.turns.number(turn)}] {text}"]
        if reply.reasoning:
            lines.append(f"    (it reasoned before that: {len(reply.reasoning)} characters, kept)")
        for layer in turn.layers if self._layers else ():
            lines.append(f"    {layer.layer}: {layer.verdict.answer} {layer.verdict.reason}".rstrip())
        return "\n".join(lines)

    def _stand(self, turn: Attempt) -> None:
        """Take up the conversation after ``turn``: its goal and its system message, too."""
        self.turns.current = turn.id
        self._goal = self.goals.get(turn.goal_id, self._goal)
        first = turn.chat.messages[0]
        self._system = first.content if first.role == "system" else None

    # Commands; each takes what stands behind its name.

    def _command(self, name: str, rest: str) -> list[Effect]:
        if name in COMMANDS:
            return COMMANDS[name].does(self, rest)
        if name.partition("(")[0].partition("+")[0] in CONVERTERS:
            if not rest:
                raise InputError(f"/{name} has nothing to convert", hint=f"/{name} TEXT, or /convert {name}")
            return self._send(rest, name)
        raise InputError(
            f"no command '/{name}'{nearest(name, [*COMMANDS, *CONVERTERS])}",
            hint="/help lists them; a text that begins with '/' is sent as //text",
        )

    def help(self, rest: str) -> list[Effect]:
        """List the commands."""
        lines = [f"/{name} {one.takes}".rstrip() + f": {one.about}" for name, one in COMMANDS.items()]
        lines.append(f"/NAME TEXT: send TEXT in another form; names: {', '.join(CONVERTERS)}")
        return [Show("\n".join([*lines, "anything else is sent to the target; //text sends /text"]))]

    def goal(self, rest: str) -> list[Effect]:
        """Choose a goal by id or number, or state one where there is no table; alone: list them."""
        rows = list(self.goals.values())
        if not rest:
            listed = [f"{number}. {goal.id}: {goal.text}" for number, goal in enumerate(rows, start=1)]
            return [Show("\n".join([*listed, self._aim()]))]
        if rest in self.goals:
            chosen = self.goals[rest]
        elif re.fullmatch("[0-9]{1,9}", rest) and 1 <= int(rest) <= len(rows):
            chosen = rows[int(rest) - 1]
        elif self._own_words:
            chosen = Goal(id=f"own-{digest(rest)[:12]}", text=rest)
            self.goals[chosen.id] = chosen
        else:
            raise InputError(f"no goal '{rest}'{nearest(rest, self.goals)}", hint="/goal lists them")
        self._goal, self.turns.current = chosen, None
        return [Show(self._aim())]

    def system(self, rest: str) -> list[Effect]:
        """Start a new conversation under this system message, or under 'none'; alone: show it."""
        if rest:
            self._system, self.turns.current = (None if rest == "none" else rest), None
        return [Show(f"system: {self._system}" if self._system else "no system message")]

    def sample(self, rest: str) -> list[Effect]:
        """Show or change how replies are sampled."""
        options = dict(part.partition("=")[::2] for part in rest.split())
        self.sampling = resolve(Sampling, {**self.sampling.model_dump(), **options}, where="/sample")
        return [Show(" ".join(f"{key}={value}" for key, value in self.sampling.model_dump().items()))]

    def convert(self, rest: str) -> list[Effect]:
        """Send every line in this encoding from now on; the same name again, or none: as typed."""
        if rest:
            converter(rest)  # refuses what it does not know
        self.spec = "" if rest == self.spec else rest
        return [Show(f"lines are sent in {self.spec}" if self.spec else "lines are sent as typed")]

    def undo(self, rest: str) -> list[Effect]:
        """Go back to before the latest turn; it stays on file."""
        parent = self.turns.find("").parent
        return self._go(self.turns.rows.get(parent or ""))

    def branch(self, rest: str) -> list[Effect]:
        """Continue from just after turn N; 0 is the beginning."""
        return self._go(None if rest == "0" else self.turns.find(rest))

    def _go(self, turn: Attempt | None) -> list[Effect]:
        if turn is None:
            self.turns.current = None
            return [Show(f"at the beginning; {self._aim()}")]
        self._stand(turn)
        return [Show(f"{self._aim()}\n> {turn.chat.last_user}\n{self._lines(turn)}")]

    def again(self, rest: str) -> list[Effect]:
        """Send the latest line once more, for another sample."""
        turn = self.turns.find("")
        self.turns.current = turn.parent
        return [self._ask(turn.chat, turn.attack.partition("/")[2])]

    def label(self, rest: str, human: bool | None) -> list[Effect]:
        """Label a turn: whether it reached its goal."""
        turn = self.turns.find(rest)
        return [
            self._keep(turn, human=human),
            Show(f"[{self.turns.number(turn)}] {LABELS[human] or 'unsure'}"),
        ]

    def judge(self, rest: str) -> list[Effect]:
        """Show the judge's verdict on a turn; it is judged now if it was not before."""
        if self._judge is None:
            raise InputError("there is no judge", hint="start with --judge, such as measure.string_judge")
        turn = self.turns.find(rest)
        verdict = turn.verdicts.get(self._judge.digest)
        if verdict is not None:
            return [_verdict(verdict)]
        if turn.goal_id not in self.goals:
            raise InputError(f"the goal '{turn.goal_id}' is not known here", hint="start with its --goals")
        return [Judge(self.goals[turn.goal_id], turn, aloud=True)]


def _verdict(verdict: Verdict) -> Show:
    return Show(f"{verdict.question} {verdict.answer}: {verdict.reason}")


class Command(NamedTuple):
    """A command of the console."""

    takes: str
    about: str
    does: Callable[[Console, str], list[Effect]]


COMMANDS: dict[str, Command] = {
    "goal": Command(
        "[ID | N | WORDS]", "choose a goal and start a new conversation; alone: list goals", Console.goal
    ),
    "convert": Command("[NAME]", "send every line in another form; alone: as typed", Console.convert),
    "undo": Command("", "go back one turn; it stays on file", Console.undo),
    "branch": Command("N", "continue from turn N; 0 is the beginning", Console.branch),
    "again": Command("", "send the latest line once more", Console.again),
    "turns": Command("", "list turns, their parents and labels", lambda c, _: [Show(c.turns.listing())]),
    "hit": Command("[N]", "the reply reached the goal", lambda c, rest: c.label(rest, True)),
    "miss": Command("[N]", "it did not", lambda c, rest: c.label(rest, False)),
    "unsure": Command("[N]", "take a label back", lambda c, rest: c.label(rest, None)),
    "judge": Command("[N]", "show what the judge says", Console.judge),
    "system": Command(
        "[TEXT | none]", "start a new conversation under a system message; alone: show it", Console.system
    ),
    "sample": Command("[KEY=VALUE ...]", "how replies are sampled: temperature=0.7", Console.sample),
    "save": Command("", "count what is on the disk: every turn is", lambda c, _: [Show(c.turns.counts())]),
    "help": Command("", "this list", Console.help),
    "quit": Command("", "leave, as does the end of the input", lambda c, _: [Stop()]),
}
"""Name -> what it does."""


def _answered(turn: Attempt) -> bool:
    """Whether a conversation can continue from there."""
    return turn.completion.stop != "error" and not turn.completion.unanswered
