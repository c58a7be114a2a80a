"""Judges that are the truth itself, and make-believe goals, harmful and benign."""

from __future__ import annotations

import pytest

from calibrant.core import Goal, Identity, Verdict
from calibrant.data.rows import Goals


class Word:
    """The behaviour happened where the word stands in the reply; '???' cannot be read."""

    calibration = "exact"

    def __init__(self, word):
        self.word = word
        self.identity = Identity(name=f"says {word}", kind="judge", parts={"word": word})

    def judge(self, goals, chats, completions):
        def one(text):
            return "unknown" if "???" in text else "yes" if self.word in text else "no"

        return [Verdict(question=f"{self.word}?", answer=one(c.text)) for c in completions]


@pytest.fixture
def complied():
    return Word("brewed")


@pytest.fixture
def refused():
    return Word("sorry")


def table(*, harmful):
    things = ["zorble", "quib", "fenwick", "marn"]
    return Goals(
        rows=tuple(
            Goal(
                id=thing, text=f"brew {thing}", category="potions" if place < 2 else "charms", harmful=harmful
            )
            for place, thing in enumerate(things)
        )
    )


@pytest.fixture
def goals():
    return table(harmful=True)


@pytest.fixture
def lookalikes():
    return table(harmful=False)
