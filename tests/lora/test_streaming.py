"""Sums over clients against dense matrices: stacked, averaged, truncated, streamed with a bound on what was lost."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsplit.errors import DataError
from fedsplit.lora import LowRank, RunningSum
from fedsplit.method import mean, total
from tests.reference import dense


def parts_of(seed: int, count: int, m: int, n: int, ranks: list[int]) -> tuple[list[LowRank], list[float]]:
    rng = np.random.default_rng(seed)
    parts = [LowRank(rng.normal(size=(m, r)), rng.normal(size=(r, n))) for r in (ranks * count)[:count]]
    weights = rng.dirichlet(np.ones(count))
    return parts, [float(weight) for weight in weights]


def as_pairs(parts: list[LowRank]) -> list[dense.Pair]:
    return [(part.B_MR, part.A_RN) for part in parts]


@pytest.mark.parametrize("library", ["numpy", "torch"])
@given(
    seed=st.integers(0, 2**32),
    count=st.sampled_from([1, 2, 7]),
    m=st.sampled_from([5, 11, 17]),
    n=st.sampled_from([3, 13, 19]),
    rank=st.integers(1, 6),
)
@settings(max_examples=40, deadline=None)
def test_total_mean_and_truncation_are_the_dense_ones(
    library: str, seed: int, count: int, m: int, n: int, rank: int
) -> None:
    parts, p_K = parts_of(seed, count, m, n, [2])
    found = parts if library == "numpy" else as_torch(parts)
    whole = total(found, p_K)
    wanted = dense.total(as_pairs(parts), p_K)
    np.testing.assert_allclose(as_numpy(whole.dense()), wanted, rtol=0, atol=1e-10)
    np.testing.assert_allclose(as_numpy(mean(found, p_K).dense()), dense.mean(as_pairs(parts), p_K), atol=1e-10)
    nearest, lost = whole.nearest(rank)
    values = np.append(np.linalg.svd(wanted, compute_uv=False), np.zeros(9))
    if values[rank - 1] - values[rank] > 1e-3 * values[0]:  # else the best matrix is not unique
        np.testing.assert_allclose(as_numpy(nearest.dense()), dense.best(wanted, rank), atol=1e-10)
    assert abs(lost - np.linalg.norm(values[rank:])) < 1e-9 or rank >= whole.rank


def test_mixed_ranks_add_up_exactly() -> None:
    parts, p_K = parts_of(3, 5, 17, 13, [1, 4, 2, 7, 3])
    np.testing.assert_allclose(total(parts, p_K).dense(), dense.total(as_pairs(parts), p_K), atol=1e-10)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_stream_is_exact_where_the_rank_is_enough(library: str) -> None:
    """Sixty parts of one space of seven dimensions, and a rank bound that is the matrix's own size."""
    rng = np.random.default_rng(1)
    b, a = rng.normal(size=(23, 7)), rng.normal(size=(7, 19))
    shared = [LowRank(b @ rng.normal(size=(7, 2)), rng.normal(size=(2, 7)) @ a) for _ in range(60)]
    apart, _ = parts_of(2, 60, 23, 19, [2])
    for parts, rank in ((shared, 7), (apart, 19)):
        running = RunningSum(rank, room=6)
        for part in parts if library == "numpy" else as_torch(parts):
            running.add(part, 0.25)
        found = running.total()
        assert found.rank <= rank
        np.testing.assert_allclose(as_numpy(found.dense()), dense.total(as_pairs(parts), [0.25] * 60), atol=1e-10)
        assert running.lost < 1e-10


def test_a_stream_says_how_far_off_it_may_be() -> None:
    parts, p_K = parts_of(4, 40, 29, 31, [3])
    running = RunningSum(8)
    for part, weight in zip(parts, p_K, strict=True):
        running.add(part, weight)
    wanted = dense.total(as_pairs(parts), p_K)
    distance = float(np.linalg.norm(running.total().dense() - wanted))
    best = float(np.linalg.norm(dense.best(wanted, 8) - wanted))
    assert best <= distance <= running.lost
    assert distance > best * (1 + 1e-9), "parts in general position: cutting again and again is not the best cut"


def test_memory_does_not_grow_with_the_number_of_parts() -> None:
    def peak(count: int) -> int:
        rng = np.random.default_rng(0)
        tracemalloc.start()
        running = RunningSum(8)
        for _ in range(count):
            running.add(LowRank(rng.normal(size=(700, 4)), rng.normal(size=(4, 900))))
        running.total()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(5)
    assert peak(100) < 1.2 * peak(10)


def test_what_cannot_be_summed_is_refused() -> None:
    with pytest.raises(DataError, match="rank 0"):
        RunningSum(0)
    with pytest.raises(DataError, match="add one first"):
        RunningSum(2).total()
    running = RunningSum(2)
    running.add(LowRank(np.ones((3, 1)), np.ones((1, 5))))
    with pytest.raises(DataError, match="do not combine"):
        running.add(LowRank(np.ones((5, 1)), np.ones((1, 3))))


def as_torch(parts: list[LowRank]) -> list[LowRank]:
    torch: Any = pytest.importorskip("torch", reason="the server's arrays are torch tensors")
    return [LowRank(torch.from_numpy(p.B_MR), torch.from_numpy(p.A_RN)) for p in parts]


def as_numpy(array: Any) -> np.ndarray:
    return np.asarray(array)
