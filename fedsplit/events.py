"""What happens while a run goes on, as values; the command line draws them, tests collect them.

Producers take an ``Emit`` and call it; nobody prints. Times are seconds, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all progress events. ``client`` is empty for the server itself."""

    client: str = ""


@dataclass(frozen=True, kw_only=True)
class Joined(Event):
    topology: str
    cut: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Left(Event):
    reason: str


@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """``client`` (or the server) waits ``on`` these names for ``what``."""

    on: tuple[str, ...]
    what: str
    deadline_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class RoundStarted(Event):
    round: int
    rounds: int
    clients: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StepDone(Event):
    """One optimiser step. ``loss`` is None where the loss is not known (the server in topology ``u``)."""

    round: int
    step: int
    steps: int
    loss: float | None
    seconds: float
    up_bytes: int = 0
    down_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Measured(Event):
    """Metrics on some data: ``phase`` is ``before``, ``round`` or ``after``."""

    round: int
    phase: str
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RoundClosed(Event):
    round: int
    arrived: tuple[str, ...]
    late: tuple[str, ...]
    seconds: float
    committed: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """A long transfer or measurement: ``done`` of ``total`` in ``unit``."""

    what: str
    done: int
    total: int
    unit: str = "bytes"


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """One line for the reader, e.g. a truncation report."""

    text: str
    warning: bool = False


Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """The ``Emit`` that drops everything."""
