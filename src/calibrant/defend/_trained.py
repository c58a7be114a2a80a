"""Safety training as a layer: what the trained model did with attempts on the model before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from calibrant.core import Attempt, InputError
from calibrant.core.attempt import HIT, any_of

Meaning = Literal["refused", "answered"]


def stands(attempts: Sequence[Attempt], trained: Sequence[Attempt], side: str) -> list[bool | None]:
    """Whether each attempt still succeeds on the trained model, by its replays; None: not known.

    A replay names its attempt as ``parent`` and has its chat (``attack.replay``). Of several one success is
    enough. Attempts that did not succeed on the model before may be without a replay: a failure stands for
    nothing that training could stop, what was undetermined stays so.

    Raises:
        InputError: a success has no replay, or a replay asks something else than its attempt.
    """
    said = _by_attempt(attempts, trained, side)
    _check_covered([a for a in attempts if a.outcome == "success"], said, side)
    return [any_of(said[a.id]) if a.id in said else _unasked(a) for a in attempts]


def answers(attempts: Sequence[Attempt], trained: Sequence[Attempt], meaning: Meaning) -> list[bool | None]:
    """Whether the trained model answers each benign request; ``meaning`` is that of a replay's success.

    Of several replays one that is not answered is enough. None: not known.

    Raises:
        InputError: an attempt has no replay, or a replay asks something else than its attempt.
    """
    said = _by_attempt(attempts, trained, "benign")
    _check_covered(attempts, said, "benign")
    lost = {
        name: any_of(one if one is None else one == (meaning == "refused") for one in outcomes)
        for name, outcomes in said.items()
    }
    return [None if lost[a.id] is None else not lost[a.id] for a in attempts]


def _unasked(attempt: Attempt) -> bool | None:
    return True if attempt.outcome == "failure" else None


def _by_attempt(
    attempts: Sequence[Attempt], trained: Sequence[Attempt], side: str
) -> Mapping[str, list[bool | None]]:
    asked = {a.id: a.chat for a in attempts}
    found: dict[str, list[bool | None]] = {}
    for replay in trained:
        if replay.parent not in asked:
            continue
        if replay.chat != asked[replay.parent]:
            raise InputError(
                f"replay '{replay.id}' asks something else than its attempt '{replay.parent}' of '{side}'",
                hint="send the attempts again word for word, with attack.replay",
            )
        found.setdefault(replay.parent, []).append(HIT[replay.outcome])
    return found


def _check_covered(wanted: Sequence[Attempt], said: Mapping[str, object], side: str) -> None:
    lost = [a.id for a in wanted if a.id not in said]
    if lost:
        what = "successes" if side == "attempts" else "attempts"
        raise InputError(
            f"{len(lost)} of {len(wanted)} {what} of '{side}' were not sent to the trained model, such as "
            f"'{lost[0]}'",
            hint="replay this very file on the trained model: attack.replay with only = 'all'",
        )
