"""A large head that stays in its file gives the losses and gradients that torch gives with the whole head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedsplit.config.run import ModelSection, RunFile
from fedsplit.plan.types import ClientPlan, Cut, Topology
from fedsplit.seeds import generator

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from fedsplit.data.batches import Batch  # noqa: E402
from fedsplit.edge import streamed  # noqa: E402
from fedsplit.edge.manifest import HEAD, TABLE, Table  # noqa: E402
from fedsplit.edge.part import EdgePart  # noqa: E402
from fedsplit.edge.runner import Lookup  # noqa: E402
from fedsplit.split.base import open_base  # noqa: E402
from fedsplit.split.export import table  # noqa: E402
from fedsplit.split.export.write import export  # noqa: E402
from fedsplit.testing.models import VOCABULARY, tiny  # noqa: E402


def test_slabs_give_cross_entropy_and_its_gradient(tmp_path: Path) -> None:
    source = generator(0, "streamed")
    head, h_ND = (
        source.standard_normal((1000, 8)).astype(np.float32),
        source.standard_normal((11, 8)).astype(np.float32),
    )
    labels = source.integers(0, 1000, 11)
    head.tofile(tmp_path / TABLE)
    leaf = torch.from_numpy(h_ND.copy()).requires_grad_()
    wanted = torch.nn.functional.cross_entropy(
        leaf @ torch.from_numpy(head).T, torch.from_numpy(labels), reduction="sum"
    )
    (wanted * 0.25).backward()
    rows = Lookup(tmp_path / TABLE, Table(rows=1000, width=8, dtype="f32"))
    assert len(list(rows.slabs(256))) == 4
    streamed.SLAB_BYTES, before = 1, streamed.SLAB_BYTES
    try:
        loss, g_ND = streamed.loss(h_ND, labels, 0.25, rows)
        logits = streamed.logits(h_ND, rows)
    finally:
        streamed.SLAB_BYTES = before
    assert loss == pytest.approx(float(wanted.detach()) / 4, rel=1e-6)
    np.testing.assert_allclose(g_ND, leaf.grad.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(logits, h_ND @ head.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_language_model_whose_head_stays_in_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    base = open_base(str(tiny(tmp_path / "model", "llama", layers=1, tie_word_embeddings=tied)))
    run = RunFile(model=ModelSection(path="model"))
    plan = ClientPlan(client="pi", topology=Topology.W, cut=Cut(0, 1), layers=(), batch=2)
    parts = []
    for limit, name in ((1 << 26, "whole"), (0, "streamed")):
        monkeypatch.setattr(table, "HEAD_BYTES", limit)
        (tmp_path / name).mkdir()
        manifest = export(base, plan, run, tmp_path / name)
        assert (manifest.head is None) == (name == "whole")
        parts.append(EdgePart(tmp_path / name, run, threads=1))
        parts[-1].load({}, {})
    assert parts[1].manifest.head_file == (TABLE if tied else HEAD)
    assert set(parts[1].manifest.graphs) == {"embed", "finish", "finish_grad"}
    ids = generator(1, "streamed").integers(3, VOCABULARY, (2, 6))
    ids[1, 4:] = 0
    places = np.arange(6)[None] < np.array([6, 4])[:, None]
    batch = Batch(
        ids_BT=ids, lengths=(6, 4), starts=(0, 0), width=6, labels=np.where(places, ids, -100), label_tokens=8
    )
    h_ND = [part.forward(0, batch) for part in parts]
    np.testing.assert_array_equal(*h_ND)
    (loss, g_ND), (other, g_other) = [part.tail(batch, h_ND[0] * 3, 8) for part in parts]
    assert other == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(g_other, g_ND, rtol=1e-3, atol=1e-6 * np.abs(g_ND).max())
    np.testing.assert_allclose(parts[1].logits(batch, h_ND[0]), parts[0].logits(batch, h_ND[0]), rtol=1e-4, atol=1e-5)
