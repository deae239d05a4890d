"""Micro-batches in a pipeline: events against a walk through time, the closed form against the events."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_cost import ONE_FLOPS, WORK

from fedsplit.plan.pipeline import COUNTED, Busy, Legs, Resource, Stage, length, makespan, overlap, simulate, stages_of
from fedsplit.plan.timing import legs_of, step_times
from fedsplit.plan.types import Cut, Topology
from fedsplit.plan.work import IN_FLIGHT

U = [Resource.CLIENT, Resource.UP, Resource.SERVER, Resource.DOWN] * 2 + [Resource.CLIENT]
V = [*U[:4], Resource.CLIENT]


def walked(stages: list[Stage], micro_batches: int) -> int:
    """The same rules, tick by tick: whole seconds, one thing at a time on each resource."""
    place, ready, free_at = {}, {}, dict.fromkeys(Resource, 0)
    begun, done, now, opened, end = 0, 0, 0, 0, 0
    while done < micro_batches:
        moved = True
        while moved:
            moved = False
            for resource in Resource:
                if free_at[resource] > now:
                    continue
                queue = [m for m in place if stages[place[m]].resource is resource and ready[m] <= now]
                chosen = min(queue, key=lambda m: (ready[m], m), default=None)
                if resource is Resource.CLIENT and begun < micro_batches and len(place) < IN_FLIGHT and opened <= now:
                    chosen, place[begun], ready[begun] = begun, 0, opened
                    begun += 1
                if chosen is None:
                    continue
                stage, moved = stages[place[chosen]], True
                free_at[resource] = end_here = now + int(stage.seconds)
                place[chosen] += 1
                ready[chosen] = end_here + int(stage.pause)
                if place[chosen] == len(stages):
                    del place[chosen], ready[chosen]
                    done, opened, end = done + 1, end_here, max(end, end_here)
        now += 1
    return end


SECONDS, PAUSES = st.integers(1, 6), st.integers(0, 2)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([U, V]), st.data(), st.integers(1, 6))
def test_equal_to_walking_through_time(resources: list[Resource], data: st.DataObject, micro: int) -> None:
    stages = [
        Stage(str(index), one, data.draw(SECONDS), data.draw(PAUSES) if one in (Resource.UP, Resource.DOWN) else 0)
        for index, one in enumerate(resources)
    ]
    run = simulate(stages, micro)
    assert length(run) == walked(stages, micro)
    assert_possible(run, micro, len(stages))


def assert_possible(run: list[Busy], micro: int, stages: int) -> None:
    """Everything runs once, nothing overlaps on a resource, never more than two micro-batches on their way."""
    assert len(run) == micro * stages
    for resource in Resource:
        mine = sorted((busy for busy in run if busy.stage.resource is resource), key=lambda busy: busy.start)
        assert all(before.end <= after.start for before, after in pairwise(mine))
    spans = [[busy for busy in run if busy.micro == index] for index in range(micro)]
    alive = [(min(b.start for b in span), max(b.end for b in span)) for span in spans]
    assert all(sum(first <= start < last for first, last in alive) <= IN_FLIGHT for start, _ in alive)


LEG = st.floats(0.01, 1.0)


@example([1.0, 1.0, 0.5, 0.125, 0.125, 0.125, 0.03125, 0.015625, 1.0], 0.0, False, 6)
@settings(max_examples=200, deadline=None)
@given(st.lists(LEG, min_size=9, max_size=9), st.sampled_from([0.0, 0.02]), st.booleans(), st.integers(1, 8))
def test_the_closed_form_is_a_close_lower_bound(legs: list[float], wait: float, v: bool, micro: int) -> None:
    front, up, body, down, tail, up_back, body_back, down_back, back = legs
    found = Legs(
        front=front, up=up, body=body, down_back=down_back, back=back, wait=wait, wait_back=wait,
        **({} if v else {"down": down, "tail": tail, "up_back": up_back, "body_back": body_back}),
    )  # fmt: skip
    crossings = 2 if v else 4
    exact = length(simulate(stages_of(found, micro), micro))
    least = float(makespan(found, micro, crossings))
    assert least <= exact * (1 + 1e-9)
    assert exact <= 1.4 * least
    serial = sum(stage.seconds + stage.pause for stage in stages_of(found, micro)) * micro
    counted = serial - float(overlap(found, micro, crossings))
    assert counted == pytest.approx(serial - COUNTED * (serial - least) if micro > 1 else serial)
    assert 0.85 * exact <= counted <= 1.3 * exact


def test_one_micro_batch_and_a_client_on_its_own_overlap_nothing() -> None:
    assert step_times(WORK, Topology.U, Cut(2, 15), ONE_FLOPS, ONE_FLOPS).overlap == 0
    alone = step_times(replace(WORK, micro_batches=2), Topology.LOCAL, Cut(16, 16), ONE_FLOPS, ONE_FLOPS)
    assert alone.overlap == 0
    assert alone.total == alone.device


@pytest.mark.parametrize(
    ("topology", "cut"), [(Topology.U, Cut(2, 15)), (Topology.V, Cut(2, 16)), (Topology.W, Cut(0, 16))]
)
def test_two_micro_batches_hide_one_behind_the_other(topology: Topology, cut: Cut) -> None:
    work = replace(WORK, micro_batches=2)
    times = step_times(work, topology, cut, ONE_FLOPS, ONE_FLOPS)
    legs = legs_of(work, topology, cut, ONE_FLOPS, ONE_FLOPS)
    agreement = 2 * legs.wait
    exact = length(simulate(stages_of(legs, 2), 2)) + agreement
    assert times.overlap > 0
    assert times.total == pytest.approx(exact, rel=0.2)
    assert times.largest()[1] < times.total


def test_layers_computed_twice_take_a_forward_more() -> None:
    once = step_times(WORK, Topology.V, Cut(4, 16), ONE_FLOPS, ONE_FLOPS)
    twice = step_times(replace(WORK, checkpoint=True), Topology.V, Cut(4, 16), ONE_FLOPS, ONE_FLOPS)
    assert 1.4 < twice.device / once.device < 1.55
    assert (twice.server, twice.up) == (once.server, once.up)
