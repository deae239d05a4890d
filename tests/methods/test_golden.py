"""Numbers worked out by hand: m = 2, n = 3, r = 1, alpha/r = 2 (absorbed into B), weights 1/4 and 3/4."""

from __future__ import annotations

import numpy as np
import pytest

from fedsplit.lora import LowRank, ModuleKey
from fedsplit.method import ClientUpdate, GlobalState, Memory, Merged, Method, mean, total
from fedsplit.train.round import run_round

KEY = ModuleKey(0, "q")
SCALE = 2.0
B1, A1 = np.array([[1.0], [2.0]]), np.array([[1.0, 0.0, 1.0]])
B2, A2 = np.array([[3.0], [-1.0]]), np.array([[0.0, 2.0, 1.0]])
PARTS = [LowRank(SCALE * B1, A1), LowRank(SCALE * B2, A2)]
P = [0.25, 0.75]
IDEAL = np.array([[0.5, 9, 5], [1, -3, -0.5]])
AVERAGED = np.array([[1.25, 7.5, 5], [-0.125, -0.75, -0.5]])
RESIDUAL = np.array([[-0.75, 1.5, 0], [1.125, -2.25, 0]])


def after(method: Method, parts: list[LowRank] = PARTS) -> np.ndarray:
    state = GlobalState.first({KEY: LowRank(np.zeros((2, 1)), A1)})
    updates = [
        ClientUpdate(client=name, examples=n, base_version=0, adapter={KEY: part})
        for name, n, part in zip("ab", (1, 3), parts, strict=True)
    ]
    result = run_round(state, updates, method)
    folded = sum((fold.patch[KEY].dense() for fold in result.folds), np.zeros((2, 3)))
    return np.asarray(result.adapter[KEY].dense() + folded)


def test_average_of_factors() -> None:
    np.testing.assert_allclose(mean(PARTS, P).B_MR, SCALE * np.array([[2.5], [-0.25]]), atol=1e-12)
    np.testing.assert_allclose(mean(PARTS, P).A_RN, [[0.25, 1.5, 1]], atol=1e-12)
    np.testing.assert_allclose(after(Method()), AVERAGED, atol=1e-12)


def test_ideal_aggregate() -> None:
    np.testing.assert_allclose(total(PARTS, P).dense(), IDEAL, atol=1e-12)


def test_a_crowd_does_not_make_the_ideal_wider_than_the_layer() -> None:
    crowd = total(PARTS * 5, [p / 5 for p in P] * 5)
    assert crowd.rank == 2
    np.testing.assert_allclose(crowd.dense(), IDEAL, atol=1e-12)


def test_what_averaging_loses() -> None:
    """The residual that FedEx-LoRA folds into the base: weighted cross-covariance, of rank K - 1."""
    residual = total(PARTS, P) - mean(PARTS, P)
    np.testing.assert_allclose(residual.dense(), RESIDUAL, atol=1e-12)
    assert residual.norm() == pytest.approx(3.023347, abs=1e-6)
    assert np.sum(np.asarray(residual.singular_values()) > 1e-12) == 1
    cross = SCALE * P[0] * (B1 - np.array([[2.5], [-0.25]])) @ (A1 - A2)
    np.testing.assert_allclose(cross, RESIDUAL, atol=1e-12)


def test_a_fold_makes_averaging_exact() -> None:
    """The ten-line method of the documentation: average the factors, fold what averaging lost."""

    def merge(parts: list[LowRank], p_K: list[float], memory: Memory) -> Merged:
        average = mean(parts, p_K)
        return Merged(average, fold=total(parts, p_K) - average)

    np.testing.assert_allclose(after(Method(merge=merge)), IDEAL, atol=1e-12)


def test_truncated_ideal() -> None:
    ideal = total(PARTS, P)
    np.testing.assert_allclose(ideal.singular_values(), [10.692535, 1.472990], atol=1e-6)
    best = ideal.truncate(1)
    expected = [[0.205421, 9.127293, 4.769068], [-0.057237, -2.543147, -1.328810]]
    np.testing.assert_allclose(best.dense(), expected, atol=1e-6)
    assert (ideal - best).norm() == pytest.approx(1.472990, abs=1e-6)
    np.testing.assert_allclose(ideal.truncate(2).dense(), IDEAL, atol=1e-12)


def test_a_common_factor_makes_averaging_exact() -> None:
    shared = [LowRank(SCALE * B1, A1), LowRank(SCALE * B2, A1)]
    np.testing.assert_allclose(after(Method(), shared), [[5, 0, 5], [-0.5, 0, -0.5]], atol=1e-12)
    np.testing.assert_allclose(total(shared, P).dense(), [[5, 0, 5], [-0.5, 0, -0.5]], atol=1e-12)


def test_unequal_scales_are_absorbed() -> None:
    mixed = [LowRank(8 * B1, A1), LowRank(2 * B2, A2)]
    np.testing.assert_allclose(total(mixed, P).dense(), [[2, 9, 6.5], [4, -3, 2.5]], atol=1e-12)
