"""What is known about a run while it goes on: events in, facts out. No terminal in here."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedsplit.events import Event, Joined, Left, Measured, Moved, Progress, RoundClosed, RoundStarted, StepDone, Waiting

TREND = 24
"""How many losses a device's trend shows."""


@dataclass
class Wait:
    """Somebody waits ``on`` these for ``what`` since ``since_s`` (the board's clock)."""

    on: tuple[str, ...]
    what: str
    since_s: float
    deadline_s: float | None = None


@dataclass
class Device:
    """One client as the reader sees it. Bytes are over the whole run."""

    name: str
    topology: str = ""
    cut: tuple[int, int] = (0, 0)
    round: int = -1
    step: int = 0
    """Steps done in ``round``."""
    steps: int = 0
    loss: float | None = None
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=TREND))
    step_s: float | None = None
    up_bytes: int = 0
    down_bytes: int = 0
    gone: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Transfer:
    """A long transfer or measurement."""

    what: str
    client: str
    done: int
    total: int
    unit: str
    since_s: float


@dataclass(frozen=True)
class Round:
    """A closed round with what it cost, for the line that stays."""

    round: int
    rounds: int
    arrived: tuple[str, ...]
    late: tuple[str, ...]
    seconds: float
    committed: bool
    reason: str
    loss: float | None
    up_bytes: int
    down_bytes: int


class Board:
    """``take`` every event in order; everything else is reading. ``clock`` gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.started_s = clock()
        self.round, self.rounds, self.rounds_done = -1, 0, 0
        self._first_round = 0
        self.devices: dict[str, Device] = {}
        self.waits: dict[str, Wait] = {}
        self.transfers: dict[tuple[str, str], Transfer] = {}
        self.history: dict[str, list[float]] = {}
        self.closed: Round | None = None
        self._from_server = False
        self._first_round_s = self._round_s = self.started_s
        self._bytes_before = (0, 0)

    @property
    def one_device(self) -> bool:
        """Whether this is a device's own view: nothing came from a server."""
        return not self._from_server and len(self.devices) <= 1

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self.started_s

    @property
    def left_s(self) -> float | None:
        """Seconds to the last round at the pace so far; None before the first round is done."""
        made = self.rounds_done - self._first_round
        if made <= 0 or not self.rounds:
            return None
        pace = (self._round_s - self._first_round_s) / made
        return max(0.0, pace * (self.rounds - self.rounds_done) - (self._clock() - self._round_s))

    @property
    def since_round_s(self) -> float:
        """Seconds since the last round closed (or the first began)."""
        return self._clock() - self._round_s

    def waited_s(self, wait: Wait) -> float:
        return self._clock() - wait.since_s

    def take(self, event: Event) -> None:
        """Fold one event in."""
        match event:
            case Joined():
                self._from_server = True  # a device does not announce itself
                device = self._device(event.client)
                device.topology, device.cut, device.gone = event.topology, event.cut, ""
                self._arrived(event.client)
            case Moved():
                self._from_server = True
                device = self._device(event.client)
                device.topology, device.cut = event.topology, event.cut
                self._arrived(event.client)
            case Left():
                self._from_server = True
                self._device(event.client).gone = event.reason or "left"
            case Waiting():
                self._wait(event)
            case RoundStarted():
                self._open(event)
            case StepDone():
                self._step(event)
            case RoundClosed():
                self._close(event)
            case Measured():
                self._measure(event)
            case Progress():
                self._progress(event)

    def _device(self, name: str) -> Device:
        return self.devices.setdefault(name, Device(name))

    def _wait(self, event: Waiting) -> None:
        old = self.waits.get(event.client)
        if not event.on:
            self.waits.pop(event.client, None)
        elif old is not None and old.what == event.what:
            old.on, old.deadline_s = event.on, event.deadline_s  # still the same wait: it began when it began
        else:
            self.waits[event.client] = Wait(event.on, event.what, self._clock(), event.deadline_s)

    def _arrived(self, name: str) -> None:
        """``name`` did something: it does not wait, and nobody waits for it to come."""
        self.waits.pop(name, None)
        for waiter, wait in list(self.waits.items()):
            wait.on = tuple(other for other in wait.on if other != name)
            if not wait.on:
                del self.waits[waiter]

    def _open(self, event: RoundStarted) -> None:
        self.waits.pop(event.client, None)
        self.waits.pop("", None)
        self._from_server |= not event.client
        if self.round < 0:
            self._first_round = self.rounds_done = event.round  # not 0 when a run is resumed
            self._first_round_s = self._round_s = self._clock()
        self.round, self.rounds = max(self.round, event.round), event.rounds
        for name in event.clients or ((event.client,) if event.client else ()):
            device = self._device(name)
            if device.round != event.round:
                device.round, device.step = event.round, 0

    def _step(self, event: StepDone) -> None:
        device = self._device(event.client)
        self.waits.pop(event.client, None)
        if self.one_device:
            self.waits.pop("", None)
        device.up_bytes += event.up_bytes
        device.down_bytes += event.down_bytes
        if event.loss is not None:
            device.loss = event.loss
            if math.isfinite(event.loss):
                device.losses.append(event.loss)
        if (event.round, event.step) < (device.round, device.step):
            return  # the server's word of a step that the device told us of, or a repetition
        device.round, device.step, device.steps = event.round, event.step + 1, event.steps
        device.step_s = event.seconds if device.step_s is None else 0.7 * device.step_s + 0.3 * event.seconds
        if self.one_device and device.step == event.steps:
            seconds = self._clock() - self._round_s
            self._end(event.round, (event.client,), (), seconds, True, "")

    def _close(self, event: RoundClosed) -> None:
        self._from_server |= not event.client
        self.waits.clear()
        self._end(event.round, event.arrived, event.late, event.seconds, event.committed, event.reason)

    def _end(
        self, round: int, arrived: tuple[str, ...], late: tuple[str, ...], seconds: float, committed: bool, reason: str
    ) -> None:
        up = sum(device.up_bytes for device in self.devices.values())
        down = sum(device.down_bytes for device in self.devices.values())
        losses = [d.loss for d in self.devices.values() if d.loss is not None and d.name in arrived]
        loss = sum(losses) / len(losses) if losses else None
        spent = up - self._bytes_before[0], down - self._bytes_before[1]
        self.closed = Round(round, self.rounds, arrived, late, seconds, committed, reason, loss, *spent)
        self._bytes_before, self._round_s = (up, down), self._clock()
        if committed:
            self.rounds_done = max(self.rounds_done, round + 1)

    def _measure(self, event: Measured) -> None:
        if event.client:
            self._device(event.client).metrics = dict(event.metrics)
        else:
            self._from_server = True
        if not event.client or self.one_device:
            self.waits.pop("", None)
            name = headline(event.metrics)
            if name:
                self.history.setdefault(name, []).append(event.metrics[name])

    def _progress(self, event: Progress) -> None:
        # The parts of one measurement follow one another: they are one bar whose name changes.
        key = (event.client, event.what if event.unit == "bytes" else event.unit)
        if event.done >= event.total:
            self.transfers.pop(key, None)
        elif key in self.transfers:
            transfer = self.transfers[key]
            transfer.what, transfer.done, transfer.total = event.what, event.done, event.total
        else:
            self.transfers[key] = Transfer(event.what, event.client, event.done, event.total, event.unit, self._clock())


HEADLINES = ("accuracy", "perplexity", "pearson", "mse", "loss")


def headline(metrics: Mapping[str, float]) -> str:
    """The metric a reader wants first; empty when there is none."""
    return next((name for name in HEADLINES if name in metrics), "")
