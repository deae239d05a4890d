"""``fedsplit bench mixed``: its parts on a tiny model; the comparison finds what differs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from fedsplit.config.run import ModelSection, RunFile, TrainSection
from fedsplit.errors import ConfigError, DataError
from fedsplit.plan.types import ClientPlan, Cut, LayerPlan, Topology
from fedsplit.seeds import generator

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from fedsplit.cli.bench_mixed import NEWS, rows, rows_of, without_dropout
from fedsplit.cli.bench_mixed_parts import furthest, gradients, length
from fedsplit.cli.bench_runs import Shape
from fedsplit.data.batches import Batch
from fedsplit.split.base import open_base
from fedsplit.split.export.write import export
from fedsplit.testing.models import VOCABULARY, tiny

SHAPE = Shape(batch=2, tokens=8, steps=2, rounds=2)


def batch(seed: int) -> Batch:
    """Two rows of unequal length."""
    source, lengths = generator(seed, "mixed"), (6, 4)
    ids = np.zeros((2, 6), np.int64)
    for row, tokens in enumerate(lengths):
        ids[row, :tokens] = source.integers(3, VOCABULARY, tokens)
    labels = source.integers(0, 3, 2)
    return Batch(ids_BT=ids, lengths=lengths, starts=(0, 0), width=6, labels=labels, label_tokens=2)


def test_gradients_are_torchs_and_a_dropout_of_the_base_is_seen(tmp_path: Path) -> None:
    model = tiny(tmp_path / "drops", "bert", layers=2, num_labels=3, hidden_dropout_prob=0.3)
    still = without_dropout(str(model), tmp_path / "still")
    layers = (LayerPlan(layer=0, place="client"),)
    plan = ClientPlan(client="a", topology=Topology.U, cut=Cut(1, 2), layers=layers, batch=2)
    section = ModelSection(path="model", task="classification", labels=("a", "b", "c"))
    run = RunFile(model=section, train=TrainSection(optimizer="sgd", learning_rate=0.1))
    (graphs := tmp_path / "graphs").mkdir()
    export(open_base(str(still)), plan, run, graphs)
    steps = [[batch(seed)] for seed in range(3)]
    found = {folder.name: gradients(open_base(str(folder)), run, plan, steps, graphs) for folder in (still, model)}
    assert found["still"].same < 1e-5
    assert found["still"].own < 1e-4
    assert found["still"].whole < 1e-5
    assert 0 < found["still"].exact < 1e-5
    assert found["drops"].same > 1e-2, "graphs draw no masks: the comparison says so"


def test_the_furthest_tensor_counts() -> None:
    wanted = {"x": np.array([4.0, 1.0], np.float32), "y": np.zeros(2, np.float32)}
    assert furthest({**wanted, "x": np.array([4.0, 2.0], np.float32)}, wanted) == pytest.approx(0.25)
    assert furthest({**wanted, "y": np.array([0.5, 0.0], np.float32)}, wanted) == pytest.approx(0.5)
    assert length({**wanted, "y": np.array([3.0, 0.0], np.float32)}, wanted) == pytest.approx(3 / 17**0.5)
    assert furthest({"x": wanted["x"]}, wanted) == float("inf")


def test_no_row_is_with_both_clients(tmp_path: Path) -> None:
    (tmp_path / "ag_news").mkdir()
    for part in ("train", "test"):
        with gzip.open(tmp_path / "ag_news" / f"{part}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": f"{part} {i}", "label": i % 4}) + "\n" for i in range(300))
    (folder := tmp_path / "rows").mkdir()
    files = rows_of(folder, tmp_path, True, SHAPE, 7)
    a, b = (set(path.read_text("utf-8").splitlines()) for path in (files.a, files.b))
    assert len(a) == len(b) == 108
    assert not a & b
    assert len(files.test.read_text("utf-8").splitlines()) == 7
    assert files.labels == NEWS


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="some of adamw, sgd"):
        rows(optimizers="adamw,lion")
    with pytest.raises(DataError, match="no ag_news"):
        rows(data=tmp_path, model="bert", hidden=12, layers=1)
