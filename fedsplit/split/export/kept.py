"""Traced graphs kept between exports. Tracing is nearly all of an export's time, and needs no weights.

A trace depends on the model's config, the run's adapter and the shapes of what it reads, not on the plan's cut: the
second cut of a model costs its weights alone. What is found here is checked against autograd like a new trace.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from fedsplit import __version__
from fedsplit.config.run import RunFile
from fedsplit.split.export.trace import OPSET, Traced
from fedsplit.split.segment import Segment

NOWHERE = "weights"
"""The file that a kept graph says its weights are in: there is none, every export binds its own."""


class Traces:
    """Graphs of one run, in files of ``folder`` named after all that they depend on."""

    def __init__(self, folder: Path, run: RunFile) -> None:
        self._folder, self._run = folder, run

    def get(self, kind: str, segment: Segment, traced: Traced, weights: Any, make: Callable[[], Any]) -> Any:
        """The ``onnx_ir`` model that ``make`` gives, or gave earlier. ``weights``: its frozen tensors by name."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._key(kind, segment, traced, weights)}.onnx"
        return _load(path) or _keep(make(), weights, path)

    def _key(self, kind: str, segment: Segment, traced: Traced, weights: Any) -> str:
        config = {name: value for name, value in segment.base.config.to_dict().items() if name != "_name_or_path"}
        model = self._run.model
        shapes = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in traced.inputs.items()]
        frozen = sorted((name, list(tensor.shape), str(tensor.dtype)) for name, tensor in weights.items())
        sizes = {name: {str(axis): size for axis, size in axes.items()} for name, axes in traced.sizes.items()}
        told = [
            *(_programs(), OPSET, kind, config, model.task, len(model.labels), model.head),
            *(msgspec.to_builtins(self._run.lora), shapes, sizes, list(traced.outputs), frozen),
        ]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:32]


@cache
def _programs() -> list[str]:
    """Versions of what makes a graph, and of the source of this package: a trace is only as old as its recipe."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return [__version__, *(version(name) for name in ("torch", "transformers", "peft", "onnxscript")), digest]


def _load(path: Path) -> Any:
    """The graph in ``path``; None where there is none, or none that can be read."""
    import onnx_ir

    if not path.exists():
        return None
    try:
        model = onnx_ir.load(path)
    except Exception:  # protobuf has errors of its own; a graph that cannot be read is traced again
        path.unlink(missing_ok=True)
        return None
    os.utime(path)
    return model


def _keep(model: Any, weights: Any, path: Path) -> Any:
    """Write ``model`` without its weights; what is returned is what the next export will load.

    Only what is asked for is lost where the disk refuses: the graph is made anew next time.
    """
    import onnx_ir

    for name, value in model.graph.initializers.items():
        if name in weights:
            old = value.const_value
            value.const_value = onnx_ir.ExternalTensor(
                NOWHERE, 0, old.nbytes, old.dtype, shape=onnx_ir.Shape(old.shape), name=name, base_dir="",
            )  # fmt: skip
    aside = path.with_name(f".{os.getpid()}-{path.name}")
    with suppress(OSError):
        onnx_ir.save(model, aside)
        aside.replace(path)
    aside.unlink(missing_ok=True)
    return model
