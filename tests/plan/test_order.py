"""Orders of a server's work: bound ≤ Carlier = brute force ≤ Schrage ≤ twice the optimum."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedsplit.plan.order import Job, carlier, done_s, interrupted_s, schrage


def jobs(rng: np.random.Generator, count: int, *, latest: int = 40) -> list[Job]:
    return [Job(*(float(value) for value in rng.integers((0, 1, 0), (latest, 20, 40)))) for _ in range(count)]


def test_against_brute_force() -> None:
    rng = np.random.default_rng(1)
    worse = tight = 0
    for _ in range(120):
        some = jobs(rng, int(rng.integers(1, 7)))
        best = min(done_s(some, places) for places in itertools.permutations(range(len(some))))
        order, quick = carlier(some), done_s(some, schrage(some))
        assert sorted(order.places) == list(range(len(some)))
        assert done_s(some, order.places) == order.done_s == order.bound_s == best
        assert interrupted_s(some) <= best <= quick <= 2 * best
        worse += quick > best
        tight += interrupted_s(some) == best
    assert worse > 10, "no instance on which Schrage's rule is not the best"
    assert tight > 60


def test_the_largest_tail_first_is_exact_when_all_is_there() -> None:
    rng = np.random.default_rng(2)
    for _ in range(60):
        some = [Job(0.0, job.work, job.tail) for job in jobs(rng, 6)]
        best = min(done_s(some, places) for places in itertools.permutations(range(6)))
        largest = sorted(range(6), key=lambda place: -some[place].tail)
        assert done_s(some, largest) == done_s(some, schrage(some)) == best == interrupted_s(some)


@pytest.mark.parametrize("count", [20, 50])
def test_fifty_jobs_are_closed(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(8):
        some = jobs(rng, count, latest=8 * count)
        order = carlier(some)
        assert interrupted_s(some) <= order.bound_s == order.done_s <= done_s(some, schrage(some))


def test_a_job_that_is_better_kept_waiting() -> None:
    """The server is free at 0, but the long job that is there delays the one with the long tail."""
    some = [Job(0.0, 10.0, 0.0), Job(1.0, 2.0, 20.0)]
    assert schrage(some) == (0, 1)
    assert carlier(some).places == (1, 0)
    assert (done_s(some, (0, 1)), carlier(some).done_s, interrupted_s(some)) == (32.0, 23.0, 23.0)


def test_nothing_to_do() -> None:
    assert carlier([]).places == ()
    assert interrupted_s([]) == 0.0
