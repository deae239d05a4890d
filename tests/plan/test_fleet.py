"""Sharing the server: exact against exhaustive search, better than equal shares, never more than there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from families import config_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_grid import OPEN, device

from fedsplit.config.run import ModelSection, RoundsSection, RunFile
from fedsplit.plan.card import card
from fedsplit.plan.fleet import balanced, divide
from fedsplit.plan.prices import Shelf
from fedsplit.plan.question import Question, questions
from fedsplit.plan.solve import solve

LLAMA = card(config_of("llama", num_hidden_layers=6, vocab_size=4001), "causal-lm")


def finish(own: tuple[float, ...], server: tuple[float, ...]) -> float:
    """The smallest τ with Σ s / (τ - o) ≤ 1, for one fixed choice."""
    low, high = max(own), max(own) + sum(server) + 1e-9
    for _ in range(100):
        middle = (low + high) / 2
        left = [middle - o for o in own]
        need = sum(0 if s == 0 else np.inf if gap <= 0 else s / gap for gap, s in zip(left, server, strict=True))
        low, high = (low, middle) if need <= 1 else (middle, high)
    return high


SECONDS = st.floats(0.01, 10)
OPTION = st.tuples(SECONDS, st.just(0.0) | SECONDS)
FLEET = st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(OPTION, min_size=n, max_size=n), min_size=1, max_size=4))


@settings(max_examples=150, deadline=None)
@given(FLEET)
def test_equal_to_exhaustive_search(fleet: list[list[tuple[float, float]]]) -> None:
    own, server = (np.array([[option[i] for option in client] for client in fleet]) for i in (0, 1))
    choices = itertools.product(*fleet)
    best = min(finish(*(tuple(o[i] for o in choice) for i in (0, 1))) for choice in choices)  # type: ignore[arg-type]
    found = divide(own, server, np.ones(len(fleet), dtype=np.int64))
    assert found.share_K.sum() <= 1 + 1e-5
    done = np.where(server == 0, own, own + server / found.share_K[:, None]).min(axis=1).max()
    assert found.bound_s <= best * (1 + 1e-9)
    assert done == pytest.approx(best, rel=1e-4)


def equal_shares(asked: dict[str, Question]) -> float:
    """The slowest step when the server is cut into equal parts."""
    slowest = 0.0
    for question in asked.values():
        shelf = Shelf(question=question)
        block = shelf.block([question])
        slowest = max(slowest, block.times(0, shelf.best(block, 0)).total)
    return slowest


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.floats(20, 80), st.floats(1e8, 1e11), st.floats(1e5, 1e8)), min_size=1, max_size=5))
def test_no_worse_than_equal_shares(values: list[tuple[float, float, float]]) -> None:
    run, server = RunFile(model=ModelSection(path="x", max_length=32), policy=OPEN), device(1e5, 2e10, 1e9)
    fleet = {f"c{n}": device(*value) for n, value in enumerate(values)}
    asked = questions(LLAMA, fleet, run, server=server)
    shared = balanced(asked)
    assert sum(question.share for question in shared.values()) <= 1 + 1e-5
    plan = solve(LLAMA, fleet, run, server=server)
    slowest = max(client.estimate.step_s for client in plan.clients if client.estimate)
    assert slowest <= equal_shares(asked) * 1.001
    assert solve(LLAMA, dict(reversed(fleet.items())), run, server=server) == plan


def test_a_slow_device_gets_more_of_the_server() -> None:
    run, server = RunFile(model=ModelSection(path="x", max_length=32), policy=OPEN), device(1e5, 1e10, 1e9)
    asked = questions(LLAMA, {"fast": device(80, 1e12, 1e8), "slow": device(80, 1e8, 1e8)}, run, server=server)
    shared = balanced(asked)
    assert shared["slow"].share > 0.9 > shared["fast"].share


def test_who_is_not_here_yet_keeps_a_share() -> None:
    run = RunFile(model=ModelSection(path="x", max_length=32), policy=OPEN, rounds=RoundsSection(clients=4))
    asked = balanced(questions(LLAMA, {"a": device(80, 1e9, 1e8), "b": device(80, 1e8, 1e8)}, run))
    assert sum(question.share for question in asked.values()) == pytest.approx(0.5, rel=1e-4)
