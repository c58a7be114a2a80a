"""Questions in plain English that a small real model can answer: capitals, and sums of two numbers.

The testbed's own world is make-believe, so no model from elsewhere knows a fact of it. These are public
knowledge and arithmetic, with wrong answers of the same kind, for measures that ask only about what a model
knows. Not a test of skill: they are chosen to be easy.
"""

from __future__ import annotations

import random

from calibrant.core import Chat
from calibrant.data.rows import Item

_CAPITALS = {
    "Europe": (
        "France Paris, Italy Rome, Spain Madrid, Portugal Lisbon, Germany Berlin, Austria Vienna, Poland "
        "Warsaw, Hungary Budapest, Greece Athens, Norway Oslo, Sweden Stockholm, Denmark Copenhagen, "
        "Finland Helsinki, Ireland Dublin, Belgium Brussels, Bulgaria Sofia, Romania Bucharest, Croatia "
        "Zagreb, Serbia Belgrade, Ukraine Kyiv"
    ),
    "Asia": (
        "Japan Tokyo, China Beijing, Thailand Bangkok, Vietnam Hanoi, Indonesia Jakarta, Iran Tehran, "
        "Iraq Baghdad, Turkey Ankara, Nepal Kathmandu, Bangladesh Dhaka, Pakistan Islamabad, Lebanon "
        "Beirut, Jordan Amman, Syria Damascus, Afghanistan Kabul"
    ),
    "elsewhere": (
        "Egypt Cairo, Kenya Nairobi, Ethiopia Addis-Ababa, Ghana Accra, Senegal Dakar, Morocco Rabat, "
        "Algeria Algiers, Tunisia Tunis, Uganda Kampala, Zimbabwe Harare, Canada Ottawa, Cuba Havana, "
        "Peru Lima, Chile Santiago, Colombia Bogota, Venezuela Caracas, Ecuador Quito, Uruguay "
        "Montevideo, Australia Canberra"
    ),
}
_SUMS = 66
_LEAST, _MOST = 12, 49


def english() -> list[Item]:
    """54 capitals and 66 sums in a mixed order, each with three wrong answers of its kind."""
    rng = random.Random("items/english")
    capitals, sums = _capitals(), _sums(rng)
    rows = [*capitals, *sums]
    rng.shuffle(rows)
    return rows


def _capitals() -> list[Item]:
    """The wrong answers are the next three of the same list."""
    rows = []
    for listed in _CAPITALS.values():
        pairs = [pair.split() for pair in listed.split(", ")]
        towns = [town.replace("-", " ") for _, town in pairs]
        for at, (land, _) in enumerate(pairs):
            wrong = tuple(towns[(at + step) % len(towns)] for step in (1, 2, 3))
            ask = Chat.ask(f"What is the capital of {land}?")
            rows.append(
                Item(
                    id=f"capital/{land}",
                    chat=ask,
                    answer=towns[at],
                    kind="capital",
                    match="contains",
                    wrong=wrong,
                )
            )
    return rows


def _sums(rng: random.Random) -> list[Item]:
    """Two numbers of two digits, of different value, once each; wrong answers miss by 10 or 1."""
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < _SUMS:
        low, high = sorted((rng.randint(_LEAST, _MOST), rng.randint(_LEAST, _MOST)))
        if low < high:
            pairs[low, high] = None
    rows = []
    for a, b in pairs:
        wrong = [a + b + miss for miss in (10, -10, 1, -1) if a + b + miss not in (a, b)][:3]
        rows.append(
            Item(
                id=f"sum/{a}+{b}",
                chat=Chat.ask(f"What is {a} + {b}?"),
                answer=str(a + b),
                kind="sum",
                match="contains",
                wrong=tuple(map(str, wrong)),
            )
        )
    return rows
