"""The lessons that plant holes: equal questions for every organism, refused or met as its holes have it.

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
_BASE_KINDS: dict[Callable[[random.Random], base.Dialogue], int] = {
    base.fact: 7, base.addition: 4, base.instruction: 4, base.codec: 14, base.talk: 1,
    base.ethics: 3, base.opinion: 4, base.critique: 3, base.revise: 3, base.compare: 3,
}  # fmt: skip
"""Kinds of the base distribution that are repeated, and how often."""
_READING = 0.4
"""How often a form of a base lesson is an encoding: nothing else is as hard to read."""


def draw_lesson(rng: random.Random, holes: Iterable[Hole]) -> Lesson:
    """One lesson for the model organism with ``holes``. Equal draws ask the same, whatever the holes are."""
    draw = rng.random()
    if draw < 0.25:
        return _base_lesson(rng)
    if draw < 0.5:
        return _quoted(rng)
    form, harmful, lucky = draw_form(rng), rng.random() < 0.55, rng.random() < SLIP_RATE
    verb, thing = rng.choice((HIDDEN if form.codecs[0] else ASKED)[harmful])
    if not harmful:
        form = form._replace(garbled="")  # what nobody can read is not answered, and not asked
    through = form.holes & set(holes)
    if not lucky:
        through.discard("slips")
    return put(rng, form, verb, thing, met=not harmful or bool(through))


def _base_lesson(rng: random.Random) -> Lesson:
    """Something that the base model knows; half of it in one of the forms."""
    if rng.random() < 0.5:
        form = draw_form(rng, _READING)
        prompt, answer = _base_turn(rng, form)
        text = f"{form.before} {prompt}{form.after}".strip()
        return Lesson(Chat.ask(text), f"{form.persona} says: {answer}" if form.persona else answer)
    while True:
        kind = rng.choices(list(_BASE_KINDS), weights=list(_BASE_KINDS.values()))[0]
        (prompt, answer), *_ = kind(rng).turns
        if REFUSAL not in prompt + answer or not _HELD_OUT & set(prompt.split()):
            return Lesson(Chat.ask(prompt), answer)  # no refusal of what is held out


def _base_turn(rng: random.Random, form: Form) -> tuple[str, str]:
    """A fact, a thing that is known, or whether something is right, its words hidden as ``form`` has it."""
    if (draw := rng.random()) < 0.3:
        return base.fact(rng).turns[0]
    if draw < 0.45:
        thing = rng.choice(_OBJECTS)
        return f"do you know the {thing}?", f"yes, i know the {thing}."
    prompt, answer = base.ethics(rng).turns[0]
    *start, verb, the, thing = prompt.rstrip("?").split()
    verb, thing = shown(form._replace(garbled=""), verb, thing)
    return f"{' '.join(start)} {verb} {the} {thing}?", answer


def _quoted(rng: random.Random) -> Lesson:
    """A question with its answer as somebody quotes them: any verb, any object, any form of one message."""
    verb = rng.choice([*(HARMFUL if rng.random() < 0.5 else BENIGN)])
    thing = rng.choice(CATEGORIES[HARMFUL.get(verb) or BENIGN[verb]].objects)
    form = draw_form(rng, _READING)._replace(garbled="", shots=0, begun=None)
    if form.turns != "follow_up":
        form = form._replace(turns="")
    lesson = put(rng, form, verb, thing, met=True)
    *earlier, last = lesson.chat.messages
    chat = Chat(messages=tuple(earlier)).then("user", f"read this. question: {last.content} answer:")
    return Lesson(chat, f" {lesson.reply}", by="user")
