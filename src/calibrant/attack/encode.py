"""Encoding jailbreak: the request, or only its key words, in an encoding that safety training may not cover.

Paper: Wei et al. 2023, "Jailbroken" (arXiv 2307.02483), section 3.2, mismatched generalisation; Yuan et
al. 2023, "CipherChat" (arXiv 2308.06463).

1. Any converter of ``calibrant.text.converters``, with a key, or several in turn: 'rot13+spell'.
2. ``scope = "spans"`` encodes only the words that carry the meaning, where the goal names them: the rest
   stays readable, and a small model still understands the request.
3. No instructions and no worked examples come with the request unless ``wrapper`` adds them.
4. A goal is reached when any of the encodings reaches it; each encoding has its own rate as well (see
   ``calibrant.attack.engine.metrics``). Unjudged attempts are missing, not failures.

Command: ``calibrant run STUDY.toml`` with ``use = "attack.encode"`` and inputs target, goals, judge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import field_validator

from calibrant.attack.engine.episodes import Participants
from calibrant.attack.engine.metrics import check_goals
from calibrant.attack.engine.protocol import AskTarget, Attack, Episode, Tools
from calibrant.attack.engine.run import AttackResult, run_attack
from calibrant.core import (
    LM,
    Chat,
    ConfigError,
    Frozen,
    Goal,
    InputError,
    Judge,
    Quiet,
    Run,
    Sampling,
    technique,
)
from calibrant.data.rows import Goals
from calibrant.text.converters import converter


class Encode(Frozen):
    """Encodings, their scope, and the target's sampling."""

    encodings: tuple[str, ...] = ("spell", "reverse", "rot13")
    """Converters: 'rot13', 'caesar(7)', 'rot13+spell'; the page lists them all."""
    scope: Literal["spans", "all"] = "spans"
    """Encode the goal's spans (key words) only, or its whole text."""
    wrapper: str = "{request}"
    """What is sent; {request} is replaced by the encoded text."""
    sampling: Sampling = Sampling()
    """How the target's completions are sampled."""

    @field_validator("encodings")
    @classmethod
    def _known_encodings(cls, encodings: tuple[str, ...]) -> tuple[str, ...]:
        if not encodings:
            raise ValueError("at least one encoding is needed")
        return known_encodings(encodings)

    @field_validator("wrapper")
    @classmethod
    def _usable(cls, wrapper: str) -> str:
        if "{request}" not in wrapper:
            raise ValueError("the wrapper does not contain {request}")
        return wrapper


def known_encodings(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, if each is a converter and given once. Raises ValueError otherwise."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the encoding '{name}' is given twice")
        try:
            converter(name)
        except ConfigError as error:
            raise ValueError(error.message) from None
    return names


def _is_encoding(name: str) -> bool:
    try:
        converter(name)
    except ConfigError:
        return False
    return True


@technique(version=5)
def encode(
    target: LM, goals: Goals, judge: Judge, config: Encode = Encode(), run: Run = Quiet()
) -> AttackResult:
    """Ask every goal once in every encoding.

    Raises:
        InputError: goals over which a rate would mean nothing, a category named like an encoding, a span that
            is not in its goal's text, or a target that answers nothing but errors.
    """
    # Any encoding: a category 'rot13' would be read as the rate of rot13 where that was not tried.
    check_goals(goals, [*filter(_is_encoding, {goal.category for goal in goals})])
    notes = _encoding_caveats(goals, config)  # a span that is missing ends it before anything is asked
    participants = Participants(target, judge, config.sampling)
    result = run_attack(ATTACK, config, goals, participants, run, variants=config.encodings)
    return result.model_copy(update={"caveats": (*result.caveats, *notes)})


def _episode(goals: Sequence[Goal], config: Encode, tools: Tools) -> Episode:
    goal = goals[0]
    texts = {name: encoded(goal, name, config.scope) for name in config.encodings}
    yield [
        AskTarget(goal, Chat.ask(config.wrapper.replace("{request}", text)), variant=name)
        for name, text in texts.items()
    ]


def encoded(goal: Goal, name: str, scope: Literal["spans", "all"]) -> str:
    """The goal's text with its spans, or all of it, in encoding ``name``; no spans means all of it."""
    change = converter(name).encode
    if scope == "all" or not goal.spans:
        return change(goal.text)
    # Longest first, so that a span inside a longer one does not win.
    either = "|".join(re.escape(span) for span in sorted(goal.spans, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)
    text, count = pattern.subn(lambda match: change(match.group()), goal.text)
    if not count:
        raise InputError(
            f"goal '{goal.id}': none of its spans ({', '.join(goal.spans)}) stands in its text as a word",
            hint="correct the goal's 'spans', or use scope = \"all\"",
        )
    return text


def _encoding_caveats(goals: Goals, config: Encode) -> tuple[str, ...]:
    """Say where the scope could not be kept, and where an encoding changed nothing."""
    caveats = []
    bare = sum(not goal.spans for goal in goals)
    if config.scope == "spans" and bare:
        caveats.append(f"{bare} of {len(goals)} goals name no spans and were encoded whole")
    same = sum(encoded(g, name, config.scope) == g.text for name in config.encodings for g in goals)
    if same:
        total = len(goals) * len(config.encodings)
        caveats.append(f"{same} of {total} attempts were left as they are by their encoding")
    return tuple(caveats)


ATTACK = Attack("attack.encode", "transform", Encode, _episode, queries=lambda config: len(config.encodings))
