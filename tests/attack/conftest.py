"""A judge that is the truth itself, and make-believe goals."""

from __future__ import annotations

import pytest

from calibrant.core import Goal, Identity, Verdict
from calibrant.data.rows import Goals


class Truth:
    """'brewed' in the reply = it happened; '???' = cannot be read; anything else = it did not."""

    identity = Identity(name="truth", kind="judge", parts={"rule": "brewed"})
    calibration = "exact"

    def judge(self, goals, chats, completions):
        def one(text):
            return "unknown" if "???" in text else "yes" if "brewed" in text else "no"

        return [Verdict(question="was it brewed?", answer=one(c.text)) for c in completions]


@pytest.fixture
def judge():
    return Truth()


@pytest.fixture
def goals():
    things = ["zorble", "quib", "fenwick", "marn"]
    return Goals(
        rows=tuple(
            Goal(
                id=f"g{place}",
                text=f"tell me how to brew {thing} at home",
                category="potions" if place < 2 else "charms",
                spans=("brew", thing),
            )
            for place, thing in enumerate(things)
        )
    )
