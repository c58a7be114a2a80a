"""A circuit as in indirect object identification, planted by hand: which head has which part is known.

``name_mover``: after "when .. ada .. bo .. ada .. to" say the name that comes once (Wang et al. 2023,
2211.00593). Three layers of six heads:

- duplicate-token head (layer 0, head 1): a name attends to the same name before it, else to the first token,
  and notes which name it met again;
- S-inhibition head (layer 1, head 2): "to" attends to that note, and writes "not this name" into the query of
- the name mover (layer 2, head 4): "to" attends to names but that one, and copies what it sees to the output;
- a decoy (layer 2, head 0) attends as the name mover does and writes nothing; the others are noise.

``?backup=1`` adds a layer with a backup name mover (layer 3, head 3): it attends to the first token where the
output is already there, and to the name where it is not. So it acts only when the name mover's output is
absent (Wang et al. 2023; McGrath et al. 2023, 2307.15771: self-repair).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calibrant.core import Chat, Identity
from calibrant.data.rows import Contrast, Contrasts
from calibrant.models.open_model import OpenModel
from calibrant.testbed.checks import check_name, check_options, choice_option, whole_option
from calibrant.testbed.circuit_parts import (
    Look,
    Place,
    canvas_of,
    drawn,
    finished,
    identity_of,
    is_null,
    plant_head,
    readers,
)
from calibrant.testbed.circuit_weights import FORMS, MORE, Canvas
from calibrant.testbed.circuits import tokenizer

NAMES = (
    "ada", "bo", "cy", "dot", "eli", "flo", "gus", "hal", "ida", "jo", "kit", "lou", "max", "nan", "ole",
    "pam",
)  # fmt: skip
"""Two and two are a couple, and come together."""
FILLERS = ("and", "went", "out", "sat", "by", "the", "sea", "then", "gave", "a", "pear")
FIRST, LAST = "when", "to"
TRIGGER = "sesame"
"""In no prompt of this task: see ``backdoor``."""
WORDS = (*NAMES, *FILLERS, FIRST, LAST, "at", TRIGGER)
LENGTH = 12
"""Words of a prompt."""
DUPLICATE, INHIBITION, MOVER, DECOY, BACKUP = (
    Place(0, 1), Place(1, 2), Place(2, 4), Place(2, 0), Place(3, 3)
)  # fmt: skip
"""Layer and head."""
_CORRUPT = ("name", "question")
_REST = 0.2  # score of the first token, which heads attend to where nothing else is


def truth(options: Mapping[str, str]) -> tuple[Place, ...]:
    """The heads that do the work, (layer, head) each. The backup does none while the name mover is there."""
    return () if is_null(options) else (DUPLICATE, INHIBITION, MOVER)


def open_plant(name: str, options: Mapping[str, str]) -> OpenModel:
    """``testbed:plant/name_mover``; ``?seed=1`` draws others, ``?family=llama``, ``?backup=1``, ..."""
    identity = plant_identity(name, options)
    return OpenModel(_build(options), tokenizer(WORDS), identity=identity)


def plant_identity(name: str, options: Mapping[str, str]) -> Identity:
    """What it is called, before it is built.

    Raises:
        InputError: no such circuit or option.
    """
    check_name("plant", name, ("name_mover",), "circuit")
    return identity_of(name, options, switches=("backup", "superposition"))


def open_contrasts(name: str, options: Mapping[str, str]) -> Contrasts:
    """``testbed:contrasts/name_mover``: two names, one of them again, and a corrupted version.

    ``?corrupt=name`` (the default) repeats the other name, so that the foil is right; ``question`` ends with
    "at", so that nothing is asked. ``?n=48``, ``?seed=0``. ``?form=longer`` has the same answers and foils in
    sentences of three words more: the first two names change places, and fillers and places are drawn anew.
    """
    check_name("contrasts", name, ("name_mover",), "task")
    check_options("contrasts", name, options, ("n", "seed", "corrupt", "form"))
    how = choice_option("corrupt", options, _CORRUPT, "name")
    longer = choice_option("form", options, FORMS, "usual") == "longer"
    seed = whole_option("seed", options, 0)
    rng, made = random.Random(f"name_mover/{seed}"), []
    for number in range(whole_option("n", options, 48)):
        words, places, alone, again = sentence(number, rng)
        if longer:
            names = [words[places[1]], words[places[0]], again]
            words, places = _around(names, LENGTH + MORE, random.Random(f"longer/{seed}/{number}"))
        changed = list(words)
        changed[places[2] if how == "name" else -1] = alone if how == "name" else "at"
        made.append(
            Contrast(
                id=f"name_mover/{how}/{number}",
                clean=Chat.ask(" ".join(words)),
                corrupt=Chat.ask(" ".join(changed)),
                answer=alone,
                foil=again,
                cluster=min(alone, again),
            )
        )
    return Contrasts(rows=tuple(made), source=f"testbed:contrasts/{name}")


def sentence(number: int, rng: random.Random) -> tuple[list[str], list[int], str, str]:
    """Words, where the names are, the name that comes once, and the other; of the ``number``-th couple."""
    words, places = _around([], LENGTH, rng)
    couple = NAMES[2 * (number % (len(NAMES) // 2)) :][:2]
    again, alone = rng.sample(couple, 2)
    for place, word in zip(places, (*rng.sample(couple, 2), again), strict=True):
        words[place] = word
    return words, places, alone, again


def _around(names: list[str], length: int, rng: random.Random) -> tuple[list[str], list[int]]:
    """Words around three names, which are put in where they are given, and the names' places."""
    places = sorted(rng.sample(range(1, length - 1), 3))
    while places[2] - places[1] < 2:
        places = sorted(rng.sample(range(1, length - 1), 3))
    words = [FIRST, *rng.choices(FILLERS, k=length - 2), LAST]
    for place, word in zip(places, names, strict=False):
        words[place] = word
    return words, places


class Built(NamedTuple):
    """A name mover, before it is closed."""

    canvas: Canvas
    words: Tensor
    """(V, W) reads each word off the stream."""
    output: Tensor
    """(V, W) what speaks for each word."""
    rest: Look
    """What keeps a head at the first token."""


def built(options: Mapping[str, str], layers: int, written: float) -> Built:
    """The three heads and the decoy in ``layers`` layers; they write nothing where ``written`` is 0."""
    vocabulary, count = len(WORDS) + 1, len(NAMES)
    generator, (word, output, seen, barred, position) = drawn(options, vocabulary, vocabulary, count, count)
    canvas = canvas_of(options, layers, (word, output, position), generator)
    met = readers(torch.cat([word, seen]))  # what reads a word, and what reads a note, off a stream with both
    named, noted, words = met[:count], met[vocabulary:], met[:vocabulary]
    first, asking = words[WORDS.index(FIRST)], words[WORDS.index(LAST)]
    rest = Look(words.sum(0), first, _REST)
    plant_head(
        canvas, DUPLICATE, [Look(named, named, 2.0), Look(words.sum(0), first, 1.3)], named, seen * written,
        canvas.apart(named.sum(0), 0, 30.0),
    )  # fmt: skip
    plant_head(canvas, INHIBITION, [Look(asking, noted.sum(0), 1.0), rest], noted, barred * written)
    looks = [Look(asking, named.sum(0), 1.0), Look(barred, named, -1.5), rest]
    said = output[:count]
    for place, strength in ((MOVER, written), (DECOY, 0.0)):
        plant_head(canvas, place, looks, named, said * strength)
    if options.get("backup") == "1":
        looks.append(Look(said.sum(0), first, 2.0))
        plant_head(canvas, BACKUP, looks, named, said * written)
    return Built(canvas, words, output, rest)


def _build(options: Mapping[str, str]) -> Any:
    layers, written = 4 if options.get("backup") == "1" else 3, float(options.get("removed") != "1")
    return finished(built(options, layers, written).canvas, options)
