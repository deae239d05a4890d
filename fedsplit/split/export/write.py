"""The folder of graphs that one client's plan needs: traced, written with shared weights, checked against autograd."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsplit.config.run import RunFile, Task
from fedsplit.edge.manifest import TABLE, VERSION, WEIGHTS, Graph, Manifest, Table, save
from fedsplit.edge.runner import open_session
from fedsplit.errors import ConfigError, InternalError, Problem
from fedsplit.plan.types import ClientPlan, Topology
from fedsplit.split.base import Base
from fedsplit.split.export import graphs
from fedsplit.split.export.kept import Traces
from fedsplit.split.export.trace import OPSET, Traced, to_onnx
from fedsplit.split.export.weights import WeightFile, content, stripped, untransposed
from fedsplit.split.segment import Segment, build
from fedsplit.split.span import Span, part_of

TOLERANCE = 1e-5
"""Largest difference from autograd, over the largest value, in float32."""
ROWS = 1024
"""Of the token embedding, held at a time."""
OTHER_SIZES = ({"batch": 2, "tokens": 13, "positions": 3}, {"batch": 1, "tokens": 4, "positions": 1})
"""Shapes besides the traced one at which a graph is checked."""


def export(base: Base, plan: ClientPlan, run: RunFile, folder: Path, *, traces: Path | None = None) -> Manifest:
    """Write the graphs of ``plan`` into ``folder``, which exists. ``traces``: where traced graphs are kept for others.

    Raises ConfigError for LoRA on the embedding; MissingExtra without onnxscript and onnxruntime; InternalError when a
    graph's numbers are not autograd's.
    """
    front, tail = spans(plan, base.num_layers)
    pieces: dict[str, Piece] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    ranks = {layer.layer: layer.rank for layer in plan.layers}
    segments = [_segment(base, span, run) for span in (front, tail) if span is not None]
    layers = [index for segment in segments for index in range(segment.span.lo, segment.span.hi)]
    for segment in segments:
        pieces |= _pieces(segment, params := _examples(segment, ranks))
        shapes |= {name: tuple(value.shape) for name, value in params.items()}
    table, held = _write_table(base, folder)
    ir_version = _write_graphs(pieces, folder, Traces(traces, run) if traces else None, held)
    last = segments[-1] if tail else None
    manifest = Manifest(
        version=VERSION, model=base.family.name, task=run.model.task, hidden=base.hidden_size, layers=tuple(layers),
        front=front.hi, layers_path=segments[0].layers_path, opset=OPSET, ir_version=ir_version, weight_bits=32,
        graphs={name: _checked(folder, name, piece.traced) for name, piece in pieces.items()},
        factors={i: graphs.factor_names(s, i) for s in segments for i in range(s.span.lo, s.span.hi)},
        shapes=shapes,
        trained=tuple(name for name in last.trainable_names() if name in graphs.head_names(last)) if last else (),
        table=table,
    )  # fmt: skip
    save(manifest, folder)
    return manifest


def spans(plan: ClientPlan, num_layers: int) -> tuple[Span, Span | None]:
    """(front, tail): a client that holds everything has all layers in front and the head behind them."""
    local = plan.topology is Topology.LOCAL
    front = Span(0, num_layers if local else plan.cut.c1, embeds=True)
    if plan.topology is Topology.V:
        return front, None
    return front, Span(num_layers if local else plan.cut.c2, num_layers, heads=True)


@dataclass(frozen=True)
class Piece:
    """One graph to be written. ``kind``: pieces of one kind are one trace; ``weights``: by the trace's names."""

    kind: str
    segment: Segment
    traced: Traced
    weights: Mapping[str, Tensor]


def _segment(base: Base, span: Span, run: RunFile) -> Segment:
    """Attention in its explicit form: the fused one's backward has no form in ONNX."""
    segment = build(
        base, span, task=run.model.task, num_labels=len(run.model.labels) or None, lora=run.lora,
        train_head=run.model.head != "frozen", attention="eager", map_embedding=not span.heads,
    )  # fmt: skip
    held = {*graphs.head_names(segment)} if span.heads else set()
    for index in range(span.lo, span.hi):
        held |= {*graphs.factor_names(segment, index).values()}
    if others := [name for name in segment.shapes() if name not in held]:
        fix = "name projections of the layers only, or let this device run torch"
        raise ConfigError([Problem("lora.targets", others[0], "factors inside layers, on a device without torch", fix)])
    return segment


def _examples(segment: Segment, ranks: Mapping[int, int]) -> dict[str, Tensor]:
    """Factors of the plan's ranks to trace and check with; B is not zero, so that every gradient can be compared."""
    source, found = torch.Generator().manual_seed(0), {}
    for name, shape in segment.shapes().items():
        rank = ranks.get(part_of(name, segment.base.family, segment.prefix), 0)
        if rank and ".lora_A" in name:
            shape = (rank, *shape[1:])
        elif rank and ".lora_B" in name:
            shape = (shape[0], rank, *shape[2:])
        found[name] = torch.randn(shape, generator=source) / max(shape) ** 0.5
    return found


def _pieces(segment: Segment, params: Mapping[str, Tensor]) -> Iterator[tuple[str, Piece]]:
    span, frozen = segment.span, _frozen(segment)
    for index in range(span.lo, span.hi):
        ranks = {params[name].shape[0] for name in graphs.factor_names(segment, index).values() if ".lora_A" in name}
        kind, own = f"{_kind(segment, index)} {sorted(ranks)}", _named_alike(segment, frozen, index)
        yield f"layer.{index}", Piece(f"layer {kind}", segment, graphs.layer(segment, index, params), own)
        yield f"layer_grad.{index}", Piece(f"grad {kind}", segment, graphs.layer_grad(segment, index, params), own)
    rest = {name: value for name, value in frozen.items() if not name.startswith(f"{segment.layers_path}.")}
    if span.heads:
        yield "scores", Piece("scores", segment, graphs.scores(segment, params), rest)
        yield "head", Piece("head", segment, graphs.head(segment, params), rest)
    if span.embeds:
        # BERT has a kind of embedding for the second text of a pair; with one kind alone nothing is to be chosen.
        types = getattr(segment.base.config, "type_vocab_size", 0) > 1
        looked = graphs.embed(segment, types=types)
        kept = {*_frozen(segment)}  # the table is looked up outside by now
        yield "embed", Piece("embed", segment, looked, {name: value for name, value in rest.items() if name in kept})


def _kind(segment: Segment, index: int) -> str:
    """Layers of one kind differ in their weights alone."""
    config = segment.base.config
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        return str(index)
    types = getattr(config, "layer_types", None)
    return str(types[index]) if types else ""


LAYER = "layer."
"""Stands for the path of a layer in the names of its weights, so that they are those of every layer."""


def _named_alike(segment: Segment, frozen: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """The weights a layer reads: its own by their names within the layer, and what all layers share."""
    prefix, path = f"{segment.layers_path}.{index}.", f"{segment.layers_path}."
    own = {LAYER + name.removeprefix(prefix): value for name, value in frozen.items() if name.startswith(prefix)}
    return own | {name: value for name, value in frozen.items() if not name.startswith(path)}


def _frozen(segment: Segment) -> dict[str, Tensor]:
    """What the graphs read besides their inputs: weights and buffers, the embedding table left out."""
    mine = {*segment.shapes(), f"{segment.prefix}.{segment.base.family.vocabulary}"}
    tensors = [*segment.model.named_parameters(), *segment.model.named_buffers()]
    return {name: value.detach() for name, value in tensors if name not in mine}


# ---- files -----------------------------------------------------------------------------------------------------------


def _write_graphs(
    pieces: Mapping[str, Piece], folder: Path, traces: Traces | None = None, held: Mapping[bytes, str] | None = None
) -> int:
    """Returns the newest version of ONNX's own format among them. ``held``: as ``WeightFile``'s ``others``."""
    import onnx_ir

    models: dict[str, Any] = {}
    with WeightFile(folder / WEIGHTS, held) as weights:
        for name, piece in pieces.items():
            if piece.kind not in models:
                make = partial(_traced, name, piece)
                kept = traces and traces.get(piece.kind, piece.segment, piece.traced, piece.weights, make)
                models[piece.kind] = kept or make()
            weights.bind(models[piece.kind], piece.weights)
            onnx_ir.save(models[piece.kind], folder / f"{name}.onnx")
    return max(int(model.ir_version) for model in models.values())


def _traced(name: str, piece: Piece) -> Any:
    """The graph, its weights called as ``piece.weights`` calls them."""
    index = name.rpartition(".")[2]
    prefix = f"{piece.segment.layers_path}.{index}."
    real = {(prefix + key.removeprefix(LAYER) if key.startswith(LAYER) else key): key for key in piece.weights}
    frozen = {name: piece.weights[key] for name, key in real.items()}
    model = to_onnx(piece.traced, piece.segment.model, frozen)
    untransposed(model)
    stripped(model)
    for value in list(model.graph.initializers.values()):
        value.name = real.get(value.name, value.name)
    return model


def _write_table(base: Base, folder: Path) -> tuple[Table | None, dict[bytes, str]]:
    """The token embedding in float32, and what its file is known by; nothing for images. A few rows at a time."""
    if not base.family.vocabulary:
        return None, {}
    task: Task = "causal-lm" if "causal-lm" in base.family.heads else "classification"
    names = base.names(task, 2)
    stored = base.checkpoint.tensors[names.stored[f"{names.prefix}.{base.family.vocabulary}"]]
    rows, width = stored.shape
    with (folder / TABLE).open("wb") as file:

        def written() -> Iterator[bytes]:
            for first in range(0, rows, ROWS):
                slab = stored.slab(first, min(ROWS, rows - first), torch.float32).numpy().astype("<f4").tobytes()
                file.write(slab)
                yield slab

        key = content(written())
    return Table(rows=rows, width=width, dtype="f32"), {key: TABLE}


# ---- checking --------------------------------------------------------------------------------------------------------


def _checked(folder: Path, name: str, traced: Traced) -> Graph:
    file = f"{name}.onnx"
    session = open_session(folder / file)
    error = max(_error(session, traced, sizes) for sizes in ({}, *OTHER_SIZES))
    if not error <= TOLERANCE:
        raise InternalError(f"the exported graph {name} differs from autograd by {error:.1e} (allowed {TOLERANCE:g})")
    used = tuple(one.name for one in session.get_inputs())
    return Graph(file=file, inputs=used, outputs=tuple(one.name for one in session.get_outputs()), error=error)


def _error(session: Any, traced: Traced, sizes: Mapping[str, int]) -> float:
    """Largest difference from autograd over the largest value of an output."""
    inputs = {name: _resized(name, value, traced, sizes) for name, value in traced.inputs.items()}
    wanted = [tensor.detach().numpy() for tensor in traced.function(*inputs.values())]
    used = [one.name for one in session.get_inputs()]
    got = session.run(None, {name: inputs[name].detach().numpy() for name in used})
    return max(
        float(np.abs(mine - theirs).max() / max(np.abs(theirs).max(), 1e-30))
        for mine, theirs in zip(got, wanted, strict=True)
    )


def _resized(name: str, value: Tensor, traced: Traced, sizes: Mapping[str, int]) -> Tensor:
    """The example at another shape: random numbers, alternating labels, a mask whose last row is padded."""
    axes = traced.sizes.get(name, {})
    shape = [sizes.get(axes.get(axis, ""), size) for axis, size in enumerate(value.shape)]
    if shape == list(value.shape):
        return value
    if value.dtype != torch.int64:
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))
    if name == "mask":
        mask = torch.ones(shape, dtype=torch.int64)
        if 1 in axes:
            mask[-1, shape[1] - 2 :] = 0
        return mask
    return torch.arange(int(np.prod(shape))).reshape(shape) % 2
