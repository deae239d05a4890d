"""Masks over many tensors: which entries stay, what travels, what comes back, what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedsplit.errors import DataError
from fedsplit.lora.sparse import AT, BITS, VALUES, entries, largest, packed, tensors_of, thinned, unpacked
from fedsplit.wire.sparse import kept, nbytes
from tests.reference import flasc as reference

SHAPES = {"0/q/A": (3, 7), "0/q/B": (11, 3), "1/up/A": (2, 5)}
FLOATS = st.floats(-4, 4, width=32).map(lambda x: round(x, 1))


def tensors(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {name: draw.standard_normal(shape).astype("f4") for name, shape in SHAPES.items()}


@given(arrays(np.float32, st.integers(1, 60), elements=FLOATS), st.floats(0.001, 1))
def test_the_largest_entries_are_those_of_the_paper(vector: np.ndarray, density: float) -> None:
    k = kept(vector.size, density)
    assert 1 <= k <= max(1, int(vector.size * density))
    at = largest(vector, k)
    assert len(at) == k
    found = np.zeros_like(vector)
    found[at] = vector[at]
    np.testing.assert_array_equal(found, reference.top(vector.astype("f8"), k))
    lost = float(((vector - found) ** 2).sum())
    assert lost <= (1 - k / vector.size) * float((vector**2).sum()) + 1e-6


@given(arrays(np.float32, 64, elements=FLOATS), st.integers(1, 64))
def test_packed_and_unpacked_is_thinned(vector: np.ndarray, k: int) -> None:
    whole = {name: vector[i : i + 64 : 4].reshape(2, 8) for i, name in enumerate("dbca")}
    sent = packed(whole, k)
    assert {name: array.shape for name, array in sent.items()} == {n: s for n, (_, s) in tensors_of(64, k).items()}
    assert sum(array.nbytes for array in sent.values()) == nbytes(64, k)
    back, expected = unpacked(sent, dict.fromkeys(whole, (2, 8))), thinned(whole, k)
    for name, array in expected.items():
        assert back[name].tobytes() == array.tobytes()


def test_one_threshold_holds_for_all_tensors_and_not_one_each() -> None:
    whole = tensors(1)
    whole["1/up/A"] = np.sign(whole["1/up/A"]) * 100
    only = thinned(whole, 10)
    assert [int((array != 0).sum()) for array in only.values()] == [0, 0, 10]


def test_equal_magnitudes_are_told_apart_by_position() -> None:
    np.testing.assert_array_equal(largest(np.array([1, -2, 2, -2, 0], "f4"), 2), [1, 2])
    np.testing.assert_array_equal(largest(np.zeros(5, "f4"), 3), [0, 1, 2])


def test_bytes_worked_out_by_hand() -> None:
    """A density of 1/4 takes 1.125 bytes an entry, below 1/32 numbers are less than bits."""
    assert nbytes(1_000, 250) == 1_000 + 125
    assert nbytes(1_000, 32) == 128 + 125
    assert nbytes(1_000, 31) == 124 + 124
    assert nbytes(1_001, 250) == 1_000 + 126
    assert set(packed({"x": np.ones(1_000, "f4")}, 31)) == {VALUES, AT}
    assert set(packed({"x": np.ones(1_000, "f4")}, 32)) == {VALUES, BITS}


def test_the_first_bit_is_the_first_entry() -> None:
    sent = packed({"a": np.array([[9, 0, 0], [0, 8, 0]], "f4"), "b": np.array([[0, 0, 0, 7]], "f4")}, 3)
    assert bytes(sent[BITS]) == bytes([0b10001000, 0b01000000])
    np.testing.assert_array_equal(sent[VALUES], [9, 8, 7])


def test_what_is_not_finite_is_not_lost_on_the_way() -> None:
    whole = tensors(2)
    whole["0/q/B"][4, 1] = np.nan
    assert not np.isfinite(packed(whole, 3)[VALUES]).all()


def test_a_vector_is_not_written_to() -> None:
    vector = np.array([1, np.nan, -3], "f4")
    before = vector.tobytes()
    largest(vector, 2)
    assert vector.tobytes() == before


WRONG = {
    "another rank": (lambda s: s | {BITS: np.zeros(9, "u1")}, "of other modules or another rank"),
    "no values": (lambda s: {BITS: s[BITS]}, "a mask without values"),
    "no places": (lambda s: {VALUES: s[VALUES]}, "a mask without places"),
    "of another dtype": (lambda s: s | {BITS: s[BITS].astype("f4")}, "sparse/bits of float32: expected uint8"),
    "a value too few": (lambda s: s | {VALUES: s[VALUES][1:]}, "names 20 entries and brings 19 values"),
    "beyond the last": (lambda s: s | {BITS: s[BITS] | np.array([0] * 7 + [1], "u1")}, "beyond the last of 64"),
    "twice": (lambda s: {VALUES: s[VALUES][:2], AT: np.array([5, 5], "i4")}, "do not ascend from 0 to 63"),
    "negative": (lambda s: {VALUES: s[VALUES][:1], AT: np.array([-1], "i4")}, "do not ascend"),
    "too far": (lambda s: {VALUES: s[VALUES][:1], AT: np.array([64], "i4")}, "do not ascend"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mask_of_something_else_is_refused(case: str) -> None:
    shapes = {"a": (5, 7), "b": (29, 1)}
    shapes = shapes if case != "beyond the last" else {"a": (5, 7), "b": (28, 1)}
    change, message = WRONG[case]
    sent = packed({name: np.ones(shape, "f4") for name, shape in shapes.items()}, 20)
    if case == "beyond the last":
        message = message.replace("64", "63")
    with pytest.raises(DataError, match=re.escape(message)):
        unpacked(change(sent), shapes)


def test_entries_are_counted() -> None:
    assert entries(SHAPES) == 21 + 33 + 10
