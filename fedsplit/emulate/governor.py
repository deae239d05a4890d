"""A slower processor that is not here: a process is stopped for as long as the device would still be computing.

A device of ``share`` of this machine's speed needs 1 / share seconds for what takes one second here. So for every
second that the process computes it is stopped, in slices of milliseconds, for 1 / share - 1 seconds. Only computing
is stretched: a process that waits for the network uses no processor time, and owes nothing.

Where other programs want the same cores, the process waits for a core longer than the device would. Linux counts that
waiting, and it is taken off what the process owes: as long as there is any slack, the sum is the device's time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from fedsplit.errors import ConfigError, Problem

LOOK_S = 0.002
"""A burst of computing that is shorter than this may have ended before it is seen. It is then paid for afterwards, and
the relay holds what was sent meanwhile for as long (``Governed.owed_s``)."""
BURST_S = 0.008
"""A process computes this long between two stops where it has more to compute: caches are cold after each of them."""
LEAST_S, MOST_S = 0.003, 0.2
"""One stop; a longer one is taken in parts, so that the other side never believes that the connection hangs."""
BUSY_S = LOOK_S / 20
"""What is less than this between two looks is a process that waits, and is counted once there is more of it."""
CREDIT_S = 0.05
"""Waiting for a core that may be made up for later; what is more was lost to another program."""


class Governed:
    """One process held to ``share`` of the speed that it has here with ``threads`` threads.

    ``ended``: the process is gone, or was released. ``stopped_s``: how long it was stopped so far.
    """

    def __init__(self, pid: int, share: float, threads: int = 1) -> None:
        self.pid, self.share, self.threads = pid, min(1.0, share), threads
        self.ended, self.stopped_s = False, 0.0
        self._meter, self._lock = Meter(pid), threading.Lock()
        self._owed_s, self._burst_s, self._queued_s, self._since, self._until = 0.0, 0.0, 0.0, 0.0, 0.0
        self._spent, self._waited = self._meter.read()

    def look(self, now: float) -> None:
        """Stop or go on, as is due. A process that is gone is left alone from then on."""
        try:
            with self._lock:
                if self.ended:
                    return
                if not self._until:
                    self._perhaps_stop(now)
                elif now >= self._until:
                    self._go(now)
        except OSError:
            self.ended = True

    def owed_s(self) -> float:
        """Seconds that the device would still compute before it is where the process is now. Any thread may ask."""
        with suppress(OSError), self._lock:
            if self.ended:
                return 0.0
            return max(0.0, self._owed_s - (time.monotonic() - self._since) if self._until else self._owes())
        return 0.0

    def release(self) -> None:
        """Let it run, now and for good."""
        with self._lock:
            self.ended = True
            with suppress(OSError):
                os.kill(self.pid, signal.SIGCONT)

    def _perhaps_stop(self, now: float) -> None:
        before = self._burst_s
        if self._owes() < LEAST_S:
            return
        idle = self._burst_s == before
        if self._burst_s >= BURST_S or idle:
            os.kill(self.pid, signal.SIGSTOP)
            self._since, self._until, self._burst_s = now, now + min(self._owed_s, MOST_S), 0.0

    def _go(self, now: float) -> None:
        _, self._waited = self._meter.read()  # to be stopped, too, a process has to wait for a core
        os.kill(self.pid, signal.SIGCONT)
        self._owed_s -= now - self._since
        self.stopped_s += now - self._since
        self._until = 0.0

    def _owes(self) -> float:
        spent, waited = self._meter.read()
        computed = (spent - self._spent) / self.threads
        self._queued_s += waited - self._waited
        if computed >= BUSY_S:
            self._owed_s = max(-CREDIT_S, self._owed_s + computed * (1 / self.share - 1) - self._queued_s)
            self._burst_s += computed + self._queued_s
            self._queued_s, self._spent = 0.0, spent
        elif waited == self._waited:
            self._queued_s = 0.0  # it waited for a core only to find that it has nothing to do
        self._waited = waited
        return self._owed_s


class Meter:
    """Seconds that a process has computed (all threads), and that its main thread has waited for a core."""

    def __init__(self, pid: int) -> None:
        # clock_getcpuclockid(3): the clock of a process is made of its number. In nanoseconds; /proc counts in 1/100 s.
        self._clock = (~pid << 3) | 2 if sys.platform == "linux" else 0
        self._process = psutil.Process(pid)
        self._queue = Path(f"/proc/{pid}/schedstat")

    def read(self) -> tuple[float, float]:
        """(computed, waited). Raises OSError when there is no such process any more."""
        if not self._clock:
            return self._slowly(), 0.0
        try:
            waited = int(self._queue.read_bytes().split()[1]) / 1e9
        except (IndexError, FileNotFoundError):  # a kernel without these statistics
            waited = 0.0
        return time.clock_gettime(self._clock), waited

    def _slowly(self) -> float:
        try:
            times = self._process.cpu_times()
        except psutil.Error as error:
            raise ProcessLookupError(str(error)) from None
        return float(times.user + times.system)


class Governor:
    """Holds any number of processes, in a thread. Leaving the context lets them all run."""

    def __init__(self) -> None:
        if not hasattr(signal, "SIGSTOP"):
            fix = "use Linux or macOS, in a container or a virtual machine if need be"
            raise ConfigError([Problem("emulation", sys.platform, "a system that can stop a process", fix)])
        self._processes: list[Governed] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="governor", daemon=True)

    def __enter__(self) -> Governor:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join(10.0)
        for process in list(self._processes):
            process.release()

    def hold(self, pid: int, share: float, threads: int = 1) -> Governed:
        """Hold the process ``pid`` from now on. Raises ConfigError when there is no such process."""
        try:
            process = Governed(pid, share, threads)
        except (OSError, psutil.Error):
            raise ConfigError([Problem("pid", f"no process {pid}", "a process that runs", "start it first")]) from None
        self._processes.append(process)
        return process

    def _run(self) -> None:
        while not self._done.wait(LOOK_S):
            for process in list(self._processes):
                if process.ended:
                    self._processes.remove(process)
                else:
                    process.look(time.monotonic())
