"""When a step message may be served: at once, in turn, or together with those of all other clients.

A gate looks at the parked messages and names the group to serve next. Groups of a together-gate are sorted by name, so
the result does not depend on who answered first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fedsplit.wire import Packet
from fedsplit.wire.messages import Exchange, Forward, Prepare


@dataclass(frozen=True)
class Parked:
    """A message that waits to be served."""

    name: str
    packet: Packet

    @property
    def message(self) -> Exchange:
        message = self.packet.message
        assert isinstance(message, Exchange)
        return message


class Gate(Protocol):
    """``next`` picks; ``closed`` hears that a step of ``names`` ended; ``leave`` that a client is gone."""

    def next(self, parked: Sequence[Parked]) -> list[Parked]: ...
    def closed(self, names: Sequence[str]) -> None: ...
    def leave(self, name: str) -> bool: ...
    def waits_for(self, parked: Sequence[Parked]) -> tuple[str, ...]: ...


class Free:
    """Every client has its own copy: first come, first served, backward before forward (it frees memory)."""

    def next(self, parked: Sequence[Parked]) -> list[Parked]:
        return [min(parked, key=lambda item: isinstance(item.message, Forward))] if parked else []

    def closed(self, names: Sequence[str]) -> None:
        return None

    def leave(self, name: str) -> bool:
        """True when the others' open step must be aborted."""
        return False

    def waits_for(self, parked: Sequence[Parked]) -> tuple[str, ...]:
        return ()


class InTurn:
    """One shared copy, one whole step after the other, round robin in a fixed order."""

    def __init__(self, order: Sequence[str]) -> None:
        self._order = list(order)

    def next(self, parked: Sequence[Parked]) -> list[Parked]:
        return [item for item in parked if self._order and item.name == self._order[0]][:1]

    def closed(self, names: Sequence[str]) -> None:
        if self._order and self._order[0] in names:
            self._order.append(self._order.pop(0))

    def leave(self, name: str) -> bool:
        if name in self._order:
            self._order.remove(name)
        return False

    def waits_for(self, parked: Sequence[Parked]) -> tuple[str, ...]:
        return tuple(self._order[:1]) if parked else ()


class Together:
    """One shared copy, one step on everybody's batch: a step opens and closes when all have arrived."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = set(names)
        self._opened = False

    def next(self, parked: Sequence[Parked]) -> list[Parked]:
        for item in parked:
            if not isinstance(item.message, Prepare) and (self._opened or not isinstance(item.message, Forward)):
                return [item]
        kind = Prepare if self._opened else Forward
        first = {item.name: item for item in reversed(parked) if isinstance(item.message, kind)}
        if not self._names or not self._names <= first.keys():
            return []
        self._opened = kind is Forward
        return [first[name] for name in sorted(self._names)]

    def closed(self, names: Sequence[str]) -> None:
        self._opened = False

    def leave(self, name: str) -> bool:
        self._names.discard(name)
        return self._opened

    def waits_for(self, parked: Sequence[Parked]) -> tuple[str, ...]:
        return tuple(sorted(self._names - {item.name for item in parked})) if parked else ()


def gate(mode: str, names: Sequence[str]) -> Gate:
    """The gate of ``server.adapters``."""
    match mode:
        case "shared-concat":
            return Together(names)
        case "shared-sequential":
            return InTurn(names)
        case _:
            return Free()
