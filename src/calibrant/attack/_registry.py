"""Every attack that a campaign can run, by the name of its technique."""

from __future__ import annotations

from calibrant.attack import (  # noqa: F401 - this list is the list of attacks
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
    staged,
    tap,
)
from calibrant.attack.engine.protocol import Attack

ATTACKS: dict[str, Attack] = {
    module.ATTACK.name: module.ATTACK for module in list(globals().values()) if hasattr(module, "ATTACK")
}
"""Name -> attack."""
