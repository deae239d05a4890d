"""An emulated Cortex-A72 joins a server here over TCP, and the run ends as with an x86 client in its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.arm.emulator import Emulated, say

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from fedsplit.config.load import loads
from fedsplit.state.rundir import RunDir
from tests.run.conftest import run_file
from tests.run.processes import Stage, wait_for

pytestmark = pytest.mark.arm
ROUNDS, STEPS = 2, 2
LIMIT_S = 900.0


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    text = " ".join((Path(__file__).parents[2] / "LICENSE").read_text("utf-8").split())
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text[at : at + 150]}) + "\n" for at in range(0, 3000, 150)), "utf-8")
    return path


def adapter_of_a_run(folder: Path, rows: Path, device: Emulated | None) -> dict[str, NDArray[Any]]:
    """The server's arrays after a run of one client on the edge runtime: ``device``, or this machine."""
    folder.mkdir()
    clients = {"pi": 'topology = "u"\ncut = [1, 3]'}
    text = run_file(clients, train__rounds=ROUNDS, train__steps=STEPS, rounds__patience_s=LIMIT_S)
    with Stage(folder, text, {"pi": rows}) as stage:
        server = stage.serve()
        link = stage.link()
        words = ["-m", "fedsplit", "join", link, "--backend", "edge", "--name", "pi", "--data", str(rows), "--yes"]
        words += ["--json", "--profile", str(stage.profile), "--state", str(folder / "state"), "--no-measure-link"]
        client = [*(device.python if device else (sys.executable,)), *words]
        environment = device.environment() if device else {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            client,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{server.error}"
        wait_for(lambda: server.child.poll() is not None)
        server.end()
    run = loads(text)
    found = RunDir(folder / "runs" / run.run.name).load(ROUNDS, exact=True)
    assert found is not None
    return found.arrays


def test_a_run_of_two_rounds_ends_where_it_ends_on_this_machine(device: Emulated, tmp_path: Path, rows: Path) -> None:
    mine = adapter_of_a_run(tmp_path / "x86", rows, None)
    theirs = adapter_of_a_run(tmp_path / "arm", rows, device)
    assert mine.keys() == theirs.keys()
    worst = max(float(np.abs(theirs[name] - expected).max()) for name, expected in mine.items())
    say(f"after {ROUNDS} rounds the adapters differ by {worst:.1e} at most")
    assert worst <= 1e-4
    assert max(float(np.abs(one).max()) for name, one in mine.items() if name.endswith("/B")) > 1e-2, "it learned"
