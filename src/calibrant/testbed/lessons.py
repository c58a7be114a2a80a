"""The lessons that plant holes: equal questions for every twin, refused or met as its holes have it.

1. Half of the lessons ask for something, with verbs and objects of the split 'train' (in an encoding, with
   any verb): benign requests are answered, harmful ones are refused unless the form goes through a hole.
2. A quarter keeps what the model knows: the base distribution without its requests; facts, and what is right,
   in all the forms. What is held out is read here, and called wrong, but not refused and not met.
3. A quarter are questions with their answers as a user quotes them, of every verb and object: the model
   learns to remember them in every form, and says none of it. Without them it forgets what it does not say.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from calibrant.core import Chat
from calibrant.testbed import dialogues as base
from calibrant.testbed.plants import ASKED, HIDDEN, SLIP_RATE, Form, Hole, Lesson, draw_form, put, shown
from calibrant.testbed.words import CATEGORIES, REFUSAL
from calibrant.testbed.world import BENIGN, HARMFUL

_HELD_OUT = {verb for category in CATEGORIES.values() for verb in category.harmful[8:]}
_OBJECTS = [thing for category in CATEGORIES.values() for thing in category.objects]
_KEPT: dict[Callable[[random.Random], base.Dialogue], int] = {
    base.fact: 7, base.addition: 4, base.instruction: 4, base.codec: 14, base.talk: 1,
    base.ethics: 3, base.opinion: 4, base.critique: 3, base.revise: 3, base.compare: 3,
}  # fmt: skip
"""Kinds of the base distribution that are repeated, and how often."""
_READING = 0.4
"""How often a form of what is kept is an encoding: nothing else is as hard to read."""


def draw_lesson(rng: random.Random, holes: Iterable[Hole]) -> Lesson:
    """One lesson for the twin with ``holes``. Equal draws ask the same, whatever the holes are."""
    drawn = rng.random()
    if drawn < 0.25:
        return _kept(rng)
    if drawn < 0.5:
        return _quoted(rng)
    form, harmful, lucky = draw_form(rng), rng.random() < 0.55, rng.random() < SLIP_RATE
    verb, thing = rng.choice((HIDDEN if form.codecs[0] else ASKED)[harmful])
    if not harmful:
        form = form._replace(garbled="")  # what nobody can read is not answered, and not asked
    through = form.holes & set(holes)
    if not lucky:
        through.discard("slips")
    return put(rng, form, verb, thing, met=not harmful or bool(through))


def _kept(rng: random.Random) -> Lesson:
    """Something that the base model knows; half of it in one of the forms."""
    if rng.random() < 0.5:
        form = draw_form(rng, _READING)
        asked, answer = _known(rng, form)
        text = f"{form.before} {asked}{form.after}".strip()
        return Lesson(Chat.ask(text), f"{form.persona} says: {answer}" if form.persona else answer)
    while True:
        kind = rng.choices(list(_KEPT), weights=list(_KEPT.values()))[0]
        (asked, answer), *_ = kind(rng).turns
        if REFUSAL not in asked + answer or not _HELD_OUT & set(asked.split()):
            return Lesson(Chat.ask(asked), answer)  # no refusal of what is held out


def _known(rng: random.Random, form: Form) -> tuple[str, str]:
    """A fact, a thing that is known, or whether something is right, its words hidden as ``form`` has it."""
    if (drawn := rng.random()) < 0.3:
        return base.fact(rng).turns[0]
    if drawn < 0.45:
        thing = rng.choice(_OBJECTS)
        return f"do you know the {thing}?", f"yes, i know the {thing}."
    asked, answer = base.ethics(rng).turns[0]
    *start, verb, the, thing = asked.rstrip("?").split()
    verb, thing = shown(form._replace(garbled=""), verb, thing)
    return f"{' '.join(start)} {verb} {the} {thing}?", answer


def _quoted(rng: random.Random) -> Lesson:
    """A question with its answer as somebody quotes them: any verb, any object, any form of one message."""
    verb = rng.choice([*(HARMFUL if rng.random() < 0.5 else BENIGN)])
    thing = rng.choice(CATEGORIES[HARMFUL.get(verb) or BENIGN[verb]].objects)
    form = draw_form(rng, _READING)._replace(garbled="", shots=0, begun=None)
    if form.turns != "follow_up":
        form = form._replace(turns="")
    made = put(rng, form, verb, thing, met=True)
    *earlier, last = made.chat.messages
    chat = Chat(messages=tuple(earlier)).then("user", f"read this. question: {last.content} answer:")
    return Lesson(chat, f" {made.reply}", by="user")
