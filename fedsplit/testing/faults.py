"""Faults on purpose: packets lost, doubled, late or damaged, and processes that die, at a named message.

    faults = Faults().drop("backward", client="pi", step=3).crash("prepare", step=7)
    dealer = faults.client(dealer, "pi")
    ...
    faults.check()  # every fault must have happened, else the test proves nothing

Wraps either end of a link, real or in memory; a fault strikes where the message is sent or where it is received,
whichever end is wrapped. Conditions are fields of the message (``step=3``) and ``client``. Each fault strikes once
unless ``times`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from fedsplit.testing.faulty_ends import FaultyClient, FaultyServer, InjectedCrash, RawClientEnd, RawServerEnd
from fedsplit.wire.messages import Message, kind_of

__all__ = ["Fault", "Faults", "Fired", "InjectedCrash"]


@dataclass
class Fault:
    """One planned fault. ``done`` counts how often it has struck."""

    action: str
    kind: str
    where: dict[str, object]
    times: int = 1
    seconds: float = 0.0
    after: bool = False
    act: Callable[[], None] | None = None
    done: int = 0

    def matches(self, message: Message, client: str) -> bool:
        """Whether it strikes ``message`` of the conversation with ``client``."""
        if self.done >= self.times or kind_of(message) != self.kind:
            return False
        found = {"client": message.client or client}
        return all(found.get(name, getattr(message, name, None)) == value for name, value in self.where.items())

    def die(self) -> None:
        """What a crash does."""
        if self.act is None:
            raise InjectedCrash(str(self))
        self.act()

    def __str__(self) -> str:
        where = "".join(f", {name}={value!r}" for name, value in self.where.items())
        return f"{self.action}({self.kind!r}{where})"


@dataclass(frozen=True)
class Fired:
    """A fault that happened."""

    action: str
    message: Message


@dataclass
class Faults:
    """A plan of faults, and the record of those that happened. One plan may serve several ends and threads."""

    plan: list[Fault] = field(default_factory=list)
    fired: list[Fired] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def drop(self, kind: str, *, times: int = 1, **where: object) -> Faults:
        """The packet never arrives."""
        return self._add(Fault("drop", kind, where, times))

    def duplicate(self, kind: str, *, times: int = 1, **where: object) -> Faults:
        """The packet arrives twice."""
        return self._add(Fault("duplicate", kind, where, times))

    def delay(self, kind: str, *, seconds: float = 0.05, times: int = 1, **where: object) -> Faults:
        """The packet arrives ``seconds`` later, possibly after later ones. Needs an owner that keeps on receiving."""
        return self._add(Fault("delay", kind, where, times, seconds))

    def corrupt(self, kind: str, *, times: int = 1, **where: object) -> Faults:
        """One bit of the packet is flipped on the way, in its last tensor, else in its header."""
        return self._add(Fault("corrupt", kind, where, times))

    def crash(
        self,
        kind: str,
        *,
        after: bool = False,
        act: Callable[[], None] | None = None,
        times: int = 1,
        **where: object,
    ) -> Faults:
        """Die before (``after``: after) the packet is sent or handed over. ``act`` replaces raising InjectedCrash."""
        return self._add(Fault("crash", kind, where, times, after=after, act=act))

    def client(self, end: RawClientEnd, name: str = "") -> FaultyClient:
        """``end`` under these faults; ``name`` is the client for messages that do not say theirs."""
        return FaultyClient(end, self.strike, name)

    def server(self, end: RawServerEnd) -> FaultyServer:
        """``end`` under these faults."""
        return FaultyServer(end, self.strike)

    def check(self) -> None:
        """:raises AssertionError: a planned fault has not happened (as often as planned)."""
        left = [
            f"{fault} happened {fault.done} of {fault.times} times" for fault in self.plan if fault.done < fault.times
        ]
        assert not left, "; ".join(left)

    def strike(self, message: Message, client: str) -> Fault | None:
        """The fault that strikes ``message`` now, recorded."""
        with self._lock:
            for fault in self.plan:
                if fault.matches(message, client):
                    fault.done += 1
                    self.fired.append(Fired(fault.action, message))
                    return fault
        return None

    def _add(self, fault: Fault) -> Faults:
        self.plan.append(fault)
        return self
