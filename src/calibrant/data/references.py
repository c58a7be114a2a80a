"""A reference to rows, as text: the file, and which part of it.

    whole_and_parts("data:hh_rlhf[200:][:50]")    # ("data:hh_rlhf", ((200, None), (None, 50)))

Whoever opens rows and whoever asks which rows were read go by the same words, so both read them here.
"""

from __future__ import annotations

import re

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Of files of rows; without the dot, the scheme of a reference to such a file."""
Part = tuple[int | None, int | None]
"""First row and the one after the last, as in a Python slice."""
# A reference has at most 4,096 characters, and Python reads no number of more than 4,300 digits.
_PART = re.compile(r"\[([0-9]{0,4096}):([0-9]{0,4096})\]")


def whole_and_parts(reference: str) -> tuple[str, tuple[Part, ...]]:
    """The reference without its slices, and those in the order in which they are to be taken."""
    parts: list[Part] = []
    end = len(reference)
    while (at := reference.rfind("[", 0, end)) >= 0 and (part := _PART.fullmatch(reference, at, end)):
        start, stop = (int(digits) if digits else None for digits in part.groups())
        parts.append((start, stop))
        end = at
    return reference[:end], tuple(reversed(parts))
