"""Slack turned into ranks or steps: as much as is in time, nobody less than before, and the slowest no slower."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from families import config_of
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from test_grid import DEVICES, OPEN, SERVERS, device

from fedsplit.config.check import check
from fedsplit.config.run import (
    LoraSection,
    MethodSection,
    ModelSection,
    PlanSection,
    RoundsSection,
    RunFile,
    ServerSection,
    TrainSection,
)
from fedsplit.devices.limits import Limits
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import ConfigError, PlanError
from fedsplit.method.of_run import method_of
from fedsplit.plan.card import card
from fedsplit.plan.consent import objection
from fedsplit.plan.given import MOST_TIMES, bare, scheduled, steps_of, value
from fedsplit.plan.question import Question, priced, questions
from fedsplit.plan.replan import Standing, replan
from fedsplit.plan.slack import raised, step_s
from fedsplit.plan.solve import planned
from fedsplit.plan.spend import Until, round_s, until
from fedsplit.plan.travel import Travel, Travels
from fedsplit.plan.types import ClientPlan, Plan, Topology
from fedsplit.plan.work import as_planned, work_of
from fedsplit.wire.sparse import nbytes

LLAMA = card(config_of("llama", num_hidden_layers=4, vocab_size=401), "causal-lm")
RANKS = (16, 64, 512)
NONE = RunFile(
    model=ModelSection(path="x", max_length=32),
    policy=OPEN,
    train=TrainSection(batch=4, steps=5),
    lora=LoraSection(rank=8),
    plan=PlanSection(ranks=RANKS),
)
LOCAL = structs.replace(NONE, policy=structs.replace(OPEN, topologies=("local",)))
FLEET = {"fast": device(80, 4e9, 1e8), "middle": device(80, 2e9, 1e8), "slow": device(80, 1e9, 1e8)}
Planned = tuple[Plan, dict[str, Question]]


def with_slack(slack: str, run: RunFile = NONE) -> RunFile:
    return structs.replace(run, plan=structs.replace(run.plan, slack=slack))


def plans_of(
    run: RunFile, fleet: dict[str, DeviceProfile], server: DeviceProfile | None = None, local: bool = False
) -> Planned:
    allowed = {Topology.LOCAL} if local else None
    plan, asked = planned(questions(LLAMA, fleet, run, server=server, allowed=allowed))
    return plan, dict(asked)


def undated(plan: ClientPlan) -> ClientPlan:
    return structs.replace(plan, reasons=())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(DEVICES, min_size=1, max_size=4),
    SERVERS,
    st.sampled_from(["rank", "steps"]),
    st.sampled_from([(), ("local",), ("u",), ("v",)]),
    st.booleans(),
)
def test_nobody_gets_less_and_the_slowest_is_no_slower(
    devices: list[DeviceProfile], server: DeviceProfile | None, slack: str, topologies: tuple[str, ...], overlap: bool
) -> None:
    fleet = {f"c{index}": one for index, one in enumerate(devices)}
    none = structs.replace(
        NONE,
        policy=structs.replace(OPEN, topologies=topologies),
        plan=structs.replace(NONE.plan, overlap=overlap),
    )
    run = with_slack(slack, none)
    try:
        before, asked = plans_of(none, fleet, server)
    except PlanError:
        return
    after, same = plans_of(run, fleet, server)
    assert {name: (one.share, one.link_share) for name, one in asked.items()} == {
        name: (one.share, one.link_share) for name, one in same.items()
    }
    assert until(after.clients, same) == until(before.clients, asked)
    for old, new in zip(before.clients, after.clients, strict=True):
        assert value(new, run) >= value(old, run)
        assert undated(bare(structs.replace(new, estimate=old.estimate), run)) == undated(old)
        assert new.estimate
        assert new.estimate.memory_bytes <= same[new.client].device.budget_bytes
        assert not objection(old, old, new, run)
        if value(new, run) > value(old, run):
            assert objection(old, old, new)


def every_rank(plan: ClientPlan, question: Question) -> list[tuple[int, float, float]]:
    """(rank, seconds of a step, of a round) of all that fit, by price alone."""
    found = [(8, step_s(plan), round_s(plan, question))]
    for rank in RANKS:
        work = raised(as_planned(work_of(LLAMA, question.run, None, batch=plan.batch), plan), plan, rank)
        option = priced(question, plan.topology, plan.cut, [work])
        link = question.device.link
        assert link
        scalars = sum(rank * (one.out + one.inp) for one in LLAMA.adapted((), 0)) * LLAMA.num_layers
        moving = 4 * scalars * (1 / link.up_bps + 1 / link.down_bps)
        if option.fits:
            found.append((rank, option.times.total, question.run.train.steps * option.times.total + moving))
    return found


def best_of_all(choices: list[list[tuple[int, float, float]]], limit: Until) -> tuple[int, ...]:
    """The largest ranks of a fleet whose slowest step and longest round stay within the limit."""
    feasible = (
        pick
        for pick in itertools.product(*choices)
        if max(one[1] for one in pick) <= limit.step_s and max(one[2] for one in pick) <= limit.round_s * (1 + 1e-12)
    )
    return max((tuple(one[0] for one in pick) for pick in feasible), key=sum)


@pytest.mark.parametrize("speeds", [(4e9, 2e9, 1e9), (9e9, 1e9, 1e9), (1.1e9, 1.05e9, 1e9)])
@pytest.mark.parametrize("up", [1e8, 2e4])
def test_ranks_are_those_of_the_exhaustive_search(speeds: tuple[float, ...], up: float) -> None:
    fleet = {f"c{index}": device(80, speed, up) for index, speed in enumerate(speeds)}
    before, asked = plans_of(NONE, fleet, local=True)
    after, _ = plans_of(with_slack("rank"), fleet, local=True)
    limit = until(before.clients, asked)
    expected = best_of_all([every_rank(plan, asked[plan.client]) for plan in before.clients], limit)
    assert tuple(plan.layers[0].rank for plan in after.clients) == expected


def test_steps_are_those_of_the_exhaustive_search() -> None:
    run = with_slack("steps")
    before, asked = plans_of(NONE, FLEET, local=True)
    after, _ = plans_of(run, FLEET, local=True)
    limit = until(before.clients, asked).round_s
    for old, new in zip(before.clients, after.clients, strict=True):
        counts = range(run.train.steps, MOST_TIMES * run.train.steps + 1)
        in_time = [n for n in counts if round_s(structs.replace(old, steps=n), asked[old.client]) <= limit]
        assert steps_of(new, run) == max(in_time)
    fast, middle, slow = after.clients
    assert (fast.steps, middle.steps) == (20, 10)
    assert slow.steps == 0
    assert slow == before.clients[2]
    assert "15 more" not in fast.reasons[-1]
    assert "20 steps a round instead of 5" in fast.reasons[-1]
    assert not any("on average a client waits" in reason for reason in after.reasons)


def test_none_is_the_plan_as_it_was() -> None:
    assert plans_of(NONE, FLEET, local=True)[0] == plans_of(with_slack("none"), FLEET, local=True)[0]
    alone, _ = plans_of(with_slack("steps"), {"a": FLEET["fast"]}, local=True)
    assert alone.clients[0].steps == 0


def test_a_client_that_joins_hears_what_it_may_get() -> None:
    run = structs.replace(with_slack("steps"), rounds=RoundsSection(clients=2))
    [plan] = plans_of(run, {"a": FLEET["fast"]}, local=True)[0].clients
    assert plan.steps == 0
    assert "up to 20 steps a round" in plan.reasons[-1]
    rank = structs.replace(with_slack("rank"), rounds=RoundsSection(clients=2))
    assert "up to rank 512" in plans_of(rank, {"a": FLEET["fast"]}, local=True)[0].clients[0].reasons[-1]


def standing(plan: ClientPlan, **changes: object) -> Standing:
    return Standing(profile=FLEET[plan.client], data=None, plan=plan, agreed=plan, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("slack", ["rank", "steps"])
def test_before_a_round_it_is_given_once_and_taken_back_from_who_got_slow(slack: str) -> None:
    run = with_slack(slack, LOCAL)
    begun = {plan.client: plan for plan in plans_of(LOCAL, FLEET)[0].clients}
    fleet = {name: standing(plan) for name, plan in begun.items()}
    first = replan(LLAMA, run, fleet)
    assert "fast" in first.moves
    assert "slow" not in first.moves
    assert not replan(LLAMA, LOCAL, fleet).moves
    after = {plan.client: plan for plan in first.plan.clients}
    again = replan(LLAMA, run, {name: standing(plan) for name, plan in after.items()})
    assert not again.moves
    held = replan(LLAMA, run, {name: standing(plan, may_move=name != "fast") for name, plan in begun.items()})
    assert "fast" not in held.moves
    # All are as slow as the slowest from now on: nobody waits.
    weak = {name: structs.replace(FLEET["slow"], name="weak") for name in FLEET}
    slower = {name: Standing(profile=weak[name], data=None, plan=after[name], agreed=begun[name]) for name in after}
    back = replan(LLAMA, run, slower)
    assert value(back.moves["fast"], run) == value(begun["fast"], run)


def test_more_than_was_agreed_is_refused() -> None:
    run, plan = with_slack("steps"), plans_of(NONE, FLEET)[0].clients[0]
    assert not objection(plan, plan, structs.replace(plan, steps=20), run)
    assert "something else" in objection(plan, plan, structs.replace(plan, steps=21), run)
    assert "something else" in objection(plan, plan, structs.replace(plan, steps=20), NONE)
    layers = tuple(structs.replace(layer, rank=16) for layer in plan.layers)
    assert not objection(plan, plan, structs.replace(plan, layers=layers), with_slack("rank"))
    assert objection(plan, plan, structs.replace(plan, layers=layers), run)


def test_a_schedule_ends_with_the_round() -> None:
    assert [scheduled(2, step, 5, 5) for step in range(5)] == [10, 11, 12, 13, 14]
    more = [scheduled(2, step, 12, 5) for step in range(12)]
    assert (more[0], more[-1], len(set(more))) == (10, 14, 5)
    assert more == sorted(more)


def test_what_does_not_go_together_is_refused_with_the_way_out() -> None:
    steps = with_slack("steps")
    shared = structs.replace(steps, server=ServerSection(adapters="shared-concat"))
    assert any("waits for every client in every step" in str(problem) for problem in check(shared))
    still = structs.replace(steps, plan=structs.replace(steps.plan, replan=False))
    assert any("plan.replan = true" in str(problem) for problem in check(still))
    no_ranks = structs.replace(NONE, plan=PlanSection(slack="rank"))
    assert any("a rank above lora.rank = 8" in str(problem) for problem in check(no_ranks))
    assert not check(steps)
    with pytest.raises(ConfigError, match=r'"rank" with method .fedavg.(.|\n)*slack = "steps"'):
        method_of(structs.replace(with_slack("rank"), method=MethodSection(name="fedavg")))
    method_of(structs.replace(steps, method=MethodSection(name="fedavg")))
    assert msgspec.json.decode(msgspec.json.encode(steps), type=RunFile) == steps


# ---- a denser mask ---------------------------------------------------------------------------------------------------

THIN = Travels(kinds=(Travel(density_down=0.25, density_up=0.0625),))


def masked(run: RunFile, fleet: dict[str, DeviceProfile], travels: Travels = THIN) -> Planned:
    plan, asked = planned(questions(LLAMA, fleet, run, allowed={Topology.LOCAL}, travels=travels))
    return plan, dict(asked)


@pytest.mark.parametrize("up", [1e8, 3e4, 6e3, 2e3])
@pytest.mark.parametrize("cap", [0, 60_000])
def test_densities_are_those_of_the_exhaustive_search(up: float, cap: int) -> None:
    fleet = {name: device(80, speed, up) for name, speed in (("fast", 4e9), ("slow", 1e9))}
    if cap:
        fleet["fast"] = structs.replace(fleet["fast"], limits=Limits(upload_per_day_bytes=cap))
    before, asked = masked(NONE, fleet)
    after, _ = masked(with_slack("density"), fleet)
    limit, plan = until(before.clients, asked), before.clients[0]
    count = sum(8 * (one.out + one.inp) for one in LLAMA.adapted((), 0)) * LLAMA.num_layers
    link, found = fleet["fast"].link, [(0.0, 0.0)]
    assert link
    for down, high in itertools.product((0.25, 0.5, 1.0), (0.0625, 0.125, 0.25, 0.5, 1.0)):
        sizes = [nbytes(count, int(count * one)) if one < 1 else 4 * count for one in (down, high)]
        seconds = 5 * step_s(plan) + sizes[0] / link.down_bps + sizes[1] / link.up_bps
        if seconds <= limit.round_s and (not cap or sizes[1] + 1000 <= cap) and (down, high) != (0.25, 0.0625):
            found.append((down, high))
    fast, slow = after.clients
    assert (fast.density_down, fast.density_up) == max(found, key=lambda pair: (min(pair), sum(pair), pair[1]))
    assert (slow.density_down, slow.density_up) == (0, 0)
    assert fast.estimate
    assert round_s(fast, asked["fast"]) <= limit.round_s
    if found[1:]:
        assert any("of the factors' entries down" in reason for reason in fast.reasons)
        assert not objection(plan, plan, fast, with_slack("density"))
        assert objection(plan, plan, fast)


def test_nothing_is_denser_than_all_entries() -> None:
    with pytest.raises(ConfigError, match=r"plan\.slack.*fedavg.*sends every entry.*flasc"):
        method_of(with_slack("density"))
    method_of(structs.replace(with_slack("density"), method=MethodSection(name="flasc")))
