"""The list of what a device without torch installs: complete, pinned, and enough for what a device runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Set
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LEFT_OUT = {"huggingface-hub"}
DEVICE = {"platform_machine": "aarch64", "platform_system": "Linux", "sys_platform": "linux", "os_name": "posix"}
CODE = """
import importlib, sys

BLOCKED = set(sys.argv[1].split(","))

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import onnxruntime, tokenizers, numpy
tokenizers.Tokenizer(tokenizers.models.BPE()).encode("")
for name in sys.argv[2].split(","):
    importlib.import_module(name)
from fedsplit.cli.main import run
sys.argv[1:] = ["data", "check", sys.argv[3]]
run()
"""


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def listed(path: str) -> set[str]:
    lines = (ROOT / path).read_text("utf-8").splitlines()
    return {plain(re.split(r"[=<>~]", line)[0]) for line in lines if line and not line.startswith("#")}


def needed(wanted: Iterable[str], without: Set[str] = frozenset()) -> set[str]:
    """Names of ``wanted`` and of all they ask for on a device, as the installed packages say it."""
    found: set[str] = set()
    open_names = [Requirement(text).name for text in wanted]
    while open_names:
        name = plain(open_names.pop())
        if name in found or name in without:
            continue
        found.add(name)
        asked = [Requirement(text) for text in requires(name) or ()]
        open_names += [one.name for one in asked if not one.marker or one.marker.evaluate({**DEVICE, "extra": ""})]
    return found


EDGE = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["edge"]]


def test_the_list_is_what_the_edge_extra_brings_less_what_is_left_out() -> None:
    pytest.importorskip("onnxruntime")
    assert listed("client/edge-packages.txt") == needed(EDGE, LEFT_OUT)
    assert len(needed(EDGE)) - len(needed(EDGE, LEFT_OUT)) == 14, "the comment in the list counts them"


def test_every_package_of_the_list_is_pinned() -> None:
    assert listed("client/edge-packages.txt") <= listed("constraints.txt")


def test_what_a_device_runs_asks_for_nothing_that_was_left_out(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "one row"}\n')
    left_out = needed(EDGE) - needed(EDGE, LEFT_OUT)
    names = {"pyyaml": "yaml", **{name: name.replace("-", "_") for name in left_out if name != "pyyaml"}}
    blocked = ["torch", "transformers", "peft", *names.values()]
    modules = ["fedsplit_client.join", "fedsplit_client.edge", "fedsplit.cli.join", "fedsplit.cli.profile"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / one) for one in (".", "server", "client"))}
    command = [sys.executable, "-c", CODE, ",".join(blocked), ",".join(modules), str(rows)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
