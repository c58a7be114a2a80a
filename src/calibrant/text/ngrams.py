"""Counts of character n-grams, hashed: what a classifier of texts sees that knows no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

BUCKETS = 4096


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
