"""Server optimisers against loops over numbers, and their rules."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedsplit.errors import ConfigError
from fedsplit.method import Method
from fedsplit.method.registry import build
from fedsplit.method.server_opt import fedadam, momentum
from fedsplit.train.round import run_round
from tests.methods.cases import SHAPES, start, three

KEY = next(iter(SHAPES))
MERGED = [1.0, 3.0, -2.0, -2.5]


def path(step: object, values: list[float] = MERGED) -> list[float]:
    x, memory, seen = np.zeros(1), {}, []
    for merged in values:
        x, memory = step(x, np.array([merged]), memory)  # type: ignore[operator]
        seen.append(float(x[0]))
    return seen


def test_momentum_is_fedavgm() -> None:
    x = v = 0.0
    expected = []
    for merged in MERGED:
        v = 0.9 * v + (merged - x)
        x = x + 0.5 * v
        expected.append(x)
    np.testing.assert_allclose(path(momentum(0.5, 0.9).step), expected, rtol=1e-12)


def test_momentum_without_memory_is_replacement() -> None:
    np.testing.assert_allclose(path(momentum(1.0, 0.0).step), MERGED, rtol=1e-12)


def test_fedadam_is_algorithm_2() -> None:
    x, m, v, tau = 0.0, 0.0, 0.01**2, 0.01
    expected = []
    for merged in MERGED:
        d = merged - x
        m = 0.8 * m + 0.2 * d
        v = 0.95 * v + 0.05 * d * d
        x = x + 0.3 * m / (math.sqrt(v) + tau)
        expected.append(x)
    np.testing.assert_allclose(path(fedadam(0.3, 0.8, 0.95, tau).step), expected, rtol=1e-12)


def test_memory_covers_factors_and_head_and_survives_rounds() -> None:
    method = Method(server_opt=momentum(1.0, 0.5))
    state = run_round(start(), three(), method)
    first = {name: array.copy() for name, array in state.memory.items()}
    assert f"{KEY}/A/velocity" in first
    assert "head/score.bias/velocity" in first
    assert {array.dtype for array in first.values()} == {np.dtype(np.float64)}
    before = state.adapter[KEY].A_RN.astype(np.float64)
    merged = run_round(start(), three(), Method()).adapter[KEY].A_RN.astype(np.float64)
    state = run_round(state, three(), method)
    expected = 0.5 * first[f"{KEY}/A/velocity"] + (merged - before)
    np.testing.assert_allclose(state.memory[f"{KEY}/A/velocity"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: momentum(0.0), "learning_rate: found 0.0, expected a positive number"),
        (lambda: momentum(1.0, 1.0), "decay: found 1.0, expected at least 0 and below 1"),
        (lambda: fedadam(float("nan")), "learning_rate: found nan"),
        (lambda: fedadam(beta2=-0.1, adaptivity=0.0), "2 problems"),
        (lambda: build("fedavg", {"server_learning_rate": 0.1}), "server_learning_rate.*the average replaces"),
        (lambda: build("fedavg", {"server_opt": "momentum", "server_learning_rate": -1}), "found -1.0"),
    ],
)
def test_rates_out_of_range_are_refused(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "name", "rate"),
    [({"server_opt": "momentum"}, "momentum", 1.0), ({"server_opt": "fedadam"}, "fedadam", 0.01)],
)
def test_the_run_file_chooses(options: dict[str, str], name: str, rate: float) -> None:
    method = build("fedavg", options).at(0)
    assert method.server_opt.name == name
    alike = {"momentum": momentum, "fedadam": fedadam}[name](rate)
    np.testing.assert_array_equal(path(method.server_opt.step), path(alike.step))
    assert build("fedavg", {**options, "server_learning_rate": 2}).at(0).server_opt.name == name
