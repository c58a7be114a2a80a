"""Pairs of prompts in plain English, for models that were trained on English: three well-known tasks.

- ``ioi``: indirect object identification (Wang et al. 2022, 2211.00593). The corrupted prompt has the other
  name twice, so that answer and foil change places.
- ``greater_than_year``: the tens digit of a later year (after Hanna et al. 2023, 2305.00586), for tokenizers
  that split numbers into digits. The corrupted year has 0 there. Answer and foil are one digit above and one
  below; the probability of all digits above is not read.
- ``repeat``: a list of words that begins again; the answer is the word that followed at first. In the
  corrupted prompt another word stands before it there (``corrupt=earlier``), or in its place
  (``corrupt=answer``: that word is the foil). ``repeat=0``: the second list is of other words, a null.

Tables of other seeds may share prompts; slices of one table do not: ``ioi?n=48[:24]``, ``ioi?n=48[24:]``.

Every name and word is one token, with its blank, for many tokenizers; where it is not, patching says which
pair has two lengths.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from calibrant.core import Chat, InputError
from calibrant.data.rows import Contrast, Contrasts
from calibrant.testbed.checks import check_options, choice_option, whole_option

_NAMES = (
    "Mary John Tom James Robert Michael William David Richard Thomas Mark Paul Kevin Jason Ryan Eric Alice "
    "Amy Anna Emma Kate Laura Lisa Maria Rachel Sarah Susan Karen Peter Adam Alex Andrew Anthony Brian Chris "
    "Daniel Frank George Henry Jack"
)
_PLACES = "school house park office store garden restaurant hospital station market library museum"
_OBJECTS = "book ring drink ball letter basket phone ticket computer necklace kiss bone"
_EVENTS = "war plan contract trip project strike"
_WORDS = (
    "apple river stone cloud table window garden paper horse ocean winter silver bread candle forest bridge "
    "market doctor rocket mirror basket copper dragon engine finger guitar hammer island jacket kitchen "
    "ladder monkey needle orange pencil rabbit saddle ticket valley wagon yellow bottle camera desert eagle "
    "flower ghost helmet insect jungle king lemon mountain night owl piano queen rain salt tiger"
)
_LIST, _SEEN = 8, 5
"""Words of a list, and how many of them are repeated."""


def text_contrasts(name: str, options: Mapping[str, str]) -> Contrasts:
    """``testbed:contrasts/ioi?n=24&seed=1`` and its like; see above.

    Raises:
        InputError: an option that the task does not have, or ``n`` below 2 or above 500.
    """
    more = ("corrupt", "repeat") if name == "repeat" else ()
    check_options("contrasts", name, options, ("n", "seed", *more))
    n, seed = whole_option("n", options, 24), whole_option("seed", options, 0)
    if not 2 <= n <= 500:
        raise InputError(f"n={n}: 2 to 500 pairs can be made", hint="write ?n=24")
    corrupt = choice_option("corrupt", options, ("earlier", "answer"), "earlier")
    repeats = choice_option("repeat", options, ("0", "1"), "1") == "1"
    rng = random.Random(f"{name}/{seed}")
    makers: dict[str, Callable[[int], Contrast]] = {
        "ioi": lambda at: _ioi(rng, at),
        "greater_than_year": lambda at: _greater_than(rng, at),
        "repeat": lambda at: _repeat(rng, at, corrupt, repeats),
    }
    rows: dict[Chat, Contrast] = {}
    while len(rows) < n:  # no prompt twice
        row = makers[name](len(rows))
        rows.setdefault(row.clean, row)
    return Contrasts(rows=tuple(rows.values()), source=f"testbed:contrasts/{name}")


TASKS = ("ioi", "greater_than_year", "repeat")


def _row(id: str, clean: str, corrupt: str, answer: str, foil: str, cluster: str) -> Contrast:
    return Contrast(
        id=id, clean=Chat.ask(clean), corrupt=Chat.ask(corrupt), answer=answer, foil=foil, cluster=cluster
    )


def _ioi(rng: random.Random, at: int) -> Contrast:
    """Both orders of the names in turn; a pair of names is a cluster."""
    one, other = rng.sample(_NAMES.split(), 2)
    giver, receiver = (one, other) if at % 2 else (other, one)
    place, thing = rng.choice(_PLACES.split()), rng.choice(_OBJECTS.split())
    text = f"Then, {one} and {other} went to the {place}. {{}} gave a {thing} to"
    names = "/".join(sorted((one, other)))
    return _row(f"{at}", text.format(giver), text.format(receiver), f" {receiver}", f" {giver}", names)


def _greater_than(rng: random.Random, at: int) -> Contrast:
    event, century, tens, ones = (
        rng.choice(_EVENTS.split()),
        rng.randint(12, 19),
        rng.randint(4, 6),
        rng.randint(2, 9),
    )
    text = f"The {event} lasted from the year {century}{{}} to the year {century}"
    above, below = rng.randint(tens + 1, 9), rng.randint(1, tens - 1)
    clean, corrupt = text.format(f"{tens}{ones}"), text.format(f"0{ones}")
    return _row(f"{at}", clean, corrupt, str(above), str(below), f"{event}/{century}")


def _repeat(rng: random.Random, at: int, corrupt: str, repeats: bool) -> Contrast:
    drawn = rng.sample(_WORDS.split(), 2 * _LIST + 1)
    first, second, new = drawn[:_LIST], drawn[_LIST : 2 * _LIST], drawn[-1]
    again = first[:_SEEN] if repeats else second[:_SEEN]
    changed, where = list(first), _SEEN - 1 if corrupt == "earlier" else _SEEN
    changed[where] = new
    foil = first[rng.choice([0, 1, 2])] if corrupt == "earlier" else new
    clean, corrupted = (" " + " ".join((*words, *again)) for words in (first, changed))
    return _row(f"{at}", clean, corrupted, f" {first[_SEEN]}", f" {foil}", "")
