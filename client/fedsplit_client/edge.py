"""Computing without torch: graphs of the plan's layers, which the server exports, run by onnxruntime."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from fedsplit.config.run import RunFile
from fedsplit.data.images import preparation
from fedsplit.data.tokenizer import load as load_tokenizer
from fedsplit.edge.client import EdgeClient
from fedsplit.edge.follow import dropped
from fedsplit.edge.manifest import FILE
from fedsplit.errors import ConfigError, DataError, Problem
from fedsplit.events import Emit, Note
from fedsplit.exchange.feed import Feed, Reading
from fedsplit.plan.card import card
from fedsplit.plan.types import ClientPlan
from fedsplit.state.personal import model_name
from fedsplit.wire.messages import Asset
from fedsplit_client import fresh
from fedsplit_client.backend import Name
from fedsplit_client.computing import OWNERS
from fedsplit_client.dealer import Dealer
from fedsplit_client.download import fetch_all, missing_bytes
from fedsplit_client.encoding import encoded
from fedsplit_client.session import Offer


class EdgeModel:
    """``folder``: config and tokenizer; ``graphs``: what the server exported for one plan."""

    def __init__(self, folder: Path, graphs: Path, threads: int) -> None:
        self._folder, self._graphs, self._threads = folder, graphs, threads

    @cached_property
    def config(self) -> Mapping[str, Any]:
        path = self._folder / "config.json"
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot be read: {error}; delete the folder and join again", str(path)) from error
        assert isinstance(found, dict)
        return found

    def part(self, offer: Offer) -> EdgeClient:
        """Maps the weights; a graph is loaded when it is first needed."""
        return EdgeClient(self._graphs, offer.plan, offer.run, self.config, threads=self._threads)

    def reading(self, run: RunFile) -> Reading:
        """Exported graphs know padding on the right only, where the model's own tokenizer may want it on the left."""
        if run.model.task != "image-classification":
            return Reading(load_tokenizer(self._folder))
        tokens = card(self.config, run.model.task, len(run.model.labels)).tokens
        return Reading(preparation=preparation(self._folder), image_tokens=tokens)

    def feed(self, data: str, run: RunFile, name: str) -> Feed:
        """Texts are read in a process of their own, where one can be started."""
        if run.model.task == "image-classification" or not fresh.possible():
            return Feed.open(data, run, self.reading(run), name)
        dataset, pad = encoded(data, run, self._folder)
        return Feed(dataset, run, Reading(pad=pad), name)


class EdgeBackend:
    """onnxruntime on the CPU, with as many threads as ``computing`` says."""

    name: Name = "edge"

    def __init__(self) -> None:
        self._threads = 0

    def here(self, offer: Offer, model: str) -> None:
        """Never: a base model's own files are of no use without torch."""
        if model:
            fix = "leave it out: the server sends what is needed"
            raise ConfigError([Problem("--model", repr(model), "nothing, with the edge backend", fix)])

    def to_fetch(self, offer: Offer, folder: Path) -> int:
        return sum(missing_bytes(assets, place) for place, assets in _places(offer, folder).items())

    def fetched(self, bulk: Dealer, offer: Offer, folder: Path, name: str, emit: Emit) -> EdgeModel:
        for place, assets in _places(offer, folder).items():
            fetch_all(bulk, assets, place, client=name, run=offer.run.run.name, emit=emit)
        opened = self._opened(offer, folder)
        if share := dropped(opened.config):
            what = f"this model drops up to {share:.0%} of what its layers hand on while torch trains them"
            emit(Note(client=name, text=f"{what}; the layers on this device drop nothing"))
        return opened

    def left_by(self, earlier: Sequence[ClientPlan], offer: Offer, folder: Path) -> EdgeModel | None:
        return None if self.to_fetch(offer, folder) else self._opened(offer, folder)

    @contextmanager
    def computing(self, threads: int) -> Iterator[None]:
        """For the parts that are opened meanwhile. What the owner set for torch counts here, too."""
        owners = os.environ.get(OWNERS, "")
        self._threads = threads or (int(owners) if owners.isdigit() else 0)
        yield

    def _opened(self, offer: Offer, folder: Path) -> EdgeModel:
        places = _places(offer, folder)
        graphs = next(place for place, assets in places.items() if any(_plain(one) == FILE for one in assets))
        return EdgeModel(_base(offer, folder), graphs, self._threads)


def _places(offer: Offer, folder: Path) -> dict[Path, list[Asset]]:
    """Where every file belongs: the model's beside other runs', a plan's graphs in a folder of their own.

    :raises DataError: the offer has no graphs.
    """
    found: dict[Path, list[Asset]] = {}
    for asset in offer.assets:
        group = Path(asset.name).parent.name.strip(".")  # no name leads out of the folder
        found.setdefault(_base(offer, folder) / group, []).append(asset)
    if not any(_plain(asset) == FILE for asset in offer.assets):
        fix = "serve with a fedsplit that exports graphs, or join with --backend torch"
        raise DataError(f"the server offers no graphs for a device without torch; {fix}")
    return found


def _plain(asset: Asset) -> str:
    return Path(asset.name).name


def _base(offer: Offer, folder: Path) -> Path:
    return folder.parent.parent / "models" / model_name(offer.base)
