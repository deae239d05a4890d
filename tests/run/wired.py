"""A run in one process over real TCP sockets: server and clients in threads, each client with the plan a test wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from fedsplit.config.load import dumps, loads
from fedsplit.devices.profile import DeviceProfile
from fedsplit.events import Event, StepDone
from fedsplit.exchange.feed import Feed
from fedsplit.method.record import GlobalState
from fedsplit.plan.types import ClientPlan
from fedsplit.state.rundir import RunDir
from fedsplit.train.feed import open_feed
from fedsplit.train.part import ClientPart
from fedsplit.train.start import first_state
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import DataSummary
from fedsplit_client.dealer import Dealer
from fedsplit_client.join import as_planned
from fedsplit_client.line import ServerLine
from fedsplit_client.orderly import OrderlyEnd
from fedsplit_client.place import Place
from fedsplit_client.session import Session
from fedsplit_client.worker import Result, Worker
from fedsplit_server.assets import Assets
from fedsplit_server.gateway import Gateway
from fedsplit_server.host import Host, Parts
from fedsplit_server.keeper import Keeper
from fedsplit_server.planning import Planning
from fedsplit_server.serve import engine_of, method_of
from tests.run.party import LAPTOP, Recorder, base_of, honest, written

LIMIT_S = 60.0
Change = Callable[[ClientPlan], ClientPlan]


@dataclass
class Seen:
    """One client as it ran: the plan it was given, its part, every packet, its steps."""

    plan: ClientPlan
    part: ClientPart
    end: Recorder
    feed: Feed
    events: list[Event] = field(default_factory=list)
    result: Result | None = None

    @property
    def steps(self) -> list[StepDone]:
        return [event for event in self.events if isinstance(event, StepDone)]


class Wired:
    """``change``: what becomes of the planner's plan of a client before it is offered; ``disobey``: what a client takes
    its plan for."""

    def __init__(
        self,
        run: str,
        data: Mapping[str, Sequence[Mapping[str, object]]],
        folder: Path,
        change: Change = lambda plan: plan,
        disobey: Change = lambda plan: plan,
        devices: Mapping[str, DeviceProfile] | None = None,
    ) -> None:
        self.run, self.folder, self._change, self._disobey = loads(run), folder, change, disobey
        self.base, self._devices = base_of(self.run.model.path), devices or {}
        self.clients: dict[str, Seen] = {}
        self.events: list[Event] = []
        self.first: GlobalState
        self.state: GlobalState
        self._data = {name: written(folder / f"{name}.jsonl", rows) for name, rows in data.items()}
        self._port: Future[int] = Future()

    def finish(self) -> Wired:
        """Until all have ended; raises what any of them raised."""
        with ThreadPoolExecutor(len(self._data) + 1) as threads:
            server = threads.submit(self._served)
            port = self._port.result(LIMIT_S)
            clients = [threads.submit(self._join, name, port) for name in self._data]
            for one in (*clients, server):
                one.result(LIMIT_S)
        return self

    def _served(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            if not self._port.done():
                self._port.set_exception(error)
            raise

    def _serve(self) -> None:
        runs = RunDir(self.folder / "run")
        runs.begin(dumps(self.run))
        self.first, planning = first_state(self.base, self.run), Planning(self.run, self.base)

        def planner(name: str, profile: DeviceProfile, data: DataSummary, topology: str) -> ClientPlan:
            return self._change(planning(name, profile, data, topology))

        with runs.journal() as journal, Gateway("127.0.0.1", 0, None) as gateway:
            keeper = Keeper(self.run, runs, journal, method_of(self.run), self.first, lambda event: None)
            parts = Parts(
                run=self.run,
                base=self.base,
                engine=engine_of(self.run, self.base, "cpu", 0),
                keeper=keeper,
                files=Assets(self.base, self.run.model, self.folder / "segments"),
                planner=planner,
            )
            host = Host(parts, gateway, self.events.append)
            self._port.set_result(gateway.address[1])
            host.loop()
            self.state = keeper.state

    def _join(self, name: str, port: int) -> None:
        link, events = JoinLink("127.0.0.1", port), list[Event]()
        with Dealer(link) as dealer:
            end = Recorder(dealer, honest)
            orderly = OrderlyEnd(end, name, events.append)
            session = Session(orderly, link, name, self._devices.get(name, LAPTOP), "", events.append)
            offer = session.hello()
            feed = open_feed(self._data[name], as_planned(offer), self.base, name)
            part = ClientPart(self.base, self._disobey(offer.plan), offer.run)
            seen = self.clients[name] = Seen(offer.plan, part, end, feed, events)
            line = ServerLine(orderly, server="tcp", patience_s=LIMIT_S, emit=events.append, client=name)
            load = lambda now: ClientPart(self.base, now.plan, now.run)  # noqa: E731
            place = Place(session, offer, feed.dataset.summary, part, load, events.append)
            worker = Worker(name, offer.run, place, feed, line, events.append)
            session.accept(offer, feed.dataset.summary)
            seen.result = worker.work()
