"""A process gets its share of a processor while it computes, and is not slowed while it waits."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fedsplit.emulate.governor import Governor, Meter
from fedsplit.errors import ConfigError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts in nanoseconds on Linux only")
BUSY = "import sys\nprint('on', flush=True)\nwhile True: pass"
BURSTS = """
import sys, time
for line in sys.stdin:
    begun, used = time.perf_counter(), time.process_time()
    while time.process_time() < used + 0.12: pass
    print(time.perf_counter() - begun, flush=True)
"""


@contextmanager
def child(code: str) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_a_busy_process_gets_its_share(share: float) -> None:
    with child(BUSY) as process, Governor() as governor:
        assert process.stdout is not None
        process.stdout.readline()
        governor.hold(process.pid, share)
        meter = Meter(process.pid)
        before, begun = meter.read()[0], time.monotonic()
        time.sleep(1.2)
        got = (meter.read()[0] - before) / (time.monotonic() - begun)
        assert got == pytest.approx(share, rel=0.2)


def test_a_burst_takes_as_long_as_on_the_device_and_waiting_takes_nothing_off_it() -> None:
    with child(BURSTS) as process, Governor() as governor:
        assert process.stdin is not None
        assert process.stdout is not None
        governed = governor.hold(process.pid, 0.2)
        took = []
        for _ in range(3):
            time.sleep(0.1)  # an idle device saves nothing up
            process.stdin.write("\n")
            process.stdin.flush()
            took.append(float(process.stdout.readline()))
        assert sorted(took)[1] == pytest.approx(0.12 / 0.2, rel=0.2)
        assert governed.stopped_s > 0.5


def test_whoever_is_let_go_runs_on() -> None:
    with child(BUSY) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with Governor() as governor:
            governed = governor.hold(process.pid, 0.05)
            time.sleep(0.6)
            assert governed.stopped_s > 0.05
        meter = Meter(process.pid)
        before = sum(meter.read())
        time.sleep(0.3)
        assert sum(meter.read()) - before > 0.2  # computing, or waiting for a core, but not stopped


def test_a_process_that_ended_is_left_alone_and_an_unknown_one_refused() -> None:
    with Governor() as governor:
        with child(BUSY) as process:
            governed = governor.hold(process.pid, 0.1)
        time.sleep(0.1)
        assert governed.ended
        assert governed.owed_s() == 0.0
        with pytest.raises(ConfigError, match=f"no process {process.pid}"):
            governor.hold(process.pid, 0.5)
