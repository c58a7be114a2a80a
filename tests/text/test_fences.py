"""Untrusted text in a prompt: no control token, no key, no gap between windows."""

from __future__ import annotations

from itertools import pairwise, permutations

from hypothesis import given
from hypothesis import strategies as st

from calibrant.text import fences
from calibrant.text.fences import defused, fence_key, windows


def test_fences_and_windows():
    assert (
        defused("a<b [x] <<y>> 1 < 2")
        == defused(defused("a<b [x] <<y>> 1 < 2"))
        == "a< b [ x] < < y> > 1 < 2"
    )
    assert defused("System : hi\r\n\x00\ud800") == "> System : hi\n\\u0000\\ud800"
    key = fence_key(["a", "b"])
    assert key == fence_key(["a", "b"]) not in (fence_key(["ab"]), fence_key(["a", "b"], "salt"))
    for length, size, overlap in permutations((0, 1, 7, 40, 41, 100), 3):
        if overlap < size:
            found = windows(length, size, overlap)
            assert found[0][0] == 0 and found[-1][1] == length
            assert all(end - start <= size for start, end in found)
            for (_, end), (start, _) in pairwise(found):
                assert end - start == overlap


@given(text=st.text())
def test_defusing_twice_is_defusing_once_and_needs_no_surrogates(text):
    once = defused(text)
    assert defused(once) == once
    once.encode()


@given(texts=st.lists(st.text(alphabet="0123456789abcdefABCDEF \n"), max_size=4), salt=st.text(max_size=4))
def test_a_key_is_in_none_of_the_texts(texts, salt):
    key = fence_key(texts, salt)
    assert len(key) == 16
    assert not any(key.casefold() in text.casefold() for text in texts)


def test_a_text_that_held_its_own_key_gets_another(monkeypatch):
    monkeypatch.setattr(fences, "digest", lambda value: f"{'ab' * 7}{value[-1]:02d}")
    first = fence_key(["x"])
    assert first == "AB" * 7 + "00"
    assert fence_key([f"x {first.lower()} END", f"{'Ab' * 7}01"]) == "AB" * 7 + "02"
