"""Computing with torch, on the weights of the layers that the plan gives this device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fedsplit.config.run import RunFile
from fedsplit.events import Emit
from fedsplit.exchange.feed import Feed, Reading
from fedsplit.plan.types import ClientPlan
from fedsplit.split.base import Base
from fedsplit.split.placement import device_of
from fedsplit.train.feed import reading_of
from fedsplit.train.part import ClientPart
from fedsplit_client import bases
from fedsplit_client.backend import Name
from fedsplit_client.dealer import Dealer
from fedsplit_client.session import Offer


class TorchModel:
    """A base model's files."""

    def __init__(self, base: Base, device: str) -> None:
        self.base, self._device = base, device

    @property
    def config(self) -> Mapping[str, Any]:
        found: dict[str, Any] = self.base.config.to_dict()
        return found

    def part(self, offer: Offer) -> ClientPart:
        """Loads the segments."""
        return ClientPart(self.base, offer.plan, offer.run, self._device)

    def reading(self, run: RunFile) -> Reading:
        return reading_of(self.base, run)

    def feed(self, data: str, run: RunFile, name: str) -> Feed:
        return Feed.open(data, run, self.reading(run), name)


class TorchBackend:
    """``device``: ``cpu``, ``cuda``, ``cuda:1``. Raises ConfigError for one that is not there."""

    name: Name = "torch"

    def __init__(self, device: str) -> None:
        device_of(device)
        self._device = device

    def here(self, offer: Offer, model: str) -> TorchModel | None:
        return self._opened(bases.base_here(offer, model))

    def to_fetch(self, offer: Offer, folder: Path) -> int:
        return bases.to_fetch(offer, folder)

    def fetched(self, bulk: Dealer, offer: Offer, folder: Path, name: str, emit: Emit) -> TorchModel:
        return TorchModel(bases.fetched(bulk, offer, folder, name, emit), self._device)

    def left_by(self, earlier: Sequence[ClientPlan], offer: Offer, folder: Path) -> TorchModel | None:
        return self._opened(bases.left_by(earlier, offer, folder))

    @contextmanager
    def computing(self, threads: int) -> Iterator[None]:
        """As before afterwards."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _opened(self, base: Base | None) -> TorchModel | None:
        return None if base is None else TorchModel(base, self._device)
