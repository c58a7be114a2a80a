"""Near-duplicates: the prefix filter finds exactly what comparing each with each finds."""

from __future__ import annotations

import random

import pytest

from calibrant.data.near import jaccard, near, shingles


def test_shingles_are_runs_of_three_words() -> None:
    assert shingles("How do I, mend THE barn?") == {"how do i", "do i mend", "i mend the", "mend the barn"}
    assert shingles("Mend it") == shingles("mend  it!") == {"mend it"}
    assert shingles("???") == {"???"}
    assert shingles("") == {""}


def test_similarity_by_hand() -> None:
    """Five words each, the last differs: two shared runs of four."""
    one, other = shingles("mend the old red barn"), shingles("mend the old red mill")
    assert jaccard(one, other) == pytest.approx(2 / 4)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_nothing_is_missed(threshold: float) -> None:
    rng = random.Random(threshold)
    words = ["the", "old", "red", "barn", "by"]
    texts = [" ".join(rng.choices(words, k=rng.randint(0, 9))) for _ in range(300)]
    queries, known = texts[:100], texts[100:]
    sets = [shingles(text) for text in known]
    slow = []
    for at, query in enumerate(queries):
        values = [jaccard(shingles(query), one) for one in sets]
        if max(values) >= threshold:
            slow.append((at, values.index(max(values)), max(values)))
    assert [tuple(one) for one in near(queries, known, threshold)] == slow
    assert slow


def test_nothing_to_find() -> None:
    assert near([], ["a"], 0.5) == near(["a"], [], 0.5) == []
    assert near(["one two three four"], ["five six seven eight"], 0.1) == []
