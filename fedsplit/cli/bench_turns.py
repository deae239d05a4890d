"""Processes that take turns: a child does one step when it is told to, and says how long it took."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psutil

from fedsplit.errors import LinkError, Timeout

START_S = 180.0
STEP_S = 300.0


class Turns:
    """``python -m MODULE WORDS...`` as a child that answers every line with one line of JSON. Leaving ends it.

    Raises LinkError when the child fails (with what it said), Timeout when it says nothing for minutes.
    """

    def __init__(self, module: str, words: Sequence[str], threads: int, environment: Mapping[str, str]) -> None:
        self._name = module.rpartition(".")[2]
        self._child = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **environment},
        )
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._complaints: list[str] = []
        self._listener = threading.Thread(target=self._complain, daemon=True)
        for thread in (threading.Thread(target=self._read, daemon=True), self._listener):
            thread.start()

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *error: object) -> None:
        self._child.kill()
        self._child.communicate()

    @property
    def pid(self) -> int:
        return self._child.pid

    def ready(self) -> None:
        """Wait until the child is about to do its first step."""
        self._answer(START_S)

    def step(self, what: str = "") -> dict[str, Any]:
        """Let it do one step; ``what``: the line that says which, for a child that asks."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"{what}\n")
            self._child.stdin.flush()
        except OSError:
            raise self._failed() from None
        return self._answer(STEP_S)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise Timeout(f"{self._name} did not finish a step within {timeout_s:.0f} s") from None
        if answer is None:
            raise self._failed()
        return answer

    def _failed(self) -> LinkError:
        self._child.wait(STEP_S)
        self._listener.join(START_S)
        said = "".join(self._complaints[-20:]).strip() or f"exit status {self._child.returncode}"
        return LinkError(f"{self._name} failed:\n{said}")

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._answers.put(json.loads(line))
        self._answers.put(None)

    def _complain(self) -> None:
        assert self._child.stderr is not None
        self._complaints.extend(self._child.stderr)


@contextmanager
def on_cores(count: int) -> Iterator[int]:
    """Keep this process and the children it starts on ``count`` cores; gives the number (0: not possible here)."""
    if not hasattr(os, "sched_setaffinity"):
        yield 0
        return
    before = os.sched_getaffinity(0)
    chosen = sorted(before)[-count:]
    os.sched_setaffinity(0, chosen)
    try:
        yield len(chosen)
    finally:
        os.sched_setaffinity(0, before)


def processor_seconds(pids: Sequence[int]) -> float:
    """Processor time that these processes have used so far, all threads together."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return float(sum(time.user + time.system for time in times))


def child_pid(word: str) -> int:
    """The child of this process that was started with ``word`` on its command line."""
    return int(next(child.pid for child in psutil.Process().children() if word in child.cmdline()))
