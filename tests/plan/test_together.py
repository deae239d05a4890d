"""The server's memory for a whole fleet: the quick choice and the integer program against brute force, whole plans."""

from __future__ import annotations

import itertools
import sys
import time

import msgspec
import numpy as np
import pytest
from families import config_of
from test_grid import device

from fedsplit.config.run import ModelSection, PolicySection, RunFile, TrainSection
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import PlanError
from fedsplit.plan.card import card
from fedsplit.plan.coupling import Offers, Room, least_bytes, relieved, slowest
from fedsplit.plan.grid import Ints
from fedsplit.plan.integer import improved, solver_here
from fedsplit.plan.memory import server_total
from fedsplit.plan.question import questions
from fedsplit.plan.solve import planned, solve
from fedsplit.plan.types import Plan, Topology

LLAMA = card(config_of("llama", num_hidden_layers=6, vocab_size=4001), "causal-lm")
RUN = RunFile(model=ModelSection(path="x", max_length=32), policy=PolicySection(), train=TrainSection(batch=8))
LAYERS = 4
exact = pytest.mark.skipif(not solver_here(), reason="the integer program needs scipy")


def offers(rng: np.random.Generator, clients: int, options: int, layers: int = LAYERS) -> Offers:
    """Made-up bodies anywhere in the model; one in seven candidates needs no server."""
    shape = clients, options
    first = rng.integers(0, layers, shape)
    stop = np.minimum(layers, first + rng.integers(1, layers + 1, shape))
    local = rng.random(shape) < 0.15
    count = np.where(local, 0, stop - first)
    slow = 1 + (layers - count) * 0.5 * rng.random(shape)
    return Offers(
        own_KJ=np.exp(rng.uniform(-1, 1, (clients, 1))) * slow, server_KJ=count * 0.05 * (1 + 0.1 * rng.random(shape)),
        bytes_KJ=(count * 10 * (1 + rng.random(shape))).astype(np.int64), first_KJ=np.where(local, 0, first),
        stop_KJ=np.where(local, 0, stop), count_K=np.ones(clients, dtype=np.int64),
    )  # fmt: skip


def every_choice(clients: int, options: int) -> list[Ints]:
    found = []
    for choice in itertools.product(range(options), repeat=clients):
        picks = np.zeros((clients, options), dtype=np.int64)
        picks[np.arange(clients), list(choice)] = 1
        found.append(picks)
    return found


def test_against_brute_force() -> None:
    rng = np.random.default_rng(11)
    missed = fitting = 0
    for _ in range(120):
        clients, options = int(rng.integers(1, 4)), int(rng.integers(1, 5))
        asked, free = offers(rng, clients, options), Room(bytes=10**9, layer_bytes=30, layers=LAYERS)
        choices = every_choice(clients, options)
        taken = [free.taken(asked, one) for one in choices]
        steps = [slowest(asked, one, 1.0) for one in choices]
        room = Room(bytes=int(rng.uniform(min(taken) - 20, max(taken) + 1)), layer_bytes=30, layers=LAYERS)
        best = min((step for step, size in zip(steps, taken, strict=True) if size <= room.bytes), default=None)
        quick = relieved(asked, room, min(steps))
        chosen = improved(asked, room, min(steps), quick) if solver_here() else quick
        assert least_bytes(asked, room) >= min(taken)
        if best is None:
            assert quick is None
            assert chosen is None
            continue
        fitting += 1
        missed += quick is None
        for picks in (quick, chosen):
            assert picks is None or room.taken(asked, picks) <= room.bytes
            assert picks is None or slowest(asked, picks, 1.0) >= best * (1 - 1e-9)
        if solver_here():
            assert chosen is not None
            assert slowest(asked, chosen, 1.0) <= best * 1.002
    assert fitting > 40
    assert missed <= fitting // 20


@exact
def test_fifty_clients_take_about_a_second() -> None:
    asked = offers(np.random.default_rng(2), 50, 30, 24)
    free = Room(bytes=10**9, layer_bytes=300, layers=24)
    first = relieved(asked, free, 0.0)
    assert first is not None
    bound, full = slowest(asked, first, 1.0), free.taken(asked, first)
    room = Room(bytes=int(0.6 * full), layer_bytes=300, layers=24)
    start = time.process_time()
    quick = relieved(asked, room, 0.99 * bound)
    chosen = improved(asked, room, 0.99 * bound, quick)
    assert time.process_time() - start < 8  # about one, on a core of its own
    assert quick is not None
    assert chosen is not None
    assert bound * 0.99 <= slowest(asked, chosen, 1.0) <= slowest(asked, quick, 1.0)


def fleet(count: int, *, alike: bool = False) -> dict[str, DeviceProfile]:
    return {f"c{n:02}": device(60, 1e8 * (1 if alike else 1 + n % 3), 1e8) for n in range(count)}


def used(plan: Plan, server: DeviceProfile) -> int:
    return server_total(LLAMA, plan.clients, 4) + server.runtime_bytes


def host(megabytes: float) -> DeviceProfile:
    return device(megabytes, 1e12, 1e9, link=None)


@pytest.mark.parametrize("alike", [True, False])
def test_a_fleet_is_planned_into_the_servers_memory(alike: bool) -> None:
    devices = fleet(8, alike=alike)
    roomy = solve(LLAMA, devices, RUN, server=host(5000))
    small = host((used(roomy, host(5000)) * 0.6) / 0.9e6)
    plan, asked = planned(questions(LLAMA, devices, RUN, server=small))
    assert used(plan, small) <= small.budget_bytes
    assert sum(question.share for question in asked.values()) <= 1 + 1e-5
    steps = [max(c.estimate.step_s for c in one.clients if c.estimate) for one in (roomy, plan)]
    assert steps[0] <= steps[1]
    assert "of the server's" in plan.reasons[-1]
    assert planned(questions(LLAMA, dict(reversed(devices.items())), RUN, server=small))[0] == plan
    moved = [client for client in plan.clients if client.binding == "memory of the server"]
    assert all("not the fastest" in client.reasons[0] for client in moved)
    assert {(c.cut, c.micro_batches) for c in plan.clients} != {(c.cut, c.micro_batches) for c in roomy.clients}


def test_equal_devices_may_get_unequal_plans() -> None:
    """Sixteen alike: room for some bodies, not for all, and one device is not worth less than another."""
    devices, run = fleet(16, alike=True), msgspec.structs.replace(RUN, train=TrainSection(batch=1))
    least = host(used(solve(LLAMA, devices, run, server=host(5000), allowed={Topology.U}), host(5000)) * 0.6 / 0.9e6)
    plan = solve(LLAMA, devices, run, server=least)
    assert len({(client.topology, client.cut, client.micro_batches) for client in plan.clients}) > 1
    assert used(plan, least) <= least.budget_bytes


def test_without_scipy_the_quick_choice_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = fleet(8)
    small = host(used(solve(LLAMA, devices, RUN, server=host(5000)), host(5000)) * 0.6 / 0.9e6)
    exactly = slowest_step(solve(LLAMA, devices, RUN, server=small))
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert not solver_here()
    plan = solve(LLAMA, devices, RUN, server=small)
    assert used(plan, small) <= small.budget_bytes
    assert exactly * 0.999 <= slowest_step(plan) <= exactly * 1.2


def slowest_step(plan: Plan) -> float:
    return max(client.estimate.step_s for client in plan.clients if client.estimate)


def test_what_cannot_fit_is_refused_with_a_way_out() -> None:
    devices = fleet(6, alike=True)
    alone = solve(LLAMA, {"c00": devices["c00"]}, RUN, server=host(5000), allowed={Topology.U}).clients[0].estimate
    assert alone is not None
    with pytest.raises(PlanError, match=r"6 clients, even with .*memory of the server.*fewer clients at once"):
        solve(LLAMA, devices, RUN, server=host(4.2), allowed={Topology.U})
