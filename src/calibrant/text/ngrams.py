"""Counts of n-grams, hashed: what a classifier of texts sees that knows no model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

BUCKETS = 4096
_WORD = re.compile(r"\w+")


def ngrams(
    texts: Sequence[str], lengths: Sequence[int] = (1, 2, 3, 4), buckets: int = BUCKETS
) -> NDArray[np.float64]:
    """How often each n-gram comes in each text: (N, buckets). A blank is put at both ends of a text.

    Two n-grams may share a bucket (Weinberger et al. 2009, 0902.2206). Case and spaces count.
    """
    table = np.zeros((len(texts), buckets))
    for row, text in enumerate(texts):
        padded = f" {text} "
        seen = Counter(
            padded[at : at + length] for length in lengths for at in range(len(padded) - length + 1)
        )
        for gram, count in seen.items():
            table[row, crc32(gram.encode("utf-8", "surrogatepass")) % buckets] += count
    return table


def hashed(texts: Sequence[str], buckets: int) -> Any:
    """Rows of length 1, sparse (N, buckets): log(1 + count) of words, pairs of words, and runs of 3 to 5
    characters.

    Two n-grams may share a bucket (Weinberger et al. 2009, 0902.2206). A row depends on its own text alone; a
    text without n-grams is a row of zeros. Case counts: fold it first.
    """
    starts, places, values = [0], list[int](), list[float]()
    for text in texts:
        seen = Counter(crc32(gram.encode("utf-8", "surrogatepass")) % buckets for gram in _grams(text))
        size = np.sqrt(np.sum(np.log1p(np.fromiter(seen.values(), np.float64)) ** 2)) or 1.0
        for place in sorted(seen):
            places.append(place)
            values.append(float(np.log1p(seen[place]) / size))
        starts.append(len(places))
    parts = (np.array(values, np.float64), np.array(places, np.int64), np.array(starts, np.int64))
    return csr_array(parts, shape=(len(texts), buckets))


def _grams(text: str) -> Iterator[str]:
    """Words and pairs of them, marked as such; then runs of characters, with a blank at both ends."""
    words = _WORD.findall(text)
    yield from (f"\0{word}" for word in words)
    yield from (f"\0{one} {other}" for one, other in pairwise(words))
    padded = f" {text} "
    if text:
        yield from (padded[at : at + n] for n in (3, 4, 5) for at in range(len(padded) - n + 1))
