"""Exported weights of 16, 8 and 4 bits: graphs compute with just what is stored, and manifests say what is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsplit.config.run import ModelSection, RunFile
from fedsplit.edge.manifest import TABLE, WEIGHTS, Table, load
from fedsplit.edge.runner import Arrays, Lookup
from fedsplit.errors import DataError
from fedsplit.plan.types import ClientPlan, Cut, LayerPlan, Topology
from fedsplit.seeds import generator
from fedsplit.split.base import open_base
from fedsplit.split.export.bits import bits_of, error_of, packed
from fedsplit.split.export.table import encoded
from fedsplit.split.export.write import export
from fedsplit.testing.models import tiny

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize(("bits", "bound", "share"), [(16, 4e-4, 0.5), (8, 0.008, 0.282), (4, 0.11, 0.19)])
def test_fewer_bits_take_less_and_lose_what_they_must(bits: int, bound: float, share: float) -> None:
    value = generator(0, "bits").standard_normal((64, 96)).astype(np.float32)
    value[3, :32] = 0
    stored, read = packed(value, bits)
    assert 0 < error_of(value, read) < bound
    assert (read[3, :32] == 0).all()
    assert sum(array.nbytes for array in stored.values()) <= share * value.nbytes
    assert packed(read, bits)[1] == pytest.approx(read, abs=1e-6), "what was rounded stays"


def test_only_matrices_are_rounded() -> None:
    assert [bits_of(torch.zeros(64), bits) for bits in (16, 8, 4)] == [32, 32, 32]
    assert [bits_of(torch.zeros(5, 7), bits) for bits in (16, 8, 4)] == [16, 16, 16], "35 numbers are no blocks"
    assert [bits_of(torch.zeros(8, 8), bits) for bits in (32, 16, 8, 4)] == [32, 16, 8, 4]
    assert bits_of(torch.zeros(8, 8, dtype=torch.int64), 4) == 32


@pytest.mark.parametrize(("bits", "dtype", "bound"), [(32, "f32", 0.0), (16, "bf16", 2e-3), (8, "i8", 8e-3)])
def test_rows_of_a_table_come_back(tmp_path: Path, bits: int, dtype: str, bound: float) -> None:
    table = Table(rows=50, width=24, dtype=dtype)
    value = generator(1, "table").standard_normal((50, 24)).astype(np.float32)
    encoded(value, table).tofile(tmp_path / TABLE)
    ids = np.array([[3, 49, 3], [0, 7, 12]])
    found = Lookup(tmp_path / TABLE, table).rows(ids)
    assert found.shape == (2, 3, 24)
    assert error_of(value[ids], found) <= bound
    if bits == 16:
        np.testing.assert_array_equal(found, torch.from_numpy(value).bfloat16().float().numpy()[ids])
    with pytest.raises(DataError, match="found token 50, the model has 50"):
        Lookup(tmp_path / TABLE, table).rows(np.array([50]))


def test_a_plan_of_four_and_eight_bits(tmp_path: Path) -> None:
    """The export compares every graph with autograd of the rounded weights; here: that they are rounded."""
    folder = tmp_path / "graphs"
    folder.mkdir()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    base = open_base(str(tiny(tmp_path / "model", "bert", layers=1, num_labels=3, **shape)))
    section = ModelSection(path="m", task="classification", labels=("a", "b", "c"), edge_bits=8, edge_table_bits=8)
    layers = (LayerPlan(layer=0, place="client", bits=4),)
    plan = ClientPlan(client="pi", topology=Topology.LOCAL, cut=Cut(1, 1), layers=layers, batch=2)
    manifest = export(base, plan, RunFile(model=section), folder)
    assert (manifest.weight_bits, load(folder)) == (4, manifest)
    assert max(graph.error for graph in manifest.graphs.values()) < 1e-5
    assert 0.04 < manifest.rounding < 0.11
    assert 1e-3 < manifest.table_rounding < 8e-3
    dtypes = {name: {one.dtype for one in manifest.graphs[name].weights.values()} for name in ("layer.0", "head")}
    assert dtypes == {"layer.0": {"uint8", "float32"}, "head": {"int8", "float32"}}, "a head has 8 bits at least"

    one = manifest.graphs["layer.0"].weights
    last = max(one.values(), key=lambda weight: weight.offset)
    assert last.file == WEIGHTS
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(last.offset)
    with pytest.raises(DataError, match=r"weights\.bin.*expected at least"):
        Arrays(folder).get(last)
