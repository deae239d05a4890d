"""``plan.coverage``: devices that cannot train everything share the layers out, or the plan says who could."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from families import config_of
from test_fitted import by_trying
from test_grid import device

from fedsplit.config.load import loads
from fedsplit.config.run import (
    LoraSection,
    ModelSection,
    PlanSection,
    PolicySection,
    RoundsSection,
    RunFile,
    TrainSection,
)
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import ConfigError, PlanError
from fedsplit.plan import cover
from fedsplit.plan.card import card
from fedsplit.plan.cover import uncovered, worth
from fedsplit.plan.coverage import coverage
from fedsplit.plan.fitted import Fitter
from fedsplit.plan.model import ModelCard
from fedsplit.plan.question import priced, questions, step_of
from fedsplit.plan.selection import value_of
from fedsplit.plan.solve import planned, solve
from fedsplit.plan.types import ClientPlan, Cut, Plan, Topology
from fedsplit.plan.ways import Menu, mask_of

MODEL = card(config_of("llama", num_hidden_layers=4), "causal-lm")
DEEP = card(config_of("llama", num_hidden_layers=12), "causal-lm")
LORA = LoraSection(rank=64, targets=("q_proj", "v_proj", "up_proj", "down_proj"))
"""Adapters that weigh more than what a layer keeps: a device that reaches down to layer 0 leaves out others."""
LOCAL = PolicySection(topologies=("local",))


def run_file(least: int = 1, clients: int = 1, policy: PolicySection = LOCAL, **plan: Any) -> RunFile:
    return RunFile(
        model=ModelSection(path="x", max_length=8), lora=LORA, train=TrainSection(batch=4), policy=policy,
        rounds=RoundsSection(clients=clients),
        plan=PlanSection(**({"layers": "fit", "coverage": least, "checkpoint": False} | plan)),
    )  # fmt: skip


def fleet(*megabytes: float) -> dict[str, DeviceProfile]:
    return {f"pi-{n}": device(size, 1e10 * (1 + n), 1e6) for n, size in enumerate(megabytes)}


def sizes(model: ModelCard = MODEL) -> tuple[float, float]:
    """Megabytes with which a device trains the top layer only, and all of them, by itself."""
    asked = questions(model, fleet(10_000), run_file(0))["pi-0"]
    depth = model.num_layers
    works, top = step_of(asked)[1], (0,) * (depth - 1) + (64,)
    low, high = (
        min(
            priced(asked, Topology.LOCAL, Cut(depth, depth), [replace(work, ranks=ranks)]).memory.total
            for work in works
        )
        for ranks in (top, ())
    )
    return low / 0.9e6, high / 0.9e6


def layers(plan: Plan, model: ModelCard = MODEL) -> dict[int, int]:
    return coverage(plan.clients, model, LORA.targets)


LOW, HIGH = sizes()


def slowest(plan: Plan) -> float:
    return max(client.estimate.step_s for client in plan.clients if client.estimate)


def between(share: float) -> float:
    return LOW + share * (HIGH - LOW)


@pytest.mark.parametrize(
    "shares", [(0.45, 0.5), (0.6, 0.7, 0.6), (0.3, 0.8), (0.75, 0.75), (0.1, 0.2, 0.9), (0.2, 0.2, 0.2), (0.72, 0.3)]
)
@pytest.mark.parametrize("least", [1, 2])
def test_equal_to_trying_every_set_of_layers(shares: tuple[float, ...], least: int) -> None:
    """All sets of layers that fit each device, by the closed forms alone: what can be covered is, and as cheaply."""
    devices, run = fleet(*map(between, shares)), run_file(least)
    asked, before = questions(MODEL, devices, run), solve(MODEL, devices, run_file(0))
    every: dict[str, dict[tuple[int, float], float]] = {}
    for name in devices:
        for one in by_trying(asked[name]):
            key = mask_of(one.work), value_of(one.work)
            every.setdefault(name, {})[key] = min(every.get(name, {}).get(key, 1e9), one.times.total)
    now_s, best = slowest(before), (math.inf, 0.0)
    for picks in product(*(some.items() for some in every.values())):
        if all(sum(mask >> layer & 1 for (mask, _), _ in picks) >= least for layer in range(4)):
            cost = max(now_s, *(seconds for _, seconds in picks)), -math.fsum(value for (_, value), _ in picks)
            best = min(best, cost)
    if best[0] == math.inf:
        with pytest.raises(PlanError, match="too few clients train layer"):
            solve(MODEL, devices, run)
        return
    found = solve(MODEL, devices, run)
    assert min(layers(found).values()) >= least
    assert max(now_s, slowest(found)) == pytest.approx(best[0])
    assert sum(map(worth, found.clients)) == pytest.approx(-best[1], abs=1e-5)


def test_small_devices_share_the_layers_of_a_deep_model_out() -> None:
    low, high = sizes(DEEP)
    devices = {f"pi-{n}": device(low + (0.5 + 0.05 * n) * (high - low), 1e10, 1e6) for n in range(6)}
    plain, found = (solve(DEEP, devices, run_file(least)) for least in (0, 1))
    assert min(layers(plain, DEEP).values()) == 0
    assert min(layers(found, DEEP).values()) >= 1
    for client in found.clients:
        assert client.estimate is not None
        assert client.estimate.memory_bytes <= devices[client.client].budget_bytes
    note = next(reason for reason in found.reasons if "plan.coverage" in reason)
    assert "clients train other layers" in note
    changed = [one for one in found.clients if any("plan.coverage" in reason for reason in one.reasons)]
    assert changed
    assert changed[0].reasons[0].count("so that every layer has its 1 clients") == 1


def test_without_scipy_it_is_said_and_the_layers_are_covered_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    devices, run = fleet(*map(between, (0.6, 0.7, 0.6))), run_file(1)
    exactly = solve(MODEL, devices, run)
    monkeypatch.setattr(cover, "solver_here", lambda: False)
    found = solve(MODEL, devices, run)
    assert min(layers(found).values()) >= 1
    assert any("scipy is not installed" in reason for reason in found.reasons)
    assert any("integer program" in reason for reason in exactly.reasons)


def test_the_same_inputs_give_the_same_plan() -> None:
    devices = fleet(*map(between, (0.6, 0.7, 0.6)))
    backwards = dict(reversed(devices.items()))
    assert solve(MODEL, devices, run_file(1)) == solve(MODEL, backwards, run_file(1))


def test_everybody_trains_everything_and_nothing_changes() -> None:
    devices = fleet(500, 500)
    one, other = solve(MODEL, devices, run_file(0)), solve(MODEL, devices, run_file(2))
    assert one == other


def test_who_could_train_it_and_following_the_advice_helps() -> None:
    devices = fleet(between(0.05), between(0.02))
    with pytest.raises(PlanError) as raised:
        solve(MODEL, devices, run_file(1))
    said = str(raised.value)
    assert "too few clients train layer 0" in said
    match = re.search(r"free (\S+) (\S+) of the memory of (pi-\d)", said)
    assert match
    amount = float(match[1]) * {"kB": 1e-3, "MB": 1.0}[match[2]]
    name = match[3]
    more = devices | {name: device(devices[name].free_memory_bytes / 1e6 + (amount + 0.01) / 0.9, 1e10, 1e6)}
    found, _ = planned(questions(MODEL, more, run_file(0)))
    assert found.clients
    asked = questions(MODEL, more, run_file(1))[name]
    assert any(way.mask & 1 for way in Menu(Fitter(asked)).ways(asked))
    lower = re.search(r"plan.coverage = (\d+)", said)
    assert lower
    assert solve(MODEL, devices, run_file(int(lower[1]))).clients


def test_more_clients_than_there_are() -> None:
    with pytest.raises(PlanError, match=r"layer 0–3 by 2, where plan.coverage asks for 3.*plan.coverage = 2"):
        solve(MODEL, fleet(500, 500), run_file(3))


def test_as_long_as_clients_are_expected_it_is_said_only() -> None:
    found = solve(MODEL, fleet(500), run_file(2, clients=3))
    assert any("too few clients train layer 0–3 by 1" in reason for reason in found.reasons)
    assert any("2 more are expected" in reason for reason in found.reasons)


def test_who_joins_takes_what_is_missing() -> None:
    devices = fleet(*map(between, (0.6, 0.7, 0.6, 0.7)))
    run = run_file(1, clients=4)
    there: list[ClientPlan] = []
    for name, profile in devices.items():
        there.append(solve(MODEL, {name: profile}, run, beside=there).clients[0])
    assert min(coverage(there, MODEL, LORA.targets).values()) >= 1
    assert uncovered(there, MODEL, run) == ""
    assert "layer 0 by 0" in uncovered(solve(MODEL, devices, run_file(0)).clients, MODEL, run)


def test_more_than_there_are_clients_is_refused_with_the_run_file() -> None:
    text = '[model]\npath = "x"\n[rounds]\nclients = 2\n[plan]\nlayers = "fit"\ncoverage = '
    with pytest.raises(ConfigError, match=r"plan.coverage.*found 3, expected at most rounds.clients = 2"):
        loads(text + "3")
    with pytest.raises(ConfigError, match=r"plan.coverage.*found -1, expected at least 0"):
        loads(text + "-1")
    assert loads(text + "2").plan.coverage == 2


def test_a_sample_of_the_candidates_covers_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    low, high = sizes(DEEP)
    devices = {f"pi-{n}": device(low + (0.5 + 0.05 * n) * (high - low), 1e10, 1e6) for n in range(4)}
    monkeypatch.setattr(cover, "MOST_EXACT", 100)
    found = solve(DEEP, devices, run_file(1))
    assert min(layers(found, DEEP).values()) >= 1
    assert any("too many for an integer program" in reason for reason in found.reasons)
