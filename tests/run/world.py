"""A whole run in one process, on a clock that only moves when everybody waits.

Server and clients are threads of which exactly one runs at a time, in a fixed order: torch's global generator is never
shared between two that run, a wait of ten seconds costs nothing, and every run of a test is the same run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fedsplit.testing.faults import InjectedCrash
from fedsplit.wire.ends import ClientEnd, Incoming, ServerEnd, Tensors
from fedsplit.wire.frames import Packet
from fedsplit.wire.messages import Message

REAL_LIMIT_S = 120.0
"""An actor that computes for longer has hung."""
PACE_S = 0.001
"""Real seconds a step of the clock takes at least: injected delays are real, and must not outlast the patience."""


class Stopped(BaseException):
    """The test is over; the actor's thread ends."""


@dataclass
class Actor:
    """One thread and why it waits. ``crashed`` when an injected fault ended it."""

    name: str
    work: Callable[[], None]
    wakes_s: float = 0.0
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    done: bool = False
    crashed: bool = False
    error: BaseException | None = None
    thread: threading.Thread | None = None


class World:
    """The clock and whose turn it is. ``limit_s``: virtual seconds after which a run has hung."""

    def __init__(self, limit_s: float = 3600.0) -> None:
        self.now_s = 0.0
        self._limit_s = limit_s
        self._actors: dict[str, Actor] = {}
        self._back = threading.Semaphore(0)
        self._active: Actor | None = None
        self._moved = False
        self._over = False
        self.tolerated: set[str] = set()
        """Actors whose errors are expected and stay in ``Actor.error``."""

    def clock(self) -> float:
        """Seconds of this world."""
        return self.now_s

    def add(self, name: str, work: Callable[[], None]) -> Actor:
        """An actor, in place of a finished one of that name."""
        actor = self._actors[name] = Actor(name, work, wakes_s=self.now_s)
        return actor

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Take turns until all are done (or ``until``). Raises an actor's error that is no injected crash."""
        while not (until and until()):
            alive = [actor for actor in self._actors.values() if not actor.done]
            if not alive:
                return
            self._moved = False
            for actor in alive:
                self._turn(actor)
            if not self._moved:
                self._let_time_pass()

    def close(self) -> None:
        """End every thread."""
        self._over = True
        for actor in self._actors.values():
            if not actor.done and actor.thread is not None:
                self._active = actor
                actor.go.release()
                actor.thread.join(REAL_LIMIT_S)

    def client(self, end: ClientEnd) -> WorldClient:
        return WorldClient(self, end)

    def server(self, end: ServerEnd) -> WorldServer:
        return WorldServer(self, end)

    # ---- turns ---------------------------------------------------------------------------------------------------

    def wait(self, deadline_s: float) -> None:
        """Called by the active actor: let the others go on."""
        actor = self._active
        assert actor is not None
        actor.wakes_s = deadline_s
        self._back.release()
        actor.go.acquire()
        if self._over:
            raise Stopped

    def sleep(self, seconds: float) -> None:
        """Called by the active actor: take this long over something."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.wait(until_s)

    def progress(self) -> None:
        """Called by the active actor: something happened, so time stands still."""
        self._moved = True

    def _turn(self, actor: Actor) -> None:
        self._active = actor
        if actor.thread is None:
            actor.thread = threading.Thread(target=self._life, args=(actor,), name=actor.name, daemon=True)
            actor.thread.start()
            self._moved = True
        else:
            actor.go.release()
        assert self._back.acquire(timeout=REAL_LIMIT_S), f"{actor.name} hangs"
        if actor.error is not None and actor.name not in self.tolerated:
            raise actor.error

    def _life(self, actor: Actor) -> None:
        try:
            actor.work()
        except Stopped:
            return
        except InjectedCrash:
            actor.crashed = True
        except BaseException as error:
            actor.error = error
        actor.done = self._moved = True
        self._back.release()

    def _let_time_pass(self) -> None:
        waiting = [actor for actor in self._actors.values() if not actor.done]
        if not waiting:
            return
        soonest = min(actor.wakes_s for actor in waiting)
        assert soonest < self._limit_s, f"nothing happens any more at {self.now_s:.1f} s: {[a.name for a in waiting]}"
        self.now_s = max(self.now_s, soonest)
        time.sleep(PACE_S)


class WorldClient:
    """A ``ClientEnd`` whose waits are the world's."""

    def __init__(self, world: World, end: ClientEnd) -> None:
        self._world, self._end = world, end

    @property
    def reconnected(self) -> bool:
        return self._end.reconnected

    @reconnected.setter
    def reconnected(self, value: bool) -> None:
        self._end.reconnected = value

    @property
    def up_bytes(self) -> int:
        return self._end.up_bytes

    @up_bytes.setter
    def up_bytes(self, value: int) -> None:
        self._end.up_bytes = value

    @property
    def down_bytes(self) -> int:
        return self._end.down_bytes

    @down_bytes.setter
    def down_bytes(self, value: int) -> None:
        self._end.down_bytes = value

    @property
    def down_s(self) -> float:
        return self._end.down_s

    def send(self, message: Message, tensors: Tensors | None = None) -> int:
        self._world.progress()
        return self._end.send(message, tensors)

    def receive(self, timeout_s: float) -> Packet | None:
        deadline_s = self._world.now_s + timeout_s
        while True:
            packet = self._end.receive(0.0)
            if packet is not None or self._end.reconnected:
                self._world.progress()
                return packet
            if self._world.now_s >= deadline_s:
                return None
            self._world.wait(deadline_s)

    def wait(self, timeout_s: float) -> bool:
        return self._end.wait(0.0)

    def close(self) -> None:
        self._end.close()


class WorldServer:
    """A ``ServerEnd`` whose waits are the world's."""

    def __init__(self, world: World, end: ServerEnd) -> None:
        self._world, self._end = world, end

    @property
    def address(self) -> tuple[str, int]:
        return self._end.address

    def send(self, identity: bytes, message: Message, tensors: Tensors | None = None) -> int:
        self._world.progress()
        return self._end.send(identity, message, tensors)

    def receive(self, timeout_s: float) -> Incoming | None:
        deadline_s = self._world.now_s + timeout_s
        while True:
            incoming = self._end.receive(0.0)
            if incoming is not None:
                self._world.progress()
                return incoming
            if self._world.now_s >= deadline_s:
                return None
            self._world.wait(deadline_s)

    def close(self) -> None:
        self._end.close()
