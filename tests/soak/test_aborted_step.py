"""A step that does not end well costs the server no memory: a real server process, a client that breaks its steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from msgspec.structs import replace

from fedsplit.cli.bench_models import task_of, write_model, write_rows
from fedsplit.cli.bench_runs import PROFILE, Shape, client, write_run
from fedsplit.cli.bench_turns import child_pid
from fedsplit.cli.simulate import Crew
from fedsplit.devices.find import find
from fedsplit.events import silent
from fedsplit.exchange.step import At, Outcome, SplitStep
from fedsplit.split.base import open_base
from fedsplit.train.feed import open_feed
from fedsplit.train.part import ClientPart
from fedsplit.wire import Packet
from fedsplit.wire.ends import Tensors
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import Hidden, Message, Prepare, Start
from fedsplit_client.dealer import Dealer
from fedsplit_client.keys import load_keys
from fedsplit_client.line import ServerLine
from fedsplit_client.orderly import OrderlyEnd
from fedsplit_client.session import Session
from fedsplit_client.worker import factors

MB = 1_000_000
BATCH, TOKENS, STEPS = 8, 64, 60
NAME = "device"

pytestmark = pytest.mark.soak


@pytest.fixture(autouse=True)
def _freed_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """glibc keeps what is freed for the next step. Here resident memory shall be what is in use, in our children."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")


class Breaking(ServerLine):
    """A line whose client says of some steps that its gradients are no numbers."""

    broken = 0
    breaks = False

    def send(self, message: Message, tensors: Tensors) -> None:
        if self.breaks and isinstance(message, Prepare):
            message = replace(message, finite=False)
            self.broken += 1
        super().send(message, tensors)


class Device:
    """A client that does one step when told to, and reads the server's memory."""

    def __init__(self, link: str, data: Path, model: Path, keys: Path, server: int) -> None:
        self.server = psutil.Process(server)
        parsed = JoinLink.parse(link)
        self.dealer = Dealer(parsed, load_keys(keys))
        end = OrderlyEnd(self.dealer, NAME, silent)
        session = Session(end, parsed, NAME, find(PROFILE), "", silent)
        offer = session.hello()
        self.run, base = offer.run, open_base(str(model))
        feed = open_feed(data, offer.run, base, NAME)
        self.part = ClientPart(base, offer.plan, offer.run)
        self.line = Breaking(end, server=parsed.endpoint, patience_s=60.0, emit=silent, client=NAME)
        session.accept(offer, feed.dataset.summary)
        packet = self.line.next(60.0)
        assert isinstance(packet.message, Start)
        self.start = packet.message
        self.part.load(*factors(packet))
        self.batches = feed.train(0, STEPS)
        self.done = 0

    def split_step(self) -> SplitStep:
        start, cut = self.start, self.part.plan.cut
        at = At(
            run=self.run.run.name,
            client=NAME,
            round=start.round,
            era=start.era,
            step=self.done,
            first_step=start.first_step,
            base_version=start.base_version,
            adapter_version=start.adapter_version,
            cut=(cut.c1, cut.c2),
        )
        self.done += 1
        return SplitStep(self.part, self.line, next(self.batches), at, 0)

    def step(self, *, breaks: bool = False) -> tuple[Outcome, int]:
        """How it ended, and the server's memory afterwards."""
        self.line.breaks = breaks
        outcome = self.split_step().run()
        return outcome, self.memory()

    def memory(self) -> int:
        return int(self.server.memory_info().rss)


@contextmanager
def device(folder: Path) -> Iterator[Device]:
    model = write_model(folder / "model", "llama", hidden=192, layers=6)
    data = write_rows(folder / "rows.jsonl", task_of("llama"), TOKENS, 8 * BATCH)
    shape = Shape(batch=BATCH, tokens=TOKENS, steps=STEPS)
    run_file = write_run(folder, model, "causal-lm", [client(NAME, "w", (0, 6))], shape)
    with ExitStack() as stack:
        crew = stack.enter_context(Crew(silent))
        link = folder / "link"
        crew.start("", ["serve", str(run_file), "--link-file", str(link)], threads=1)
        address = crew.wait_for_file(link, 120.0)
        one = Device(address, data, model, folder / "keys", child_pid("serve"))
        stack.callback(one.dealer.close)
        yield one


def test_an_aborted_step_gives_its_memory_back(tmp_path: Path) -> None:
    with device(tmp_path) as one:
        settled = [one.step()[1] for _ in range(20)][10:]
        after = []
        for _ in range(10):
            outcome, memory = one.step(breaks=True)
            assert not outcome.committed
            after.append(memory)
        assert one.line.broken == 10
        outcome, last = one.step()
        assert outcome.committed, "the run goes on"
    baseline = statistics.median(settled)
    print(f"server: {baseline / MB:.1f} MB after a step, {statistics.median(after) / MB:.1f} MB after an aborted one")
    assert statistics.median(after) - baseline < 2 * MB
    assert last - baseline < 2 * MB


def test_a_step_left_open_gives_its_memory_back(tmp_path: Path) -> None:
    with device(tmp_path) as one:
        baseline = statistics.median([one.step()[1] for _ in range(20)][10:])
        step = one.split_step()
        step._forward(0)
        packet: Packet = one.line.receive()
        assert isinstance(packet.message, Hidden)
        kept = one.memory()
        one.dealer.close()
        deadline = time.monotonic() + 30.0
        while one.memory() - baseline > 2 * MB and time.monotonic() < deadline:
            time.sleep(0.2)
        left = one.memory()
    assert kept - baseline > 20 * MB, "the open step's activations are there"
    print(
        f"server: {baseline / MB:.1f} MB, {kept / MB:.1f} MB in an open step, {left / MB:.1f} MB after its client left"
    )
    assert left - baseline < 2 * MB
