"""Every attack that a campaign can run, by the name of its technique."""

from __future__ import annotations

from calibrant.attack import (
    best_of_n,
    crescendo,
    encode,
    gcg,
    genetic,
    many_shot,
    multi_turn,
    pair,
    persona,
    prefill,
    rainbow,
    random_search,
    tap,
)
from calibrant.attack.engine.protocol import Attack

_MODULES = (
    best_of_n,
    crescendo,
    encode,
    gcg,
    genetic,
    many_shot,
    multi_turn,
    pair,
    persona,
    prefill,
    rainbow,
    random_search,
    tap,
)
ATTACKS: dict[str, Attack] = {module.ATTACK.name: module.ATTACK for module in _MODULES}
"""Name -> attack."""
