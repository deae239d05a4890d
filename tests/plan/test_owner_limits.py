"""What the owner of a device allows is obeyed by its plan: memory, threads, bytes up a day."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from families import config_of

from fedsplit.config.run import ModelSection, PolicySection, RunFile, TrainSection
from fedsplit.devices.limits import Limits
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.errors import PlanError
from fedsplit.plan import traffic
from fedsplit.plan.card import card
from fedsplit.plan.question import options_of, questions, round_up_bytes, step_of
from fedsplit.plan.solve import solve
from fedsplit.plan.types import ClientPlan, Topology

CARD = card(config_of("llama", num_hidden_layers=6, vocab_size=4001), "causal-lm")
RUN = RunFile(
    model=ModelSection(path="x", max_length=32),
    policy=PolicySection(shares_labels=True, exposes_tokens=True),
    train=TrainSection(batch=8, steps=10),
)
PI = DeviceProfile(
    name="pi", arch="aarch64", cores=4, threads=4, flops={"float32": 1e9}, memory_bandwidth_bps=1e10,
    memory_bytes=2**36, free_memory_bytes=500_000_000, runtime_bytes=1_000_000,
    link=Link(up_bps=1e9, down_bps=1e9, latency_s=0.001),
)  # fmt: skip


def planned(**limits: Any) -> ClientPlan:
    profile = msgspec.structs.replace(PI, limits=Limits(**limits))
    return solve(CARD, {"pi": profile}, RUN).clients[0]


def up_bytes(plan: ClientPlan) -> int:
    return traffic.round_up_bytes(plan, RUN)


def test_memory_is_at_most_what_the_owner_allows() -> None:
    free = planned()
    assert free.estimate is not None
    allowed = free.estimate.memory_bytes - 1
    assert free.estimate.memory_bytes > allowed
    held = planned(max_memory_bytes=allowed)
    assert held.estimate is not None
    assert held.estimate.memory_bytes <= allowed
    with pytest.raises(PlanError):
        planned(max_memory_bytes=1_100_000)


def test_fewer_threads_are_planned_as_slower() -> None:
    assert planned(threads=4).estimate == planned().estimate
    slow, fast = planned(threads=1).estimate, planned().estimate
    assert slow is not None
    assert fast is not None
    assert slow.step_s > 1.5 * fast.step_s


def test_a_round_sends_no_more_up_than_a_day_allows() -> None:
    free = planned(max_memory_bytes=60_000_000)
    [question] = questions(CARD, {"pi": PI}, RUN).values()
    work = step_of(question)[1][0]
    costs = [round_up_bytes(work, RUN, option.topology, option.cut) for option in options_of(question)[0]]
    assert up_bytes(free) <= max(costs)
    between = (min(costs) + max(costs)) // 2
    held = planned(upload_per_day_bytes=between)
    assert up_bytes(held) <= between
    least = planned(upload_per_day_bytes=min(costs))
    assert up_bytes(least) <= min(costs)
    with pytest.raises(PlanError, match=r"the owner allows .* up a day.*every plan sends more"):
        planned(upload_per_day_bytes=min(costs) - 1)


def test_a_cheaper_cut_is_chosen_with_the_reason() -> None:
    usual = planned()
    assert usual.topology is not Topology.LOCAL
    cheaper = planned(upload_per_day_bytes=up_bytes(usual) - 1)
    assert up_bytes(cheaper) < up_bytes(usual)
    assert any("up a day" in reason for reason in cheaper.reasons), cheaper.reasons


def test_equal_devices_with_other_budgets_are_planned_apart() -> None:
    tight = msgspec.structs.replace(PI, limits=Limits(upload_per_day_bytes=up_bytes(planned()) // 2 or 1))
    try:
        plans = solve(CARD, {"a": PI, "b": tight}, RUN).clients
    except PlanError:
        return  # said for b; the point is that a's cuts were not taken for b's
    assert up_bytes(plans[1]) <= tight.limits.upload_per_day_bytes  # type: ignore[union-attr]
