"""A process gets its share of a processor while it computes, and is not slowed while it waits."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from fedsplit.emulate import governor
from fedsplit.emulate.governor import CREDIT_S, LOOK_S, MOST_S, Governed, Governor, Meter
from fedsplit.errors import ConfigError
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts in nanoseconds on Linux only")
BUSY = "import sys\nprint('on', flush=True)\nwhile True: pass"
PID = 4_000_000


@contextmanager
def child(code: str) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


class Board:
    """A process and a clock that only the test moves: what a busy machine does to both cannot be seen here."""

    def __init__(self, patch: pytest.MonkeyPatch, share: float) -> None:
        self.now = self.computed = self.waited = 0.0
        self.stopped = False
        patch.setattr(governor, "Meter", lambda pid: self)
        patch.setattr(governor, "time", SimpleNamespace(monotonic=lambda: self.now))
        patch.setattr(governor, "os", SimpleNamespace(kill=self._signal))
        self.governed = Governed(PID, share)

    def read(self) -> tuple[float, float]:
        return self.computed, self.waited

    def _signal(self, pid: int, number: int) -> None:
        assert pid == PID
        self.stopped = number == signal.SIGSTOP

    def turn(self, *, computes: float = 0.0, waits: float = 0.0) -> None:
        """One look later; of this time the process computes or waits for a core so much, unless it is stopped."""
        self.now += LOOK_S
        if not self.stopped:
            self.computed += computes * LOOK_S
            self.waited += waits * LOOK_S
        self.governed.look(self.now)

    def burst(self, seconds: float, waits: float = 0.0) -> float:
        """It computes so long; how long that took on the clock, until it would have been through on the device."""
        begun, until = self.now, self.computed + seconds
        while self.computed < until:
            self.turn(computes=1.0 - waits, waits=waits)
        return self.now - begun + self.governed.owed_s()


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_a_busy_process_gets_its_share(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    board = Board(monkeypatch, share)
    for _ in range(1000):
        board.turn(computes=1.0)
    assert board.computed / board.now == pytest.approx(share, rel=0.1)


def test_a_burst_takes_as_long_as_on_the_device_and_waiting_takes_nothing_off_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board = Board(monkeypatch, 0.2)
    for _ in range(3):
        for _ in range(200):
            board.turn()  # an idle device saves nothing up
        assert board.burst(0.12) == pytest.approx(0.12 / 0.2, rel=0.05)


def test_waiting_for_a_core_is_time_of_the_device_as_long_as_there_is_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(monkeypatch, 0.2)
    assert board.burst(0.12, waits=0.5) == pytest.approx(0.12 / 0.2, rel=0.05)
    # With nine tenths of the core lost to another program it is late, and makes up for the last bit of that only.
    assert board.burst(0.12, waits=0.9) == pytest.approx(0.12 / 0.1, rel=0.05)
    assert board.burst(0.12) > 0.12 / 0.2 - CREDIT_S - 0.02


def test_a_real_process_is_stopped_for_what_it_computed() -> None:
    """By its own books: how long that took depends on what else this machine does."""
    share = 0.01  # on a machine so busy that a process gets no more, nothing has to be stopped
    with child(BUSY) as process, Governor() as held:
        assert process.stdout is not None
        process.stdout.readline()
        meter = Meter(process.pid)
        computed, waited = meter.read()
        governed = held.hold(process.pid, share)
        wait_for(lambda: meter.read()[0] - computed > 0.01)
        took, lost = meter.read()[0] - computed, meter.read()[1] - waited
        assert governed.owed_s() + governed.stopped_s + lost + MOST_S > 0.9 * took * (1 / share - 1)
        wait_for(lambda: governed.stopped_s > 0.1)


def test_whoever_is_let_go_runs_on() -> None:
    with child(BUSY) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with Governor() as held:
            governed = held.hold(process.pid, 0.01)
            wait_for(lambda: governed.stopped_s > 0.05)
        meter = Meter(process.pid)
        before = meter.read()[0]
        wait_for(lambda: meter.read()[0] - before > 0.1)


def test_a_process_that_ended_is_left_alone_and_an_unknown_one_refused() -> None:
    with Governor() as held:
        with child(BUSY) as process:
            governed = held.hold(process.pid, 0.1)
        wait_for(lambda: governed.ended)
        assert governed.owed_s() == 0.0
        with pytest.raises(ConfigError, match=f"no process {process.pid}"):
            held.hold(process.pid, 0.5)
