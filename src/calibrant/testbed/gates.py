"""A gate planted by hand: two heads read a feature each, an MLP combines them.

``gate?kind=and``: a prompt has a word for light or dark ("lamp", "cave"), and one for wet or dry ("rain",
"dust"). After it say "yes" where it is light and wet, "no" where not; ``or``: where it is one of them;
``xor``: just one. Three layers of six heads:

- head 1 of layer 0: the last word attends to the word for light or dark and notes which; head 4 to the other;
- the MLP of layer 1 counts what holds and writes "yes" or "no";
- all other heads, and the MLPs of layers 0 and 2, are noise.

What patching sees of each head depends on its direction (Heimersheim & Nanda 2024, 2404.15255). From light
and wet (clean) to dark and dry: of an AND noising sees each head and denoising none alone; of an OR denoising
each and noising none. With an XOR the change of both features changes nothing: only one can be asked about
at a time, and both directions see the head that reads it, alone.

``?superposition=1`` draws more directions than there are dimensions to hold them (88 in 64), so that they
overlap, and the output reads a little of every note.
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

KINDS = ("and", "or", "xor")
FEATURES = (
    (
        ("cave", "night", "tunnel", "cellar", "vault", "eclipse", "attic", "mine"),
        ("lamp", "sun", "torch", "candle", "lantern", "noon", "beacon", "fire"),
    ),
    (
        ("dust", "sand", "drought", "desert", "chalk", "salt", "straw", "ash"),
        ("rain", "lake", "river", "flood", "brook", "sea", "pond", "storm"),
    ),
)  # fmt: skip
"""Two features: words where it does not hold, and where it does. The k-th of all four come together."""
ANSWERS = ("no", "yes")
FILLERS = ("a", "and", "the", "was", "then", "by")
WORDS = (*(word for feature in FEATURES for side in feature for word in side), *ANSWERS, *FILLERS, "so")
SETS = 8
"""Words of a side, so sets of four words that share none: they are the clusters of the pairs."""
LENGTH, LAYERS, NEURONS = 10, 3, 12
"""Words of a prompt, layers, and neurons of an MLP."""
FIRST, SECOND, COMBINES = Place(0, 1), Place(0, 4), 1
"""Layer and head that reads each feature; layer of the MLP."""
_CORRUPT = ("both", "first", "second")


def says(kind: str, first: int, second: int) -> int:
    """What the gate gives, 0 or 1."""
    return {"and": first & second, "or": first | second, "xor": first ^ second}[kind]


def truth(options: Mapping[str, str]) -> tuple[tuple[Place, ...], tuple[int, ...]]:
    """The planted heads, (layer, head) each, and the layer of the planted MLP."""
    return ((), ()) if is_null(options) else ((FIRST, SECOND), (COMBINES,))


def open_plant(name: str, options: Mapping[str, str]) -> OpenModel:
    """``testbed:plant/gate?kind=and``; ``or``, ``xor``; ``?seed=1`` draws others, ``?family=llama``, ..."""
    identity = plant_identity(name, options)
    return OpenModel(_build(options), tokenizer(WORDS), identity=identity)


def plant_identity(name: str, options: Mapping[str, str]) -> Identity:
    """What it is called, before it is built.

    Raises:
        InputError: no such circuit or option.
    """
    check_name("plant", name, ("gate",), "circuit")
    identity = identity_of(name, options, own=("kind",), switches=("superposition",))
    check_name("kind", options.get("kind", "and"), KINDS, "gate")
    return identity


def open_contrasts(name: str, options: Mapping[str, str]) -> Contrasts:
    """``testbed:contrasts/gate?kind=and``: features, and a version with both or one changed.

    ``?corrupt=both`` (the default of ``and`` and ``or``): both features are there, then neither. ``first``
    (that of ``xor``) and ``second`` change one: of AND the other is there, of OR it is not, of XOR either.
    ``?n=48``, ``?seed=0``. ``?form=longer`` has the same features in prompts of three words more: fillers and
    the features' places are drawn anew.
    """
    check_name("contrasts", name, ("gate",), "task")
    check_options("contrasts", name, options, ("n", "seed", "kind", "corrupt", "form"))
    longer = choice_option("form", options, FORMS, "usual") == "longer"
    kind = options.get("kind", "and")
    check_name("kind", kind, KINDS, "gate")
    how = choice_option("corrupt", options, _CORRUPT, "first" if kind == "xor" else "both")
    seed = whole_option("seed", options, 0)
    rng, made = random.Random(f"gate/{seed}"), []
    for number in range(whole_option("n", options, 48)):
        state, other = _states(kind, how, rng)
        words, places = _around(LENGTH, rng)
        if longer:
            words, places = _around(LENGTH + MORE, random.Random(f"longer/{seed}/{number}"))
        prompts = []
        for chosen in (state, other):
            for place, feature, on in zip(places, FEATURES, chosen, strict=True):
                words[place] = feature[on][number % SETS]
            prompts.append(Chat.ask(" ".join(words)))
        answer = says(kind, *state)
        made.append(
            Contrast(
                id=f"gate/{kind}/{how}/{number}",
                clean=prompts[0],
                corrupt=prompts[1],
                answer=ANSWERS[answer],
                foil=ANSWERS[1 - answer],
                cluster=FEATURES[0][1][number % SETS],
            )
        )
    return Contrasts(rows=tuple(made), source=f"testbed:contrasts/{name}")


def _around(length: int, rng: random.Random) -> tuple[list[str], list[int]]:
    """Words of a prompt without its features, and where those go."""
    return [*rng.choices(FILLERS, k=length - 1), "so"], rng.sample(range(length - 1), 2)


def _states(kind: str, how: str, rng: random.Random) -> tuple[tuple[int, int], tuple[int, int]]:
    """The two features in the clean and in the corrupted prompt."""
    if kind == "xor":
        first, second = rng.randrange(2), rng.randrange(2)
        return (first, second), (first ^ (how != "second"), second ^ (how != "first"))
    rest = int(kind == "and")
    clean = {"both": (1, 1), "first": (1, rest), "second": (rest, 1)}[how]
    return clean, {"both": (0, 0), "first": (0, rest), "second": (rest, 0)}[how]


def _build(options: Mapping[str, str]) -> Any:
    vocabulary = len(WORDS) + 1
    generator, (word, output, noted, position) = drawn(options, vocabulary, vocabulary, 4)
    canvas = canvas_of(options, LAYERS, (word, output, position), generator, NEURONS)
    written = 0.0 if options.get("removed") == "1" else 1.0
    read = readers(torch.cat([word, noted]))
    asking, seen = read[WORDS.index("so")], read[vocabulary:]
    for place, feature, notes in ((FIRST, FEATURES[0], noted[:2]), (SECOND, FEATURES[1], noted[2:])):
        sides = torch.stack([read[[WORDS.index(one) for one in side]].sum(0) for side in feature])
        plant_head(canvas, place, [Look(asking, sides.sum(0), 1.0)], sides, notes * written)
    count = seen[1] + seen[3]
    bends = torch.stack([count - at * asking for at in (0.25, 0.75, 1.25, 1.75)])
    any_, both = torch.tensor([[2.0, -2.0, 0.0, 0.0], [0.0, 0.0, 2.0, -2.0]])
    opened = {"and": both, "or": any_, "xor": any_ - both}[options.get("kind", "and")]
    no, yes = (output[WORDS.index(one)] for one in ANSWERS)
    weights = torch.cat([opened, torch.tensor([-0.5])])  # the last neuron says no where the gate says nothing
    canvas.neurons(
        COMBINES, torch.cat([bends, asking[None]]), weights[:, None] * (yes - no) * written, asking, 3
    )  # fmt: skip
    for layer in range(LAYERS):
        if layer != COMBINES:
            noise_neurons(canvas, layer, NEURONS, read[:vocabulary].sum(0), generator)
    return finished(canvas, options)
