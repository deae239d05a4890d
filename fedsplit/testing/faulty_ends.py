"""Both ends of a link, wrapped so that planned faults strike (``faults`` holds the plan).

Every action is defined once, for sending and for arriving, over the few things that an end can do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from fedsplit.errors import LinkError, RemoteProtocolError
from fedsplit.wire.ends import ClientEnd, Incoming, ServerEnd, Tensors
from fedsplit.wire.frames import Frame, Packet, decode, encode
from fedsplit.wire.messages import Message, Refuse

_Item = TypeVar("_Item")


class InjectedCrash(BaseException):
    """The wrapped process dies here. No ``Exception``, so that nothing on the way takes it for an ordinary error."""


class Planned(Protocol):
    """A fault that strikes: the part of ``faults.Fault`` that the ends need."""

    action: str
    seconds: float
    after: bool

    def die(self) -> None: ...


Strike = Callable[[Message, str], "Planned | None"]
"""(message, client's name) -> the fault that strikes now."""


class RawClientEnd(ClientEnd, Protocol):
    """A client end that also sends what is no packet."""

    def send_frames(self, frames: list[Frame]) -> int: ...


class RawServerEnd(ServerEnd, Protocol):
    """A server end that also sends what is no packet."""

    def send_frames(self, identity: bytes, frames: list[Frame]) -> int: ...


def damaged(message: Message, tensors: Tensors | None) -> list[Frame]:
    """The frames of a packet with one bit flipped, in its last tensor, else in its header."""
    frames: list[Frame] = [bytes(frame) for frame in encode(message, tensors)]
    which = max(i for i, frame in enumerate(frames) if len(frame))
    flipped = bytearray(frames[which])
    flipped[len(flipped) // 2] ^= 0x10
    frames[which] = bytes(flipped)
    return frames


class _Late:
    """What is held back until its time has come."""

    def __init__(self) -> None:
        self._held: list[tuple[float, Callable[[], object]]] = []

    def hold(self, seconds: float, release: Callable[[], object]) -> None:
        self._held.append((time.monotonic() + seconds, release))

    def release(self) -> None:
        now = time.monotonic()
        due = [release for at, release in self._held if at <= now]
        self._held = [(at, release) for at, release in self._held if at > now]
        for release in due:
            with suppress(LinkError):  # late and the connection is gone: lost
                release()

    def wake_at(self, deadline: float) -> float:
        """When to look again: at the deadline or when the next one is due."""
        return min([deadline, *(at for at, _ in self._held)])

    def leave(self, fault: Planned | None, send: Callable[[], int], damage: Callable[[], int]) -> int:
        """Send under a fault; bytes that left now."""
        match fault.action if fault else "":
            case "drop":
                return 0
            case "duplicate":
                return send() + send()
            case "delay":
                assert fault
                self.hold(fault.seconds, send)
                return 0
            case "corrupt":
                return damage()
            case "crash":
                assert fault
                if not fault.after:
                    fault.die()
                sent = send()
                if fault.after:
                    fault.die()
                return sent
        return send()

    def arrive(self, fault: Planned | None, item: _Item, inbox: list[_Item]) -> None:
        """Hand ``item`` over under a fault other than damage."""
        match fault.action if fault else "":
            case "drop":
                return
            case "duplicate":
                inbox += [item, item]
                return
            case "delay":
                assert fault
                self.hold(fault.seconds, lambda: inbox.append(item))
                return
            case "crash":
                assert fault
                if not fault.after:
                    fault.die()
                self.hold(0.0, fault.die)
        inbox.append(item)


class FaultyClient:
    """A ``ClientEnd`` under faults."""

    def __init__(self, end: RawClientEnd, strike: Strike, name: str) -> None:
        self._end, self._strike, self._name = end, strike, name
        self._late = _Late()
        self._inbox: list[Packet] = []

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
        """As the wrapped end, unless a fault strikes."""
        self._late.release()
        fault = self._strike(message, self._name)
        return self._late.leave(
            fault,
            lambda: self._end.send(message, tensors),
            lambda: self._end.send_frames(damaged(message, tensors)),
        )

    def send_frames(self, frames: list[Frame]) -> int:
        """Past all faults."""
        return self._end.send_frames(frames)

    def receive(self, timeout_s: float) -> Packet | None:
        """As the wrapped end, unless a fault strikes."""
        deadline = time.monotonic() + timeout_s
        self._late.release()
        while not self._inbox:
            wake_at = self._late.wake_at(deadline)
            packet = self._end.receive(max(0.0, wake_at - time.monotonic()))
            if packet is not None:
                fault = self._strike(packet.message, self._name)
                if fault and fault.action == "corrupt":
                    return decode(damaged(packet.message, packet.tensors))
                self._late.arrive(fault, packet, self._inbox)
            elif time.monotonic() < wake_at or wake_at == deadline:
                return None  # news of the connection, or the time is up
            else:
                self._late.release()
        return self._inbox.pop(0)

    def wait(self, timeout_s: float) -> bool:
        return self._end.wait(timeout_s)

    def close(self) -> None:
        self._end.close()


class FaultyServer:
    """A ``ServerEnd`` under faults."""

    def __init__(self, end: RawServerEnd, strike: Strike) -> None:
        self._end, self._strike = end, strike
        self._late = _Late()
        self._inbox: list[Incoming] = []

    @property
    def address(self) -> tuple[str, int]:
        return self._end.address

    def send(self, identity: bytes, message: Message, tensors: Tensors | None = None) -> int:
        """As the wrapped end, unless a fault strikes."""
        self._late.release()
        return self._late.leave(
            self._strike(message, ""),
            lambda: self._end.send(identity, message, tensors),
            lambda: self._end.send_frames(identity, damaged(message, tensors)),
        )

    def send_frames(self, identity: bytes, frames: list[Frame]) -> int:
        """Past all faults."""
        return self._end.send_frames(identity, frames)

    def receive(self, timeout_s: float) -> Incoming | None:
        """As the wrapped end, unless a fault strikes."""
        deadline = time.monotonic() + timeout_s
        self._late.release()
        while not self._inbox:
            wake_at = self._late.wake_at(deadline)
            incoming = self._end.receive(max(0.0, wake_at - time.monotonic()))
            if incoming is not None:
                self._take(incoming)
            elif wake_at == deadline:
                return None
            else:
                self._late.release()
        return self._inbox.pop(0)

    def close(self) -> None:
        self._end.close()

    def _take(self, incoming: Incoming) -> None:
        message, tensors = incoming.packet.message, incoming.packet.tensors
        fault = self._strike(message, "")
        if fault is None or fault.action != "corrupt":
            self._late.arrive(fault, incoming, self._inbox)
            return
        try:
            decode(damaged(message, tensors))
        except RemoteProtocolError as error:
            # What a gateway does with a packet that is none.
            self._end.send(incoming.identity, Refuse(code="protocol", reason=str(error)))
