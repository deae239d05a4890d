"""Where torch is not installed, everything a device needs still imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = """
import importlib, pkgutil, sys

BLOCKED = {"torch", "transformers", "peft", "bitsandbytes"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
try:
    import torch
except ModuleNotFoundError:
    pass
else:
    sys.exit("the blocker does not block")

import fedsplit
names = []
for top in ("errors", "seeds", "events", "assets", "devices", "config", "wire", "plan", "lora", "method", "methods",
            "data", "state", "emulate", "edge", "exchange"):
    package = importlib.import_module(f"fedsplit.{top}")
    names.append(package.__name__)
    if hasattr(package, "__path__"):
        names += [one.name for one in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
names += [f"fedsplit.cli.{verb}" for verb in ("main", "verbs", "bench", "profile", "plan", "join", "new", "methods",
          "data", "export", "partition", "schema", "doctor", "leave", "forget", "fit", "predict", "report")]
names += [f"fedsplit_client.{part}" for part in ("join", "edge", "remote", "worker")]
missing = []
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        missing.append(name)
for name in BLOCKED | {"onnxruntime", "scipy", "matplotlib"}:
    assert name not in sys.modules, name
print(len(names), "modules;", "not written yet:", *missing)
"""


def test_layers_that_devices_use_import_without_torch() -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "server"), str(ROOT / "client")])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-W", "error", "-c", CODE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 20
