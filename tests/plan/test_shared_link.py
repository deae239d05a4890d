"""Sharing speed and link at once: against exhaustive search, against another solver, and in whole plans."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
from families import config_of
from test_grid import OPEN, device

from fedsplit.config.run import ModelSection, RunFile, TrainSection
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.plan.card import card
from fedsplit.plan.fleet import balance, divide
from fedsplit.plan.grid import Floats
from fedsplit.plan.question import options_of, questions
from fedsplit.plan.shared_link import Demand, _Market, divide_both
from fedsplit.plan.solve import solve

LLAMA = card(config_of("llama", num_hidden_layers=6, vocab_size=4001), "causal-lm")
RUN = RunFile(model=ModelSection(path="x", max_length=32), policy=OPEN, train=TrainSection(batch=1))


def demand(rng: np.random.Generator, clients: int, options: int) -> Demand:
    """Times over two orders of magnitude, a fifth of the candidates without the server."""
    shape = clients, options
    local = rng.random(shape) < 0.2

    def seconds(zero: float) -> Floats:
        return np.where(rng.random(shape) < zero, 0.0, np.exp(rng.uniform(-3, 2, shape)))

    return Demand(
        own_KG=seconds(0), server_KG=np.where(local, 0, seconds(0)), up_KG=np.where(local, 0, seconds(0)),
        down_KG=np.where(local, 0, seconds(0.2)), near_K2=np.exp(rng.uniform(-3, 2, (clients, 2))),
        count_K=np.ones(clients, dtype=np.int64),
    )  # fmt: skip


def slowest(problem: Demand, shares: Floats, links: Floats) -> float:
    """The step of the slowest client, written as the module docstring has it."""
    per_client = []
    for k, (share, link) in enumerate(zip(shares, links, strict=True)):
        near_up, near_down = problem.near_K2[k]
        done = problem.own_KG[k] + problem.server_KG[k] / share
        done = done + problem.up_KG[k] * max(1 / link, 1 / near_up) + problem.down_KG[k] * max(1 / link, 1 / near_down)
        per_client.append(done.min())
    return float(max(per_client))


def test_within_two_percent_of_exhaustive_search() -> None:
    rng = np.random.default_rng(7)
    for _ in range(200):
        clients, options = int(rng.integers(1, 5)), int(rng.integers(1, 4))
        problem = demand(rng, clients, options)
        found = divide_both(problem)
        every = np.array(list(itertools.product(range(options), repeat=clients)))
        best = float(_Market.of(problem, 1.0, every).priced()[0].min())
        assert found.share_K.sum() <= 1 + 1e-5
        assert found.link_K.sum() <= 1 + 1e-5
        assert found.bound_s <= best * (1 + 1e-6)
        assert slowest(problem, found.share_K, found.link_K) == pytest.approx(found.slowest_s)
        assert found.slowest_s <= best * 1.02


def test_a_fixed_choice_equals_a_general_solver() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(3)
    for _ in range(5):
        problem = demand(rng, 3, 1)

        def late(x: Floats, problem: Demand = problem) -> Floats:
            shares, links = np.exp(x[:3]), np.exp(x[3:6])
            return np.array([x[6] - slowest(_row(problem, k), shares[k : k + 1], links[k : k + 1]) for k in range(3)])

        limits = [
            {"type": "ineq", "fun": late},
            {"type": "ineq", "fun": lambda x: 1 - np.exp(x[:3]).sum()},
            {"type": "ineq", "fun": lambda x: 1 - np.exp(x[3:6]).sum()},
        ]
        found = divide_both(problem)
        start = np.append(np.log(np.full(6, 1 / 3)), 2 * found.slowest_s)
        other = optimize.minimize(
            lambda x: x[6], start, constraints=limits, method="SLSQP", options={"maxiter": 500, "ftol": 1e-10}
        )
        assert found.slowest_s <= other.x[6] * 1.001
        assert found.bound_s == pytest.approx(found.slowest_s, rel=1e-3)


def _row(problem: Demand, k: int) -> Demand:
    return Demand(**{name: getattr(problem, name)[k : k + 1] for name in Demand.__dataclass_fields__})


def test_a_link_that_is_wide_enough_is_the_simpler_problem() -> None:
    rng = np.random.default_rng(5)
    for _ in range(12):
        problem = demand(rng, 4, 4)
        narrow = 1e-6
        alone = problem.own_KG + (problem.up_KG / problem.near_K2[:, :1] + problem.down_KG / problem.near_K2[:, 1:])
        simple = divide(alone, problem.server_KG, problem.count_K)
        both = Demand(
            own_KG=problem.own_KG, server_KG=problem.server_KG, up_KG=problem.up_KG * narrow,
            down_KG=problem.down_KG * narrow, near_K2=problem.near_K2 * narrow, count_K=problem.count_K,
        )  # fmt: skip
        assert divide_both(both).slowest_s == pytest.approx(simple.bound_s, rel=2e-3)


def host(rate: float) -> DeviceProfile:
    return device(1e5, 2e10, 1e9, link=Link(up_bps=2 * rate, down_bps=rate))


def fleet(count: int) -> dict[str, DeviceProfile]:
    return {f"c{n:03}": device(60 + n, 1e8 * (1 + n), 1e6 * (1 + n % 5)) for n in range(count)}


def test_a_narrow_server_link_changes_the_plans_and_is_said() -> None:
    devices = fleet(4)
    wide, narrow = (solve(LLAMA, devices, RUN, server=host(rate)) for rate in (1e12, 2e5))
    free = solve(LLAMA, devices, RUN, server=msgspec.structs.replace(host(1), link=None))
    assert [client.cut for client in wide.clients] == [client.cut for client in free.clients]
    sent = [sum(client.estimate.up_bytes for client in plan.clients if client.estimate) for plan in (wide, narrow)]
    assert sent[1] < sent[0]
    assert any("share of the server's link" in reason for client in narrow.clients for reason in client.reasons)
    assert any("the server and its link" in reason for reason in narrow.reasons)
    assert solve(LLAMA, dict(reversed(devices.items())), RUN, server=host(2e5)) == narrow


def test_no_more_of_the_link_than_there_is_and_prices_agree() -> None:
    asked, bound_s = balance(questions(LLAMA, fleet(5), RUN, server=host(4e5)))
    assert sum(question.link_share for question in asked.values()) <= 1 + 1e-5
    plan = solve(LLAMA, fleet(5), RUN, server=host(4e5))
    steps = []
    for client in plan.clients:
        best = next(option for option in options_of(asked[client.client])[0] if option.fits)
        assert client.estimate is not None
        assert (client.cut, client.estimate.step_s) == (best.cut, best.times.total)
        steps.append(best.times.total)
    assert bound_s * (1 - 1e-6) <= max(steps) <= bound_s * 1.02
