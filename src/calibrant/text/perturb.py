"""Random changes to the characters of a text: insert, swap and patch of SmoothLLM.

Robey et al. 2023, "SmoothLLM: Defending large language models against jailbreaking attacks"
(arXiv:2310.03684), section 3.2. Pure: the random numbers come from the caller.
"""

from __future__ import annotations

import random
from typing import Literal

Perturbation = Literal["swap", "insert", "patch"]
ALPHABET = "".join(map(chr, range(32, 127)))
"""What is written in: the 95 printable characters of ASCII. (The authors' code draws from Python's 100, five
control characters among them.)"""


def perturbed(text: str, kind: Perturbation, share: float, rng: random.Random) -> str:
    """``text`` with floor(share * length) characters changed, each new one drawn evenly from ``ALPHABET``.

    - 'swap': characters at random places are replaced, perhaps by themselves;
    - 'insert': a new character follows characters at random places;
    - 'patch': characters in a row, from a random place on, are replaced.
    """
    size = int(share * len(text))
    if kind == "patch":
        start = rng.randrange(len(text) - size + 1)
        return text[:start] + _drawn(size, rng) + text[start + size :]
    chosen = dict(zip(rng.sample(range(len(text)), size), _drawn(size, rng), strict=True))
    keep = kind == "insert"
    return "".join(
        (char if keep or i not in chosen else "") + chosen.get(i, "") for i, char in enumerate(text)
    )


def _drawn(count: int, rng: random.Random) -> str:
    return "".join(rng.choices(ALPHABET, k=count))
