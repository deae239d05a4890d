"""Run as a script: the command ``fedsplit`` on a device where torch and all that comes with it is not installed."""

from __future__ import annotations

import sys

BLOCKED = ("torch", "transformers", "peft", "bitsandbytes", "onnx", "onnxscript", "scipy", "matplotlib")

if __name__ == "__main__":
    for name in BLOCKED:
        sys.modules[name] = None  # type: ignore[assignment]
    from fedsplit.cli.main import run

    run()
