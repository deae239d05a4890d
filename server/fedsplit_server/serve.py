"""The operator's process: open the run, load the body, listen, and turn the coordinator's crank until it is done."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsplit.config.load import dumps
from fedsplit.config.run import RunFile
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import Closed, OutOfMemory, RemoteProtocolError, Timeout
from fedsplit.events import Emit, silent
from fedsplit.lora.adapter import digest
from fedsplit.method.registry import build as build_method
from fedsplit.plan.types import ClientPlan
from fedsplit.split.base import Base, open_base
from fedsplit.split.engine import Engine
from fedsplit.split.loader import tensors_for
from fedsplit.split.segment import Span, build
from fedsplit.state.rundir import RunDir
from fedsplit.train.copies import Copies
from fedsplit.train.exported import model_folder
from fedsplit.train.start import first_state
from fedsplit.wire import WireTensor
from fedsplit.wire.ends import Incoming, ServerEnd
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import Chunk, DataSummary, Fetch, Refuse
from fedsplit_server.admission import Admission
from fedsplit_server.assets import Assets
from fedsplit_server.coordinator import Coordinator
from fedsplit_server.desk import Desk, Out
from fedsplit_server.gateway import Gateway
from fedsplit_server.inference import Inference
from fedsplit_server.keeper import Keeper
from fedsplit_server.keys import load_keys
from fedsplit_server.planning import Planning
from fedsplit_server.roster import Roster
from fedsplit_server.validation import validation

TICK_S = 0.5


@dataclass(frozen=True)
class Served:
    """How a run ended. ``digest`` is that of the final adapter: equal digests mean equal bits."""

    folder: Path
    reason: str
    rounds: int
    metrics: dict[str, float]
    digest: str


def run_folder(run: RunFile) -> Path:
    """Where the run keeps its state: ``run.dir``, else ``runs/<name>`` in the working directory."""
    return Path(run.run.dir) if run.run.dir else Path("runs") / run.run.name


def serve(
    run: RunFile,
    *,
    device: str = "cpu",
    memory_bytes: int = 0,
    resume: bool = False,
    keep_open: bool = False,
    emit: Emit = silent,
    ready: Callable[[str], None] = lambda link: None,
) -> Served:
    """Host a run until it is done. ``ready`` gets the join line once the port is open.

    ``keep_open``: train nothing, answer ``fedsplit predict`` with the run's best adapter until interrupted.
    ``memory_bytes`` > 0 refuses a body that is larger, before anything is loaded.

    :raises ConfigError: the run file, the model or the folder is wrong. :raises LinkError: the port is taken.
    :raises OutOfMemory: the body does not fit. :raises Timeout: the clients did not come.
    """
    folder = RunDir(run_folder(run))
    with ExitStack() as stack:
        stack.enter_context(folder.lock())
        folder.begin(dumps(run), resume=resume)
        base = open_base(model_folder(run.model.path))
        engine = _engine(run, base, device, memory_bytes)
        keys = load_keys(folder.keys)
        gateway = stack.enter_context(
            Gateway(run.server.host, run.server.port, keys.pair if run.server.curve else None, emit=emit)
        )
        journal = stack.enter_context(folder.journal())
        method = build_method(run.method.name, run.method.options)
        validate = validation(run, base, device) if run.server_data.path else None
        keeper = Keeper(run, folder, journal, method, first_state(base, run), emit, validate)
        files = Assets(base, run.model, folder.path / "segments")
        # Above every era of an earlier start: replies to requests from before a crash are never taken for new ones.
        era = int(time.time()) << 12
        server = _Server(run, base, engine, keeper, files, gateway, keys.invite.hex(), emit, era, keep_open)
        host, port = gateway.address
        ready(str(keys.link(run.server.public_host or host, port) if run.server.curve else _open_link(host, port)))
        server.loop()
        state, metrics = keeper.best()
        return Served(folder.path, server.coordinator.reason, state.round, metrics, digest(state.adapter, state.head))


class _Server:
    """The loop between the gateway and the coordinator."""

    def __init__(
        self,
        run: RunFile,
        base: Base,
        engine: Engine,
        keeper: Keeper,
        files: Assets,
        gateway: ServerEnd,
        invite: str,
        emit: Emit,
        era: int,
        keep_open: bool,
    ) -> None:
        self._gateway, self._files, self._emit = gateway, files, emit
        self._roster = Roster()
        planning = Planning(run, base)

        def plan(name: str, profile: DeviceProfile, data: DataSummary, topology: str) -> ClientPlan:
            chosen = planning(name, profile, data, topology)
            keeper.planned(chosen)
            return chosen

        admission = Admission(run, base.identity, invite if run.server.curve else "", plan, files.of, self._roster)
        desk = Desk(engine, Copies(engine.segment, run.server.adapters, run.train), run)
        self.coordinator = Coordinator(
            run,
            keeper,
            admission,
            self._roster,
            desk,
            Inference(engine, run.model.task),
            base=base.identity,
            emit=emit,
            now=time.monotonic(),
            era=era,
            measured_before=keeper.measured_before,
            keep_open=keep_open,
        )

    def loop(self) -> None:
        """Until every client has its result, or none is left to wait for."""
        ticked = time.monotonic()
        while not self.coordinator.finished:
            incoming = self._gateway.receive(TICK_S)
            now = time.monotonic()
            if incoming is not None:
                self._deliver(self._answer(incoming, now), now)
            if now - ticked > TICK_S:
                ticked = now
                self._deliver(self.coordinator.tick(now), now)

    def _answer(self, incoming: Incoming, now: float) -> list[Out]:
        message = incoming.packet.message
        if isinstance(message, Fetch):
            return [self._chunk(incoming, message)]
        return self.coordinator.handle(incoming.identity, incoming.public_key, incoming.packet, now)

    def _chunk(self, incoming: Incoming, fetch: Fetch) -> Out:
        """Downloads come on a connection of their own: known by the client's key, or by its name without keys."""
        member = self._roster.get(fetch.client)
        if member is None or member.public_key != incoming.public_key:
            refusal = Refuse(code="hello-first", reason="say hello before you download", fix="join again")
            return Out(fetch.client, refusal, identity=incoming.identity)
        try:
            data = self._files.read(fetch.asset, fetch.offset, fetch.size)
        except RemoteProtocolError as error:
            return Out(fetch.client, Refuse(code="asset", reason=str(error)), identity=incoming.identity)
        array = np.frombuffer(data, np.uint8)
        chunk = Chunk(asset=fetch.asset, offset=fetch.offset)
        return Out(fetch.client, chunk, {"data": WireTensor.of(array)}, identity=incoming.identity)

    def _deliver(self, outs: list[Out], now: float) -> None:
        queue = list(outs)
        while queue:
            out = queue.pop(0)
            member = self._roster.get(out.name)
            identity = out.identity or (member.identity if member else None)
            if identity is None:
                continue
            try:
                self._gateway.send(identity, out.message, out.tensors)
            except (Closed, Timeout):
                if not out.identity:
                    queue += self.coordinator.lost(out.name, now)


def _engine(run: RunFile, base: Base, device: str, memory_bytes: int) -> Engine:
    """The layers that clients may ask for, with the head where labels may come here."""
    lo = 0 if run.policy.exposes_tokens else min(run.policy.min_front, base.num_layers)
    span = Span(lo, base.num_layers, embeds=False, heads=run.policy.shares_labels)
    if memory_bytes:
        _refuse_too_large(run, base, span, memory_bytes)
    segment = build(
        base,
        span,
        task=run.model.task,
        num_labels=len(run.model.labels) or None,
        lora=run.lora,
        dtype=run.model.dtype,
        device=device,
        train_head=run.model.head != "frozen",
    )
    return Engine(segment, stash_bytes=run.server.stash_bytes)


def _refuse_too_large(run: RunFile, base: Base, span: Span, memory_bytes: int) -> None:
    width = 2 if run.model.dtype == "bfloat16" else 4
    names = tensors_for(base, span, run.model.task, len(run.model.labels) or None)
    weights = sum(math.prod(base.checkpoint.tensors[name].shape) for name in names) * width
    need = weights + run.server.stash_bytes
    if need > memory_bytes:
        fix = (
            f"{weights / 1e6:,.0f} MB are weights, {run.server.stash_bytes / 1e6:,.0f} MB server.stash_bytes: lower it"
        )
        raise OutOfMemory("the body", need, memory_bytes, fix)


def _open_link(host: str, port: int) -> JoinLink:
    return JoinLink(host, port, b"", b"")
