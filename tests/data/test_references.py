"""References to rows, as text."""

from __future__ import annotations

import pytest

from calibrant.data.references import whole_and_parts


@pytest.mark.parametrize(
    ("reference", "whole", "parts"),
    [
        ("a.jsonl", "a.jsonl", ()),
        ("data:x[:9]", "data:x", ((None, 9),)),
        ("a[2:][0:5]", "a", ((2, None), (0, 5))),
        ("a[:]", "a", ((None, None),)),
        ("a[:" + "9" * 4_000 + "]", "a", ((None, int("9" * 4_000)),)),
        ("a[:²]", "a[:²]", ()),
        ("a[-1:]", "a[-1:]", ()),
        ("a[:3]\n", "a[:3]\n", ()),
        ("a[3].jsonl", "a[3].jsonl", ()),
        ("[:1]", "", ((None, 1),)),
        ("", "", ()),
    ],
)
def test_a_reference_is_taken_apart(reference, whole, parts):
    assert whole_and_parts(reference) == (whole, parts)


def test_what_others_wrote_is_no_trap():
    assert whole_and_parts("a[:" + "9" * 5_000 + "]")[1] == ()
    assert len(whole_and_parts("a" + "[:9]" * 200_000)[1]) == 200_000
