"""One seed per item, so that a sample depends on the request and never on its place in a batch (C5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from calibrant.core import Chat, digest


def item_seeds(chats: Sequence[Chat], seed: int) -> list[int]:
    """A seed below 2^31 for each chat: hash of (seed, chat, how many equal chats came before it)."""
    seen: Counter[str] = Counter()
    seeds = []
    for chat in chats:
        key = digest(chat)
        seeds.append(int(digest([seed, key, seen[key]]), 16) % 2**31)
        seen[key] += 1
    return seeds
