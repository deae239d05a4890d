"""A part run by onnxruntime and NumPy learns what the same part in torch learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fedsplit.config.run import LoraSection, ModelSection, RunFile, TrainSection
from fedsplit.errors import DataError
from fedsplit.plan.types import ClientPlan, Cut, LayerPlan, Topology
from fedsplit.seeds import generator

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from fedsplit.data.batches import Batch  # noqa: E402
from fedsplit.edge.client import EdgeClient  # noqa: E402
from fedsplit.edge.part import EdgePart  # noqa: E402
from fedsplit.exchange.part import Part  # noqa: E402
from fedsplit.exchange.step import At, local_step  # noqa: E402
from fedsplit.lora.adapter import Adapter, Head, Sides  # noqa: E402
from fedsplit.split.base import open_base  # noqa: E402
from fedsplit.split.export.write import export  # noqa: E402
from fedsplit.testing.models import VOCABULARY, tiny  # noqa: E402
from fedsplit.train.part import ClientPart  # noqa: E402
from fedsplit.train.start import first_state  # noqa: E402

AT = At(run="r", client="pi", round=0, era=0, step=0, first_step=0, base_version=0, adapter_version=0, cut=(3, 3))


def batches(task: str, seed: int) -> list[Batch]:
    """Two micro-batches of rows of unequal length."""
    source, found = generator(seed, "edge"), []
    for lengths in ((6, 3), (4, 5)):
        ids = np.zeros((2, max(lengths)), np.int64)
        for b, length in enumerate(lengths):
            ids[b, :length] = source.integers(3, VOCABULARY, length)
        places = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
        labels = np.where(places, ids, -100) if task == "causal-lm" else source.integers(0, 3, 2)
        count = sum(lengths) - 2 if task == "causal-lm" else 2
        one = Batch(ids_BT=ids, lengths=lengths, starts=(0, 0), width=max(lengths), labels=labels, label_tokens=count)
        found.append(one)
    return found


@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "classification")])
def test_twenty_steps_end_where_torch_ends(tmp_path: Path, family: str, task: str) -> None:
    labels = ("a", "b", "c") if task == "classification" else ()
    run = RunFile(
        model=ModelSection(path="model", task=task, labels=labels),  # type: ignore[arg-type]
        lora=LoraSection(rank=4, alpha=6.0),
        train=TrainSection(learning_rate=1e-2, weight_decay=0.1, clip=0.5, batch=4, micro_batches=2),
    )
    base = open_base(str(tiny(tmp_path / "model", family, layers=2, num_labels=3)))
    layers = tuple(LayerPlan(layer=layer, place="client", rank=4) for layer in range(2))
    plan = ClientPlan(client="pi", topology=Topology.LOCAL, cut=Cut(2, 2), layers=layers, batch=4, micro_batches=2)
    (tmp_path / "graphs").mkdir()
    export(base, plan, run, tmp_path / "graphs")
    start = first_state(base, run)
    edge = EdgeClient(tmp_path / "graphs", plan, run, base.config.to_dict(), threads=1)
    part = ClientPart(base, plan, run)
    edge.load(start.adapter, start.head)
    part.load(start.adapter, start.head)
    for step in range(20):
        arrays = batches(task, step)
        outcome, other = (local_step(one, arrays, 1.0, AT, 0) for one in (part, edge))
        assert other.loss == pytest.approx(outcome.loss, rel=1e-4)
    [asked] = batches(task, 99)[:1]
    (loss, logits), (other_loss, other_logits) = part.score(asked, None), edge.score(asked, None)
    assert other_loss == pytest.approx(loss, rel=1e-3)
    assert (logits is None) == (other_logits is None) == (task == "causal-lm")
    np.testing.assert_allclose(edge.logits(asked, None), part.logits(asked, None), rtol=1e-2, atol=1e-2)
    (mine, my_head), (theirs, their_head) = edge.read(), part.read()
    assert mine.keys() == theirs.keys()
    assert my_head.keys() == their_head.keys()
    for key, factors in theirs.items():
        assert np.abs(factors.B_MR).max() > 1e-2, "it learned"
        np.testing.assert_allclose(mine[key].B_MR, factors.B_MR, rtol=1e-2, atol=1e-3)
        np.testing.assert_allclose(mine[key].A_RN, factors.A_RN, rtol=1e-2, atol=1e-3)
    for trains in ("A", "B"):
        one_side_rests((part, edge), theirs, their_head, trains, arrays)


def one_side_rests(parts: Sequence[Part], adapter: Adapter, head: Head, trains: Sides, arrays: list[Batch]) -> None:
    """Of A and B one learns, as in torch; the other stays to the bit."""
    found = []
    for one in parts:
        one.load(adapter, head, trains)
        local_step(one, arrays, 1.0, AT, 0)
        found.append(one.read()[0])
    for key, factors in found[0].items():
        mine, before = found[1][key], adapter[key]
        np.testing.assert_allclose(mine.B_MR, factors.B_MR, rtol=1e-2, atol=1e-3)
        np.testing.assert_allclose(mine.A_RN, factors.A_RN, rtol=1e-2, atol=1e-3)
        assert (mine.A_RN.tobytes() == before.A_RN.tobytes()) == (trains == "B")
        # B is divided by alpha/r and multiplied again: its last bit may differ, nothing more.
        assert np.allclose(mine.B_MR, before.B_MR, rtol=1e-6, atol=0) == (trains == "A")


def test_what_a_folder_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json.*cannot be read"):
        EdgePart(tmp_path, RunFile(model=ModelSection(path="model")))
