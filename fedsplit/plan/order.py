"""In which order a server that does one thing at a time works for its clients: 1 | r_j, q_j | C_max.

A client's work arrives after ``release`` seconds (its own forward pass, then the uplink), takes ``work`` seconds of
the server, and the client is done ``tail`` seconds after that (downlink, then its own backward pass). The largest
tail first is exact when everything is there at once (Jackson 1955). Otherwise, among what has arrived the largest
tail (Schrage 1971) is at most twice the optimum, the same with interruptions is a lower bound, and Carlier's branch
and bound (1982) closes the gap: on the longest chain of the Schrage order, the last job with a smaller tail than the
chain's end must come before all jobs after it on the chain, or after all of them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

NODES = 20_000
"""Branches after which the best order found so far is returned, with its bound."""
NEAR = 1e-9


@dataclass(frozen=True)
class Job:
    """Seconds: until it arrives, on the server, and after it."""

    release: float
    work: float
    tail: float


@dataclass(frozen=True, kw_only=True)
class Order:
    """``places``: indices of the jobs in their order; all are done after ``done_s``, by no order before ``bound_s``."""

    places: tuple[int, ...]
    done_s: float
    bound_s: float


def done_s(jobs: Sequence[Job], places: Sequence[int]) -> float:
    """When the last client is done."""
    now = last = 0.0
    for place in places:
        now = max(now, jobs[place].release) + jobs[place].work
        last = max(last, now + jobs[place].tail)
    return last


def schrage(jobs: Sequence[Job]) -> tuple[int, ...]:
    """Whenever the server is free, the largest tail of what has arrived; of equal tails the first."""
    arriving = sorted(range(len(jobs)), key=lambda place: jobs[place].release)
    waiting: list[tuple[float, int]] = []
    places: list[int] = []
    now, arrived = 0.0, 0
    while len(places) < len(jobs):
        if not waiting:
            now = max(now, jobs[arriving[arrived]].release)
        while arrived < len(jobs) and jobs[arriving[arrived]].release <= now:
            heapq.heappush(waiting, (-jobs[arriving[arrived]].tail, arriving[arrived]))
            arrived += 1
        place = heapq.heappop(waiting)[1]
        places.append(place)
        now += jobs[place].work
    return tuple(places)


def interrupted_s(jobs: Sequence[Job]) -> float:
    """When all would be done if the server could put a job aside for one with a larger tail: a lower bound."""
    arriving = sorted(range(len(jobs)), key=lambda place: jobs[place].release)
    left = [job.work for job in jobs]
    waiting: list[tuple[float, int]] = []
    now, last, arrived = 0.0, 0.0, 0
    while waiting or arrived < len(jobs):
        if not waiting:
            now = max(now, jobs[arriving[arrived]].release)
        while arrived < len(jobs) and jobs[arriving[arrived]].release <= now:
            heapq.heappush(waiting, (-jobs[arriving[arrived]].tail, arriving[arrived]))
            arrived += 1
        place = waiting[0][1]
        until = jobs[arriving[arrived]].release if arrived < len(jobs) else math.inf
        if now + left[place] <= until:
            now += left[place]
            heapq.heappop(waiting)
            last = max(last, now + jobs[place].tail)
        else:
            left[place] -= until - now
            now = until
    return last


def carlier(jobs: Sequence[Job]) -> Order:
    """The best order, certified: ``done_s`` equals ``bound_s``, unless there were too many branches."""
    best = schrage(jobs)
    found, bound = done_s(jobs, best), interrupted_s(jobs)
    open_ = [(bound, 0, list(jobs))]
    for number in range(1, NODES + 1):
        if not open_ or open_[0][0] >= found - NEAR * found:
            return Order(places=best, done_s=found, bound_s=found)
        bound, _, changed = heapq.heappop(open_)
        places = schrage(changed)
        # The changed jobs only forbid orders: the true time of one that is left is what counts.
        if (done := done_s(jobs, places)) < found:
            best, found = places, done
        for side, branch in enumerate(_branches(changed, places)):
            lowest = max(bound, interrupted_s(branch))
            if lowest < found - NEAR * found:
                heapq.heappush(open_, (lowest, 2 * number + side, branch))
    return Order(places=best, done_s=found, bound_s=min(found, open_[0][0] if open_ else found))


def _branches(jobs: Sequence[Job], places: Sequence[int]) -> Iterator[list[Job]]:
    """The two cases of the critical job, as changed releases and tails; none: this order is the best one."""
    chain = _chain(jobs, places)
    end = jobs[chain[-1]]
    smaller = [index for index, place in enumerate(chain) if jobs[place].tail < end.tail]
    if not smaller:
        return
    critical, after = chain[smaller[-1]], [jobs[place] for place in chain[smaller[-1] + 1 :]]
    work = sum(job.work for job in after)
    first, last = list(jobs), list(jobs)
    first[critical] = replace(jobs[critical], tail=max(jobs[critical].tail, work + min(job.tail for job in after)))
    release = max(jobs[critical].release, work + min(job.release for job in after))
    last[critical] = replace(jobs[critical], release=release)
    yield first
    yield last


def _chain(jobs: Sequence[Job], places: Sequence[int]) -> list[int]:
    """The jobs without a pause between them that end with the client that is done last."""
    now = last = 0.0
    start, chain = 0, (0, 0)
    for index, place in enumerate(places):
        if jobs[place].release > now:
            start = index
        now = max(now, jobs[place].release) + jobs[place].work
        if now + jobs[place].tail > last:
            last, chain = now + jobs[place].tail, (start, index)
    return list(places[chain[0] : chain[1] + 1])
