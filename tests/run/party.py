"""A run in one process: a server and its clients in a ``World``, over the link in memory, with faults where asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from fedsplit.config.load import dumps, loads
from fedsplit.config.run import RunFile
from fedsplit.data.batches import Batch
from fedsplit.data.tokenizer import Side
from fedsplit.devices.profile import DeviceProfile
from fedsplit.events import Event
from fedsplit.exchange.feed import Feed
from fedsplit.exchange.part import Part
from fedsplit.method.settled import settled
from fedsplit.method.stored import weights_digest
from fedsplit.split.base import Base, open_base
from fedsplit.state.personal import Personal
from fedsplit.state.rundir import RunDir
from fedsplit.testing.faults import Faults
from fedsplit.testing.loopback import Loopback, LoopbackDealer
from fedsplit.train.exported import model_folder
from fedsplit.train.feed import reading_of
from fedsplit.train.part import ClientPart
from fedsplit.train.start import first_state
from fedsplit.wire.ends import ClientEnd, Tensors
from fedsplit.wire.frames import Packet
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import Message, kind_of
from fedsplit_client.join import as_planned, farewell
from fedsplit_client.line import ServerLine
from fedsplit_client.orderly import OrderlyEnd
from fedsplit_client.place import Place
from fedsplit_client.session import Offer, Session
from fedsplit_client.worker import Result, Worker
from fedsplit_server.admission import Planner
from fedsplit_server.assets import Assets
from fedsplit_server.host import Host, Parts
from fedsplit_server.keeper import Keeper
from fedsplit_server.replanning import Replanner
from fedsplit_server.serve import engine_of, method_of
from tests.run.world import Actor, World

LAPTOP = DeviceProfile(
    name="laptop",
    arch="x86_64",
    cores=2,
    threads=1,
    flops={"float32": 2e10, "bfloat16": 1e10},
    memory_bandwidth_bps=1e10,
    memory_bytes=8 << 30,
    free_memory_bytes=4 << 30,
)
E = TypeVar("E", bound=Event)

_BASES: dict[str, Base] = {}


def base_of(path: str) -> Base:
    """One base a process: its weights are shared by all tests."""
    if path not in _BASES:
        _BASES[path] = open_base(model_folder(path))
    return _BASES[path]


Tamper = Callable[[Message, Tensors], tuple[Message, Tensors]]
"""What a client says instead."""


Make = Callable[[Offer], Part]
"""What an offer's plan holds on a device."""


def honest(message: Message, tensors: Tensors) -> tuple[Message, Tensors]:
    """No tampering."""
    return message, tensors


@dataclass
class Recorder:
    """A ``ClientEnd`` that notes every packet of both directions before faults strike."""

    end: ClientEnd
    tamper: Tamper
    sent: list[Packet] = field(default_factory=list)
    received: list[Packet] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.end, name)

    @property
    def reconnected(self) -> bool:
        return self.end.reconnected

    @reconnected.setter
    def reconnected(self, value: bool) -> None:
        self.end.reconnected = value

    def send(self, message: Message, tensors: Tensors | None = None) -> int:
        message, tensors = self.tamper(message, tensors or {})
        self.sent.append(Packet(message, tensors))
        return self.end.send(message, tensors)

    def receive(self, timeout_s: float) -> Packet | None:
        packet = self.end.receive(timeout_s)
        if packet is not None:
            self.received.append(packet)
        return packet


@dataclass
class SlowFeed:
    """A feed whose every step takes some of the world's time."""

    feed: Feed
    world: World
    seconds: float

    def __getattr__(self, name: str) -> Any:
        return getattr(self.feed, name)

    def train(self, first_step: int, steps: int) -> Iterator[list[Batch]]:
        for batches in self.feed.train(first_step, steps):
            self.world.sleep(self.seconds)
            yield batches


class Party:
    """``data`` maps client names to their rows. ``start`` brings everybody in; ``finish`` returns at the end."""

    def __init__(
        self,
        run: str | RunFile,
        data: Mapping[str, Sequence[Mapping[str, object]]],
        folder: Path,
        faults: Faults | None = None,
        topologies: Mapping[str, str] | None = None,
    ) -> None:
        self.run = loads(run) if isinstance(run, str) else run
        self.base = base_of(self.run.model.path)
        self.folder, self.faults = folder, faults or Faults()
        self.server_faults = self.faults
        self.actors: dict[str, Actor] = {}
        self.world, self.link = World(), Loopback()
        self.events: list[Event] = []
        self.results: dict[str, Result] = {}
        self.ends: dict[str, Recorder] = {}
        self.dealers: dict[str, LoopbackDealer] = {}
        self.host: Host
        self.keeper: Keeper
        self.rows = dict(data)
        self.device: DeviceProfile = LAPTOP
        self.machine: DeviceProfile | None = None
        """The server's profile."""
        self.replanner: Replanner | None = None
        self.planner: Planner | None = None
        self.slow: dict[str, float] = {}
        """Seconds that a client needs for every step."""
        self.tamper: dict[str, Tamper] = {}
        self.parts: dict[str, Make] = {}
        """What computes for a client instead of torch."""
        self._topologies = topologies or {}
        self._data = {name: written(folder / f"{name}.jsonl", rows) for name, rows in data.items()}
        self._starts = 0

    def __enter__(self) -> Party:
        return self

    def __exit__(self, *_: object) -> None:
        self.world.close()

    def start(self) -> Party:
        """The server, then every client."""
        self.serve()
        for name in self._data:
            self.join(name)
        return self

    def finish(self) -> Party:
        """Until all have ended."""
        self.world.run()
        return self

    def killed(self, server: Faults, client: tuple[str, int] | None = None) -> Party:
        """To the end, with the server killed where ``server`` says and started again; after that client ``a``, too, at
        the message of that kind in that round."""
        self.server_faults, self.faults = server, Faults()
        self.start()
        self.world.run(until=lambda: self.actors["server"].done)
        assert self.actors["server"].crashed
        self.server_faults = Faults()
        if client is not None:
            self.faults.crash(client[0], client="a", round=client[1])
        self.serve_again()
        if client is not None:
            self.world.run(until=lambda: self.actors["a"].done)
            assert self.actors["a"].crashed
            self.dealers["a"].cut()
            self.join("a")
        return self.finish()

    @property
    def digest(self) -> str:
        """Of the final adapter."""
        state = self.keeper.best()[0]
        return weights_digest(state)

    def kinds(self, kind: str) -> int:
        """How many packets of a kind clients sent or received."""
        return sum(kind_of(p.message) == kind for end in self.ends.values() for p in (*end.sent, *end.received))

    def all(self, kind: type[E]) -> list[E]:
        """Every event of a kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    def serve(self) -> Actor:
        """Start the server, or start it again from what the last one left on the disk."""
        if self._starts:
            self.link = Loopback()
        self._starts += 1
        method, runs = method_of(self.run), RunDir(self.folder / "run")
        runs.begin(dumps(self.run), resume=self._starts > 1)
        run = settled(self.run, method)
        journal = runs.journal()
        self.keeper = Keeper(run, runs, journal, method, first_state(self.base, run), self.events.append)
        parts = Parts(
            run=run,
            base=self.base,
            engine=engine_of(run, self.base, "cpu", 0),
            keeper=self.keeper,
            files=Assets(self.base, run.model, self.folder / "segments"),
            era=self._starts << 20,
            replanner=self.replanner,
            server=self.machine,
            planner=self.planner,
        )
        end = self.world.server(self.server_faults.server(self.link.gateway))

        def work() -> None:
            self.host = Host(parts, end, self.events.append, self.world.clock)
            try:
                self.host.loop()
            finally:
                journal.close()

        return self._add("server", work)

    def serve_again(self) -> Actor:
        """After a crash: a new server, to which every client's connection comes back."""
        actor = self.serve()
        for dealer in self.dealers.values():
            dealer.cut()
            dealer.restore(self.link.gateway)
        return actor

    def join(self, name: str, owner: str = "") -> Actor:
        """Start a client, or start it again as a new process would. ``owner``: another device under this name."""
        dealer = self.link.dealer(owner or name)
        if owner:
            end = self.world.client(self.faults.client(dealer, name))
            return self._add(owner, lambda: self._client(name, end))
        self.dealers[name] = dealer
        end = self.world.client(self.faults.client(dealer, name))
        return self._add(name, lambda: self._client(name, end))

    def _add(self, name: str, work: Callable[[], None]) -> Actor:
        actor = self.actors[name] = self.world.add(name, work)
        return actor

    def _client(self, name: str, end: ClientEnd) -> None:
        recorder = self.ends[name] = Recorder(end, self.tamper.get(name, honest))
        orderly, clock, emit = OrderlyEnd(recorder, name, self.events.append), self.world.clock, self.events.append
        topology = self._topologies.get(name, "")
        session = Session(orderly, JoinLink("memory", 1), name, self.device, topology, emit, clock=clock)
        offer = session.hello()
        make = self.parts.get(name, lambda now: ClientPart(self.base, now.plan, now.run))
        feed = self._feed(name, as_planned(offer))
        if name in self.slow:
            feed = cast(Feed, SlowFeed(feed, self.world, self.slow[name]))
        line = ServerLine(orderly, server="memory", patience_s=300.0, emit=emit, client=name, clock=clock)
        kept = Personal(self.folder / "devices" / name).run(offer.run.run.name, client=name)
        summary = feed.dataset.summary
        place = Place(session, offer, summary, make(offer), make, emit)
        worker = Worker(name, offer.run, place, feed, line, emit, kept)
        with farewell(orderly, name):
            session.accept(offer, summary)
            self.results[name] = worker.work()

    def _feed(self, name: str, run: RunFile) -> Feed:
        """Graphs know padding on the right only."""
        reading = reading_of(self.base, run)
        side: Side = "right" if name in self.parts else reading.side
        return Feed.open(self._data[name], run, replace(reading, side=side), name)


def written(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return path
