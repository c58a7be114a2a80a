"""Models with a circuit planted by hand: which heads do it is known by construction.

``induction``: at the second occurrence of a word, say the word that followed its first. Two layers of six
heads, in a class of transformers as it is (``?family=gpt2``, ``llama`` with GQA, ``neox`` with parallel
blocks):

- head 1 of layer 0 attends to the token before and copies its word to a subspace of its own;
- head 2 of layer 1 looks there for the present word, and copies the word that it finds to the output;
- ``?twin=1`` plants that head twice (head 3): redundancy; ``?share=.2`` is the part that the second one does;
- ``?negative=1`` adds a third layer, whose head 4 takes back part of what was written;
- head 0 of layer 1, a decoy, attends as the induction head does and writes nothing;
- the others are noise.

Nulls: ``?removed=1`` takes what the circuit writes away and leaves its attention; ``?null=random`` draws all
weights, ``?null=permuted`` puts the numbers of every matrix in another order.

Words, positions and outputs lie in random directions of the stream (``?seed=``), never along its axes, and
every vector has mean 0 and much the same norm, so that the norms change little.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from calibrant.core import Chat, Identity, InputError
from calibrant.data.planted import Planted
from calibrant.data.rows import Contrast, Contrasts
from calibrant.models.open_model import OpenModel
from calibrant.testbed.checks import check_name, check_options, choice_option, whole_option
from calibrant.testbed.circuit_weights import (
    CANVASES,
    FORMS,
    HEADS,
    MAPS,
    MORE,
    SLOTS,
    Canvas,
    basis,
    noise,
    permuted_weights,
    random_weights,
)

WORDS, LENGTH = 24, 12
"""Words, and words of a prompt."""
PREVIOUS, INDUCTION, TWIN, DECOY, NEGATIVE = (0, 1), (1, 2), (1, 3), (1, 0), (2, 4)
"""Layer and head."""
NULLS = {"random": random_weights, "permuted": permuted_weights}
_TAKEN = 0.4  # part of the output that the negative head takes back
_CORRUPT = ("earlier", "answer")
_OPTIONS = ("seed", "family", "twin", "share", "negative", "removed", "null")


def truth(options: Mapping[str, str]) -> tuple[tuple[int, int], ...]:
    """The planted heads, (layer, head) each."""
    if options.get("removed") == "1" or options.get("null"):
        return ()
    twin = (TWIN,) if _share(options) > 0 else ()
    return (PREVIOUS, INDUCTION, *twin, *((NEGATIVE,) if options.get("negative") == "1" else ()))


def open_plant(name: str, options: Mapping[str, str]) -> OpenModel:
    """``testbed:plant/induction``; ``?seed=1`` draws others, ``?family=llama``, ``?twin=1``, ..."""
    identity = plant_identity(name, options)
    return OpenModel(_build(options), tokenizer([_word(i) for i in range(WORDS)]), identity=identity)


def plant_identity(name: str, options: Mapping[str, str]) -> Identity:
    """What it is called, before it is built.

    Raises:
        InputError: no such circuit or option.
    """
    check_name("plant", name, ("induction",), "circuit")
    check_options("plant", name, options, _OPTIONS)
    for key in ("twin", "removed", "negative"):
        if options.get(key, "0") not in ("0", "1"):
            raise InputError(
                f"{key}={options[key]} is neither 0 nor 1", hint=f"write ?{key}=1, or leave it out"
            )
    for key, known in (("family", CANVASES), ("null", NULLS)):
        if key in options:
            check_name(key, options[key], known)
    _share(options)
    whole_option("seed", options, 0)
    return Identity(name=f"testbed:plant/{name}", parts={"plant": name, "version": "1", **options})


def _share(options: Mapping[str, str]) -> float:
    """The part that the second induction head does, 0 where there is none."""
    text = options.get("share", "0.5" if options.get("twin") == "1" else "0")
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise InputError(f"share={text} is no part of the whole", hint="write ?share=.2")
    return share


class CircuitPlants:
    """``testbed:plants/induction``: every family, with one head, two, a negative one; and nulls.

    ``?n=24`` pairs a case, as many held out; ``?family=gpt2`` has that class alone.
    """

    def __init__(self, name: str, options: Mapping[str, str]) -> None:
        """Raises InputError: no such plants or option."""
        check_name("plants", name, ("induction",))
        check_options("plants", name, options, ("n", "family"))
        if "family" in options:
            check_name("family", options["family"], CANVASES)
        self.families = (options["family"],) if "family" in options else tuple(CANVASES)
        self.pairs = whole_option("n", options, 24)
        parts = {"plants": name, "version": "2", **options, "n": str(self.pairs)}
        self.identity = Identity(name=f"testbed:plants/{name}", parts=parts)

    def cases(self, seed: int) -> Iterator[Planted]:
        """Ten models a class."""
        for family in self.families:
            for redundancy, options in _REDUNDANCY.items():
                yield self._case(
                    seed, {"family": family, "redundancy": redundancy, "corrupt": "earlier"}, options
                )
            point = {"family": family, "redundancy": "none", "corrupt": "answer"}
            yield self._case(seed, point, {}, corrupt="answer")
            for null, options in _NULLS.items():
                yield self._case(seed, {"family": family, "kind": "null", "null": null}, options, null=null)

    def _case(
        self,
        seed: int,
        point: Mapping[str, str],
        options: Mapping[str, str],
        corrupt: str = "earlier",
        null: str = "",
    ) -> Planted:
        chosen = {**options, "family": point["family"], "seed": str(seed)}
        asked = {"n": str(self.pairs), "corrupt": corrupt}
        tables = [
            open_contrasts("induction", {**asked, "seed": str(2 * seed + part), "form": form})
            for part, form in ((0, "usual"), (1, "usual"), (0, "longer"))
        ]
        if null == "shuffled":
            tables = [shuffled(table) for table in tables]
        heads = () if null else truth(chosen)
        against = tuple(place for place in heads if place == NEGATIVE)
        tempting = (PREVIOUS, INDUCTION) if null else ()
        plant = open_plant("induction", chosen)
        return Planted(point, plant, tables[0], tables[1], heads, null, against, tempting, reworded=tables[2])


_REDUNDANCY: Mapping[str, Mapping[str, str]] = {
    "none": {},
    "equal": {"twin": "1"},
    "third": {"share": "0.3"},
    "tenth": {"share": "0.1"},
    "negative": {"negative": "1"},
}
_NULLS: Mapping[str, Mapping[str, str]] = {
    "removed": {"removed": "1"},
    "random": {"null": "random"},
    "permuted": {"null": "permuted"},
    "shuffled": {},
}


def shuffled(contrasts: Contrasts) -> Contrasts:
    """Every pair with the answer and foil of the next: neither follows from either prompt."""
    rows = contrasts.rows
    moved = zip(rows, (*rows[1:], rows[0]), strict=True)
    return Contrasts(
        rows=tuple(
            row.model_copy(update={"answer": other.answer, "foil": other.foil}) for row, other in moved
        ),
        source=f"{contrasts.source}, answers of other pairs",
    )


def open_contrasts(name: str, options: Mapping[str, str]) -> Contrasts:
    """``testbed:contrasts/induction``: words A B ... A, which B follows, and a corrupted version.

    ``?corrupt=earlier`` (the default) changes the first A, ``answer`` changes B; the foil is B's changed
    version, or another word of the prompt. ``?n=48``, ``?seed=0``. ``?form=longer`` asks the same of A, with
    the same changed word, answer and foil, in prompts of three words more: the words around are others, and A
    comes at another distance.
    """
    check_name("contrasts", name, ("induction",), "task")
    check_options("contrasts", name, options, ("n", "seed", "corrupt", "form"))
    how = choice_option("corrupt", options, _CORRUPT, "earlier")
    longer = choice_option("form", options, FORMS, "usual") == "longer"
    seed = whole_option("seed", options, 0)
    rng = random.Random(f"contrasts/{seed}")
    made = []
    for number in range(whole_option("n", options, 48)):
        words = rng.sample(range(WORDS), LENGTH)
        at = rng.randrange(1, LENGTH - 3)
        words[-1] = words[at]
        spare = [word for word in range(WORDS) if word not in words]
        changed = list(words)
        changed[at if how == "earlier" else at + 1] = rng.choice(spare)
        others = [word for place, word in enumerate(words[:-1]) if place not in (at, at + 1)]
        foil = changed[at + 1] if how == "answer" else rng.choice(others)
        answer = words[at + 1]
        if longer:
            words, changed = _longer(words, changed, at, foil, random.Random(f"longer/{seed}/{number}"))
        made.append(
            Contrast(
                id=f"induction/{how}/{number}",
                clean=Chat.ask(_text(words)),
                corrupt=Chat.ask(_text(changed)),
                answer=_word(answer),
                foil=_word(foil),
            )
        )
    return Contrasts(rows=tuple(made), source=f"testbed:contrasts/{name}")


def _longer(
    words: list[int], changed: list[int], at: int, foil: int, rng: random.Random
) -> tuple[list[int], list[int]]:
    """The pair of prompts said otherwise: A and B at another distance, the foil, and words of neither."""
    length, gap = LENGTH + MORE, LENGTH - 1 - at
    now = rng.choice([place for place in range(1, length - 3) if length - 1 - place != gap])
    free = [place for place in range(length - 1) if place not in (now, now + 1)]
    spare = [word for word in range(WORDS) if word not in words and word not in changed]
    said = dict(zip((now, now + 1, length - 1), (words[at], words[at + 1], words[at]), strict=True))
    if foil in words:
        said[free.pop(rng.randrange(len(free)))] = foil
    said |= dict(zip(free, rng.sample(spare, len(free)), strict=True))
    clean = [said[place] for place in range(length)]
    corrupt = list(clean)
    corrupt[now : now + 2] = changed[at : at + 2]
    return clean, corrupt


def _word(number: int) -> str:
    return f"w{number:02d}"


def _text(words: list[int]) -> str:
    return " ".join(map(_word, words))


def tokenizer(words: Sequence[str]) -> Any:
    """A token a word, and <end>."""
    vocabulary = {word: at for at, word in enumerate((*words, "<end>"))}
    inner = Tokenizer(models.WordLevel(vocabulary, "<end>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="<end>")  # type: ignore[no-untyped-call]


def _build(options: Mapping[str, str]) -> Any:
    seed = whole_option("seed", options, 0)
    generator = torch.Generator().manual_seed(seed)
    vectors = basis(3 * (WORDS + 1) + SLOTS, generator)
    word, before, output = (vectors[i * (WORDS + 1) : (i + 1) * (WORDS + 1)] for i in range(3))
    layers = 3 if options.get("negative") == "1" else 2
    with torch.random.fork_rng(devices=[]):  # what the class draws first is overwritten
        canvas = CANVASES[options.get("family", "gpt2")](layers, word, output, vectors[3 * (WORDS + 1) :])
    for layer in range(layers):
        for head in range(HEADS):
            canvas.write(layer, head, dict(zip(MAPS, noise(canvas.size, generator), strict=True)))
    _plant(canvas, word, before, output, options)
    if "null" in options:
        NULLS[options["null"]](canvas.module, seed)
    return canvas.module


def _plant(canvas: Canvas, word: Tensor, before: Tensor, output: Tensor, options: Mapping[str, str]) -> None:
    """Set the heads of the circuit."""
    written, share = 0.0 if options.get("removed") == "1" else 1.0, _share(options)
    query, key = canvas.back(1, 0)
    value, told = canvas.rows(word), canvas.rows(before) * written / canvas.scale(0)
    canvas.write(PREVIOUS[0], PREVIOUS[1], {"query": query, "key": key, "value": value, "output": told})
    sharp = canvas.sharp(1)
    query, key = canvas.rows(word) * sharp * 1.2, canvas.rows(before) * sharp * 1.2
    strengths = {INDUCTION: 1 - share, TWIN: share, DECOY: 0.0}
    for (layer, head), strength in strengths.items():
        if (layer, head) != TWIN or share:
            told = canvas.rows(output) * written * strength / canvas.scale(1)
            canvas.write(layer, head, {"query": query, "key": key, "value": value, "output": told})
    if options.get("negative") == "1":
        query, key = canvas.back(0, 2)
        value, told = canvas.rows(output), canvas.rows(output) * -_TAKEN * written / canvas.scale(2)
        canvas.write(*NEGATIVE, {"query": query, "key": key, "value": value, "output": told})
