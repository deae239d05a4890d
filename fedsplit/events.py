"""What happens while a run goes on, as values; the command line draws them, tests collect them.

One line of JSON an event carries them from one process to another. Producers take an ``Emit`` and call it; nobody
prints. Times are seconds, sizes bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import msgspec


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all progress events. ``client`` is empty for the server itself."""

    client: str = ""


@dataclass(frozen=True, kw_only=True)
class Joined(Event):
    topology: str
    cut: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Moved(Event):
    """``client`` follows another plan from ``round`` on; ``text`` says from where, to where, and why."""

    round: int
    topology: str
    cut: tuple[int, int]
    text: str


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
class RoundCost(Event):
    """What a round cost ``client``: a step's median seconds, of them its own computing, bytes a step, peak memory."""

    round: int
    step_s: float
    device_s: float
    up_bytes: int = 0
    down_bytes: int = 0
    peak_bytes: int = 0


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


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The end of a client's run, or (``client`` empty) of the server's. ``digest``: the final adapter's bits."""

    round: int
    reason: str
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    up_bytes: int = 0
    down_bytes: int = 0
    digest: str = ""


Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """The ``Emit`` that drops everything."""


def to_json(event: Event) -> str:
    """One line: ``{"event": "RoundStarted", …}``. NaN and infinities become null."""
    values = {item.name: getattr(event, item.name) for item in fields(event)}
    return msgspec.json.encode({"event": type(event).__name__, **values}).decode()


def from_json(line: str) -> Event | None:
    """The inverse; None for a line that is no event (a library's print, say)."""
    try:
        found = msgspec.json.decode(line)
        kind = _KINDS[found.pop("event")]
        for name, value in found.items():
            if isinstance(value, dict):
                # What was measured on nothing is NaN, which JSON cannot say.
                found[name] = {key: math.nan if one is None else one for key, one in value.items()}
        return msgspec.convert(found, kind)
    except (msgspec.MsgspecError, KeyError, AttributeError, TypeError):
        return None


_KINDS = {kind.__name__: kind for kind in Event.__subclasses__()}
