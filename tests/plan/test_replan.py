"""Planning again between rounds: only for a real gain, only what the owner agreed to, never another work."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from families import config_of
from msgspec import structs
from test_grid import device

from fedsplit.config.run import ClientSection, ModelSection, PolicySection, RoundsSection, RunFile, TrainSection
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.plan.card import card
from fedsplit.plan.consent import objection, shown, shown_by, within
from fedsplit.plan.measured import MOST, Correction, Step
from fedsplit.plan.replan import GAIN, Replanned, Standing, replan, slowest
from fedsplit.plan.solve import solve
from fedsplit.plan.timing import Times
from fedsplit.plan.types import ClientPlan, Cut, Plan, Topology

LAYERS = 12
LLAMA = card(config_of("llama", num_hidden_layers=LAYERS, vocab_size=4001), "causal-lm")
SPLIT = tuple(ClientSection(name=name, topology="u") for name in "ab")
RUN = RunFile(
    model=ModelSection(path="x", max_length=512),
    train=TrainSection(batch=1),
    rounds=RoundsSection(clients=2),
    clients=SPLIT,
)
SERVER = device(4000, 4e11, 1e8, link=None)
FAST = device(4000, 2e11, 1e9)
FLEET = {"a": FAST, "b": FAST}


def plans(run: RunFile = RUN, fleet: dict[str, DeviceProfile] | None = None) -> dict[str, ClientPlan]:
    return {plan.client: plan for plan in solve(LLAMA, fleet or FLEET, run, server=SERVER).clients}


def again(now: dict[str, ClientPlan], slower: float, run: RunFile = RUN, *, may_move: bool = True) -> Replanned:
    """After ``a`` was measured to be ``slower``."""
    profiles = {"a": Correction(time=slower).of(FAST), "b": FAST}
    fleet = {
        name: Standing(profile=profiles[name], data=None, plan=plan, agreed=plan, may_move=may_move)
        for name, plan in now.items()
    }
    return replan(LLAMA, run, fleet, server=SERVER, round=3)


def test_nothing_moves_for_a_small_gain() -> None:
    now = plans()
    for slower in (0.95, 1.0, 1.05):
        found = again(now, slower)
        assert not found.moves
        assert {plan.client: plan for plan in found.plan.clients} == now


def test_the_device_in_the_way_moves_alone_and_the_slowest_step_is_faster() -> None:
    now = plans()
    found = again(now, 8.0)
    assert set(found.moves) == {"a"}
    assert found.moves["a"].cut.c1 < now["a"].cut.c1
    before_s, after_s = found.slowest_s
    assert after_s < (1 - GAIN) * before_s
    assert {plan.client: plan for plan in found.plan.clients} == {**now, **found.moves}


def test_the_same_inputs_give_the_same_moves_and_digest() -> None:
    first, second = again(plans(), 8.0), again(plans(), 8.0)
    assert first == second
    assert len(first.plan.digest) == 64
    assert first.plan.digest != again(plans(), 4.0).plan.digest


def test_a_fleet_that_has_come_together_shares_the_server_better() -> None:
    """Alone, each counted on a quarter of the server. Three can do without it, so the fourth gets more done there."""
    run = structs.replace(RUN, clients=(), rounds=RoundsSection(clients=4))
    devices = {name: device(4000, 2e12, 1e9) for name in "abc"} | {"weak": device(4000, 1.2e11, 1e9)}
    run = structs.replace(run, clients=tuple(ClientSection(name=name, topology="u") for name in devices))
    alone = {name: plans(run, {name: profile})[name] for name, profile in devices.items()}
    fleet = {name: Standing(profile=devices[name], data=None, plan=plan, agreed=plan) for name, plan in alone.items()}
    found = replan(LLAMA, run, fleet, server=SERVER)
    assert set(found.moves) == {"weak"}
    before, after = alone["weak"].cut, found.moves["weak"].cut
    assert after.c2 - after.c1 > before.c2 - before.c1
    assert found.slowest_s[1] < (1 - GAIN) * found.slowest_s[0]


def test_after_a_move_there_is_no_way_back_for_the_same_reason() -> None:
    found = again(plans(), 8.0)
    moved = {plan.client: plan for plan in found.plan.clients}
    assert not again(moved, 8.0).moves


def test_who_may_not_move_stays() -> None:
    assert not again(plans(), 8.0, may_move=False).moves


def test_a_fixed_cut_stays() -> None:
    run = structs.replace(RUN, clients=(ClientSection(name="a", topology="u", cut=(11, 12)), SPLIT[1]))
    assert not again(plans(run), 8.0, run).moves


def test_a_rule_that_is_broken_moves_without_a_gain() -> None:
    """Something else on the device took its memory: what it holds no longer fits."""
    now = plans()
    assert now["a"].estimate is not None
    less = structs.replace(FAST, free_memory_bytes=int(now["a"].estimate.memory_bytes / 0.9) - 1_000_000)
    fleet = {
        name: Standing(profile=profile, data=None, plan=now[name], agreed=now[name])
        for name, profile in {"a": less, "b": FAST}.items()
    }
    found = replan(LLAMA, RUN, fleet, server=SERVER)
    assert found.broken == "a: the plan no longer fits in memory"
    assert set(found.moves) >= {"a"}
    estimate = found.moves["a"].estimate
    assert estimate is not None
    assert estimate.memory_bytes <= less.budget_bytes
    stuck = {name: replace(one, may_move=False) for name, one in fleet.items()}
    assert not replan(LLAMA, RUN, stuck, server=SERVER).moves


def test_the_owner_is_never_shown_to_show_more() -> None:
    """A device so slow that it had better hold nothing still keeps the class of front that its owner agreed to."""
    open_run = structs.replace(
        RUN, clients=(), policy=PolicySection(shares_labels=True, exposes_tokens=True, min_front=0)
    )
    for section in (*SPLIT, ClientSection(name="a", topology="v", cut=(5, LAYERS))):
        now = plans(structs.replace(open_run, clients=(section,)))
        for slower in (2.0, 16.0):
            for name, plan in again(now, slower, open_run).moves.items():
                assert within(shown_by(plan), shown_by(now[name]))


def test_what_counts_as_showing_more() -> None:
    order = [
        (Topology.LOCAL, Cut(LAYERS, LAYERS)),
        (Topology.U, Cut(4, 8)),
        (Topology.U, Cut(3, 12)),
        (Topology.W, Cut(0, LAYERS)),
    ]
    classes = [shown(topology, cut, LAYERS) for topology, cut in order]
    assert [seen for seen, _ in classes] == [0, 1, 2, 3]
    for less, more in itertools.combinations(classes, 2):
        assert within(less, more)
        assert not within(more, less)
    labels = shown(Topology.V, Cut(4, LAYERS), LAYERS)
    assert within(classes[1], labels)
    assert not within(labels, classes[1])
    assert not within(labels, classes[3])
    assert not within(classes[2], labels)


def test_objections_say_what() -> None:
    now = plans()["a"]
    shallow = structs.replace(now, cut=Cut(1, 12))
    assert objection(now, now, structs.replace(now, cut=Cut(5, 9), checkpoint=True)) == ""
    assert "first layers" in objection(now, now, shallow)
    assert objection(shallow, shallow, now) == ""
    assert "the labels" in objection(now, now, structs.replace(now, topology=Topology.V))
    assert "the input" in objection(now, now, structs.replace(now, topology=Topology.W, cut=Cut(0, 12)))
    for change in ({"batch": 2}, {"micro_batches": 3}, {"layers": now.layers[1:]}, {"wire_up": "int8"}):
        assert "something else" in objection(now, now, structs.replace(now, **change))


def test_factors_follow_what_was_measured() -> None:
    predicted = Times(device=1.0, up=0.2, down=0.2, latency=0.1)
    one = Correction().after(predicted, Step(step_s=4.0, device_s=4.0))
    assert one.time == pytest.approx(4**0.7, rel=5e-3)
    two = one.after(predicted, Step(step_s=4.0, device_s=4.0))
    assert one.time < two.time < 4.0
    assert Correction().after(predicted, Step(step_s=1e6, device_s=1e6)).time <= MOST
    assert Correction().after(predicted, Step(step_s=0.0, device_s=0.0)) == Correction()


def test_a_link_is_only_blamed_for_what_the_server_did_not_take() -> None:
    predicted = Times(device=1.0, up=0.2, down=0.2, latency=0.1)  # half a second on the wire
    busy = Correction().after(predicted, Step(step_s=6.0, device_s=1.0, busy_s=4.8))
    assert busy.link == 1.0  # between 0.2 and 5 seconds: as predicted, for all that is known
    idle = Correction().after(predicted, Step(step_s=6.0, device_s=1.0, busy_s=0.0))
    assert idle.link == pytest.approx(10**0.7, rel=5e-3)
    fast = Correction().after(predicted, Step(step_s=1.05, device_s=1.0, busy_s=0.0))
    assert fast.link == pytest.approx(0.1**0.7, rel=5e-3)
    hidden = replace(predicted, overlap=0.3)
    assert Correction().after(hidden, Step(step_s=1.05, device_s=1.0)).link == 1.0
    assert Correction().after(hidden, Step(step_s=6.0, device_s=1.0)) == idle


def test_a_correction_is_in_the_profile_that_plans_take() -> None:
    slow = Correction(time=2.0, link=4.0).of(FAST)
    assert slow.flops["float32"] == FAST.flops["float32"] / 2
    assert FAST.link is not None
    assert slow.link == Link(up_bps=FAST.link.up_bps / 4, down_bps=FAST.link.down_bps / 4, latency_s=0.004)
    assert Correction().of(FAST) == FAST


def test_the_slowest_step_is_that_of_the_plan() -> None:
    found = solve(LLAMA, FLEET, RUN, server=SERVER)
    assert isinstance(found, Plan)
    assert slowest(found) == max(plan.estimate.step_s for plan in found.clients if plan.estimate)
