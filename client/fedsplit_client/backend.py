"""What a device computes with: torch on the base model's weights, or onnxruntime on graphs that the server exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from fedsplit.config.run import RunFile
from fedsplit.errors import ConfigError, MissingExtra, Problem
from fedsplit.events import Emit
from fedsplit.exchange.feed import Feed, Reading
from fedsplit.exchange.part import Part
from fedsplit.plan.types import ClientPlan
from fedsplit_client.dealer import Dealer
from fedsplit_client.session import Offer

Name = Literal["torch", "edge"]


class Opened(Protocol):
    """What lies on this device of a base model, ready to become a part of a plan."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The base model's config.json."""
        ...

    def part(self, offer: Offer) -> Part:
        """What the offer's plan holds here. Raises PlanError where it cannot follow, DataError for broken files."""
        ...

    def reading(self, run: RunFile) -> Reading:
        """How the model wants its rows. Raises ConfigError and DataError where its files do not say."""
        ...

    def feed(self, data: str, run: RunFile, name: str) -> Feed:
        """The rows of ``data`` as the model wants them. Raises as ``Feed.open`` and ``reading``."""
        ...


class Backend(Protocol):
    """One way to compute; ``name`` as in Hello."""

    @property
    def name(self) -> Name: ...

    def here(self, offer: Offer, model: str) -> Opened | None:
        """What need not be fetched: the owner's ``model``, or one that ships. Raises ConfigError for a wrong one."""
        ...

    def to_fetch(self, offer: Offer, folder: Path) -> int:
        """Bytes that ``fetched`` has to move."""
        ...

    def fetched(self, bulk: Dealer, offer: Offer, folder: Path, name: str, emit: Emit) -> Opened:
        """What the plan needs, beside the run's ``folder``. Raises as ``fetch_all``, and DataError."""
        ...

    def left_by(self, earlier: Sequence[ClientPlan], offer: Offer, folder: Path) -> Opened | None:
        """What was fetched for ``earlier`` plans of this process, when the offer needs no more."""
        ...

    def computing(self, threads: int) -> AbstractContextManager[None]:
        """Compute with so many threads; 0: as many as the backend takes."""
        ...


def choose(name: str, device: str) -> Backend:
    """The named backend; by default torch where it is installed, else the edge runtime.

    :raises ConfigError: no backend of that name, or one that does not run on ``device``.
    :raises MissingExtra: it is not installed.
    """
    if name not in ("", *get_args(Name)):
        raise ConfigError([Problem("--backend", repr(name), f"one of {', '.join(get_args(Name))}")])
    if name == "torch" or (not name and find_spec("torch") is not None):
        return _torch(device)
    if find_spec("onnxruntime") is None:
        raise MissingExtra("onnxruntime" if name else "nothing to compute with (onnxruntime, or torch)", "edge")
    if device != "cpu":
        fix = "torch on GPUs: pip install 'fedsplit[torch]'"
        raise ConfigError([Problem("--device", repr(device), "cpu, where the edge runtime computes", fix)])
    from fedsplit_client.edge import EdgeBackend

    return EdgeBackend()


def _torch(device: str) -> Backend:
    if find_spec("torch") is None:
        raise MissingExtra("torch", "torch")
    from fedsplit_client.torch_backend import TorchBackend

    return TorchBackend(device)
