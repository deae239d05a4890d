"""``plan.robust``: computing counts as slow as in the slowest tenth of what was measured, and medians stay medians."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families import config_of
from msgspec.structs import replace

from fedsplit.cli.report import _compared
from fedsplit.config.run import ClientSection, ModelSection, PlanSection, PolicySection, RunFile, TrainSection
from fedsplit.devices.profile import FACTOR_MOST, DeviceProfile, Link
from fedsplit.plan.card import card
from fedsplit.plan.correction import learnt
from fedsplit.plan.frontier import every_option
from fedsplit.plan.question import options_of, questions
from fedsplit.plan.solve import planned, solve
from fedsplit.plan.types import ClientPlan, Estimate
from fedsplit.state.rows import MetricRow
from fedsplit.wire.messages import DataSummary
from fedsplit_server.planning import Planning
from fedsplit_server.replanning import Replanning

CARD = card(config_of("llama", num_hidden_layers=6), "causal-lm")
DATA = DataSummary(train_examples=9, tokens_mean=30.0, tokens_max=32)


def machine(flops: float = 1e9, **changes: Any) -> DeviceProfile:
    return DeviceProfile(**{
        "name": "d", "arch": "aarch64", "cores": 4, "threads": 4, "flops": {"float32": flops},
        "flops_by_threads": {"float32": {"1": flops / 2, "4": flops}}, "memory_bandwidth_bps": 1e9,
        "memory_bytes": 2**34, "free_memory_bytes": 2**33, "runtime_bytes": 1_000_000, "layer_overhead_s": 1e-3,
        "link": Link(up_bps=1e6, down_bps=2e6, latency_s=0.002),
    } | changes)  # fmt: skip


def run_file(*, robust: bool = True, fixed: ClientSection | None = None, **plan: Any) -> RunFile:
    return RunFile(
        model=ModelSection(path="x", max_length=32), train=TrainSection(batch=8),
        policy=PolicySection(shares_labels=True, exposes_tokens=True), plan=PlanSection(robust=robust, **plan),
        clients=(fixed,) if fixed else (),
    )  # fmt: skip


def cost(plan: ClientPlan) -> Estimate:
    assert plan.estimate is not None
    return plan.estimate


U = ClientSection(name="pi", topology="u", cut=(2, 5), threads=1)


@pytest.mark.parametrize("overlap", [False, True])
def test_each_part_of_a_step_is_stretched_by_its_own_machine(overlap: bool) -> None:
    device, server = machine(slowdown=1.6), machine(1e10, slowdown=2.5, link=None)
    asked = questions(CARD, {"pi": device}, run_file(fixed=U, overlap=overlap), server=server)["pi"]
    plain = questions(CARD, {"pi": device}, run_file(fixed=U, overlap=overlap, robust=False), server=server)["pi"]
    for slow, usual in zip(options_of(asked)[0], options_of(plain)[0], strict=True):
        assert slow.times.device == pytest.approx(1.6 * usual.times.device)
        assert slow.times.server == pytest.approx(2.5 * usual.times.server)
        assert (slow.times.up, slow.times.down, slow.times.latency) == (
            usual.times.up, usual.times.down, usual.times.latency,
        )  # fmt: skip
        assert slow.memory == usual.memory


def test_the_estimate_has_the_usual_step_beside_it() -> None:
    device, server = machine(slowdown=1.6), machine(1e10, slowdown=2.5)
    robust = cost(solve(CARD, {"pi": device}, run_file(fixed=U), server=server).clients[0])
    usual = cost(solve(CARD, {"pi": device}, run_file(fixed=U, robust=False), server=server).clients[0])
    assert robust.step_s > usual.step_s == robust.usual_step_s == robust.median_step_s == usual.median_step_s
    assert usual.usual_step_s == 0


def test_a_machine_that_nobody_disturbed_is_planned_as_before() -> None:
    fleet = {"pi": machine(), "box": machine(3e9)}
    plans = [solve(CARD, fleet, run_file(robust=robust), server=machine(1e10)) for robust in (True, False)]
    assert plans[0] == plans[1]


def test_a_disturbed_device_leaves_more_to_the_server() -> None:
    """Where its usual speed would do everything at home, half of the time is too often for the others to wait."""
    device, server = machine(3e9, slowdown=3.0), machine(1e11)
    usual, robust = (
        solve(CARD, {"pi": device}, run_file(robust=robust), server=server).clients[0] for robust in (False, True)
    )
    held = [sum(layer.place == "client" for layer in plan.layers) for plan in (usual, robust)]
    assert held[1] < held[0]
    alone = cost(solve(CARD, {"pi": device}, run_file(fixed=ClientSection(name="pi", topology="local"))).clients[0])
    assert cost(robust).step_s < alone.step_s


def test_a_measurement_gone_wrong_counts_four_times_at_most() -> None:
    wild = machine(slowdown=900.0)
    assert wild.cautious.flops["float32"] == 1e9 / FACTOR_MOST
    assert wild.cautious.slowdown == 1
    assert wild.cautious.cautious == wild.cautious
    assert wild.cautious.layer_overhead_s == 1e-3 * FACTOR_MOST
    assert wild.cautious.flops_by_threads["float32"]["1"] == 5e8 / FACTOR_MOST


def test_the_explanation_says_the_sum() -> None:
    device = machine(slowdown=1.6)
    plan, asked = planned(questions(CARD, {"pi": device}, run_file(fixed=U), server=machine(1e10, slowdown=2.0)))
    line = next(reason for reason in plan.clients[0].reasons if "plan.robust" in reason)
    for words in ("= 1.6 × ", "the server computes", "= 2 × ", "usually a step takes"):
        assert words in line
    chosen = next(option for option in every_option(asked["pi"]) if option.work.micro_batches == 1)
    assert chosen.times.total == cost(plan.clients[0]).step_s
    calm = solve(CARD, {"pi": machine()}, run_file(fixed=U)).clients[0]
    assert not any("plan.robust" in reason for reason in calm.reasons)


def test_two_devices_that_stray_unlike_are_explained_each_for_itself() -> None:
    """Equal numbers once they are stretched, unlike ones before."""
    one, other = machine(1e9, slowdown=2.0), machine(1e9, slowdown=2.0).cautious
    plans = solve(CARD, {"a": one, "b": other}, run_file(fixed=None)).clients
    assert any("plan.robust" in reason for reason in plans[0].reasons)
    assert not any("plan.robust" in reason for reason in plans[1].reasons)


def test_what_was_measured_is_compared_with_the_usual_step() -> None:
    device = machine(slowdown=3.0, link=None)
    run = run_file(fixed=ClientSection(name="pi", topology="local"))
    plan = solve(CARD, {"pi": device}, run).clients[0]
    usual_s = cost(plan).usual_step_s
    assert learnt(device, CARD, run, plan, None, device_s=usual_s) == device
    said = MetricRow(at_s=0, round=0, phase="cost", client="pi", name="step_s", value=usual_s, examples=1)
    row = _compared(plan, [], [said])
    assert row.step_s.ratio == pytest.approx(1.0)


def test_a_run_corrects_its_profile_against_the_usual_step(tmp_path: Path) -> None:
    device = machine(slowdown=3.0, link=None)
    run = run_file(fixed=ClientSection(name="pi", topology="local"))
    planning = Planning(run, None, machine(1e10, slowdown=2.0))  # type: ignore[arg-type]
    planning.__dict__["card"] = CARD
    plan = planning("pi", device, DATA, "")

    class Here:
        name, profile, data, insists = "pi", device, DATA, ""

    here: Any = Here()
    here.plan = plan
    predicted = Replanning(planning, lambda one: one)._predicted(here, replace(device))
    assert predicted.total == pytest.approx(cost(plan).usual_step_s)
    assert cost(plan).step_s == pytest.approx(3 * cost(plan).usual_step_s)
