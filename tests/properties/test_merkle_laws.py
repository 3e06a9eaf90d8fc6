"""Laws of the transparency log's tree, against the definition in RFC 6962 and its own vectors."""

from __future__ import annotations

import hashlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.adapters.sigstore.merkle import EMPTY, Tree, is_consistent, is_included, leaf_hash

BODIES = st.lists(st.binary(max_size=3), max_size=70)
VECTORS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
"""Leaves of the certificate transparency project's own tests."""
ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def defined_root(bodies: list[bytes]) -> bytes:
    """The root as RFC 6962 defines it."""
    if not bodies:
        return hashlib.sha256(b"").digest()
    if len(bodies) == 1:
        return hashlib.sha256(b"\0" + bodies[0]).digest()
    half = 1
    while half * 2 < len(bodies):
        half *= 2
    return hashlib.sha256(b"\1" + defined_root(bodies[:half]) + defined_root(bodies[half:])).digest()


def tree(bodies: list[bytes]) -> Tree:
    return Tree(map(leaf_hash, bodies))


@pytest.mark.parametrize("size", ROOTS)
def test_the_roots_are_those_of_certificate_transparency(size: int) -> None:
    assert tree([bytes.fromhex(text) for text in VECTORS]).root(size).hex() == ROOTS[size]


@given(BODIES)
def test_every_root_is_the_defined_one_however_the_tree_grew(bodies: list[bytes]) -> None:
    grown = Tree()
    for number, body in enumerate(bodies):
        assert grown.append(leaf_hash(body)) == number
        assert grown.root() == defined_root(bodies[: number + 1])
    assert [grown.root(size) for size in range(len(bodies) + 1)] == [
        defined_root(bodies[:size]) for size in range(len(bodies) + 1)
    ]
    assert Tree().root() == EMPTY


@given(BODIES.filter(bool), st.data())
def test_a_leaf_is_proven_at_its_place_in_its_tree_and_nowhere_else(bodies: list[bytes], data: st.DataObject) -> None:
    grown = tree(bodies)
    size = data.draw(st.integers(1, len(bodies)))
    place = data.draw(st.integers(0, size - 1))
    leaf, proof, root = leaf_hash(bodies[place]), grown.inclusion(place, size), grown.root(size)
    assert is_included(leaf, place=place, size=size, proof=proof, root=root)
    assert len(proof) <= size.bit_length()
    assert not is_included(leaf_hash(b"another"), place=place, size=size, proof=proof, root=root)
    assert not is_included(leaf, place=place, size=size, proof=proof, root=leaf_hash(b"another"))
    assert not is_included(leaf, place=place, size=size, proof=(*proof, root), root=root)
    assert not is_included(leaf, place=size, size=size, proof=proof, root=root)
    if proof:
        assert not is_included(leaf, place=place, size=size, proof=proof[:-1], root=root)
        odd = data.draw(st.integers(0, len(proof) - 1))
        changed = tuple(leaf_hash(item) if at == odd else item for at, item in enumerate(proof))
        assert not is_included(leaf, place=place, size=size, proof=changed, root=root)


@given(BODIES, st.data())
def test_a_tree_that_only_grew_is_proven_to_and_one_that_was_changed_is_not(bodies: list[bytes], data: st.DataObject) -> None:
    grown = tree(bodies)
    second = data.draw(st.integers(0, len(bodies)))
    first = data.draw(st.integers(0, second))
    proof, old, new = grown.consistency(first, second), grown.root(first), grown.root(second)
    assert is_consistent(first=first, second=second, first_root=old, second_root=new, proof=proof)
    assert len(proof) <= second.bit_length() + 1
    other = leaf_hash(b"another")
    assert not is_consistent(first=first, second=second, first_root=other, second_root=new, proof=proof)
    assert not is_consistent(first=first, second=second, first_root=old, second_root=new, proof=(*proof, other))
    if first:
        assert not is_consistent(first=first, second=second, first_root=old, second_root=other, proof=proof)
        changed = data.draw(st.integers(0, first - 1))
        rewritten = tree([b"rewritten" if at == changed else body for at, body in enumerate(bodies)])
        proof = rewritten.consistency(first, second)
        assert not is_consistent(first=first, second=second, first_root=old, second_root=rewritten.root(second), proof=proof)


@given(BODIES, st.binary(max_size=3), st.integers(0, 70))
def test_a_leaf_is_found_at_its_first_place_from_there_on(bodies: list[bytes], body: bytes, since: int) -> None:
    places = [place for place, other in enumerate(bodies) if other == body]
    assert tree(bodies).find(leaf_hash(body)) == (places[0] if places else None)
    assert tree(bodies).find(leaf_hash(body), since) == next((place for place in places if place >= since), None)


def test_a_hash_that_lies_across_two_others_is_not_found() -> None:
    first, second = leaf_hash(b"a"), leaf_hash(b"b")
    assert Tree([first, second]).find(first[5:] + second[:5]) is None


def test_what_is_not_there_is_not_proven() -> None:
    grown = tree([b"a", b"b"])
    for wrong in (lambda: grown.root(3), lambda: grown.inclusion(2), lambda: grown.inclusion(-1), lambda: grown.consistency(3)):
        with pytest.raises(ValueError, match="expected"):
            wrong()


def test_a_leaf_costs_64_bytes_of_memory() -> None:
    tracemalloc.start()
    try:
        grown = Tree()
        for number in range(20_000):
            grown.append(number.to_bytes(32, "big"))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 20_000 * 64 * 1.2
    assert grown.size == 20_000
