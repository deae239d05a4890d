"""Session, ledger, links and faults together: whatever one packet suffers, both sides end with the same numbers.

A miniature run: two steps of two micro-batches, one update. The server adds up what it was sent, so a request that is
executed twice or lost shows in the sum.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
import pytest

from fedsplit.errors import RemoteProtocolError
from fedsplit.testing.faults import Faults
from fedsplit.wire import ClientEnd, Packet, ServerEnd, WireTensor
from fedsplit.wire import messages as m
from fedsplit.wire.ledger import Ledger, Standing
from fedsplit.wire.session import Role, Session, Verdict
from tests.waiting import LIMIT_S

STEPS, MICROS, RETRY_S = 2, 2, 0.05


def tensor(value: float) -> WireTensor:
    return WireTensor.of(np.full((2, 3), value, "<f4"))


def where(message: m.Exchange) -> dict[str, int]:
    return {name: getattr(message, name) for name in ("round", "era", "step", "micro", "attempt")}


class MiniServer:
    """Answers requests once; what it did is counted."""

    def __init__(self, end: ServerEnd, ledger: Ledger) -> None:
        self.end, self.ledger, self.session = end, ledger, Session(Role.SERVER)
        self.executed: Counter[tuple[str, int, int, int]] = Counter()
        self.gradients: dict[tuple[int, int], float] = {}
        self.weight = 0.0

    def turn(self) -> None:
        """Handle what has arrived."""
        while (incoming := self.end.receive(0.002)) is not None:
            message = incoming.packet.message
            if self.session.received(message) is Verdict.STALE:
                continue
            reply = self._reply(message, incoming.packet)
            if reply is not None:
                self.session.sent(reply.message)
                self.end.send(incoming.identity, reply.message, reply.tensors)

    def _reply(self, message: m.Message, packet: Packet) -> Packet | None:
        match message:
            case m.Hello():
                return Packet(m.Welcome(run_file=b"", plan=b"", base=""))
            case m.Accept():
                return Packet(m.Start(round=0, era=0, steps=STEPS, first_step=0, base_version=0, adapter_version=0))
            case m.Exchange() | m.Update():
                return self._once(message, packet)
        return None

    def _once(self, message: m.Message, packet: Packet) -> Packet | None:
        found = self.ledger.ask("pi", message)
        match found.standing:
            case Standing.FRESH:
                reply = self._execute(message, packet)
                self.ledger.answer("pi", reply.message, reply.tensors)
                return reply
            case Standing.GONE if isinstance(message, m.Forward):
                return Packet(m.Missing(**where(message)))
            case Standing.GONE if isinstance(message, m.Backward):
                # Its gradient is counted already, so a second one cannot be made: the step is dropped on both sides.
                self.gradients = {place: g for place, g in self.gradients.items() if place[0] != message.step}
                abort = m.Abort(**where(message), reason="the reply was dropped for room")
                self.ledger.answer("pi", abort)
                return Packet(abort)
        return found.reply

    def _execute(self, message: m.Message, packet: Packet) -> Packet:
        if isinstance(message, m.Update):
            self.executed["update", 0, 0, 0] += 1
            return Packet(m.Received(round=0))
        assert isinstance(message, m.Exchange)
        self.executed[m.kind_of(message), message.step, message.micro, message.attempt] += 1
        match message:
            case m.Forward():
                hidden = m.Hidden(**where(message), label_tokens=1)
                return Packet(hidden, {"h": tensor(2 * float(packet.tensors["h"].data[0, 0]))})
            case m.Backward():
                self.gradients[message.step, message.micro] = float(packet.tensors["g"].data[0, 0])
                return Packet(m.Grad(**where(message)), {"g": packet.tensors["g"]})
        assert isinstance(message, m.Prepare)
        self.weight = 0.5 * self.weight + sum(g for (step, _), g in self.gradients.items() if step == message.step)
        return Packet(m.Commit(**where(message), clip=1.0, rate=1.0))


class MiniClient:
    """Repeats what stays unanswered, once a packet has suffered; acts on fresh answers only."""

    def __init__(self, end: ClientEnd, server: MiniServer, faults: Faults) -> None:
        self.end, self.server, self.session, self._faults = end, server, Session(Role.CLIENT), faults
        self.weight = 0.0
        self._open: dict[tuple[str, int], tuple[m.Message, dict[str, WireTensor]]] = {}
        self._grads: list[float] = []

    def run(self) -> None:
        self._ask("hello", m.Hello(client="pi"))
        self._until("start")
        for step in range(STEPS):
            self._step(step)
        self._ask("update", m.Update(round=0, era=0, base_version=0, examples=1, steps=STEPS))
        self._until("received")

    def _step(self, step: int) -> None:
        self._grads = []
        for micro in range(MICROS):
            self._forward(step, micro)
        while len(self._grads) < MICROS:
            if isinstance(self._hear(), m.Abort):
                return
        self._ask("prepare", m.Prepare(round=0, era=0, step=step, squares=(), finite=True, examples=1))
        self._until("commit")
        self.weight = 0.5 * self.weight + sum(self._grads)

    def _forward(self, step: int, micro: int, attempt: int = 0) -> None:
        message = m.Forward(
            round=0,
            era=0,
            step=step,
            micro=micro,
            attempt=attempt,
            lengths=(2,),
            starts=(0,),
            width=2,
            label_tokens=1,
            micros=MICROS,
        )
        self._ask("exchange", message, {"h": tensor(10 * step + micro + 1)})

    def _until(self, kind: str) -> None:
        while m.kind_of(self._hear()) != kind:
            pass

    def _ask(self, what: str, message: m.Message, tensors: dict[str, WireTensor] | None = None) -> None:
        key = (what, getattr(message, "micro", 0))
        self._open[key] = (message, tensors or {})
        self.session.sent(message)
        self.end.send(message, tensors)

    def _hear(self) -> m.Message:
        """The next fresh message, with the reaction to it done."""
        give_up, retry = time.monotonic() + LIMIT_S, time.monotonic() + RETRY_S
        while time.monotonic() < give_up:
            self.server.turn()
            packet = self._receive()
            if packet is not None and self.session.received(packet.message) is Verdict.FRESH:
                self._react(packet)
                return packet.message
            # Before that an answer is only late: this machine is busy.
            if self._faults.fired and time.monotonic() > retry:
                retry = time.monotonic() + RETRY_S
                self._repeat()
        raise AssertionError(f"no answer; {self.session}")

    def _receive(self) -> Packet | None:
        try:
            return self.end.receive(0.002)
        except RemoteProtocolError:
            return None  # damaged on the way: as good as lost

    def _repeat(self) -> None:
        for message, tensors in list(self._open.values()):
            self.session.sent(message)
            self.end.send(message, tensors)

    def _react(self, packet: Packet) -> None:
        match packet.message:
            case m.Welcome():
                del self._open["hello", 0]
                self._ask("accept", m.Accept())
            case m.Start():
                self._open.pop(("accept", 0), None)
            case m.Hidden() as hidden:
                self._ask("exchange", m.Backward(**where(hidden)), {"g": packet.tensors["h"]})
            case m.Grad() as grad:
                del self._open["exchange", grad.micro]
                self._grads.append(float(packet.tensors["g"].data[0, 0]))
            case m.Missing() as missing:
                self._forward(missing.step, missing.micro, missing.attempt + 1)
            case m.Abort():
                self._open.clear()
            case m.Commit():
                del self._open["prepare", 0]
            case m.Received():
                del self._open["update", 0]


def run(ends: Any, faults: Faults, side: str, budget_bytes: int = 1 << 20) -> tuple[MiniClient, MiniServer]:
    server_end, dealer = ends
    client_end = dealer("pi")
    if side == "client":
        client_end = faults.client(client_end, "pi")
    else:
        server_end = faults.server(server_end)
    server = MiniServer(server_end, Ledger(budget_bytes))
    client = MiniClient(client_end, server, faults)
    client.run()
    faults.check()
    return client, server


# Step 0: micro-batches 1 and 2 come back doubled; step 1: 11 and 12.
EXPECTED = 0.5 * (2 + 4) + (22 + 24)
STEP_KINDS = ("forward", "hidden", "backward", "grad", "prepare", "commit", "update", "received")


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("action", ["drop", "duplicate", "delay", "corrupt"])
@pytest.mark.parametrize("kind", STEP_KINDS)
def test_one_packet_suffers_and_nothing_changes(memory: Any, kind: str, action: str, side: str) -> None:
    in_step = {"step": 1} if kind not in ("update", "received") else {}
    faults = getattr(Faults(), action)(kind, **in_step)
    client, server = run(memory, faults, side)
    assert client.weight == server.weight == EXPECTED
    assert set(server.executed.values()) == {1}
    assert len(server.executed) == STEPS * (2 * MICROS + 1) + 1


def test_without_faults(ends: Any) -> None:
    client, server = run(ends, Faults(), "client")
    assert client.weight == server.weight == EXPECTED


def test_a_forward_reply_that_was_dropped_for_room_is_made_anew(ends: Any) -> None:
    """Nothing fits into the ledger: the client is told Missing and repeats from Forward with the next attempt."""
    client, server = run(ends, Faults().drop("hidden", step=1, micro=1), "server", budget_bytes=1)
    assert client.weight == server.weight == EXPECTED
    assert server.executed["forward", 1, 1, 1] == 1


def test_a_gradient_that_was_dropped_for_room_costs_the_step_on_both_sides(ends: Any) -> None:
    client, server = run(ends, Faults().drop("grad", step=1, micro=1), "server", budget_bytes=1)
    assert client.weight == server.weight == 2 + 4
    assert server.executed["prepare", 1, 0, 0] == 0


@pytest.mark.parametrize("seed", range(4))
def test_many_packets_suffer(ends: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    faults = Faults()
    for _ in range(8):
        action = rng.choice(["drop", "duplicate", "delay", "corrupt"])
        getattr(faults, action)(str(rng.choice(STEP_KINDS[:6])), step=int(rng.integers(STEPS)))
    client, server = run(ends, faults, str(rng.choice(["client", "server"])))
    assert client.weight == server.weight == EXPECTED
    assert set(server.executed.values()) == {1}
