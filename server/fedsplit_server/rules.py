"""What the course of a run does not decide itself, as it asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from fedsplit.method.record import ClientUpdate, GlobalState
from fedsplit_server.rounds import OpenMeasure, OpenRound


class Rules(Protocol):
    """Merging, judging, keeping (``fedsplit_server.keeper``)."""

    state: GlobalState

    @property
    def due(self) -> str:
        """The measurement that comes before anything else: ``layers``, ``before``, ``round`` or none (empty)."""
        ...

    @property
    def over(self) -> str:
        """Why there is nothing left to train; empty: there is."""
        ...

    @property
    def best_round(self) -> int:
        """The round that validation has chosen so far; 0: none."""
        ...

    def check(self, update: ClientUpdate) -> None:
        """:raises Refused: the update does not belong to this state."""
        ...

    def close_round(
        self, opened: OpenRound, updates: list[ClientUpdate], optimizer: Mapping[str, NDArray[Any]]
    ) -> list[str]: ...
    def judge(self, measured: OpenMeasure) -> None: ...
    def best(self) -> tuple[GlobalState, dict[str, float]]: ...
