"""Which of the waiting messages the server answers next: order, fairness, and a shorter time for everybody."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from fedsplit.plan.order import Job, done_s, schrage
from fedsplit.wire.ends import Incoming
from fedsplit.wire.frames import Packet
from fedsplit.wire.messages import Alive, Backward, Exchange, Forward, Message, Prepare
from fedsplit_server.arrivals import MOST, PATIENCE, Arrivals

TAILS = {b"slow": 9.0, b"fast": 1.0, b"middle": 4.0}


class Feed:
    """A server end whose packets are there already."""

    address = ("here", 0)

    def __init__(self) -> None:
        self.ready: deque[Incoming] = deque()
        self.waits: list[float] = []

    def arrive(self, who: str, message: Message) -> None:
        self.ready.append(Incoming(who.encode(), "", Packet(message), 0))

    def receive(self, timeout_s: float) -> Incoming | None:
        self.waits.append(timeout_s)
        return self.ready.popleft() if self.ready else None

    def send(self, identity: bytes, message: Message, tensors: Any = None) -> int:
        raise AssertionError("nothing is sent here")

    def close(self) -> None:
        return None


def step(kind: type[Exchange], who: str, **fields: Any) -> Exchange:
    shape = {"lengths": (1,), "starts": (0,), "width": 1, "label_tokens": 1} if kind is Forward else {}
    end = {"squares": (), "finite": True, "examples": 1} if kind is Prepare else {}
    return kind(run="r", client=who, round=0, era=0, step=0, **shape, **end, **fields)


def answered(feed: Feed, arrivals: Arrivals) -> list[tuple[str, str]]:
    found = []
    while (incoming := arrivals.next(feed, 0.0)) is not None:
        found.append((incoming.identity.decode(), type(incoming.packet.message).__name__))
    return found


def arrivals() -> Arrivals:
    return Arrivals(lambda identity: TAILS.get(identity, 0.0))


def test_backward_first_then_the_longest_tail() -> None:
    feed = Feed()
    for who in ("fast", "middle", "slow"):
        feed.arrive(who, step(Forward, who))
    feed.arrive("other", Alive(run="r", client="other"))
    feed.arrive("late", step(Backward, "late"))
    order = [("late", "Backward"), ("other", "Alive"), ("slow", "Forward"), ("middle", "Forward"), ("fast", "Forward")]
    assert answered(feed, arrivals()) == order


def test_a_clients_own_messages_keep_their_order() -> None:
    feed = Feed()
    feed.arrive("fast", step(Forward, "fast", micro=0))
    feed.arrive("fast", step(Backward, "fast", micro=0))
    feed.arrive("slow", step(Forward, "slow"))
    assert answered(feed, arrivals()) == [("slow", "Forward"), ("fast", "Forward"), ("fast", "Backward")]


def test_nobody_is_passed_over_for_ever() -> None:
    feed, queue = Feed(), arrivals()
    feed.arrive("fast", step(Forward, "fast"))
    served = []
    for _ in range(2 * PATIENCE):
        feed.arrive("slow", step(Backward, "slow"))
        incoming = queue.next(feed, 0.0)
        assert incoming is not None
        served.append(incoming.identity)
    # What was there first is not passed over by what came later more often than that.
    assert served.index(b"fast") <= PATIENCE


def test_it_waits_only_when_nothing_is_there_and_takes_a_bounded_number() -> None:
    feed, queue = Feed(), arrivals()
    assert queue.next(feed, 0.5) is None
    assert feed.waits == [0.5]
    for number in range(2 * MOST):
        feed.arrive(f"c{number}", step(Forward, "c"))
    assert queue.next(feed, 0.5) is not None
    assert len(feed.ready) == MOST
    assert feed.waits[1:] == [0.5] + [0.0] * (MOST - 1)


def test_it_is_schrages_rule() -> None:
    """Served as they arrive, one after the other: the same order, and clients are done no later than first come."""
    rng = np.random.default_rng(4)
    gains = []
    for _ in range(30):
        jobs = [Job(*(float(value) for value in rng.uniform((0, 1, 0), (10, 5, 30)))) for _ in range(8)]
        feed, queue = Feed(), Arrivals(lambda identity, jobs=jobs: jobs[int(identity)].tail)  # type: ignore[misc]
        coming = deque(sorted(range(8), key=lambda place: jobs[place].release))
        now, order = 0.0, []
        while len(order) < 8:
            now = max(now, jobs[coming[0]].release) if coming and not feed.ready and not queue.waiting else now
            while coming and jobs[coming[0]].release <= now:
                feed.arrive(str(coming[0]), step(Forward, str(coming.popleft())))
            incoming = queue.next(feed, 0.0)
            assert incoming is not None
            order.append(int(incoming.identity))
            now += jobs[order[-1]].work
        assert tuple(order) == schrage(jobs)
        first_come = sorted(range(8), key=lambda place: jobs[place].release)
        gains.append(done_s(jobs, first_come) / done_s(jobs, order))
    assert np.mean(gains) > 1.03
