"""Tests that need a CUDA device. ``make test-gpu`` runs them; without one they are skipped and say so."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

import fedsplit
from fedsplit.config.load import loads
from fedsplit.data.stdlib import examples
from fedsplit.devices.find import find
from fedsplit.train.exporting import export
from fedsplit_client.join import Joined
from fedsplit_server.serve import Served

RUN = """
[run]
name = "gpu"
dir = "{folder}/run"
[model]
path = "pydoc-llama"
max_length = 32
dtype = "{dtype}"
[train]
rounds = 2
steps = 3
batch = 8
optimizer = "{optimizer}"
learning_rate = {rate}
[rounds]
patience_s = 60
[server]
port = 0
[policy]
shares_labels = true
exposes_tokens = true
"""


class Trained(NamedTuple):
    """A finished run with one client, and its adapter as peft's tensors in float32."""

    served: Served
    joined: Joined
    tensors: dict[str, NDArray[np.float32]]


@pytest.fixture(scope="session")
def cuda() -> str:
    """The device under test. FEDSPLIT_TEST_DEVICE=cpu runs these tests where there is none, to test the tests."""
    named = os.environ.get("FEDSPLIT_TEST_DEVICE", "cuda")
    if named != "cpu" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device that torch can use; this machine has none")
    return named


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Passages of Python's documentation, as lines of text."""
    path = tmp_path_factory.mktemp("rows") / "rows.txt"
    path.write_text("\n".join(passage.text for passage in examples("train")[:120]) + "\n", "utf-8")
    return path


@pytest.fixture
def train(tmp_path: Path, rows: Path) -> Callable[..., Trained]:
    """One server and one client over TCP with encryption, each on the device that the test names."""

    def run(server: str, client: str, topology: str, *, dtype: str = "float32", optimizer: str = "sgd") -> Trained:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        rate = 0.1 if optimizer == "sgd" else 1e-2
        text = RUN.format(folder=folder.as_posix(), dtype=dtype, optimizer=optimizer, rate=rate)
        links = queue.Queue[str]()
        with ThreadPoolExecutor() as threads:
            serving = threads.submit(fedsplit.serve, loads(text), device=server, ready=links.put)
            serving.add_done_callback(lambda done: links.put("") if done.exception() else None)
            joined = fedsplit.join(
                links.get(timeout=120) or str(serving.result()),
                rows,
                name="one",
                topology=topology,
                profile=find("server_l4"),
                device=client,
                state=folder / "state",
            )
            served = serving.result(timeout=120)
        export(served.folder, folder / "adapter")
        tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
        return Trained(served, joined, {name: value.float().numpy() for name, value in tensors.items()})

    return run
