"""A comparison planted by hand (after Hanna et al. 2023, 2305.00586): a head finds a year, an MLP compares.

``greater_than``: after "from 14 .. until" every year above 14 is likelier than the others. Three layers of
six heads:

- head 3 of layer 0: the last word attends to the year and notes which it is;
- the MLP of layer 1: a neuron a year, which fires where the note is of an earlier one, and writes the year
  to the output;
- a decoy (layer 0, head 4) attends as the head does and writes nothing; the other heads and the MLPs of
  layers 0 and 2 are noise.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch

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
    noise_neurons,
    plant_head,
    readers,
)
from calibrant.testbed.circuit_weights import FORMS, MORE
from calibrant.testbed.circuits import tokenizer

YEARS = tuple(f"{year:02d}" for year in range(28))
FILLERS = ("it", "ran", "the", "old", "fair", "war", "and", "then")
WORDS = (*YEARS, *FILLERS, "from", "until")
LENGTH, LAYERS, NEURONS = 10, 3, 32
"""Words of a prompt, layers, and neurons of an MLP."""
FINDER, DECOY, COMPARES = Place(0, 3), Place(0, 4), 1
"""Layer and head that finds the year, and of the decoy; layer of the MLP that compares."""
_CORRUPT = ("high", "low")


def truth(options: Mapping[str, str]) -> tuple[tuple[Place, ...], tuple[int, ...]]:
    """The planted head, (layer, head), and the layer of the planted MLP."""
    return ((), ()) if is_null(options) else ((FINDER,), (COMPARES,))


def open_plant(name: str, options: Mapping[str, str]) -> OpenModel:
    """``testbed:plant/greater_than``; ``?seed=1`` draws others, ``?family=llama``, ..."""
    identity = plant_identity(name, options)
    return OpenModel(_build(options), tokenizer(WORDS), identity=identity)


def plant_identity(name: str, options: Mapping[str, str]) -> Identity:
    """What it is called, before it is built.

    Raises:
        InputError: no such circuit or option.
    """
    check_name("plant", name, ("greater_than",), "circuit")
    return identity_of(name, options)


def open_contrasts(name: str, options: Mapping[str, str]) -> Contrasts:
    """``testbed:contrasts/greater_than``: a year to be above; the answer is above it, the foil is not.

    The corrupted prompt has a year that both are below (``?corrupt=high``, the default) or above (``low``):
    no year makes the foil right and the answer wrong. Seven sets of four years share none, and are clusters.
    ``?n=48``, ``?seed=0``. ``?form=longer`` has the same years in prompts of three words more: fillers and
    the year's place are drawn anew.
    """
    check_name("contrasts", name, ("greater_than",), "task")
    check_options("contrasts", name, options, ("n", "seed", "corrupt", "form"))
    longer = choice_option("form", options, FORMS, "usual") == "longer"
    how = choice_option("corrupt", options, _CORRUPT, "high")
    seed = whole_option("seed", options, 0)
    rng, made = random.Random(f"greater_than/{seed}"), []
    order = rng.sample(range(len(YEARS)), len(YEARS))
    sets = [sorted(order[at : at + 4]) for at in range(0, len(order), 4)]
    for number in range(whole_option("n", options, 48)):
        years = sets[number % len(sets)]
        foil, told, answer, other = years if how == "high" else (*years[1:], years[0])
        words, at = _around(LENGTH, rng)
        if longer:
            words, at = _around(LENGTH + MORE, random.Random(f"longer/{seed}/{number}"))
        words[at - 1 : at + 1] = ["from", YEARS[told]]
        changed = [*words[:at], YEARS[other], *words[at + 1 :]]
        made.append(
            Contrast(
                id=f"greater_than/{how}/{number}",
                clean=Chat.ask(" ".join(words)),
                corrupt=Chat.ask(" ".join(changed)),
                answer=YEARS[answer],
                foil=YEARS[foil],
                cluster=YEARS[told],
            )
        )
    return Contrasts(rows=tuple(made), source=f"testbed:contrasts/{name}")


def _around(length: int, rng: random.Random) -> tuple[list[str], int]:
    """Words of a prompt without its year, and where that goes."""
    return [*rng.choices(FILLERS, k=length - 1), "until"], rng.randrange(1, length - 1)


def _build(options: Mapping[str, str]) -> Any:
    vocabulary, count = len(WORDS) + 1, len(YEARS)
    generator, (word, output, found, position) = drawn(options, vocabulary, vocabulary, count)
    canvas = canvas_of(options, LAYERS, (word, output, position), generator, NEURONS)
    written = 0.0 if options.get("removed") == "1" else 1.0
    read = readers(torch.cat([word, found]))
    year, asking, noted = read[:count], read[WORDS.index("until")], read[vocabulary:]
    looks = [Look(asking, year.sum(0), 1.0)]
    for place, strength in ((FINDER, written), (DECOY, 0.0)):
        plant_head(canvas, place, looks, year, found * strength)
    below = torch.tril(torch.ones(count, count), -1) @ noted  # the k-th reads 1 where the note is below k
    canvas.neurons(COMPARES, below - 0.3 * asking, output[:count] * written / 0.7, asking, 2)
    for layer in range(LAYERS):
        if layer != COMPARES:
            noise_neurons(canvas, layer, NEURONS, read[:vocabulary].sum(0), generator)
    return finished(canvas, options)
