"""The conversation tree of a console session: attempts with parents."""

from __future__ import annotations

import re
from collections.abc import Sequence

from calibrant.core import Attempt, Chat, Completion, Cost, Goal, Identity, InputError, attempt_id, digest
from calibrant.evals.judging import tokens

ATTACK, FAMILY = "human", "multi-turn"
LABELS = {True: "hit", False: "miss", None: ""}


class ConversationTree:
    """Every turn so far, oldest first, and the current one."""

    def __init__(self, target: Identity, held: Sequence[Attempt] = ()) -> None:
        """``held`` are the turns of earlier sessions.

        Raises:
            InputError: one of them is not a person's attempt on this target: its id does not follow.
        """
        self._target = target
        self.rows = {attempt.id: attempt for attempt in held}
        self.current: str | None = None
        """Id of the turn that the next one follows; None at the beginning of a conversation."""
        for turn in held:
            if turn.id != self._id(turn.goal_id, turn.attack, turn.chat, turn.seed):
                raise InputError(
                    f"attempt {turn.id[:12]} of this file is not one of a person on this target",
                    hint="use a separate file for each target, and for campaigns",
                )

    def add(self, goal: Goal, chat: Chat, spec: str, completion: Completion, max_tokens: int) -> Attempt:
        """A new turn after the current one. One without a reply is kept, and has no successors."""
        label, draw = f"{ATTACK}/{spec}" if spec else ATTACK, self.draws(goal, chat)
        turn = Attempt(
            id=self._id(goal.id, label, chat, draw),
            goal_id=goal.id,
            category=goal.category,
            attack=label,
            family=FAMILY,
            seed=draw,
            number=sum(turn.goal_id == goal.id for turn in self.rows.values()),
            parent=self.current,
            chat=chat,
            completion=completion,
            layers=completion.layers,
            # Until a judge has spoken.
            outcome="failure" if completion.stop == "blocked" else "undetermined",
            degraded=any(layer.verdict.answer == "unknown" for layer in completion.layers),
            cost=Cost(queries=1, target_tokens=tokens(completion, max_tokens)),
        )
        self.rows[turn.id] = turn
        if completion.stop != "error" and not completion.unanswered:
            self.current = turn.id
        return turn

    def chat(self, system: str | None) -> Chat:
        """The conversation up to the current turn; ``system`` opens a new one."""
        if self.current is None:
            return Chat(messages=Chat.ask("", system=system).messages[:-1])
        turn = self.rows[self.current]
        return turn.chat.then("assistant", turn.completion.text)

    def draws(self, goal: Goal, chat: Chat) -> int:
        """How often this text was sent to the target for this goal."""
        return sum(turn.goal_id == goal.id and turn.chat == chat for turn in self.rows.values())

    def number(self, turn: Attempt) -> int:
        """Its place, from 1."""
        return list(self.rows).index(turn.id) + 1

    def find(self, number: str) -> Attempt:
        """Turn ``number``; the current one for "". Raises InputError where there is none."""
        if not number and self.current is not None:
            return self.rows[self.current]
        turns = list(self.rows.values())
        if not re.fullmatch("[0-9]{1,9}", number) or not 1 <= int(number) <= len(turns):
            raise InputError(
                f"no turn '{number}'" if number else "no turn yet in this conversation",
                hint=f"turns: 1 to {len(turns)}" if turns else "send something first",
            )
        return turns[int(number) - 1]

    def listing(self) -> str:
        """A line a turn: number, parent, attack, label, first words."""
        places = {name: place for place, name in enumerate(self.rows, start=1)}
        lines = []
        for name, turn in self.rows.items():
            here = "here" if name == self.current else ""
            marks = ", ".join(filter(None, (turn.attack, LABELS[turn.human], here)))
            after = places.get(turn.parent or "", 0)
            lines.append(f"[{places[name]}] after {after}, {marks}: {turn.chat.last_user[:60]}")
        return "\n".join(lines) or "no turns yet"

    def counts(self) -> str:
        """Numbers of turns, human labels and judge verdicts."""
        turns = self.rows.values()
        human = [turn.human for turn in turns]
        text = f"{len(human)} attempts, by people {human.count(True)} hits and {human.count(False)} misses"
        if any(turn.verdicts for turn in turns):
            text += f", by the judge {sum(turn.outcome == 'success' for turn in turns)} hits"
        return text

    def _id(self, goal: str, label: str, chat: Chat, draw: int) -> str:
        return attempt_id(goal, label, {"chat": digest(chat)}, self._target.digest, draw)
