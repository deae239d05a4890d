"""Whether the onnxruntime that is installed can run a folder of graphs, asked before any of them is loaded.

A runtime that is too old fails in the middle of a graph with a message about operators. Graphs say what they are
written in, the version of the operators (opset) and of the format itself (IR); the table is that of onnxruntime's own
documentation (docs/Versioning.md of its repository) together with ONNX's release table.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fedsplit.edge.manifest import FILE, Manifest
from fedsplit.errors import DataError, MissingExtra

KNOWS = (
    ((1, 14), 18, 8),
    ((1, 15), 19, 9),
    ((1, 17), 20, 9),
    ((1, 18), 21, 10),
    ((1, 21), 22, 10),
    ((1, 22), 23, 11),
    ((1, 23), 24, 12),
)
"""From which release on: newest opset, newest IR version."""


def check_runtime(manifest: Manifest, folder: Path, found: str = "") -> None:
    """``found``: the version, by default that of what is installed.

    Raises DataError that names both versions; MissingExtra without onnxruntime.
    """
    found = found or installed()
    known = [(opset, ir) for since, opset, ir in KNOWS if since <= _parsed(found)]
    opset, ir = known[-1] if known else (0, 0)
    if manifest.opset <= opset and manifest.ir_version <= ir:
        return
    newest = KNOWS[-1]
    if _parsed(found) > newest[0] or not _parsed(found):  # newer than this table, or a build of one's own: it will show
        return
    text = f"needs ONNX opset {manifest.opset} and IR {manifest.ir_version}"
    theirs = f"onnxruntime {found} knows opset {opset} and IR {ir}" if known else f"onnxruntime {found} is older"
    enough = [since for since, opset, ir in KNOWS if manifest.opset <= opset and manifest.ir_version <= ir]
    fix = f"pip install 'onnxruntime>={enough[0][0]}.{enough[0][1]}'" if enough else "use the newest onnxruntime"
    raise DataError(f"{text}, {theirs}: {fix}", str(folder / FILE))


def installed() -> str:
    """The version of the onnxruntime here. Raises MissingExtra."""
    return str(runtime().__version__)  # several packages bring it, and what looks for packages takes memory, too


def runtime() -> Any:
    """The module. Raises MissingExtra."""
    # Before it is loaded: official builds report to their maker and keep an identifier of the device for it.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("onnxruntime", "edge") from None
    return onnxruntime


def _parsed(text: str) -> tuple[int, int] | tuple[()]:
    parts = text.split(".")
    return (int(parts[0]), int(parts[1])) if len(parts) > 1 and parts[0].isdigit() and parts[1].isdigit() else ()
