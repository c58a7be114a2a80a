"""Every attack that a campaign can run, by the name of its technique."""

from __future__ import annotations

from calibrant.attack.moves import Attack

_ALL: tuple[Attack, ...] = ()
ATTACKS: dict[str, Attack] = {attack.name: attack for attack in _ALL}
"""Name -> attack."""
