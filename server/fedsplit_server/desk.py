"""Serves the messages of the split step: forward, backward, prepare, commit. One desk is open for one round.

It owns no socket and no clock. ``handle`` takes one client's message and returns the messages to send, possibly to
several clients; what must wait for others is parked with the gate of the adapter mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from numpy.typing import NDArray

from fedsplit.config.run import RunFile
from fedsplit.errors import Lost, RemoteProtocolError
from fedsplit.exchange.coded import RAW, Codecs, encoded
from fedsplit.exchange.rate import clip_factor, learning_rate
from fedsplit.exchange.step import dropout_key
from fedsplit.lora.adapter import Adapter, Head, Sides
from fedsplit.lora.patch import Patch
from fedsplit.method.record import SERVER, ClientUpdate
from fedsplit.plan.given import scheduled
from fedsplit.split.engine import BackwardJob, Engine, ForwardJob, LossJob
from fedsplit.split.rows import Rows
from fedsplit.split.segment import Dropout
from fedsplit.split.stash import Key
from fedsplit.split.tensors import from_wire, to_wire
from fedsplit.train.batch import labels_from_wire
from fedsplit.train.copies import Copies, Held
from fedsplit.wire import Packet, Tensors, WireTensor
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
)
from fedsplit_server.content import WrongContent, check_content, read
from fedsplit_server.gates import Free, Gate, Parked, gate


@dataclass(frozen=True)
class Out:
    """One message on its way to a client."""

    name: str
    message: Message
    tensors: Mapping[str, WireTensor] = field(default_factory=dict)
    identity: bytes = b""
    """A connection that is no member's (yet), or its second one; empty: where the member's last hello came from."""


@dataclass(frozen=True)
class Seat:
    """What the desk knows of one client: its layers here, the factors that they start from, whether its front wants a
    gradient, its attempt (era)."""

    held: Held
    front_trains: bool
    labels_here: bool
    era: int = 0
    steps: int = 0
    """Of its round; 0: as many as the round has."""
    factors: Adapter = field(default_factory=dict, repr=False, compare=False)
    codecs: Codecs = RAW


@dataclass(frozen=True)
class Opened:
    """The round that the desk serves."""

    round: int
    steps: int
    base_version: int
    adapter_version: int
    trains: Sides = "AB"
    patch: Patch = field(default_factory=dict, repr=False, compare=False)
    """What rounds have folded into the base."""


class Desk:
    """Runs the body for all clients of one round."""

    def __init__(self, engine: Engine, copies: Copies, run: RunFile) -> None:
        self._engine, self._copies, self._run = engine, copies, run
        self._seats: dict[str, Seat] = {}
        self._parked: list[Parked] = []
        self._gate: Gate = Free()
        self._tokens: dict[str, int] = {}
        self._last: dict[str, Exchange] = {}
        self._sizes: dict[tuple[str, int, int], int] = {}
        """Tokens of a forward, by client, step and micro-batch: its gradient has as many."""
        self._opened: Opened | None = None

    def open(self, opened: Opened, common: Adapter, head: Head, seats: Mapping[str, Seat]) -> None:
        """Start a round (again): what was kept of any earlier one is freed. ``common``: for a copy that all share."""
        self.close()
        self._opened, self._seats = opened, dict(seats)
        self._gate = gate(self._run.server.adapters, sorted(seats))
        own = {name: seat.factors for name, seat in seats.items()}
        members = {name: seat.held for name, seat in seats.items()}
        self._copies.open_round(common, head, members, own, trains=opened.trains, patch=opened.patch)

    def rejoin(self, name: str, seat: Seat, head: Head) -> None:
        """One client starts the open round from the beginning; only where it trains a copy of its own."""
        assert not self._copies.shared
        self.leave(name)
        self._seats[name] = seat
        self._copies.reopen(name, seat.factors, head, seat.held)

    def close(self) -> None:
        for name in list(self._seats):
            self._engine.forget(name)
        self._seats, self._parked, self._tokens, self._last, self._opened = {}, [], {}, {}, None
        self._sizes = {}

    def leave(self, name: str) -> list[Out]:
        """A client is gone: free its graphs, drop its open step, let the others go on."""
        if name not in self._seats:
            return []
        self._forget(name)
        self._parked = [item for item in self._parked if item.name != name]
        # A copy taken in turn holds the gradients of whoever has the turn, which need not be this client.
        if self._tokens.pop(name, None) is not None:
            self._copies.drop([name])
        del self._seats[name]
        return (self._abort_all(f"{name} left") if self._gate.leave(name) else []) + self._drain()

    def handle(self, name: str, packet: Packet) -> list[Out]:
        """Serve one step message of a seated client.

        :raises RemoteProtocolError: the message belongs to another round, era, adapter or cut.
        """
        message = packet.message
        assert isinstance(message, Exchange)
        packet = self._checked(name, packet)
        self._last[name] = message
        if isinstance(message, Forward):
            self._sizes[name, message.step, message.micro] = sum(message.lengths)
        self._parked.append(Parked(name, packet))
        return self._drain()

    def complete(self, name: str, update: ClientUpdate, *, split: bool) -> ClientUpdate:
        """A client's update with what the server trained for it, taken when it arrives: later the client may be lost.

        :raises RemoteProtocolError: the server's half was dropped since.
        """
        if split and name not in self._seats:
            raise RemoteProtocolError(f"the steps of {name} were dropped when it was lost")
        if not split or self._copies.shared:
            return update
        adapter, head = self._copies.collect(name)
        whole, there = {**update.adapter, **adapter}, frozenset(adapter)
        return replace(update, adapter=whole, head={**update.head, **head}, at_server=there)

    def common(self) -> list[ClientUpdate]:
        """The shared copy as an update of its own; none where every client has its own, or nobody moved it."""
        found = self._copies.collect_common()
        if found is None:
            return []
        adapter, head, examples = found
        return [
            ClientUpdate(
                client=SERVER,
                examples=examples,
                base_version=self._opened.base_version if self._opened else 0,
                adapter=adapter,
                head=head,
                stands_for=max(1, len(self._seats)),
            )
        ]

    def keep(self) -> dict[str, NDArray[Any]]:
        """The round is committed: what the shared copy's optimiser starts the next one from, for the checkpoint."""
        return self._copies.keep()

    def waits_for(self) -> tuple[str, ...]:
        """Whom the parked messages wait for."""
        return self._gate.waits_for(self._parked)

    def _checked(self, name: str, packet: Packet) -> Packet:
        """The packet with its tensors decoded."""
        opened, seat = self._opened, self._seats.get(name)
        message = packet.message
        assert isinstance(message, Exchange)
        if opened is None or seat is None:
            raise RemoteProtocolError(f"{name} sent {type(message).__name__} but no round is open for it")
        found = (message.round, message.era, message.base_version, message.adapter_version, tuple(message.cut))
        wanted = (
            opened.round,
            seat.era,
            opened.base_version,
            opened.adapter_version,
            (seat.held.lo, seat.held.hi),
        )
        if found != wanted:
            names = "round, era, base version, adapter version, cut"
            raise RemoteProtocolError(f"{name} is at ({names}) = {found}, the server at {wanted}; join again")
        base = self._engine.segment.base
        packet = read(seat.codecs, packet, base)
        check_content(message, packet.tensors, self._run.model, base, labels_here=seat.labels_here)
        tokens = self._sizes.get((name, message.step, message.micro))
        # A forward that is not known answers Missing, as one whose graph was dropped.
        if isinstance(message, Backward) and tokens is not None and packet.tensors["g"].shape[0] != tokens:
            raise WrongContent(
                f"tensor 'g': found {packet.tensors['g'].shape[0]} tokens, expected {tokens} as in its forward"
            )
        return packet

    def _forget(self, name: str) -> None:
        """Nothing of a client's open step is kept."""
        self._engine.forget(name)
        self._sizes = {place: tokens for place, tokens in self._sizes.items() if place[0] != name}

    def _drain(self) -> list[Out]:
        outs: list[Out] = []
        while group := self._gate.next(self._parked):
            for item in group:
                self._parked.remove(item)
            outs += self._serve(group)
        return outs

    def _serve(self, group: Sequence[Parked]) -> list[Out]:
        match group[0].message:
            case Forward():
                return self._forward(group)
            case Backward():
                return [self._backward(item) for item in group]
            case Prepare():
                return self._prepare(group)
            case other:
                raise RemoteProtocolError(f"{type(other).__name__} is not for the server")

    # ---- forward -----------------------------------------------------------------------------------------------------

    def _forward(self, group: Sequence[Parked]) -> list[Out]:
        tokens = sum(as_forward(item).label_tokens for item in group)
        for item in group:
            if as_forward(item).micro == 0 or item.name not in self._tokens:
                self._tokens[item.name] = tokens
        plain = [item for item in group if not self._seats[item.name].labels_here]
        hidden = self._engine.forward([self._job(item) for item in plain])
        outs = [self._hidden(item, h_ND) for item, h_ND in zip(plain, hidden, strict=True)]
        return outs + [self._loss(item) for item in group if self._seats[item.name].labels_here]

    def _hidden(self, item: Parked, h_ND: torch.Tensor) -> Out:
        reply = Hidden(**where(item.message), label_tokens=self._tokens[item.name])
        return self._out(item.name, reply, {"h": to_wire(h_ND)})

    def _loss(self, item: Parked) -> Out:
        sent = from_wire(item.packet.tensors["labels"], self._engine.device)
        labels = labels_from_wire(self._run.model.task, sent, rows_of(as_forward(item)))
        job = LossJob(**self._fields(item), labels=labels, label_tokens=self._tokens[item.name])
        [result] = self._engine.loss([job])
        tensors = {} if result.g_ND is None else {"g": to_wire(result.g_ND)}
        reply = Grad(**where(item.message), loss=result.loss, label_tokens=job.label_tokens)
        return self._out(item.name, reply, tensors)

    def _job(self, item: Parked) -> ForwardJob:
        return ForwardJob(**self._fields(item))

    def _fields(self, item: Parked) -> dict[str, Any]:
        message, seat = as_forward(item), self._seats[item.name]
        at = self._global_step(item.name, message.step)
        return {
            "key": key(item.name, message),
            "rows": rows_of(message),
            "h_ND": from_wire(item.packet.tensors["h"], self._engine.device),
            "layers": (seat.held.lo, seat.held.hi),
            "params": self._copies.leaves(item.name),
            "attempt": message.attempt,
            "needs_grad": seat.front_trains,
            "dropout": Dropout(dropout_key(self._run.run.seed, item.name, at, message.micro)),
        }

    # ---- backward ----------------------------------------------------------------------------------------------------

    def _backward(self, item: Parked) -> Out:
        g_ND = from_wire(item.packet.tensors["g"], self._engine.device)
        job = BackwardJob(key=key(item.name, item.message), g_ND=g_ND, attempt=item.message.attempt)
        try:
            [g1_ND] = self._engine.backward([job])
        except Lost as lost:
            return Out(item.name, Missing(**where(item.message), reason=str(lost)))
        return self._out(item.name, Grad(**where(item.message)), {} if g1_ND is None else {"g": to_wire(g1_ND)})

    def _out(self, name: str, reply: Exchange, tensors: Tensors) -> Out:
        """A reply whose tensors travel as the client's plan says."""
        return Out(name, reply, encoded(self._seats[name].codecs, reply, tensors, self._run.run.seed))

    # ---- prepare and commit ------------------------------------------------------------------------------------------

    def _prepare(self, group: Sequence[Parked]) -> list[Out]:
        names = [item.name for item in group]
        prepares = [as_prepare(item) for item in group]
        if not (all(message.finite for message in prepares) and self._copies.finite(names)):
            self._copies.drop(names)
            outs = [Out(item.name, Abort(**where(item.message), reason="non-finite gradient")) for item in group]
        else:
            squares = [*self._copies.squares(names), *(s for message in prepares for s in message.squares)]
            clip, rate = clip_factor(squares, self._run.train.clip), self._rate(names[0], prepares[0].step)
            self._copies.commit(names, sum(message.examples for message in prepares), clip, rate)
            outs = [Out(item.name, Commit(**where(item.message), clip=clip, rate=rate)) for item in group]
        self._closed(names, prepares[0].step)
        return outs

    def _closed(self, names: Sequence[str], step: int) -> None:
        assert self._opened is not None
        self._gate.closed(names)
        for name in names:
            self._tokens.pop(name, None)
            self._forget(name)
            if step + 1 >= self._steps(name):
                self._gate.leave(name)

    def _rate(self, name: str, step: int) -> float:
        """Of clients that step together, who all take as many steps."""
        assert self._opened is not None
        train = self._run.train
        at = scheduled(self._opened.round, step, self._steps(name), train.steps)
        return learning_rate(train, at, train.rounds * train.steps)

    def _global_step(self, name: str, step: int) -> int:
        """Counted over all rounds, as the client does."""
        assert self._opened is not None
        return self._opened.round * self._steps(name) + step

    def _steps(self, name: str) -> int:
        assert self._opened is not None
        return self._seats[name].steps or self._opened.steps

    def _abort_all(self, reason: str) -> list[Out]:
        """The open step of a together-batch counted the tokens of a client that is gone: drop it for all."""
        names = sorted(name for name in self._tokens if name in self._seats)
        self._parked = [item for item in self._parked if item.name not in names]
        self._copies.drop(names)
        self._gate.closed(names)
        self._tokens = {}
        for name in names:
            self._forget(name)
        return [Out(name, Abort(**where(self._last[name]), reason=reason)) for name in names]


def where(message: Exchange) -> dict[str, Any]:
    """The fields that tie a reply to its request."""
    return {
        "run": message.run,
        "client": message.client,
        "round": message.round,
        "era": message.era,
        "step": message.step,
        "micro": message.micro,
        "attempt": message.attempt,
        "base_version": message.base_version,
        "adapter_version": message.adapter_version,
        "cut": message.cut,
    }


def as_forward(item: Parked) -> Forward:
    assert isinstance(item.message, Forward)
    return item.message


def as_prepare(item: Parked) -> Prepare:
    assert isinstance(item.message, Prepare)
    return item.message


def key(name: str, message: Exchange) -> Key:
    return (name, message.round, message.era, message.step, message.micro)


def rows_of(message: Forward) -> Rows:
    return Rows(None, tuple(message.lengths), tuple(message.starts), message.width)
