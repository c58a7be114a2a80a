"""The Merkle tree: published vectors, a tree by definition, and every proof that is none refused.

``merkle_vectors.jsonl`` holds the 196 proofs of transparency-dev/merkle (testdata/inclusion and consistency
at 417fb0c, Apache-2.0), one a line. On purpose we differ in one: a root that is no hash is refused even where
two of them are equal.
"""

from __future__ import annotations

import json
from base64 import b64decode
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrant.ledger.merkle import EMPTY, Tree, leaf_hash, verify_consistency, verify_inclusion

VECTORS = [
    json.loads(line) for line in (Path(__file__).parent / "merkle_vectors.jsonl").read_text().splitlines()
]
# The entries and roots of the certificate-transparency reference implementation, used by every log since.
ENTRIES = [
    bytes.fromhex(one)
    for one in [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ]
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def leaves(count):
    return [leaf_hash(str(n).encode()) for n in range(count)]


def by_definition(hashes):
    """RFC 6962, section 2.1, word for word."""
    if not hashes:
        return sha256().digest()
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while 2 * split < len(hashes):
        split *= 2
    return sha256(b"\x01" + by_definition(hashes[:split]) + by_definition(hashes[split:])).digest()


def test_published_roots():
    tree = Tree()
    assert tree.root() == EMPTY and len(tree) == 0
    for size, root in enumerate(ROOTS, 1):
        tree.add([leaf_hash(ENTRIES[size - 1])])
        assert tree.root().hex() == root and len(tree) == size
    assert [tree.root(size).hex() for size in range(1, 9)] == ROOTS


def decoded(vector, *names):
    return [b64decode(vector[name] or "") for name in names], [
        b64decode(one) for one in vector["proof"] or ()
    ]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda one: one["name"])
def test_published_proofs(vector):
    if "leafIdx" in vector:
        (leaf, root), proof = decoded(vector, "leafHash", "root")
        holds = verify_inclusion(vector["leafIdx"], vector["treeSize"], leaf, proof, root)
    else:
        (old, new), proof = decoded(vector, "root1", "root2")
        holds = verify_consistency(vector["size1"], vector["size2"], proof, old, new)
    ours = vector["name"] == "consistency/additional/sizes-are-equal-one-and-proof-is-empty"
    assert holds == (not vector["wantErr"] and not ours), vector["desc"]


def test_every_root_and_proof_of_every_tree_up_to_forty():
    hashes, tree = leaves(40), Tree(leaves(40))
    for size in range(41):
        root = by_definition(hashes[:size])
        assert tree.root(size) == Tree(hashes[:size]).root() == root
        for at in range(size):
            proof = tree.inclusion(at, size)
            assert verify_inclusion(at, size, hashes[at], proof, root)
            assert len(proof) <= (size - 1).bit_length()
        for old in range(1, size + 1):
            proof = tree.consistency(old, size)
            assert verify_consistency(old, size, proof, tree.root(old), root)
            assert len(proof) <= (size - 1).bit_length() + 1
        assert not verify_consistency(0, size, [], EMPTY, root)


@given(st.data())
def test_nothing_but_the_proof_is_a_proof(data):
    """Another place, size, leaf or root, a hash more, less, changed or swapped: all refused."""
    size = data.draw(st.integers(2, 33))
    hashes, tree = leaves(size), Tree(leaves(size))
    at, old, root = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size - 1)), tree.root()
    for proof, holds in (
        (tree.inclusion(at), lambda p, r=root: verify_inclusion(at, size, hashes[at], p, r)),
        (tree.consistency(old), lambda p, r=root: verify_consistency(old, size, p, tree.root(old), r)),
    ):
        assert holds(proof)
        other = data.draw(st.binary(min_size=32, max_size=32))
        assert not holds([*proof, other]) and not holds([other, *proof]) and not holds(proof[:-1])
        assert not holds(proof, other)
        place = data.draw(st.integers(0, len(proof) - 1))
        assert not holds([*proof[:place], other, *proof[place + 1 :]])
        assert not holds([*proof[:place], proof[place][:-1], *proof[place + 1 :]])
        if len(proof) > 1:
            assert not holds(proof[::-1])
    wrong = data.draw(st.integers(-2, size + 2).filter(lambda n: n != at))
    assert not verify_inclusion(wrong, size, hashes[at], tree.inclusion(at), root)
    before = data.draw(st.integers(-2, size + 2).filter(lambda n: n != old))
    assert not verify_consistency(before, size, tree.consistency(old), tree.root(old), root)


def test_a_rewritten_log_has_no_consistency_proof():
    kept, rewritten = Tree(leaves(20)), Tree([*leaves(7), leaf_hash(b"other"), *leaves(30)[8:]])
    for old in range(8, 21):
        assert not verify_consistency(
            old, 30, rewritten.consistency(old, 30), kept.root(old), rewritten.root(30)
        )
    assert verify_consistency(7, 30, rewritten.consistency(7, 30), kept.root(7), rewritten.root(30))


def test_a_node_does_not_pass_for_a_leaf():
    """The prefix bytes: the entry that is two hashes has another leaf hash than the node above them."""
    two = leaves(2)
    tree = Tree(two)
    assert leaf_hash(two[0] + two[1]) != tree.root()


@pytest.mark.parametrize("call", [
    lambda tree: tree.root(6), lambda tree: tree.root(-1), lambda tree: tree.inclusion(5),
    lambda tree: tree.inclusion(-1), lambda tree: tree.inclusion(0, 6), lambda tree: tree.consistency(0),
    lambda tree: tree.consistency(6), lambda tree: tree.consistency(3, 2),
])  # fmt: skip
def test_what_the_tree_does_not_have_is_refused(call):
    with pytest.raises(ValueError, match=r"tree of|leaves"):
        call(Tree(leaves(5)))
