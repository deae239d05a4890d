"""Do these graphs belong to this plan? Asked before the first of them is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsplit.config.run import RunFile
from fedsplit.edge.manifest import FILE, Manifest
from fedsplit.errors import DataError, PlanError
from fedsplit.exchange.follow import check_plan, held_layers
from fedsplit.plan.card import card
from fedsplit.plan.config_fields import SHARES
from fedsplit.plan.types import ClientPlan, Topology

HEADS, STREAMED = ("head", "scores"), ("finish", "finish_grad")


def check(manifest: Manifest, plan: ClientPlan, run: RunFile, config: Mapping[str, Any], folder: Path) -> None:
    """``config``: the base model's config.json.

    :raises PlanError: a device without torch cannot follow this plan.
    :raises DataError: the graphs are of another plan or model, with all that differs.
    """
    if run.lora.dropout:
        fix = "ask the operator for lora.dropout = 0, or join with --backend torch"
        raise PlanError(f"found lora.dropout = {run.lora.dropout:g}, expected 0 on a device without torch: {fix}")
    ranks, planned = _ranks(manifest), {layer.layer: layer.rank for layer in plan.layers if layer.rank}
    both = sorted(ranks.keys() & planned.keys())
    model = card(config, run.model.task, len(run.model.labels))
    check_plan(plan, run, model.num_layers)
    pairs = {
        "task": (manifest.task, run.model.task),
        "layers": (sorted(manifest.layers), sorted(held_layers(plan, model.num_layers))),
        "layers in front": (manifest.front, model.num_layers if plan.topology is Topology.LOCAL else plan.cut.c1),
        "head": (
            all(name in manifest.graphs for name in (STREAMED if manifest.head else HEADS)),
            plan.topology is not Topology.V,
        ),
        "hidden size": (manifest.hidden, model.hidden),
        "ranks": ({layer: ranks[layer] for layer in both}, {layer: planned[layer] for layer in both}),
    }
    if manifest.table is not None:
        pairs["vocabulary"] = (manifest.table.rows, model.vocab)
    wrong = [f"{what}: found {found}, expected {wanted}" for what, (found, wanted) in pairs.items() if found != wanted]
    if wrong:
        fix = "delete the folder and join again"
        raise DataError(f"the graphs are not those of the plan ({'; '.join(wrong)}); {fix}", str(folder / FILE))


def dropped(config: Mapping[str, Any]) -> float:
    """The largest share that the base model's own layers drop while torch trains them. Graphs drop nothing."""
    return max(float(config.get(name) or 0.0) for name in SHARES)


def _ranks(manifest: Manifest) -> dict[int, int]:
    """Of every layer that has factors."""
    found = {}
    for layer, names in manifest.factors.items():
        ranks = {manifest.shapes[name][0] for name in names.values() if ".lora_A" in name}
        if ranks:
            found[layer] = max(ranks)
    return found
