"""Graphs for devices without torch: exported beside the server, kept for every run of this operator, offered as files.

An export takes seconds to minutes, so a process of its own does it (``exporting``) and the server goes on; the client
hears that its graphs are being prepared, and asks again. What is kept is known by all that it depends on, so clients
with the same plan share one export, and a server that starts again finds what it had.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import msgspec
import platformdirs

from fedsplit import __version__
from fedsplit.config.run import RunFile
from fedsplit.errors import FedsplitError, MissingExtra, PlanError
from fedsplit.events import Emit, Note, silent
from fedsplit.plan.options import describe
from fedsplit.plan.types import ClientPlan
from fedsplit.split import export as package
from fedsplit.split.base import Base
from fedsplit.split.spans import client_spans
from fedsplit.state.durable import make_private
from fedsplit.wire.messages import Asset
from fedsplit_server.assets import Assets
from fedsplit_server.exporting import LISTING, Order, listed

FOLDER = "FEDSPLIT_GRAPHS"
"""Environment variable that moves the folder where graphs are kept, e.g. for a service or a larger disk."""
KEEP_BYTES = 20_000_000_000
"""All that is kept together; beyond it what was used longest ago goes, but nothing that this server offers."""
NEEDED = ("onnxscript", "onnx", "onnxruntime")
_LAST_LETTERS = 2000


class Preparing(FedsplitError):
    """Not yet: ask again."""


@dataclass
class _Export:
    """A process at work, and the file of what it complains about."""

    child: subprocess.Popen[bytes]
    said: IO[bytes] = field(repr=False)


class Graphs:
    """What devices without torch have to download. ``close`` ends the exports that still run.

    ``folder``: where graphs are kept, by default ``kept_in()``. ``program``: what exports, given an order on stdin.
    """

    def __init__(
        self,
        base: Base,
        run: RunFile,
        files: Assets,
        *,
        folder: Path | None = None,
        program: tuple[str, ...] = (sys.executable, "-m", "fedsplit_server.exporting"),
        keep_bytes: int = KEEP_BYTES,
        emit: Emit = silent,
    ) -> None:
        self._base, self._run, self._files, self._emit = base, run, files, emit
        self._folder, self._program, self._keep_bytes = folder, program, keep_bytes
        self._exports: dict[str, _Export] = {}
        self._ready: dict[str, tuple[Asset, ...]] = {}

    def of(self, plan: ClientPlan) -> tuple[Asset, ...]:
        """All files that this client needs: config, tokenizer, graphs and their weights.

        :raises PlanError: the run asks for what graphs cannot do.
        :raises Preparing: an export runs. :raises MissingExtra: the programs that export are not installed.
        :raises FedsplitError: the export failed, or the disk refuses it.
        """
        if self._run.lora.dropout:
            fix = "set lora.dropout = 0, or let this device join with torch"
            raise PlanError(f"lora.dropout = {self._run.lora.dropout:g}, and graphs draw no masks: {fix}")
        key = self._key(plan)
        if key in self._ready and (self._place(key) / LISTING).exists():
            return (*self._files.small(), *self._ready[key])
        if (export := self._exports.get(key)) is None:
            self._start(key, plan)
        elif export.child.poll() is not None:
            del self._exports[key]
            return (*self._files.small(), *self._finish(key, export))
        raise Preparing(f"this device's graphs, {describe(plan.topology, plan.cut)}, are being prepared")

    def close(self) -> None:
        """What was not finished is begun anew by whoever needs it next."""
        for export in self._exports.values():
            export.child.terminate()
            export.child.wait()
            export.said.close()
        self._exports.clear()

    def __enter__(self) -> Graphs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, key: str, plan: ClientPlan) -> None:
        missing = [name for name in NEEDED if find_spec(name) is None]
        if missing:
            raise MissingExtra(f"{missing[0]}, which the server needs for devices without torch,", "server")
        order = Order(
            folder=str(self._place(key)), traces=str(self._place("traces")), model=str(self._base.folder),
            plan=plan, run=self._run, keep_bytes=self._keep_bytes, held=tuple(self._ready),
        )  # fmt: skip
        said = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the child writes
        child = subprocess.Popen(
            self._program, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, env=_environment()
        )
        assert child.stdin is not None
        try:
            child.stdin.write(msgspec.json.encode(order))
            child.stdin.close()
        except OSError:
            pass  # it has died: its exit code and its last words are read at the next asking
        self._exports[key] = _Export(child, said)
        self._emit(Note(text=f"preparing the graphs of {describe(plan.topology, plan.cut)} for {plan.client}"))

    def _finish(self, key: str, export: _Export) -> tuple[Asset, ...]:
        export.said.seek(0)
        said = export.said.read().decode(errors="replace").strip()[-_LAST_LETTERS:]
        export.said.close()
        if export.child.returncode:
            last = said.splitlines()[-1] if said else f"it ended with code {export.child.returncode} and said nothing"
            self._emit(Note(text=f"graphs could not be exported: {said or last}", warning=True))
            raise FedsplitError(f"the graphs for this device could not be exported: {last}")
        place = self._place(key)
        found = [asset for asset in listed(place) if (place / asset.name).is_file()]
        self._ready[key] = tuple(
            self._files.offer(msgspec.structs.replace(asset, name=f"graphs-{key}/{asset.name}"), place / asset.name)
            for asset in found
        )
        return self._ready[key]

    def _place(self, name: str) -> Path:
        if self._folder is None:
            self._folder = make_private(kept_in())
        return self._folder / name

    def _key(self, plan: ClientPlan) -> str:
        """All that an export depends on: the weights, the layers and their ranks, the task and the adapter."""
        model = msgspec.to_builtins(self._run.model)
        here = {
            index for span in client_spans(plan, self._base.num_layers) for index in range(span.lo, span.hi)
        }  # fmt: skip
        told = {
            "fedsplit": __version__,
            "base": self._base.identity,
            "plan": [plan.topology.value, [plan.cut.c1, plan.cut.c2], plan.dtype],
            "layers": [msgspec.to_builtins(layer) for layer in plan.layers if layer.layer in here],
            "model": {name: value for name, value in model.items() if name not in ("path", "max_length")},
            "lora": msgspec.to_builtins(self._run.lora),
            "source": _source(),
        }
        return hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()[:24]


def kept_in() -> Path:
    """The folder of all graphs: FEDSPLIT_GRAPHS, else where the platform keeps caches."""
    if given := os.environ.get(FOLDER):
        return Path(given).expanduser()
    return platformdirs.user_cache_path("fedsplit", appauthor=False) / "graphs"


@cache
def _source() -> str:
    """The version of the code that exports, finer than a release."""
    files = sorted(Path(str(package.__file__)).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _environment() -> dict[str, str]:
    """The child finds the same packages as this process, wherever that found them."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
