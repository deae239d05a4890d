"""One open round and one open measurement: who was asked, who has answered, until when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedsplit.method.record import ClientUpdate


@dataclass
class OpenRound:
    """A round that waits for updates. Times are seconds on the caller's clock."""

    round: int
    era: int
    participants: tuple[str, ...]
    opened_s: float
    deadline_s: float
    quorum: int
    updates: dict[str, ClientUpdate] = field(default_factory=dict)

    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in self.participants if name not in self.updates)

    @property
    def has_quorum(self) -> bool:
        return len(self.updates) >= self.quorum


@dataclass
class OpenMeasure:
    """Clients measure the global adapter on their own test rows; ``reports`` maps to (metrics, examples)."""

    round: int
    phase: str
    expected: tuple[str, ...]
    deadline_s: float
    reports: dict[str, tuple[Mapping[str, float], int]] = field(default_factory=dict)

    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in self.expected if name not in self.reports)
