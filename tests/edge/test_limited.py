"""A device with 512 MB: a real client that may reserve no more trains MiniLM, and ends with the same bits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fedsplit.events import Note, RoundCost, StepDone
from fedsplit.plan.card import card
from fedsplit.plan.memory import client_memory
from fedsplit.plan.types import Cut, Topology
from fedsplit.plan.work import work_of
from fedsplit.probe.runtime import EDGE_BYTES

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="addresses are limited on Linux alone")

from fedsplit.config.load import loads  # noqa: E402
from fedsplit.edge.client import EdgeClient  # noqa: E402
from tests.edge.limited import LIMIT_BYTES  # noqa: E402
from tests.run.conftest import run_file  # noqa: E402
from tests.run.party import Party, written  # noqa: E402
from tests.run.processes import LIMIT_S, Stage, wait_for  # noqa: E402

LIMITED = (sys.executable, str(Path(__file__).with_name("limited.py")))
CLIENTS = {"a": 'topology = "w"'}
SETTINGS: dict[str, object] = {
    "model__path": "minilm", "model__task": "classification", "model__labels": ["short", "long"],
    "model__max_length": 64, "train__batch": 8, "train__micro_batches": 1,
}  # fmt: skip
WORDS = "the quick brown fox jumps over the lazy dog while many small boards learn to read together in the evening " * 4
ROWS = {"a": [{"text": WORDS[i : i + 40 + 60 * (i % 5)], "label": ("short", "long")[i % 5 > 2]} for i in range(20)]}


def test_minilm_within_512_mb(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSPLIT_GRAPHS", str(tmp_path / "graphs"))
    data = {"a": written(tmp_path / "a.jsonl", ROWS["a"])}
    text = run_file(CLIENTS, **SETTINGS)
    with Stage(tmp_path, run_file(CLIENTS, run__dir=str(tmp_path / "run"), **SETTINGS), data) as stage:
        server = stage.serve()
        device = stage.join("a", "--backend", "edge", program=LIMITED)
        wait_for(lambda: any(isinstance(event, StepDone) for event in device.events), limit_s=5 * LIMIT_S)  # exporting
        for process in (device, server):
            process.end()
    said = [event.text for event in device.events if isinstance(event, Note)]
    assert any("drops up to 10% " in text for text in said), "MiniLM's own dropout, which graphs leave out"
    costs = [event for event in server.events if isinstance(event, RoundCost)]
    assert len(costs) == 2
    config = json.loads((minilm / "config.json").read_text("utf-8"))
    run = loads(text)
    work = work_of(card(config, run.model.task, 2), run, edge=True)
    planned = client_memory(work, Topology.W, Cut(0, 6)).total + EDGE_BYTES
    assert costs[-1].peak_bytes == pytest.approx(planned, rel=0.15)
    assert costs[-1].peak_bytes < LIMIT_BYTES / 3
    [graphs] = (tmp_path / "devices" / "a").glob("**/graphs-*/manifest.json")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # bits depend on their number
    try:
        (tmp_path / "free").mkdir()
        with Party(text, ROWS, tmp_path / "free") as free:
            free.parts["a"] = lambda offer: EdgeClient(graphs.parent, offer.plan, offer.run, config, threads=1)
            assert free.start().finish().digest == server.finished.digest
    finally:
        torch.set_num_threads(threads)
