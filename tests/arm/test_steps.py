"""A part exported here trains on an emulated Cortex-A72, and ends where it ends on this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedsplit.config.load import dumps
from fedsplit.config.run import LoraSection, ModelSection, RunFile, TrainSection
from fedsplit.lora.adapter import flatten
from fedsplit.plan.types import ClientPlan, Cut, LayerPlan, Topology
from tests.arm.emulator import Emulated

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from safetensors.numpy import load_file, save_file

from fedsplit.split.base import open_base
from fedsplit.split.export.write import export
from fedsplit.testing.models import tiny
from fedsplit.train.start import first_state
from tests.arm.steps import train

pytestmark = pytest.mark.arm
STEPS = 10
SCRIPT = Path(__file__).with_name("steps.py")


def exported(folder: Path, family: str, task: str, bits: int) -> Path:
    """A front and a tail of one layer each, of three, their frozen weights in so many bits."""
    labels = ("a", "b", "c") if task == "classification" else ()
    run = RunFile(
        model=ModelSection(path="model", task=task, labels=labels, edge_bits=bits),  # type: ignore[arg-type]
        lora=LoraSection(rank=4, alpha=6.0),
        train=TrainSection(learning_rate=1e-2, weight_decay=0.1, batch=4, micro_batches=2),
    )
    base = open_base(str(tiny(folder / "model", family, layers=3, num_labels=3)))
    layers = tuple(LayerPlan(layer=i, place="server" if i == 1 else "client", rank=4) for i in range(3))
    plan = ClientPlan(client="pi", topology=Topology.U, cut=Cut(1, 2), layers=layers, batch=4, micro_batches=2)
    (folder / "graphs").mkdir()
    export(base, plan, run, folder / "graphs")
    start = first_state(base, run)
    save_file(
        {name: np.ascontiguousarray(one) for name, one in flatten(start.adapter, start.head).items()},
        folder / "start.safetensors",
    )
    (folder / "run.toml").write_text(dumps(run), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("family", "task", "bits"),
    [("llama", "causal-lm", 32), ("bert", "classification", 32), ("llama", "causal-lm", 8), ("llama", "causal-lm", 4)],
)
def test_ten_steps_end_where_this_machine_ends(
    device: Emulated, tmp_path: Path, family: str, task: str, bits: int
) -> None:
    folder = exported(tmp_path, family, task, bits)
    device.run(str(SCRIPT), str(folder), str(tmp_path / "theirs"), str(STEPS))
    start, mine, theirs = load_file(folder / "start.safetensors"), train(folder, STEPS), load_file(tmp_path / "theirs")
    assert mine.keys() == theirs.keys()
    assert np.ptp(mine["loss"]) > 1e-2, "it learned"
    for name, expected in mine.items():
        np.testing.assert_allclose(theirs[name], expected, rtol=0, atol=1e-4, err_msg=name)
        if name in start and name.endswith("/B"):
            assert np.abs(expected - start[name]).max() > 1e-2, name
