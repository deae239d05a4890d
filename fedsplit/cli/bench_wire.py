"""``fedsplit bench wire``: a tensor up and one down through the whole wire stack, beside a bare encrypted echo.

The stack is everything a training step pays for: session rules, checksums, frames, CURVE, the gateway's loop, the
ledger and the aligned copies. The bare echo is pyzmq alone: the same sockets, the same encryption, the same bytes sent
back untouched without copying. Two real server processes over TCP; exchanges alternate, medians are compared, because
on a shared machine only what happens in the same second can be compared.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import numpy as np
import zmq

from fedsplit.errors import LinkError
from fedsplit.wire import JoinLink, KeyPair, WireTensor
from fedsplit.wire import messages as m
from fedsplit.wire.ledger import Ledger, Standing
from fedsplit.wire.session import Role, Session
from fedsplit_client.dealer import Dealer
from fedsplit_client.keys import make_pair
from fedsplit_server.gateway import Gateway

WARM_UP = 3
PATIENCE_S = 60.0
_WIDTH = 125


def rows(*, sizes: str = "10000,100000,1000000,10000000", steps: int = 40) -> list[dict[str, Any]]:
    """Seconds to move a tensor of ``size_bytes`` up and one of the same size down, and the ratio to the bare echo.

    ``sizes``: bytes, separated by commas, multiples of 500. ``steps``: training steps a size, two exchanges each.
    """
    wanted = [int(size) for size in sizes.split(",")]
    with ExitStack() as stack:
        session = stack.enter_context(_stack_client())
        echo = stack.enter_context(_bare_client())
        return [_measure(size, steps, session, echo) for size in wanted]


def _measure(size: int, steps: int, stack: _StackClient, echo: Callable[[bytes], float]) -> dict[str, Any]:
    data = np.random.default_rng(size).standard_normal((size // 4 // _WIDTH, _WIDTH)).astype("<f4")
    raw, ours, bare = data.tobytes(), list[float](), list[float]()
    for step in range(steps + WARM_UP):
        seconds = stack.step(data)
        echoes = [echo(raw), echo(raw)]
        if step >= WARM_UP:
            ours += seconds
            bare += echoes
    return {
        "size_bytes": data.nbytes,
        "seconds": median(ours),
        "bare_seconds": median(bare),
        "ratio": median(ours) / median(bare),
    }


# ---- the whole stack -------------------------------------------------------------------------------------------------


class _StackClient:
    """Says what a client of topology ``u`` says in a step of one micro-batch."""

    def __init__(self, dealer: Dealer) -> None:
        self._dealer, self._session, self._step = dealer, Session(Role.CLIENT), 0
        self._ask(m.Hello(client="bench"))
        self._say(m.Accept())
        self._hear()

    def step(self, data: np.ndarray[Any, Any]) -> list[float]:
        """Forward and Backward with ``data``, then the commit; seconds of the first two."""
        where: dict[str, Any] = {"round": 0, "era": 0, "step": self._step}
        self._step += 1
        rows, tensor = len(data), WireTensor.of(data)
        forward = m.Forward(**where, lengths=(rows,), starts=(0,), width=rows, label_tokens=rows)
        begun = time.perf_counter()
        self._ask(forward, {"h": tensor})
        between = time.perf_counter()
        self._ask(m.Backward(**where), {"g": tensor})
        ended = time.perf_counter()
        self._ask(m.Prepare(**where, squares=(), finite=True, examples=1))
        return [between - begun, ended - between]

    def _ask(self, message: m.Message, tensors: dict[str, WireTensor] | None = None) -> None:
        self._say(message, tensors)
        self._hear()

    def _say(self, message: m.Message, tensors: dict[str, WireTensor] | None = None) -> None:
        self._session.sent(message)
        self._dealer.send(message, tensors)

    def _hear(self) -> None:
        packet = self._dealer.receive(PATIENCE_S)
        if packet is None:
            raise LinkError(f"the measuring server did not answer within {PATIENCE_S:.0f} s")
        self._session.received(packet.message)


@contextmanager
def _stack_client() -> Iterator[_StackClient]:
    with _server("stack") as (port, key), Dealer(JoinLink("127.0.0.1", port, key, bytes(16)), _pair()) as dealer:
        yield _StackClient(dealer)


def _serve_stack() -> None:
    pair, ledger, session = _pair(), Ledger(), Session(Role.SERVER)
    with Gateway("127.0.0.1", 0, pair) as gateway:
        _announce(gateway.address[1], pair)
        while True:
            incoming = gateway.receive(1.0)
            if incoming is None:
                continue
            request, tensors = incoming.packet.message, incoming.packet.tensors
            session.received(request)
            if isinstance(request, m.Exchange) and ledger.ask("bench", request).standing is not Standing.FRESH:
                continue
            reply = _reply(request)
            session.sent(reply)
            ledger.answer("bench", reply, tensors)
            gateway.send(incoming.identity, reply, tensors)


def _reply(request: m.Message) -> m.Message:
    match request:
        case m.Hello():
            return m.Welcome(run_file=b"", plan=b"", base="")
        case m.Accept():
            return m.Start(round=0, era=0, steps=1, first_step=0, base_version=0, adapter_version=0)
        case m.Forward():
            return m.Hidden(round=0, era=0, step=request.step, label_tokens=request.label_tokens)
        case m.Backward():
            return m.Grad(round=0, era=0, step=request.step)
    assert isinstance(request, m.Prepare)
    return m.Commit(round=0, era=0, step=request.step, clip=1.0, rate=1.0)


# ---- the bare echo ---------------------------------------------------------------------------------------------------


@contextmanager
def _bare_client() -> Iterator[Callable[[bytes], float]]:
    with _server("bare") as (port, key), zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        own = _pair()
        socket.linger = 0
        socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = key, own.public, own.secret
        socket.connect(f"tcp://127.0.0.1:{port}")

        def echo(raw: bytes) -> float:
            begun = time.perf_counter()
            socket.send(raw, copy=False)
            if not socket.poll(round(PATIENCE_S * 1000)):
                raise LinkError(f"the bare echo did not answer within {PATIENCE_S:.0f} s")
            socket.recv(copy=False)
            return time.perf_counter() - begun

        yield echo


def _serve_bare() -> None:
    pair = _pair()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.curve_server, socket.curve_secretkey = 1, pair.secret
        _announce(socket.bind_to_random_port("tcp://127.0.0.1"), pair)
        while True:
            socket.send_multipart(socket.recv_multipart(copy=False), copy=False)


# ---- processes -------------------------------------------------------------------------------------------------------


@contextmanager
def _server(kind: str) -> Iterator[tuple[int, bytes]]:
    """A server process; yields its port and public key."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "fedsplit.cli.bench_wire", kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True) as process:
        try:
            assert process.stdout
            words = process.stdout.readline().split()
            if len(words) != 2:
                raise LinkError(f"the measuring server ({kind}) did not start; its own message is above")
            yield int(words[0]), bytes.fromhex(words[1])
        finally:
            process.kill()


def _announce(port: int, pair: KeyPair) -> None:
    print(port, pair.public.hex(), flush=True)


def _pair() -> KeyPair:
    return KeyPair(*make_pair())


if __name__ == "__main__":
    {"stack": _serve_stack, "bare": _serve_bare}[sys.argv[1]]()
