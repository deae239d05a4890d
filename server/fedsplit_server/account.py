"""The account of a run that its directory keeps: what it was started with, and how it ended (``state/manifest.py``)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fedsplit.config.run import RunFile
from fedsplit.data.partition import digest
from fedsplit.devices.here import peak_memory
from fedsplit.devices.profile import DeviceProfile
from fedsplit.method.own_file import is_file
from fedsplit.state import manifest

if TYPE_CHECKING:
    from fedsplit_server.serve import Served


class Account:
    """Writes ``manifest.toml`` into ``folder`` when a run starts, and its result when it ends.

    ``run``: as the operator gave it; ``base``: the identity of the weights. ``silent``: writes nothing, for a server
    that only answers. Raises DataError when the disk refuses it.
    """

    def __init__(
        self,
        folder: Path,
        run: RunFile,
        base: str,
        server: DeviceProfile,
        device: str,
        *,
        resumed: bool = False,
        silent: bool = False,
    ) -> None:
        self._folder, self._begun = folder, time.monotonic()
        self._manifest = None
        if not silent:
            self._manifest = manifest.started(
                folder,
                run,
                base=base,
                server=server,
                device=device,
                threads=torch.get_num_threads(),
                files=_files(run),
                resumed=resumed,
            )

    def ended(self, served: Served) -> Served:
        """``served``, after it was written down."""
        if self._manifest is not None:
            result = manifest.Result(
                round=served.rounds,
                reason=served.reason,
                digest=served.digest,
                metrics=dict(served.metrics),
                seconds=round(time.monotonic() - self._begun, 3),
                peak_bytes=peak_memory(),
            )
            manifest.ended(self._folder, self._manifest, result)
        return served


def _files(run: RunFile) -> dict[str, str]:
    """SHA-256 of the operator's own files: validation rows, and methods that are files."""
    methods = [name for name in (run.method.name, *(phase.name for phase in run.method.phases)) if is_file(name)]
    sources = {"server_data": run.server_data.path} | {
        f"method {name}": name.rpartition(":")[0] if ".py:" in name else name for name in methods
    }
    return {what: digest(Path(path)) for what, path in sources.items() if path and Path(path).exists()}
