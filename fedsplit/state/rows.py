"""The journal's rows as typed values. Times ``at_s`` are seconds since the epoch."""

from __future__ import annotations

import math
from typing import Any, Self

import msgspec
from msgspec import Struct

COST = "cost"
"""Phase of the metrics in which a client says what a round cost it."""
COSTS = ("step_s", "device_s", "up_bytes", "down_bytes", "peak_bytes")
"""Their names: seconds of a step (median), of them its own computing; bytes a step; peak bytes of its process."""
JSON_TUPLES = frozenset({"clients", "arrived", "late"})


class Row(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all rows; fields are in the order of the columns."""

    @classmethod
    def of(cls, values: tuple[Any, ...]) -> Self:
        """Check and convert what SQLite returns."""
        named = dict(zip(cls.__struct_fields__, values, strict=True))
        for name in JSON_TUPLES & named.keys():
            named[name] = msgspec.json.decode(named[name] or "[]")
        if named.get("value", 0.0) is None:  # SQLite has no NaN
            named["value"] = math.nan
        return msgspec.convert(named, cls, strict=False)


class RoundRow(Row, frozen=True, kw_only=True):
    """``closed_s`` and ``seconds`` are None while the round runs, or when a crash swallowed its end."""

    round: int
    era: int
    opened_s: float
    closed_s: float | None
    clients: tuple[str, ...]
    arrived: tuple[str, ...]
    late: tuple[str, ...]
    seconds: float | None
    committed: bool
    reason: str


class StepRow(Row, frozen=True, kw_only=True):
    at_s: float
    round: int
    step: int
    client: str
    loss: float | None
    seconds: float
    up_bytes: int
    down_bytes: int
    committed: bool


class MetricRow(Row, frozen=True, kw_only=True):
    at_s: float
    round: int
    phase: str
    client: str
    name: str
    value: float
    examples: int


class ClientRow(Row, frozen=True, kw_only=True):
    """``what`` is ``joined`` or ``left``."""

    at_s: float
    client: str
    what: str
    topology: str
    c1: int
    c2: int
    public_key: str
    reason: str


class PlanRow(Row, frozen=True, kw_only=True):
    """``plan`` is JSON of a ClientPlan."""

    at_s: float
    round: int
    client: str
    plan: str


class NoteRow(Row, frozen=True, kw_only=True):
    at_s: float
    client: str
    text: str
    warning: bool


class BytesRow(Row, frozen=True, kw_only=True):
    at_s: float
    round: int
    client: str
    what: str
    up_bytes: int
    down_bytes: int


class Totals(Row, frozen=True, kw_only=True):
    client: str
    steps: int
    seconds: float
    up_bytes: int
    down_bytes: int
