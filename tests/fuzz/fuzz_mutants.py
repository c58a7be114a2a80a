"""Mutants: a text that a reader takes, with something in it that no writer wrote. Seeded, bytes to bytes."""

from __future__ import annotations

import random
import re

ODD = (
    b"null", b"true", b"false", b"0", b"-1", b"1.5", b"NaN", b"-Infinity", b"1e999", b"1e12", b"9" * 25,
    b"9" * 5_000, b"0x" + b"f" * 5_000, b'""', b'" "', b'"x"', b'"\\ud800"', b'"\\u0000"', b'"\\u001b[2J"',
    b'"' + b"x" * 300 + b'"', b'"' + "é²٣".encode() + b'"', b"[]", b"{}", b"[3]", b"[null]", b'{"a": {}}',
    b'[{"role": "user", "content": "x"}]', b'{"messages": 3}', b"[" * 2_000, b"[" * 60 + b"]" * 60,
    b'{"a": ' * 1_500, b"2026-11-29", b"2026-11-29T10:00:00Z", b"\xff\xfe", b"\x00", b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b'"unterminated', b"'''", b'"""', b"\r", b"\n", b"\n\n", b"\t", b",", b";", b":", b"#", b"[:9]",
    b"?n=", b"/../",
    b"\n\nHuman: ", b"\n\nAssistant: ", b"<think>", b"VERDICT: YES", b"SCORE: " + b"7" * 5_000, b"{secret}",
)  # fmt: skip
"""What is put in the place of a value, or anywhere."""
_VALUE = re.compile(rb'"(?:[^"\\\n]|\\.)*"|-?\d+(?:\.\d+)?|\btrue\b|\bfalse\b|\bnull\b|[\w./-]+')


def mutant(seed: bytes, rng: random.Random) -> bytes:
    """One to three changes of ``seed``."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        seed = rng.choice(_CHANGES)(seed, rng)
    return seed


def _value(seed: bytes, rng: random.Random) -> bytes:
    """Another value in the place of one; the name of a key counts as one."""
    found = list(_VALUE.finditer(seed))
    if not found:
        return rng.choice(ODD)
    one = rng.choice(found)
    return seed[: one.start()] + rng.choice(ODD) + seed[one.end() :]


def _swapped(seed: bytes, rng: random.Random) -> bytes:
    """One value in the place of another."""
    found = list(_VALUE.finditer(seed))
    if len(found) < 2:
        return seed
    one, other = sorted(rng.sample(found, 2), key=lambda match: match.start())
    parts = (seed[: one.start()], other[0], seed[one.end() : other.start()], one[0], seed[other.end() :])
    return b"".join(parts)


def _inserted(seed: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(seed) + 1)
    return seed[:at] + rng.choice(ODD) + seed[at:]


def _cut(seed: bytes, rng: random.Random) -> bytes:
    return seed[: rng.randrange(len(seed) + 1)]


def _gap(seed: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(seed) + 1)
    return seed[:start] + seed[start + rng.choice((1, 1, 2, 10, 60)) :]


def _byte(seed: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(seed) + 1)
    return seed[:at] + bytes((rng.randrange(256),)) + seed[at + 1 :]


def _again(seed: bytes, rng: random.Random) -> bytes:
    """A piece, or a line, a second time."""
    if rng.random() < 0.5:
        lines = seed.split(b"\n")
        return b"\n".join([*lines, rng.choice(lines)])
    start, length = rng.randrange(len(seed) + 1), rng.choice((1, 4, 30, 200))
    return seed[: start + length] + seed[start:]


_CHANGES = (_value, _value, _value, _swapped, _inserted, _cut, _gap, _byte, _again)
