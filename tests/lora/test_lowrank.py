"""The low-rank algebra against dense matrices, on random shapes including empty, rank-deficient and too wide ones."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsplit.errors import DataError, InternalError
from fedsplit.lora import LowRank, stack


@st.composite
def matrices(draw: st.DrawFn, m: int | None = None, n: int | None = None) -> LowRank:
    m = m or draw(st.integers(1, 13))
    n = n or draw(st.integers(1, 11))
    rank = draw(st.integers(0, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    b, a = rng.normal(size=(m, rank)), rng.normal(size=(rank, n))
    if rank > 1 and draw(st.booleans()):
        b[:, -1] = b[:, 0]
        a[-1] = 2 * a[0]
    if rank and draw(st.booleans()):
        b[:, 0] = 0
    return LowRank(b, a)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[LowRank, LowRank]:
    one = draw(matrices())
    return one, draw(matrices(m=one.shape[0], n=one.shape[1]))


def close(x: object, y: object, tolerance: float = 1e-11) -> bool:
    return bool(np.allclose(x, y, rtol=0, atol=tolerance))


@given(pairs(), st.floats(-5, 5))
def test_sum_difference_and_scale_are_those_of_the_matrices(pair: tuple[LowRank, LowRank], scale: float) -> None:
    x, y = pair
    assert close((x + y).dense(), x.dense() + y.dense())
    assert close((x - y).dense(), x.dense() - y.dense())
    assert close((-x).dense(), -x.dense())
    assert close((scale * x).dense(), scale * x.dense())
    assert close((np.float64(scale) * x).dense(), (x * scale).dense(), 0)
    assert (x + y).rank == x.rank + y.rank
    assert (x - x).norm() <= 1e-12 * (1 + x.norm())


@given(matrices(), st.integers(0, 9))
def test_truncation_is_the_best_of_its_rank(x: LowRank, rank: int) -> None:
    t = x.truncate(rank)
    tail = np.linalg.svd(x.dense(), compute_uv=False)[rank:]
    assert t.rank <= rank or t is x
    assert t.shape == x.shape
    assert close(np.linalg.norm(t.dense() - x.dense()), np.linalg.norm(tail) if rank < x.rank else 0, 1e-10)


@given(matrices(), st.integers(0, 9), st.integers(0, 2**32))
def test_truncation_depends_on_the_matrix_not_on_its_factors(x: LowRank, rank: int, seed: int) -> None:
    """Signs are fixed, so a rotated factorisation of one matrix gives one answer, factors included (up to ties)."""
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(x.rank, x.rank)))[0]
    one, other = x.truncate(rank), LowRank(x.B_MR @ turn, turn.T @ x.A_RN).truncate(rank)
    if rank >= x.rank:
        return
    values = np.append(np.linalg.svd(x.dense(), compute_uv=False), 0)[: rank + 1]
    if np.all(values[:-1] - values[1:] > 1e-3):  # else the best matrix, or its vectors, are not unique
        assert close(one.dense(), other.dense(), 1e-9)
        assert close(np.abs(one.B_MR), np.abs(other.B_MR), 1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_signs_make_the_first_largest_entry_of_each_left_vector_positive(seed: int) -> None:
    rng = np.random.default_rng(seed)
    t = LowRank(rng.normal(size=(11, 5)), rng.normal(size=(5, 7))).truncate(3)
    largest = np.abs(t.B_MR).argmax(axis=0)
    assert np.all(t.B_MR[largest, np.arange(3)] > 0)
    assert close(t.A_RN @ t.A_RN.T, np.eye(3), 1e-12)
    u, s, vt = np.linalg.svd(t.dense())
    assert np.array_equal(np.abs(u[:, :3]).argmax(axis=0), largest)
    flip = np.sign(u[largest, np.arange(3)])
    assert close(t.B_MR, u[:, :3] * s[:3] * flip)
    assert close(t.A_RN, vt[:3] * flip[:, None])


@given(matrices())
def test_truncations_are_nested(x: LowRank) -> None:
    direct, steps = x.truncate(2), x.truncate(4).truncate(2)
    assert close(direct.norm(), steps.norm(), 1e-9)
    assert close((x - direct).norm(), (x - steps).norm(), 1e-7)


@given(matrices(), st.integers(0, 12))
def test_padding_keeps_the_matrix_and_slicing_undoes_it(x: LowRank, rank: int) -> None:
    padded = x.pad(rank)
    assert padded.rank == max(rank, x.rank)
    assert close(padded.dense(), x.dense(), 1e-13)
    back = padded.slice(x.rank)
    assert back.B_MR.tobytes() == x.B_MR.tobytes()
    assert back.A_RN.tobytes() == x.A_RN.tobytes()


def test_padding_with_rows_leaves_the_matrix_and_lets_the_new_components_learn() -> None:
    rng = np.random.default_rng(0)
    x, rows = LowRank(rng.normal(size=(7, 2)), rng.normal(size=(2, 5))), rng.normal(size=(1, 5))
    padded = x.pad(3, rows)
    assert close(padded.dense(), x.dense(), 1e-14)
    assert np.array_equal(padded.A_RN[2:], rows)
    assert not padded.B_MR[:, 2].any()


@given(pairs())
def test_norm_and_inner_product(pair: tuple[LowRank, LowRank]) -> None:
    x, y = pair
    assert close(x.norm(), np.linalg.norm(x.dense()), 1e-10)
    assert close(x.inner(y), np.sum(x.dense() * y.dense()), 1e-9)
    assert close(x.singular_values()[:1], np.linalg.svd(x.dense(), compute_uv=False)[: min(1, x.rank)], 1e-10)


@given(matrices())
def test_compressing_loses_nothing(x: LowRank) -> None:
    wide = stack([x] * 5)
    assert wide.compress().rank <= min(x.shape) or wide.rank <= min(x.shape)
    assert close(wide.compress().dense(), 5 * x.dense(), 1e-9)


def test_the_zero_matrix_keeps_rows_of_a_so_that_it_can_learn() -> None:
    a = np.random.default_rng(1).normal(size=(3, 5))
    t = LowRank(np.zeros((7, 3)), a).truncate(2)
    assert np.array_equal(t.A_RN, a[:2])
    assert not t.B_MR.any()


def test_nothing_of_size_m_by_n_is_ever_formed() -> None:
    """10 clients at 20,000 x 30,000: a dense product would be 4.8 GB."""
    rng = np.random.default_rng(0)
    parts = [LowRank(rng.normal(size=(20_000, 2)), rng.normal(size=(2, 30_000))) for _ in range(10)]
    tracemalloc.start()
    whole = stack(parts)
    best = whole.truncate(2)
    whole.norm(), whole.inner(best), (whole - best).compress()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert best.rank == 2
    assert peak < 200e6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_gives_what_numpy_gives(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="the server's arrays are torch tensors")
    rng = np.random.default_rng(5)
    x = LowRank(rng.normal(size=(13, 5)), rng.normal(size=(5, 7))).astype(dtype)
    y = LowRank(torch.from_numpy(x.B_MR.copy()), torch.from_numpy(x.A_RN.copy()))
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    for one, other in [
        (x.truncate(2), y.truncate(2)),
        ((x + x * 0.5).compress(), (y + y * 0.5).compress()),
        (x.pad(8), y.pad(8)),
        (-x, -y),
    ]:
        assert isinstance(other.B_MR, torch.Tensor)
        assert str(other.dtype) == f"torch.{dtype}"
        assert close(one.dense(), other.dense().numpy(), tolerance)
    assert close(x.norm(), y.norm(), tolerance * 10)
    assert y.astype("float32").dtype == torch.float32


def test_dtype_stays() -> None:
    x = LowRank(np.ones((3, 2), np.float32), np.ones((2, 5), np.float32))
    for made in (x + x, x * 0.3, np.float64(0.3) * x, x.truncate(1), x.pad(5), -x, x.slice(1)):
        assert made.B_MR.dtype == made.A_RN.dtype == np.float32
    assert x.astype("float32") is x


@pytest.mark.parametrize(
    ("b", "a", "words"),
    [
        (np.ones((3, 2)), np.ones((4, 5)), r"B \(3, 2\) and A \(4, 5\) do not fit"),
        (np.ones(3), np.ones((1, 5)), "do not fit"),
        (np.ones((3, 2)), np.ones((2, 5), np.float32), "expected one dtype"),
    ],
)
def test_factors_that_do_not_fit_are_refused(b: np.ndarray, a: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        LowRank(b, a)


def test_matrices_of_other_shapes_are_refused() -> None:
    one, other = LowRank(np.ones((3, 1)), np.ones((1, 5))), LowRank(np.ones((5, 1)), np.ones((1, 3)))
    with pytest.raises(DataError, match=r"\(3, 5\) and \(5, 3\) do not combine"):
        _ = one + other
    with pytest.raises(DataError, match="do not combine"):
        one.inner(other)
    with pytest.raises(DataError, match="rank -1"):
        one.truncate(-1)


def test_an_svd_that_does_not_converge_says_so() -> None:
    bad = LowRank(np.full((3, 2), np.nan), np.ones((2, 5)))
    with pytest.raises(InternalError, match="2x2 core does not converge"):
        bad.truncate(1)
