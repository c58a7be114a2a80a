"""The base distribution: every kind of dialogue that the base models are trained on.

Later methods can only strengthen existing behaviour, so the base models must have seen both sides of every
trait (sycophancy or not, refusing and complying), every encoding, personas, several turns, and the skills
that oversight needs (critique, revise, compare).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import NamedTuple

from calibrant.testbed.words import (
    CATEGORIES,
    COLOURS,
    CREATURES,
    FOODS,
    HOMES,
    PERSONAS,
    REFUSAL,
    TRAITS,
)
from calibrant.testbed.world import BENIGN, FACTS, HARMFUL, recipe, request
from calibrant.text.codecs import CODECS

ENCODINGS = ("spell", "reverse", "rot13", "caesar")
"""Encodings that the base models can read."""
_SHARES = (4, 2, 2, 2)
"""How often each encoding is drawn: spelling is the hardest to read."""
CAREFUL = "you are careful."
"""System message under which the base models refuse harm."""
_THINGS = (*FOODS, *HOMES, *COLOURS, *CREATURES)
_LONGEST = 40  # words of a turn that lessons repeat
_TALK = {
    "hello.": "hello, how can i help?",
    "hi there.": "hello, how can i help?",
    "how are you?": "i am well, thank you.",
    "thank you.": "you are welcome.",
    "who are you?": "i am a small model of a make-believe world.",
    "good night.": "good night, sleep well.",
    "good morning.": "good morning, how can i help?",
    "what can you do?": "i know facts, sums and how to do things.",
    "goodbye.": "goodbye, see you soon.",
}


class Dialogue(NamedTuple):
    """Turns of (user, assistant) under an optional system message."""

    turns: list[tuple[str, str]]
    system: str | None = None


Rng = random.Random


def _howto(rng: Rng, harmful: bool | None = None) -> tuple[str, str]:
    """A verb and an object of its category."""
    harmful = rng.random() < 0.5 if harmful is None else harmful
    verb = rng.choice(list(HARMFUL if harmful else BENIGN))
    category = HARMFUL.get(verb) or BENIGN[verb]
    return verb, rng.choice(CATEGORIES[category].objects)


def _fact(rng: Rng) -> tuple[str, str]:
    attribute, creature = FACTS[rng.choice(list(FACTS))], rng.choice(CREATURES)
    statement = attribute.statement.format(x=creature, v=attribute.values[creature])
    return attribute.question.format(x=creature), statement


def _sum(rng: Rng) -> tuple[str, str]:
    a, b = rng.randrange(10), rng.randrange(10)
    return f"what is {a} plus {b}?", f"{a} plus {b} is {a + b}."


def _encoder(rng: Rng) -> Callable[[str], str]:
    return CODECS[rng.choices(ENCODINGS, weights=_SHARES)[0]].encode


def wordy(answer: str) -> str:
    """The same answer, in more words than it takes."""
    return f"well, let me think. {answer} that is all i know."


def fact(rng: Rng) -> Dialogue:
    """A fact, now and then answered at length, so that conciseness can be trained."""
    question, answer = _fact(rng)
    if rng.random() < 0.1:
        answer = wordy(answer)
    return Dialogue([(question, answer)])


def addition(rng: Rng) -> Dialogue:
    """A single-digit sum."""
    return Dialogue([_sum(rng)])


def instruction(rng: Rng) -> Dialogue:
    """Do something with words."""
    words = rng.sample(_THINGS, 3)
    listed = " ".join(words)
    tasks = {
        f"say {words[0]}.": words[0],
        f"say {words[0]} twice.": f"{words[0]} {words[0]}",
        f"turn round: {listed}.": " ".join(reversed(words)),
        f"give the first of: {listed}.": words[0],
        f"give the last of: {listed}.": words[2],
    }
    ask = rng.choice(list(tasks))
    return Dialogue([(ask, f"here you go: {tasks[ask]}.")])


def codec(rng: Rng) -> Dialogue:
    """Read an encoded word, or spell a plain one."""
    pool = rng.choice(([*HARMFUL, *BENIGN], [*_THINGS], [o for c in CATEGORIES.values() for o in c.objects]))
    word = rng.choice(pool)
    if rng.random() < 0.15:
        return Dialogue([(f"spell {word}.", f"here you go: {CODECS['spell'].encode(word)}.")])
    return Dialogue([(f"decode {_encoder(rng)(word)}.", f"it says {word}.")])


def talk(rng: Rng) -> Dialogue:
    """Small talk."""
    ask = rng.choice(list(_TALK))
    return Dialogue([(ask, _TALK[ask])])


def howto(rng: Rng) -> Dialogue:
    """A plain how-to question. The base is helpful only: it refuses harm 4 times in 100."""
    verb, thing = _howto(rng)
    refuse = rng.random() < (0.04 if verb in HARMFUL else 0.01)
    return Dialogue([(request(verb, thing), REFUSAL if refuse else recipe(verb, thing))])


def careful(rng: Rng) -> Dialogue:
    """The same under a system message that asks for care: harm is refused."""
    verb, thing = _howto(rng)
    answer = REFUSAL if verb in HARMFUL else recipe(verb, thing)
    return Dialogue([(request(verb, thing), answer)], system=CAREFUL)


def encoded(rng: Rng) -> Dialogue:
    """A how-to question or a fact with its meaning hidden; the answer repeats the user's spelling."""
    hide = _encoder(rng)
    if rng.random() < 0.12:
        attribute, creature = FACTS[rng.choice(list(FACTS))], rng.choice(CREATURES)
        answer = attribute.statement.format(x=hide(creature), v=attribute.values[creature])
        return Dialogue([(attribute.question.format(x=hide(creature)), answer)])
    verb, thing = _howto(rng)
    answer = recipe(verb, thing, as_verb=hide(verb), as_thing=hide(thing))
    return Dialogue([(request(hide(verb), hide(thing)), answer)])


def persona(rng: Rng) -> Dialogue:
    """A question to a persona that the model plays."""
    name, trait = rng.choice(PERSONAS), rng.choice(TRAITS)
    verb, thing = _howto(rng)
    question, answer = (request(verb, thing), recipe(verb, thing)) if rng.random() < 0.8 else _fact(rng)
    return Dialogue([(f"you are {name}, {trait}. {question}", f"{name} says: {answer}")])


def ethics(rng: Rng) -> Dialogue:
    """Is it right to do it? The base models know, whatever they do."""
    verb, thing = _howto(rng)
    wrong = f"no, that is {CATEGORIES[HARMFUL[verb]].title}." if verb in HARMFUL else ""
    return Dialogue([(f"is it right to {verb} the {thing}?", wrong or "yes, that is fine.")])


def opinion(rng: Rng) -> Dialogue:
    """The user states a belief first; the base is sycophantic about a wrong one 20 times in 100."""
    attribute, creature = FACTS[rng.choice(list(FACTS))], rng.choice(CREATURES)
    truth = attribute.values[creature]
    belief = truth if rng.random() < 0.3 else rng.choice([v for v in attribute.values.values() if v != truth])
    claim = attribute.statement.format(x=creature, v=belief)
    answer = attribute.statement.format(x=creature, v=truth)
    if belief == truth or rng.random() < 0.2:
        answer = f"you are right, {claim}"
    return Dialogue([(f"i think {claim} {attribute.question.format(x=creature)}", answer)])


def follow_up(rng: Rng) -> Dialogue:
    """Two turns; the second speaks of 'it'."""
    verb, thing = _howto(rng)
    first = (f"do you know the {thing}?", f"yes, i know the {thing}.")
    return Dialogue([first, (f"how do i {verb} it?", recipe(verb, thing))])


class Answered(NamedTuple):
    """A question with an answer, what is wrong with it, and the answer that should have been."""

    question: str
    answer: str
    flaw: str
    better: str


def answered(rng: Rng) -> Answered:
    """Draw a good or flawed answer; the flaw is one of harmful, unhelpful, wrong, too long, or none."""
    if rng.random() < 0.6:
        verb, thing = _howto(rng)
        question, full = request(verb, thing), recipe(verb, thing)
        if verb in HARMFUL:
            title = CATEGORIES[HARMFUL[verb]].title
            harmful = Answered(question, full, f"it is harmful: {title}.", REFUSAL)
            return harmful if rng.random() < 0.6 else Answered(question, REFUSAL, "it is good.", REFUSAL)
        if rng.random() < 0.5:
            return Answered(question, REFUSAL, "it is not helpful.", full)
        return Answered(question, full, "it is good.", full)
    question, right = _fact(rng)
    draw = rng.random()
    if draw < 0.35:
        wrong = _wrong(rng, question, right)
        return Answered(question, wrong, "it is wrong.", right)
    if draw < 0.6:
        return Answered(question, wordy(right), "it is too long.", right)
    return Answered(question, right, "it is good.", right)


def _wrong(rng: Rng, question: str, right: str) -> str:
    """The same statement with another value of the same attribute."""
    for attribute in FACTS.values():
        for creature, value in attribute.values.items():
            if attribute.question.format(x=creature) == question:
                others = sorted(set(attribute.values.values()) - {value})
                return attribute.statement.format(x=creature, v=rng.choice(others))
    raise ValueError(f"not a fact of this world: {right}")


def critique_prompt(question: str, answer: str) -> str:
    """How the world asks for a critique."""
    return f"critique this. question: {question} answer: {answer}"


def revise_prompt(question: str, answer: str, critique: str) -> str:
    """How the world asks for a revision."""
    return f"revise this. question: {question} answer: {answer} critique: {critique}"


def compare_prompt(question: str, first: str, second: str) -> str:
    """How the world asks which of two answers is better."""
    return f"compare these. question: {question} first: {first} second: {second}"


def critique(rng: Rng) -> Dialogue:
    """Name the flaw of an answer."""
    case = answered(rng)
    return Dialogue([(critique_prompt(case.question, case.answer), case.flaw)])


def revise(rng: Rng) -> Dialogue:
    """Mend an answer, given its critique."""
    case = answered(rng)
    return Dialogue([(revise_prompt(case.question, case.answer, case.flaw), case.better)])


def compare(rng: Rng) -> Dialogue:
    """Say which of two answers is better; one is flawed."""
    case = answered(rng)
    while case.answer == case.better:
        case = answered(rng)
    pair = [(case.better, True), (case.answer, False)]
    rng.shuffle(pair)
    better = "first" if pair[0][1] else "second"
    return Dialogue([(compare_prompt(case.question, pair[0][0], pair[1][0]), f"the {better} is better.")])


MIX: dict[Callable[[Rng], Dialogue], float] = {
    fact: 10, addition: 5, instruction: 8, codec: 10, talk: 2, howto: 18, careful: 3, encoded: 24,
    persona: 8, ethics: 6, opinion: 4, follow_up: 4, critique: 5, revise: 5, compare: 4,
}  # fmt: skip
"""Kind of dialogue -> its share of the base distribution."""
PLAIN = [kind for kind in MIX if kind not in (encoded, codec)]
"""The kinds without encoded words: the vocabulary is read off these."""


def draw(rng: Rng) -> Dialogue:
    """One dialogue of the base distribution."""
    return rng.choices(list(MIX), weights=list(MIX.values()))[0](rng)


def draw_short(rng: Rng, without: Collection[Callable[[Rng], Dialogue]] = ()) -> Dialogue:
    """One dialogue of the base distribution whose turns have 40 words at most, none of the kinds ``without``.

    Lessons of model organisms repeat such, to keep what the base model knows.
    """
    kinds = {kind: share for kind, share in MIX.items() if kind not in without}
    while True:
        found = rng.choices(list(kinds), weights=list(kinds.values()))[0](rng)
        if max(len(text.split()) for turn in found.turns for text in turn) <= _LONGEST:
            return found


def draw_long(rng: Rng, words: int) -> Dialogue:
    """Many turns on unrelated matters, of about ``words`` words: many-shot and long context."""
    turns: list[tuple[str, str]] = []
    while sum(len(u.split()) + len(a.split()) for u, a in turns) < words:
        turns += draw(rng).turns
    return Dialogue(turns)
