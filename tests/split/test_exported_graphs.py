"""Exported graphs give what torch gives: hidden states, losses and every gradient, on rows of unequal length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsplit.config.run import ModelSection, RunFile
from fedsplit.edge.manifest import load
from fedsplit.edge.runner import Runner
from fedsplit.errors import InternalError
from fedsplit.plan.types import ClientPlan, Cut, Topology
from fedsplit.split.base import open_base
from fedsplit.split.export import graphs, trace, write
from fedsplit.split.export.write import export
from fedsplit.split.rows import Rows
from fedsplit.split.segment import Segment, Span, build
from fedsplit.testing.models import tiny

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

LABELS = ("a", "b", "c")


class Graphs:
    """Runs graphs of a folder by name, and layers one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, load(folder)
        self.runner, table = Runner(folder, self.manifest), self.manifest.table
        assert table is not None
        self.table = np.memmap(folder / "table.bin", np.float32, "r", shape=(table.rows, table.width))

    def run(self, name: str, **inputs: Any) -> dict[str, torch.Tensor]:
        given = {key: np.asarray(value) for key, value in inputs.items()}
        return {key: torch.from_numpy(value) for key, value in self.runner.run(name, given).items()}

    def forward(self, layers: list[int], h: Any, mask: Any, params: dict[str, Any]) -> list[Any]:
        """The input of every layer, and the output of the last."""
        found = [h]
        for index in layers:
            found.append(self.run(f"layer.{index}", h=found[-1], mask=mask, **self.own(index, params))["out"])
        return found

    def backward(self, layers: list[int], inputs: list[Any], g: Any, mask: Any, params: dict[str, Any]) -> Any:
        """(gradient of the first layer's input, gradients of the factors by their names in the model)."""
        grads = {}
        for index, h in zip(reversed(layers), reversed(inputs[:-1]), strict=True):
            found = self.run(f"layer_grad.{index}", g=g, h=h, mask=mask, **self.own(index, params))
            g = found.pop("grad:h")
            names = self.manifest.factors[index]
            grads |= {names[name.removeprefix("grad:")]: value for name, value in found.items()}
        return g, grads

    def own(self, index: int, params: dict[str, Any]) -> dict[str, Any]:
        return {short: params[name] for short, name in self.manifest.factors[index].items()}


def part(base: Any, run: RunFile, span: Span) -> tuple[Segment, dict[str, torch.Tensor]]:
    segment = build(base, span, task=run.model.task, num_labels=len(run.model.labels) or None, lora=run.lora)
    params = segment.new_params(0)
    for name, value in params.items():
        if ".lora_B" in name:
            torch.nn.init.normal_(value.data, std=0.1, generator=torch.Generator().manual_seed(1))
    return segment, params


def plain(params: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: value.detach().numpy() for name, value in params.items()}


def same(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max()), "differs from torch"


def check(grads: dict[str, torch.Tensor], leaves: dict[str, torch.Tensor]) -> None:
    assert grads.keys() == leaves.keys()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        same(grads[name], leaf.grad)


@pytest.mark.soak  # tests/edge/test_part.py trains with these graphs; here they are compared one by one
def test_a_language_model_layer_by_layer(tmp_path: Path) -> None:
    (tmp_path / "graphs").mkdir()
    base = open_base(str(tiny(tmp_path / "model", "llama", layers=4)))
    run = RunFile(model=ModelSection(path="model", task="causal-lm"))
    plan = ClientPlan(client="pi", topology=Topology.U, cut=Cut(2, 3), layers=(), batch=2)
    manifest = export(base, plan, run, tmp_path / "graphs")
    assert (manifest.layers, manifest.front) == ((0, 1, 3), 2)
    made, rows = Graphs(tmp_path / "graphs"), Rows.of([[4, 8, 9, 30, 2, 7], [5, 6, 11]])
    assert rows.ids_BT is not None
    mask, valid = rows.mask_BT.numpy(), rows.mask_BT.bool()

    front, leaves = part(base, run, Span(0, 2, embeds=True))
    h_BTD = front.run(rows, None, leaves)
    h = made.run("embed", e=made.table[rows.ids_BT.numpy()], mask=mask)["h"]
    inputs = made.forward([0, 1], h, mask, plain(leaves))
    same(inputs[-1][valid], h_BTD.detach()[valid])
    g_BTD = torch.randn(h_BTD.shape, generator=torch.Generator().manual_seed(2)) * valid.unsqueeze(-1)
    h_BTD.backward(g_BTD)
    _, grads = made.backward([0, 1], inputs, g_BTD, mask, plain(leaves))
    check(grads, leaves)

    tail, leaves = part(base, run, Span(3, 4, heads=True))
    x_BTD = torch.randn(h_BTD.shape, generator=torch.Generator().manual_seed(3), requires_grad=True)
    loss = tail.loss(rows, tail.run(rows, x_BTD, leaves), torch.where(valid, rows.ids_BT, -100), 7, leaves)
    loss.backward()
    inputs = made.forward([3], x_BTD.detach(), mask, plain(leaves))
    # Each position with a next token, and that token.
    places = [(0, t) for t in range(5)] + [(1, t) for t in range(2)]
    labels = np.array([int(rows.ids_BT[b, t + 1]) for b, t in places])
    y_ND = torch.stack([inputs[-1][b, t] for b, t in places])
    head = made.run("head", y=y_ND, labels=labels, scale=np.float32(1 / 7))
    assert float(head["loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    g_BTD = torch.zeros_like(h_BTD.detach())
    for (b, t), row in zip(places, head["grad:y"], strict=True):
        g_BTD[b, t] = row
    g_BTD, grads = made.backward([3], inputs, g_BTD, mask, plain(leaves))
    assert x_BTD.grad is not None
    same(g_BTD[valid], x_BTD.grad[valid])
    check(grads, leaves)


def test_a_classifier_whose_layers_are_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "graphs").mkdir()
    base = open_base(str(tiny(tmp_path / "model", "bert", layers=2, num_labels=3)))
    run = RunFile(model=ModelSection(path="model", task="classification", labels=LABELS))
    plan = ClientPlan(client="pi", topology=Topology.W, cut=Cut(0, 2), layers=(), batch=2)
    manifest = export(base, plan, run, tmp_path / "graphs")
    assert set(manifest.graphs) == {"embed", "scores", "head"}
    assert all(graph.error < 1e-5 for graph in manifest.graphs.values())
    made, rows = Graphs(tmp_path / "graphs"), Rows.of([[4, 8, 9, 30, 2, 7], [5, 6, 11]])
    assert rows.ids_BT is not None
    mask, types = rows.mask_BT.numpy(), np.array([[0, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 0]])

    front, _ = part(base, run, Span(0, 0, embeds=True))
    h_BTD = front.run(
        Rows(rows.ids_BT, rows.lengths, rows.starts, rows.width, types_BT=torch.from_numpy(types)), None, {}
    )
    same(made.run("embed", e=made.table[rows.ids_BT.numpy()], mask=mask, types=types)["h"], h_BTD.detach())

    tail, leaves = part(base, run, Span(2, 2, heads=True))
    y_BTD = torch.randn(h_BTD.shape, generator=torch.Generator().manual_seed(3), requires_grad=True)
    labels = torch.tensor([2, 0])
    loss = tail.loss(rows, y_BTD, labels, 2, leaves)
    loss.backward()
    given = {"y": y_BTD.detach(), "mask": mask, **plain(leaves)}
    head = made.run("head", labels=labels, scale=np.float32(1 / 2), **given)
    assert float(head["loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert y_BTD.grad is not None
    same(head["grad:y"], y_BTD.grad)
    check({name: head[f"grad:{name}"] for name in manifest.trained}, leaves)
    same(made.run("scores", **given)["logits"], tail.logits(rows, y_BTD.detach(), leaves).detach())


def test_a_graph_that_is_not_what_autograd_says_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return grad * torch.sigmoid(x)

    monkeypatch.setattr(trace, "_silu_backward", wrong)
    base = open_base(str(tiny(tmp_path / "model", "llama", layers=1)))
    segment = write._segment(base, Span(0, 1), RunFile(model=ModelSection(path="model", task="causal-lm")))
    params = write._examples(segment, {})
    traced = graphs.layer_grad(segment, 0, params)
    piece = write.Piece("grad", segment, traced, write._named_alike(segment, write._frozen(segment), 0))
    made = write._write_graphs({"layer_grad.0": piece}, tmp_path)
    with pytest.raises(InternalError, match=r"layer_grad\.0 differs from autograd by"):
        write._checked(tmp_path, "layer_grad.0", piece, made["layer_grad.0"])
