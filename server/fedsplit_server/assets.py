"""Files that devices may download: config, tokenizer, and exactly the weights of the segments their plan gives them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedsplit.config.run import ModelSection
from fedsplit.errors import RemoteProtocolError
from fedsplit.plan.types import ClientPlan
from fedsplit.split.base import Base
from fedsplit.split.loader import tensors_for, write_subset
from fedsplit.split.spans import client_spans
from fedsplit.wire.messages import Asset

CHUNK_BYTES = 1 << 20


class Assets:
    """Offers files by name; weight files are written once per set of segments into ``folder``."""

    def __init__(self, base: Base, model: ModelSection, folder: Path) -> None:
        self._base, self._model, self._folder = base, model, folder
        self._paths: dict[str, Path] = {}
        self._offers: dict[str, Asset] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def of(self, plan: ClientPlan) -> tuple[Asset, ...]:
        """What this client needs to build its segments."""
        return (*self.small(), self._weights(plan))

    def small(self) -> tuple[Asset, ...]:
        """Config and tokenizer."""
        weights = {path.name for path in self._base.checkpoint.files}
        names = [name for name in self._base.files() if name not in weights and not name.endswith(".index.json")]
        return tuple(self._offer(name, self._base.folder / name) for name in names)

    def offer(self, asset: Asset, path: Path) -> Asset:
        """Offer another file, whose size and hash are known."""
        self._offers[asset.name], self._paths[asset.name] = asset, path
        return asset

    def read(self, name: str, offset: int, size: int) -> bytes:
        """At most ``CHUNK_BYTES`` of an offered file.

        :raises RemoteProtocolError: the file was never offered, or the range is outside of it.
        """
        path = self._paths.get(name)
        if path is None or not path.is_file() or not 0 <= offset <= path.stat().st_size or size < 0:
            raise RemoteProtocolError(f"no bytes {offset}–{offset + size} of {name!r} here; fetch what was offered")
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(min(size, CHUNK_BYTES))

    def _weights(self, plan: ClientPlan) -> Asset:
        spans = client_spans(plan, self._base.num_layers)
        labels = len(self._model.labels) or None
        needed = {name for span in spans for name in tensors_for(self._base, span, self._model.task, labels)}
        digest = hashlib.sha256("\n".join(sorted(needed)).encode()).hexdigest()[:16]
        path = self._folder / f"part-{digest}.safetensors"
        if not path.exists():
            aside = path.with_suffix(".part")
            write_subset(self._base, sorted(needed), aside)
            aside.replace(path)
        return self._offer(path.name, path)

    def _offer(self, name: str, path: Path) -> Asset:
        if name not in self._offers:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            self._offers[name] = Asset(name, path.stat().st_size, digest)
            self._paths[name] = path
        return self._offers[name]
