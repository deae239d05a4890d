"""RBLA against loops over components, and what its paper says must hold."""

from __future__ import annotations

import numpy as np
import pytest

from fedsplit.lora import LowRank, ModuleKey
from fedsplit.method import ClientUpdate, GlobalState, Memory, mean
from fedsplit.methods.rbla import by_component, rbla
from fedsplit.train.round import run_round

KEY = ModuleKey(0, "q")
M, N = 11, 7


def drawn(rank: int, seed: int) -> LowRank:
    rng = np.random.default_rng(seed)
    return LowRank(rng.normal(size=(M, rank)), rng.normal(size=(rank, N)))


def naive(parts: list[LowRank], p_K: list[float], previous: LowRank) -> tuple[np.ndarray, np.ndarray]:
    """Component by component, over its owners; the previous one where there are none."""
    rank = max(previous.rank, *(part.rank for part in parts))
    b, a = np.zeros((M, rank)), np.zeros((rank, N))
    for i in range(rank):
        owners = [(part, p) for part, p in zip(parts, p_K, strict=True) if part.rank > i]
        share = sum(p for _, p in owners)
        for part, p in owners:
            b[:, i] += p / share * part.B_MR[:, i]
            a[i] += p / share * part.A_RN[i]
        if not owners:
            b[:, i], a[i] = previous.B_MR[:, i], previous.A_RN[i]
    return b, a


@pytest.mark.parametrize("ranks", [(2, 3, 5), (5, 2, 2), (3, 3, 3), (1,)])
def test_each_component_is_the_mean_of_its_owners(ranks: tuple[int, ...]) -> None:
    parts = [drawn(rank, seed) for seed, rank in enumerate(ranks, start=1)]
    p_K = (np.arange(1.0, len(ranks) + 1) / sum(range(1, len(ranks) + 1))).tolist()
    previous = drawn(6, 0)
    merged = by_component(parts, p_K, Memory(key=KEY, previous=previous)).adapter
    b, a = naive(parts, p_K, previous)
    np.testing.assert_allclose(merged.B_MR, b, rtol=1e-12)
    np.testing.assert_allclose(merged.A_RN, a, rtol=1e-12)


def test_zero_padding_shrinks_the_tail_by_what_its_owners_weigh() -> None:
    short, long, p_K = drawn(2, 1), drawn(5, 2), [0.75, 0.25]
    padded = mean([short.pad(5), long], p_K)
    merged = by_component([short, long], p_K, Memory(key=KEY)).adapter
    np.testing.assert_allclose(padded.A_RN[2:], 0.25 * merged.A_RN[2:], rtol=1e-12)
    np.testing.assert_allclose(padded.A_RN[:2], merged.A_RN[:2], rtol=1e-12)


def test_a_client_of_low_rank_leaves_the_tail_untouched() -> None:
    start = GlobalState.first({KEY: drawn(5, 0).astype("float32")})
    one = ClientUpdate(client="ann", examples=3, base_version=0, adapter={KEY: drawn(2, 1).astype("float32")})
    after = run_round(start, [one], rbla()).adapter[KEY]
    assert after.rank == 5
    assert after.A_RN[2:].tobytes() == start.adapter[KEY].A_RN[2:].tobytes()
    assert after.B_MR[:, 2:].tobytes() == start.adapter[KEY].B_MR[:, 2:].tobytes()
    assert after.A_RN[:2].tobytes() == one.adapter[KEY].A_RN.tobytes()


def test_equal_ranks_are_fedavg_on_the_factors() -> None:
    parts, p_K = [drawn(3, seed) for seed in (1, 2)], [0.4, 0.6]
    merged, average = by_component(parts, p_K, Memory(key=KEY)).adapter, mean(parts, p_K)
    np.testing.assert_array_equal(merged.B_MR, average.B_MR)
    np.testing.assert_array_equal(merged.A_RN, average.A_RN)
