"""Every goal under every wording of a cue, without it and with it: the prompts, and what the model did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from calibrant.core import LM, Attempt, Chat, Goal, InputError, Judge, Run, Sampling
from calibrant.core.attempt import HIT
from calibrant.data.rows import LabelledText, LabelledTexts
from calibrant.evals.arms import Hits
from calibrant.evals.attempts import Request, ask

Phrasing = tuple[str, str]
"""The cue's absence, and its presence, in words."""
Place = Literal["system", "before"]


@dataclass(frozen=True)
class Arms:
    """Prompts in the order of wording, side (without, with) and goal."""

    name: str
    """'cue' or 'sham'."""
    wordings: int
    goals: Sequence[Goal]
    chats: Sequence[Chat]

    @property
    def clusters(self) -> list[str]:
        """What each goal hangs together with; its own id where nothing is named."""
        return [goal.cluster or goal.id for goal in self.goals]

    def texts(self) -> LabelledTexts:
        """For a probe: labelled by side, a wording a template and a cluster of goals a task."""
        rows, count = [], len(self.goals)
        for at, chat in enumerate(self.chats):
            pair, side = divmod(at // count, 2)
            rows.append(
                LabelledText(
                    id=f"{self.name}/{pair + 1}/{'on' if side else 'off'}/{self.goals[at % count].id}",
                    prompt=chat,
                    label=bool(side),
                    template=f"wording {pair + 1}",
                    task=self.clusters[at % count],
                )
            )
        return LabelledTexts(rows=tuple(rows))

    def place(self, wording: int, side: int, goal: int) -> int:
        """Row of a prompt."""
        return (2 * wording + side) * len(self.goals) + goal

    def sides(self, hits: Hits) -> tuple[list[Hits], list[Hits]]:
        """The arms without the cue, and those with it: outcomes goal by goal, a list for each wording."""
        count = len(self.goals)
        parts = [hits[start : start + count] for start in range(0, len(hits), count)]
        return parts[0::2], parts[1::2]


def arms(name: str, phrasings: Sequence[Phrasing], goals: Sequence[Goal], place: Place) -> Arms:
    """The prompts of a cue."""
    chats = [_asked(words, goal, place) for pair in phrasings for words in pair for goal in goals]
    return Arms(name, len(phrasings), goals, chats)


def check_prompts(*cues: Arms) -> None:
    """Refuse prompts that come twice, within a cue or in both.

    Raises:
        InputError: names the cues.
    """
    seen: dict[Chat, str] = {}
    for cue in cues:
        for row, chat in zip(cue.texts().rows, cue.chats, strict=True):
            other = seen.setdefault(chat, row.id)
            if other != row.id:
                raise InputError(
                    f"prompts '{other}' and '{row.id}' are the same",
                    hint="no two wordings of 'cues' and 'shams' may read alike",
                )


def behaved(
    model: LM, cues: Sequence[Arms], judge: Judge, sampling: Sampling, run: Run
) -> tuple[list[list[bool | None]], list[Attempt]]:
    """Whether the behaviour happened, prompt by prompt of each cue; and the attempts."""
    requests = [
        Request(goal=cue.goals[at % len(cue.goals)], chat=chat, attack=f"cue_awareness/{row.id}")
        for cue in cues
        for at, (chat, row) in enumerate(zip(cue.chats, cue.texts().rows, strict=True))
    ]
    attempts = ask(model, requests, judge, sampling, run)
    left, hits = iter(attempts), list[list[bool | None]]()
    for cue in cues:
        hits.append([HIT[next(left).outcome] for _ in cue.chats])
    return hits, attempts


def _asked(words: str, goal: Goal, place: Place) -> Chat:
    if place == "system":
        return Chat.ask(goal.text, system=words or None)
    return Chat.ask(f"{words} {goal.text}".strip())
