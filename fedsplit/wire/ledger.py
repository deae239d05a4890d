"""Exactly once: a request that comes again gets the reply that was given, never a second execution.

A client whose connection broke does not know whether its request arrived, so it repeats it; (round, era, step, micro,
attempt) and the kind tell that it is the same one. Replies are kept within a byte budget, oldest dropped first, and
those of earlier steps as soon as a later step begins. What was dropped is still known to have been answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from fedsplit.errors import RemoteProtocolError
from fedsplit.wire.frames import Packet
from fedsplit.wire.messages import (
    Abort,
    Backward,
    Commit,
    Exchange,
    Forward,
    Grad,
    Hidden,
    Message,
    Missing,
    Prepare,
    Received,
    Update,
)
from fedsplit.wire.tensors import WireTensor


class Standing(Enum):
    """What the ledger knows of a request."""

    FRESH = "fresh"
    """Never seen: execute it, then tell the ledger the reply."""
    PENDING = "pending"
    """Being executed: the reply will come, do nothing."""
    ANSWERED = "answered"
    """Send the stored reply again."""
    GONE = "gone"
    """Answered, but the reply was dropped: Missing for a Forward, Abort for what changed state."""


@dataclass(frozen=True)
class Found:
    """``reply`` is there when ``standing`` is ANSWERED."""

    standing: Standing
    reply: Packet | None = None


_Key = tuple[str, int, int, int, int, int]
"""(kind, round, era, step, micro, attempt)"""
_LAST_STEP = 1 << 62
_FOUND = {standing: Found(standing) for standing in Standing}


@dataclass
class _Entry:
    request: Message
    reply: Packet | None = None
    nbytes: int = 0
    gone: bool = False


@dataclass
class _Book:
    """One client's requests of its current step; ``at`` is (round, era, step)."""

    at: tuple[int, int, int] = (-1, -1, -1)
    entries: dict[_Key, _Entry] = field(default_factory=dict)
    aborted: Packet | None = None


class Ledger:
    """The server's memory of what it has answered, for all clients. Replies share their tensors' memory."""

    def __init__(self, budget_bytes: int = 256 << 20) -> None:
        self.budget_bytes = budget_bytes
        self.stored_bytes = 0
        self._books: dict[str, _Book] = {}
        self._oldest: dict[tuple[str, _Key], _Entry] = {}

    def ask(self, client: str, request: Message) -> Found:
        """Note a request, and say whether it is new.

        :raises RemoteProtocolError: a request with the key of another one but other contents.
        """
        if isinstance(request, Forward) and not request.train:
            return _FOUND[Standing.FRESH]  # changes nothing, so it may be executed again
        at, key = _place(request), _key(request)
        book = self._books.setdefault(client, _Book())
        if at < book.at:
            return _FOUND[Standing.GONE]
        if at > book.at:
            self.forget(client)
            book = self._books[client] = _Book(at)
        if book.aborted is not None:
            return Found(Standing.ANSWERED, book.aborted)
        entry = book.entries.get(key)
        if entry is None:
            book.entries[key] = _Entry(request)
            return _FOUND[Standing.FRESH]
        if entry.request != request:
            raise RemoteProtocolError(
                f"{client} repeated {key[0]} of step {key[3]} micro-batch {key[4]} attempt {key[5]} with other contents"
            )
        if entry.reply is not None:
            return Found(Standing.ANSWERED, entry.reply)
        return _FOUND[Standing.GONE if entry.gone else Standing.PENDING]

    def answer(self, client: str, reply: Message, tensors: Mapping[str, WireTensor] | None = None) -> None:
        """Note the reply to an earlier request; other messages are ignored. Its tensors must stay unchanged."""
        book = self._books.get(client)
        if book is None:
            return
        packet = Packet(reply, tensors or {})
        if isinstance(reply, Abort) and _place(reply) == book.at:
            self.forget(client)
            self._books[client] = _Book(book.at, aborted=packet)
            return
        for key in _answered_by(reply, book.at):
            entry = book.entries.get(key)
            if entry is not None and entry.reply is None and not entry.gone:
                self._store((client, key), entry, packet)
                return

    def forget(self, client: str) -> None:
        """Drop everything about ``client``: it left, or a new round begins."""
        book = self._books.pop(client, None)
        for key, entry in book.entries.items() if book else ():
            if self._oldest.pop((client, key), None) is not None:
                self.stored_bytes -= entry.nbytes

    def _store(self, owner: tuple[str, _Key], entry: _Entry, packet: Packet) -> None:
        nbytes = sum(tensor.nbytes for tensor in packet.tensors.values())
        if nbytes > self.budget_bytes:
            entry.gone = True
            return
        entry.reply, entry.nbytes = packet, nbytes
        if not nbytes:
            return  # costs nothing, so it is never dropped for room
        self.stored_bytes += nbytes
        self._oldest[owner] = entry
        while self.stored_bytes > self.budget_bytes:
            oldest = self._oldest.pop(next(iter(self._oldest)))
            oldest.reply, oldest.gone = None, True
            self.stored_bytes -= oldest.nbytes


def _place(message: Message) -> tuple[int, int, int]:
    if isinstance(message, Exchange):
        return (message.round, message.era, message.step)
    assert isinstance(message, Update)
    return (message.round, message.era, _LAST_STEP)


def _key(request: Message) -> _Key:
    match request:
        case Forward() | Backward():
            kind = "forward" if isinstance(request, Forward) else "backward"
            return (kind, request.round, request.era, request.step, request.micro, request.attempt)
        case Prepare():
            return ("prepare", request.round, request.era, request.step, 0, 0)
        case Update():
            return ("update", request.round, request.era, _LAST_STEP, 0, 0)
    raise RemoteProtocolError(f"{type(request).__name__} is not a request")


def _answered_by(reply: Message, at: tuple[int, int, int]) -> list[_Key]:
    """Keys of the requests that ``reply`` can answer, the likelier first. ``at`` is where the client is."""
    match reply:
        case Hidden():
            kinds = ["forward"]
        case Grad() | Missing():
            kinds = ["backward", "forward"]
        case Commit():
            return [("prepare", reply.round, reply.era, reply.step, 0, 0)]
        case Received() if reply.round == at[0]:
            return [("update", *at, 0, 0)]
        case _:
            return []
    assert isinstance(reply, Exchange)
    return [(kind, reply.round, reply.era, reply.step, reply.micro, reply.attempt) for kind in kinds]
