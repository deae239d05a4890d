"""A part without torch follows its own plan only; what a device lacks is said before anything is dialled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from fedsplit.config.run import LoraSection, ModelSection, RunFile
from fedsplit.edge.follow import check, dropped
from fedsplit.edge.manifest import Manifest, Table
from fedsplit.errors import ConfigError, DataError, MissingExtra, PlanError
from fedsplit.plan.types import ClientPlan, Cut, LayerPlan, Topology
from fedsplit.wire.messages import Asset
from fedsplit_client import backend
from fedsplit_client.edge import EdgeBackend, _places
from fedsplit_client.session import Offer

CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 64,
}  # fmt: skip
RUN = RunFile(model=ModelSection(path="m"), lora=LoraSection(rank=3))
LAYERS = tuple(LayerPlan(layer=i, place="server" if 1 <= i < 3 else "client", rank=3) for i in range(4))
PLAN = ClientPlan(client="pi", topology=Topology.U, cut=Cut(1, 3), layers=LAYERS, batch=4)
A, B = "l.{}.q.lora_A.default.weight", "l.{}.q.lora_B.default.weight"
MANIFEST = Manifest(
    version=2, model="llama", task="causal-lm", hidden=24, layers=(0, 3), front=1, layers_path="l", opset=18,
    ir_version=10, weight_bits=32, rounding=0.0, table_rounding=0.0, graphs=dict.fromkeys(("head", "scores", "embed")),  # type: ignore[arg-type]
    factors={i: {"q.A": A.format(i), "q.B": B.format(i)} for i in (0, 3)},
    shapes={A.format(i): (3, 24) for i in (0, 3)} | {B.format(i): (24, 3) for i in (0, 3)},
    trained=(), table=Table(rows=97, width=24, dtype="f32"),
)  # fmt: skip


def test_graphs_of_the_plan_are_taken(tmp_path: Path) -> None:
    check(MANIFEST, PLAN, RUN, CONFIG, tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"layers": (0, 1, 3)}, r"layers: found \[0, 1, 3\], expected \[0, 3\]"),
        ({"front": 2}, "layers in front: found 2, expected 1"),
        ({"task": "classification"}, "task: found classification, expected causal-lm"),
        ({"hidden": 32}, "hidden size: found 32, expected 24"),
        ({"table": Table(rows=96, width=24, dtype="f32")}, "vocabulary: found 96, expected 97"),
        ({"graphs": {}}, "head: found False, expected True"),
        (
            {"shapes": {**MANIFEST.shapes, A.format(3): (2, 24)}},
            r"ranks: found \{0: 3, 3: 2\}, expected \{0: 3, 3: 3\}",
        ),
    ],
)
def test_graphs_of_another_plan_are_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said + ".*delete the folder and join again"):
        check(replace(MANIFEST, **changed), PLAN, RUN, CONFIG, tmp_path)


def test_dropout_is_refused_with_two_ways_out(tmp_path: Path) -> None:
    run = replace(RUN, lora=LoraSection(rank=3, dropout=0.1))
    with pytest.raises(PlanError, match=r"lora\.dropout = 0\.1, expected 0 .*lora\.dropout = 0, or .*--backend torch"):
        check(MANIFEST, PLAN, run, CONFIG, tmp_path)


def test_a_models_own_dropout_is_seen() -> None:
    assert dropped(CONFIG) == 0.0
    assert dropped(CONFIG | {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": None}) == 0.1


def present(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(backend, "find_spec", lambda name: name if name in names else None)


def test_torch_is_taken_where_it_is_and_the_edge_runtime_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    present(monkeypatch, "onnxruntime")
    assert backend.choose("", "cpu").name == "edge"
    with pytest.raises(MissingExtra, match="torch is not installed"):
        backend.choose("torch", "cpu")
    with pytest.raises(ConfigError, match=r"--device.*'cuda'.*expected cpu.*fedsplit\[torch\]"):
        backend.choose("edge", "cuda")
    present(monkeypatch)
    with pytest.raises(MissingExtra, match=r"nothing to compute with .*onnxruntime, or torch.*fedsplit\[edge\]"):
        backend.choose("", "cpu")
    with pytest.raises(ConfigError, match=r"--backend.*'tensorflow'.*one of torch, edge"):
        backend.choose("tensorflow", "cpu")


def offered(*names: str) -> Offer:
    return Offer(RUN, PLAN, "0123456789abcdef", tuple(Asset(name, 1, "") for name in names), 0)


def test_every_file_has_its_folder_and_none_leads_out(tmp_path: Path) -> None:
    names = ("config.json", "graphs-1/manifest.json", "../../evil")
    places = _places(offered(*names), tmp_path / "state" / "runs" / "r")
    base = tmp_path / "state" / "models" / "0123456789abcdef"
    assert {place: [one.name for one in files] for place, files in places.items()} == {
        base: ["config.json", "../../evil"],
        base / "graphs-1": ["graphs-1/manifest.json"],
    }


def test_an_offer_without_graphs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"offers no graphs for a device without torch.*--backend torch"):
        EdgeBackend().to_fetch(offered("config.json"), tmp_path)


def test_a_model_of_the_owners_is_of_no_use_without_torch() -> None:
    with pytest.raises(ConfigError, match=r"--model.*nothing, with the edge backend"):
        EdgeBackend().here(offered(), "/some/model")


def test_what_leaves_is_rounded_in_a_run_of_bfloat16() -> None:
    from fedsplit.edge.client import EdgeClient

    part = EdgeClient.__new__(EdgeClient)
    part._half = True
    wire = part._out(np.array([[1.0, 1.00390625]], np.float32))
    assert (wire.dtype, wire.numpy().tolist()) == ("bf16", [[1.0, 1.0]]), "to nearest even"
