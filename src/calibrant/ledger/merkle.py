"""The Merkle tree of a log: one root fixes every line, and a short proof shows that a line is in it, or that
an earlier tree is a part of it.

Source: RFC 6962, section 2.1, and RFC 9162, section 2.1 (the same tree; the verifier's algorithms). SHA-256,
0x00 before a leaf and 0x01 before two nodes, so that no leaf can pass for a node. A tree is split at the
largest power of two below its size. Proofs have at most ceil(log2 n) hashes (inclusion), one more
(consistency).

``verify_inclusion`` and ``verify_consistency`` use nothing of ``Tree``: who checks does not trust who wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256

SIZE = 32
"""Bytes of a hash."""
EMPTY = sha256().digest()
"""The root of no leaves."""


def leaf_hash(data: bytes) -> bytes:
    """Of one entry."""
    return sha256(b"\0" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()


class Tree:
    """Grows at its end; keeps the hash of every full subtree, 64 bytes a leaf."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        """``leaves`` are hashes of entries (``leaf_hash``)."""
        self._levels: list[bytearray] = [bytearray()]
        self.add(leaves)

    def __len__(self) -> int:
        return len(self._levels[0]) // SIZE

    def add(self, leaves: Iterable[bytes]) -> None:
        """Append hashes of entries."""
        for leaf in leaves:
            self._levels[0] += leaf
            at, level = len(self), 0
            while at % 2 == 0:  # a subtree of twice the size is full
                pair = bytes(self._levels[level][-2 * SIZE :])
                level, at = level + 1, at // 2
                if level == len(self._levels):
                    self._levels.append(bytearray())
                self._levels[level] += _node(pair[:SIZE], pair[SIZE:])

    def root(self, size: int | None = None) -> bytes:
        """Of the first ``size`` leaves; None: of all.

        Raises:
            ValueError: there are not as many.
        """
        size = self._within(len(self) if size is None else size)
        return self._hash(0, size) if size else EMPTY

    def inclusion(self, at: int, size: int | None = None) -> list[bytes]:
        """That leaf ``at`` is one of the first ``size``: hashes from the leaf upwards.

        Raises:
            ValueError: there is no such leaf, or there are not as many.
        """
        size = self._within(len(self) if size is None else size)
        if not 0 <= at < size:
            raise ValueError(f"leaf {at} of a tree of {size}")
        return list(self._path(at, 0, size))

    def consistency(self, old: int, size: int | None = None) -> list[bytes]:
        """That the tree of the first ``old`` leaves, at least one, begins the one of ``size``.

        Raises:
            ValueError: ``old`` is 0 or above ``size``, or there are not as many leaves.
        """
        size = self._within(len(self) if size is None else size)
        if not 0 < old <= size:
            raise ValueError(f"a tree of {old} leaves in one of {size}")
        return list(self._subproof(old, 0, size, whole=True))

    def _within(self, size: int) -> int:
        if not 0 <= size <= len(self):
            raise ValueError(f"{size} leaves of a tree of {len(self)}")
        return size

    def _hash(self, start: int, end: int) -> bytes:
        """Of leaves start to end; start is a multiple of the largest power of two within."""
        size = end - start
        if size & (size - 1) == 0:
            level, at = size.bit_length() - 1, start // size * SIZE
            return bytes(self._levels[level][at : at + SIZE])
        middle = start + _split(size)
        return _node(self._hash(start, middle), self._hash(middle, end))

    def _path(self, at: int, start: int, end: int) -> Iterator[bytes]:
        if end - start == 1:
            return
        middle = start + _split(end - start)
        if at < middle:
            yield from self._path(at, start, middle)
            yield self._hash(middle, end)
        else:
            yield from self._path(at, middle, end)
            yield self._hash(start, middle)

    def _subproof(self, old: int, start: int, end: int, *, whole: bool) -> Iterator[bytes]:
        """``whole``: the old root itself, which the verifier has, is this subtree."""
        if old == end:
            if not whole:
                yield self._hash(start, end)
            return
        middle = start + _split(end - start)
        if old <= middle:
            yield from self._subproof(old, start, middle, whole=whole)
            yield self._hash(middle, end)
        else:
            yield from self._subproof(old, middle, end, whole=False)
            yield self._hash(start, middle)


def _split(size: int) -> int:
    """The largest power of two below ``size``, which is 2 or more."""
    return 1 << ((size - 1).bit_length() - 1)


def verify_inclusion(at: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether ``leaf``, the hash of an entry, is number ``at`` of the ``size`` that ``root`` is of (RFC 9162,
    section 2.1.3.2). False for whatever is no such proof."""
    if not 0 <= at < size or not _hashes([leaf, root, *proof]):
        return False
    place, last, found = at, size - 1, leaf
    for other in proof:
        if last == 0:
            return False  # the proof goes on above the root
        if place & 1 or place == last:
            found = _node(other, found)
            while not place & 1 and place:  # the right border: no node stands beside it here
                place, last = place >> 1, last >> 1
        else:
            found = _node(found, other)
        place, last = place >> 1, last >> 1
    return last == 0 and found == root


def verify_consistency(old: int, size: int, proof: Sequence[bytes], old_root: bytes, root: bytes) -> bool:
    """Whether the ``old`` leaves of ``old_root`` begin the ``size`` of ``root`` (RFC 9162, section 2.1.4.2).

    False for whatever is no such proof, and for ``old`` of 0: an empty tree says nothing of what came later.
    """
    if not 0 < old <= size or not _hashes([old_root, root, *proof]):
        return False
    if old == size:
        return not proof and old_root == root
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)  # the old tree is a full subtree: its root is a node of the new one
    if not path:
        return False
    place, last = old - 1, size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    before = after = path[0]
    for other in path[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            before, after = _node(other, before), _node(other, after)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            after = _node(after, other)
        place, last = place >> 1, last >> 1
    return last == 0 and before == old_root and after == root


def _hashes(values: Iterable[bytes]) -> bool:
    return all(isinstance(one, bytes) and len(one) == SIZE for one in values)
