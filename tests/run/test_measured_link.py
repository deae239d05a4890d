"""The link to a server is what a device measured it to be: held to a known rate, bounded, in turns, by invitation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.structs import replace

from fedsplit.devices.load import load, save
from fedsplit.devices.profile import Link
from fedsplit.emulate.relay import Relays
from fedsplit.errors import Closed, ConfigError, Refused, Timeout
from fedsplit.events import Event, Note, silent
from fedsplit.probe.link import MOST_BYTES, steady
from fedsplit.testing.loopback import Loopback
from fedsplit.wire.ends import Tensors
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import Bye, Hello, Message, Probe
from fedsplit_client import gauge as gauges
from fedsplit_client.dealer import Dealer
from fedsplit_client.gauge import Gauge, Turn, measured_link, told_link, with_link
from fedsplit_client.keys import load_keys
from fedsplit_client.orderly import OrderlyEnd
from fedsplit_client.session import Session
from fedsplit_server.gateway import Gateway
from fedsplit_server.keys import load_keys as server_keys
from fedsplit_server.probes import Probes
from tests.run.party import LAPTOP, Party, Recorder, honest
from tests.waiting import LIMIT_S, wait_for

NOBODY = replace(LAPTOP, link=None)


@dataclass
class Server:
    """A gateway that answers probes, in a thread; ``link`` is its join line."""

    gateway: Gateway
    probes: Probes
    link: JoinLink
    busy: bool = False
    mute: bool = False
    up_bytes: int = 0
    down_bytes: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stop.is_set():
            incoming = self.gateway.receive(0.05)
            if incoming is None or self.mute:
                continue
            probe = incoming.packet.message
            if not isinstance(probe, Probe):
                self.probes.over(incoming.identity)
                continue
            nbytes = incoming.packet.tensors["data"].nbytes
            answer = self.probes.answer(incoming.identity, probe, nbytes, time.monotonic(), busy=self.busy)
            self.up_bytes += incoming.nbytes
            self.down_bytes += self.gateway.send(incoming.identity, *answer)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(gauges, "ANSWER_S", LIMIT_S)
    keys = server_keys(tmp_path / "server")
    with Gateway("127.0.0.1", 0, keys.pair) as gateway:
        link = keys.link(*gateway.address)
        one = Server(gateway, Probes(link.invite.hex()), link)
        thread = threading.Thread(target=one.run)
        thread.start()
        yield one
        one.stop.set()
        thread.join()


Dial = Callable[[JoinLink], OrderlyEnd]


@pytest.fixture
def dial(tmp_path: Path) -> Iterator[Dial]:
    with ExitStack() as stack:
        keys = load_keys(tmp_path / "client")
        yield lambda link: OrderlyEnd(stack.enter_context(Dealer(link, keys)), "pi", silent)


MBIT = 1e6 / 8
LINKS = {
    "half a megabit": Link(up_bps=0.5 * MBIT, down_bps=2 * MBIT, latency_s=0.03),
    "home": Link(up_bps=20 * MBIT, down_bps=80 * MBIT, latency_s=0.008),
    "far away": Link(up_bps=8 * MBIT, down_bps=16 * MBIT, latency_s=0.06),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_of_known_rate_is_measured_to_a_fifth(
    name: str, server: Server, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best rate of several: a machine that is busy with something else makes a link look slower."""
    monkeypatch.setattr(gauges, "LOW_PERCENT", 100)
    truth, near = LINKS[name], dict.fromkeys(("up", "down", "latency"), False)
    with Relays() as relays:
        host, port = relays.add(truth, server.link.host, server.link.port).address

        def measured() -> bool:
            end = dial(replace_host(server.link, host, port))
            found = measured_link(end, server.link)
            end.send(Bye())
            assert found.source.startswith(f"measured to {server.link.endpoint} on 20")
            assert found.latency_s >= truth.latency_s
            near["up"] |= 0.8 < found.up_bps / truth.up_bps < 1.2
            near["down"] |= 0.8 < found.down_bps / truth.down_bps < 1.2
            near["latency"] |= found.latency_s < truth.latency_s + 0.02
            return all(near.values())

        wait_for(measured)


def test_a_fast_link_costs_at_most_eight_mebibytes_each_way(server: Server, dial: Dial) -> None:
    begun = time.monotonic()
    found = measured_link(dial(server.link), server.link)
    assert min(found.up_bps, found.down_bps) > 0
    assert max(server.up_bytes, server.down_bytes) < 1.1 * MOST_BYTES
    assert time.monotonic() - begun < LIMIT_S


def test_devices_measure_one_after_the_other(server: Server, dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Gauge(dial(server.link), server.link), Gauge(dial(server.link), server.link)
    first.begin()
    with pytest.raises(Turn):
        second(1, 1)
    first(1, 1)
    monkeypatch.setattr("fedsplit_server.probes.IDLE_S", 0.3)
    # It asks again until the first one is silent; then the first one has had its turn.
    second.begin()
    with pytest.raises(Refused, match="has had its turn"):
        first(1, 1)


def test_whoever_says_hello_has_measured(server: Server, dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsplit_server.probes.IDLE_S", 1000.0)
    ends = [dial(server.link), dial(server.link)]
    first, second = (Gauge(end, server.link) for end in ends)
    first.begin()
    ends[0].send(Hello(client="a"))
    second.begin()


def test_waiting_for_a_turn_ends(server: Server, dial: Dial) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    first = Gauge(dial(server.link), server.link)
    second = Gauge(dial(server.link), server.link, clock=lambda: now, sleep=lambda s: (sleep(s), first(1, 1))[0])
    first.begin()
    with pytest.raises(Turn):
        second.begin()
    assert gauges.TURN_S < now < 2 * gauges.TURN_S


def test_nobody_is_answered_without_the_invitation(server: Server, dial: Dial) -> None:
    stranger = JoinLink(server.link.host, server.link.port, server.link.server_key, bytes(16))
    with pytest.raises(ConfigError, match="not this run's"):
        told_link(dial(stranger), stranger, "pi", silent)
    assert server.down_bytes < 1000


def test_a_connection_has_a_budget() -> None:
    probes, now = Probes(""), 0.0
    for number in range(9):
        answer, tensors = probes.answer(b"a", Probe(number=number, back=2**20), 1, now, busy=False)
        assert tensors["data"].nbytes == 2**20
    answer, tensors = probes.answer(b"a", Probe(number=9, back=2**20), 1, now, busy=False)
    assert (answer.code, dict(tensors)) == ("probed", {})  # type: ignore[union-attr]
    up = [probes.answer(b"b", Probe(number=n), 2**20, 5.0, busy=False)[0] for n in range(10)]
    assert [type(one).__name__ for one in up] == ["Probed"] * 9 + ["Refuse"]
    many = [probes.answer(b"c", Probe(number=n), 1, 10.0, busy=False)[0] for n in range(401)]
    assert [type(one).__name__ for one in many] == ["Probed"] * 400 + ["Refuse"]


def test_a_silent_server_does_not_hold_up_the_join(server: Server, dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "ANSWER_S", 0.3)
    server.mute = True
    with pytest.raises(Timeout, match="did not answer"):
        measured_link(dial(server.link), server.link)
    events: list[Event] = []
    assert with_link(dial(server.link), server.link, NOBODY, "pi", events.append, keep=None) is NOBODY
    assert any(isinstance(event, Note) and event.warning and "not measured" in event.text for event in events)


def test_the_own_profile_keeps_its_link_and_noise_does_not_move_it(server: Server, dial: Dial, tmp_path: Path) -> None:
    path = save(NOBODY, tmp_path / "own.toml")
    end = dial(server.link)
    found = with_link(end, server.link, NOBODY, "pi", silent, keep=path)
    assert (end.up_bytes, end.down_bytes) == (0, 0), "measuring is not of the run"
    assert found.link is not None
    assert load(path) == replace(NOBODY, link=found.link)
    assert found.anonymous.link == replace(found.link, source="")
    assert with_link(dial(server.link), server.link, found, "pi", silent, keep=None) is found, "a given link"
    a_little = replace(found.link, up_bps=1.2 * found.link.up_bps)
    assert steady(found.link, a_little) is found.link
    much = replace(found.link, up_bps=2 * found.link.up_bps)
    assert steady(found.link, much) is much
    elsewhere = replace(found.link, source="measured to elsewhere:1 on 2026-11-21")
    assert steady(found.link, elsewhere) is elsewhere
    assert steady(None, much) is much


def test_a_host_answers_before_the_hello_and_says_when_it_computes(party: Callable[..., Party]) -> None:
    run = party({"a": 'topology = "w"'}, start=False)
    link, said = JoinLink("memory", 1), []

    def newcomer() -> None:
        gauge = Gauge(OrderlyEnd(run.world.client(run.link.dealer("z")), "z", silent), link)
        for _ in range(3):
            gauge(10, 10)
            said.append((run.host.course.phase.value, gauge.busy))
            run.world.wait(run.world.now_s)

    run.serve()
    run.world.add("z", newcomer)
    run.join("a")
    run.finish()
    assert said[0] == ("lobby", False)
    assert all(busy == (phase in ("train", "measure")) for phase, busy in said)
    assert run.host.roster.get("z") is None
    assert "a" in run.results


def test_a_hello_does_not_say_where_else_a_link_was_measured() -> None:
    told = replace(LAPTOP, link=Link(up_bps=1e6, down_bps=1e6, source="measured to secret.example:1 on 2026-11-21"))
    said: list[Hello] = []

    class End(Recorder):
        def send(self, message: Message, tensors: Tensors | None = None) -> int:
            assert isinstance(message, Hello)
            said.append(message)
            raise Closed("enough")

    end = End(Loopback().dealer("a"), honest)
    with pytest.raises(Timeout):
        Session(end, JoinLink("memory", 1), "a", told, "", silent, clock=iter(range(0, 1000, 30)).__next__).hello()
    assert said
    assert "secret" not in repr(said)


def replace_host(link: JoinLink, host: str, port: int) -> JoinLink:
    return JoinLink(host, port, link.server_key, link.invite)
