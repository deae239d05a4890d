"""Graphs for devices without torch: exported once, beside a server that goes on answering, kept and offered intact."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fedsplit.config.load import dumps, loads
from fedsplit.config.run import RunFile
from fedsplit.edge.manifest import load
from fedsplit.errors import DataError, FedsplitError, MissingExtra, PlanError, Refused
from fedsplit.events import Event, Note, silent
from fedsplit.plan.types import ClientPlan, Cut, LayerPlan, Topology
from fedsplit.state.rundir import RunDir
from fedsplit.train.start import first_state
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import Asset, Hello
from fedsplit_client.dealer import Dealer
from fedsplit_client.download import fetch_all
from fedsplit_client.session import Session
from fedsplit_server import graphs as graphs_module
from fedsplit_server.assets import Assets
from fedsplit_server.gateway import Gateway
from fedsplit_server.graphs import Graphs, Preparing
from fedsplit_server.host import Host, Parts
from fedsplit_server.keeper import Keeper
from fedsplit_server.serve import engine_of, method_of
from tests.run.conftest import run_file
from tests.run.party import LAPTOP, base_of
from tests.run.processes import wait_for

EXPORTER = (sys.executable, str(Path(__file__).parent / "exporter.py"))


def plan(c1: int = 1, c2: int = 4, rank: int = 3, client: str = "pi") -> ClientPlan:
    layers = tuple(LayerPlan(layer=index, place="client", rank=rank) for index in range(c1))
    return ClientPlan(client=client, topology=Topology.V, cut=Cut(c1, c2), layers=layers, batch=4)


class Bench:
    """The folders of one operator; every ``graphs`` is another start of the server."""

    def __init__(self, folder: Path) -> None:
        self.run: RunFile = loads(run_file({"pi": 'topology = "u"', "a": 'topology = "u"'}))
        self.folder, self.base = folder, base_of(self.run.model.path)
        self.events: list[Event] = []
        self.files = Assets(self.base, self.run.model, folder / "segments")

    def graphs(self, keep_bytes: int = 10**9) -> Graphs:
        where = self.folder / "cache"
        where.mkdir(exist_ok=True)
        return Graphs(
            self.base, self.run, self.files, folder=where, program=EXPORTER, keep_bytes=keep_bytes,
            emit=self.events.append,
        )  # fmt: skip

    def control(self, name: str, text: str = "") -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    @property
    def exports(self) -> int:
        path = self.folder / "count"
        return len(path.read_text()) if path.exists() else 0

    def kept(self, name: str) -> list[Path]:
        return sorted((self.folder / "cache").glob(f"[!.]*/{name}"))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("FAKE", str(tmp_path))
    return Bench(tmp_path)


def offered(graphs: Graphs, wanted: ClientPlan) -> dict[str, Asset]:
    """What a client hears in the end, by the names of the files."""
    deadline = time.monotonic() + 240
    while True:
        try:
            return {Path(asset.name).name: asset for asset in graphs.of(wanted)}
        except Preparing:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_one_export_for_all_clients_of_a_plan_now_and_after_the_next_start(bench: Bench) -> None:
    with bench.graphs() as graphs:
        first = offered(graphs, plan())
        assert {"config.json", "tokenizer.json", "manifest.json", "weights.bin"} <= set(first)
        assert not any("safetensors" in name for name in first)
        assert offered(graphs, plan(client="another")) == first
        assert bench.exports == 1
        other = offered(graphs, plan(rank=2))
        assert other["manifest.json"].name != first["manifest.json"].name
        one, two = bench.kept("table.bin")
        assert one.samefile(two), "what two plans share is on the disk once"
        assert bench.exports == 2
    with bench.graphs() as graphs:
        assert offered(graphs, plan()) == first
    assert bench.exports == 2, "a server that starts again finds what was kept"


def test_what_rotted_in_the_folder_is_exported_again(bench: Bench) -> None:
    with bench.graphs() as graphs:
        first = offered(graphs, plan())
    [weights] = bench.kept("weights.bin")
    damaged = bytearray(weights.read_bytes())
    damaged[7] ^= 1
    weights.write_bytes(damaged)
    with bench.graphs() as graphs:
        assert offered(graphs, plan()) == first
    assert bench.exports == 2
    assert bench.kept("weights.bin")[0].read_bytes() != damaged


def test_a_killed_export_leaves_nothing_and_is_begun_anew(bench: Bench) -> None:
    hold = bench.control("hold")
    with bench.graphs() as graphs:
        with pytest.raises(Preparing, match=r"graphs, v \(1\), are being prepared"):
            graphs.of(plan())
        wait_for(lambda: bench.exports == 1)
        [export] = graphs._exports.values()
        os.kill(export.child.pid, signal.SIGKILL)
        export.child.wait()
        assert not bench.kept("manifest.json")
        with pytest.raises(FedsplitError, match="could not be exported: it ended with code -9"):
            graphs.of(plan())
        hold.unlink()
        assert "weights.bin" in offered(graphs, plan())
    assert not list((bench.folder / "cache").glob(".*/new/*"))


def test_an_export_that_fails_says_why_and_may_be_tried_again(bench: Bench) -> None:
    fail = bench.control("fail", "weights.bin: cannot be written: No space left on device")
    with bench.graphs() as graphs:
        with pytest.raises(FedsplitError, match="No space left on device"):
            offered(graphs, plan())
        fail.unlink()
        offered(graphs, plan())
    assert any(isinstance(event, Note) and event.warning and "No space" in event.text for event in bench.events)


def test_what_was_wanted_longest_ago_goes_first_and_nothing_that_is_offered(bench: Bench) -> None:
    with bench.graphs() as graphs:
        for c1 in (1, 2):
            offered(graphs, plan(c1))
    for age, c1 in enumerate((1, 2)):
        for path in bench.kept("weights.bin"):
            if path.read_bytes()[0] == c1:
                os.utime(path.parent / "listing.json", (1000 + age, 1000 + age))
    with bench.graphs(keep_bytes=7_000_000) as graphs:
        offered(graphs, plan(3))
        assert sorted(path.read_bytes()[0] for path in bench.kept("weights.bin")) == [2, 3]
        offered(graphs, plan(4))
        offered(graphs, plan(1, rank=9))
        assert sorted(path.read_bytes()[0] for path in bench.kept("weights.bin")) == [1, 3, 4]


def test_an_operator_without_the_exporter_is_told_what_to_install(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "find_spec", lambda name: None)
    with bench.graphs() as graphs, pytest.raises(MissingExtra, match=r"onnxscript.*pip install 'fedsplit\[server\]'"):
        graphs.of(plan())


@pytest.mark.soak
def test_the_real_program_traces_once_for_all_cuts(bench: Bench) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    cache = bench.folder / "cache"
    cache.mkdir()
    with Graphs(bench.base, bench.run, bench.files, folder=cache) as graphs:
        first = offered(graphs, plan(1))
        kept = {path.name for path in (cache / "traces").iterdir()}
        second = offered(graphs, plan(2))
    assert {path.name for path in (cache / "traces").iterdir()} == kept != set()
    assert load(cache / first["manifest.json"].name.split("-")[1].split("/")[0]).layers == (0,)
    assert load(cache / second["manifest.json"].name.split("-")[1].split("/")[0]).layers == (0, 1)


def test_dropout_is_refused_before_anything_is_exported(bench: Bench) -> None:
    bench.run = msgspec.structs.replace(bench.run, lora=msgspec.structs.replace(bench.run.lora, dropout=0.1))
    with bench.graphs() as graphs, pytest.raises(PlanError, match=r"lora\.dropout = 0\.1"):
        graphs.of(plan())
    assert not bench.exports


# ---- over sockets ----------------------------------------------------------------------------------------------------


class Served:
    """A real host on a real port, in a thread."""

    def __init__(self, bench: Bench, graphs: Graphs) -> None:
        runs = RunDir(bench.folder / "run")
        runs.begin(dumps(bench.run))
        self._journal = runs.journal()
        keeper = Keeper(
            bench.run, runs, self._journal, method_of(bench.run), first_state(bench.base, bench.run), silent
        )
        parts = Parts(
            run=bench.run, base=bench.base, engine=engine_of(bench.run, bench.base, "cpu", 0), keeper=keeper,
            files=bench.files, graphs=graphs,
        )  # fmt: skip
        self._gateway = Gateway("127.0.0.1", 0, None)
        self._host = Host(parts, self._gateway, silent)
        self.port = self._gateway.address[1]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._turn)

    def _turn(self) -> None:
        while not self._over.is_set():
            self._host.turn(0.02)

    def __enter__(self) -> Served:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._gateway.close()
        self._journal.close()


class As:
    """A client end that says hello as a device of this backend does."""

    def __init__(self, dealer: Dealer, backend: str) -> None:
        self._dealer, self._backend = dealer, backend

    def __getattr__(self, name: str) -> object:
        return getattr(self._dealer, name)

    def send(self, message: object, tensors: object = None) -> int:
        if isinstance(message, Hello):
            message = msgspec.structs.replace(message, backend=self._backend)
        return self._dealer.send(message)  # type: ignore[arg-type]


def hello(dealer: Dealer, port: int, name: str, backend: str, events: list[Event]) -> tuple[Asset, ...]:
    session = Session(As(dealer, backend), JoinLink("127.0.0.1", port), name, LAPTOP, "", events.append)  # type: ignore[arg-type]
    return session.hello().assets


@pytest.fixture
def served(bench: Bench) -> Iterator[Served]:
    with bench.graphs() as graphs, Served(bench, graphs) as one:
        yield one


def test_others_are_served_while_graphs_are_prepared_and_files_arrive_intact(bench: Bench, served: Served) -> None:
    hold, events, got = bench.control("hold"), list[Event](), list[tuple[Asset, ...]]()
    link = JoinLink("127.0.0.1", served.port)
    with Dealer(link) as dealer, Dealer(link) as other, Dealer(link) as bulk:
        waiting = threading.Thread(target=lambda: got.append(hello(dealer, served.port, "pi", "edge", events)))
        waiting.start()
        wait_for(lambda: bool(events))
        begun = time.monotonic()
        assert any("safetensors" in asset.name for asset in hello(other, served.port, "a", "torch", []))
        assert waiting.is_alive()
        assert time.monotonic() - begun < 30
        hold.unlink()
        waiting.join(60)
        [note] = events
        assert isinstance(note, Note)
        assert "graphs, u" in note.text
        [assets] = got
        names = [Path(asset.name).name for asset in assets]
        assert {"manifest.json", "weights.bin", "tokenizer.json"} <= set(names)
        assert not any("safetensors" in name for name in names)
        _fetched_damaged_and_fetched_again(bench, bulk, assets)


def _fetched_damaged_and_fetched_again(bench: Bench, bulk: Dealer, assets: tuple[Asset, ...]) -> None:
    device = bench.folder / "device"

    def fetch() -> list[str]:
        moved: list[str] = []
        fetch_all(bulk, assets, device, client="pi", run="run", emit=lambda event: moved.append(event.what))  # type: ignore[attr-defined]
        return sorted({Path(name).name for name in moved})

    assert "weights.bin" in fetch()
    weights = device / "weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1_000_000] + b"\xff" + whole[1_000_001:])
    assert fetch() == ["weights.bin"], "a file that was damaged on the device's disk, and no other"
    assert weights.read_bytes() == whole
    weights.write_bytes(whole[:-1])
    assert fetch() == ["weights.bin"], "one that is too short"
    assert fetch() == []
    weights.unlink()
    [kept] = bench.kept("weights.bin")
    kept.write_bytes(bytes(len(whole)))
    with pytest.raises(DataError, match=r"weights\.bin arrived damaged twice"):
        fetch()
    assert not weights.exists()
    kept.unlink()
    with pytest.raises(DataError, match="fetch what was offered"):
        fetch()


def test_a_server_that_cannot_export_refuses_the_one_and_serves_the_others(
    bench: Bench, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "find_spec", lambda name: None)
    link = JoinLink("127.0.0.1", served.port)
    with Dealer(link) as dealer, Dealer(link) as other:
        with pytest.raises(Refused, match=r"onnxscript.*pip install 'fedsplit\[server\]'"):
            hello(dealer, served.port, "pi", "edge", [])
        with pytest.raises(Refused, match="found backend 'abacus', expected torch or edge"):
            hello(dealer, served.port, "pi", "abacus", [])
        assert hello(other, served.port, "a", "torch", [])
