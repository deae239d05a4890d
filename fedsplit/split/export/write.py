"""The folder of graphs that one client's plan needs: traced, written with shared weights, checked against autograd."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsplit.config.run import RunFile
from fedsplit.edge.manifest import TABLE, VERSION, WEIGHTS, Graph, Manifest, Weight, save
from fedsplit.edge.runner import Arrays, open_session
from fedsplit.errors import ConfigError, InternalError, Problem
from fedsplit.plan.types import ClientPlan, Topology
from fedsplit.split.base import Base
from fedsplit.split.export import graphs
from fedsplit.split.export.bits import as_inputs, bits_of, error_of, packed
from fedsplit.split.export.kept import Traces
from fedsplit.split.export.table import streams_head, write_head, write_table
from fedsplit.split.export.trace import OPSET, Traced, to_onnx
from fedsplit.split.export.weights import WeightFile, stripped, untransposed
from fedsplit.split.segment import Segment, build
from fedsplit.split.span import Span, part_of

TOLERANCE = 1e-5
"""Largest difference from autograd, over the largest value, in float32; sums of very many terms may differ by more."""
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
    wanted = {layer.layer: min(layer.bits, run.model.edge_bits) for layer in plan.layers}
    layers = [index for segment in segments for index in range(segment.span.lo, segment.span.hi)]
    for segment in segments:
        params = _examples(segment, ranks)
        pieces |= _pieces(segment, params, wanted, run.model.edge_bits, streams_head(base, run))
        shapes |= {name: tuple(value.shape) for name, value in params.items()}
    table, table_error, held = write_table(base, folder, run.model.edge_table_bits)
    head, head_file = write_head(base, folder, table) if tail and streams_head(base, run) else (None, TABLE)
    made = _write_graphs(pieces, folder, Traces(traces, run) if traces else None, held)
    last = segments[-1] if tail else None
    manifest = Manifest(
        version=VERSION, model=base.family.name, task=run.model.task, hidden=base.hidden_size, layers=tuple(layers),
        front=front.hi, layers_path=segments[0].layers_path, opset=OPSET,
        ir_version=max(one.ir_version for one in made.values()),
        weight_bits=min((wanted.get(layer, run.model.edge_bits) for layer in layers), default=32),
        rounding=max(_rounding(piece) for piece in pieces.values()), table_rounding=table_error,
        graphs={name: _checked(folder, name, piece, made[name]) for name, piece in pieces.items()},
        factors={i: graphs.factor_names(s, i) for s in segments for i in range(s.span.lo, s.span.hi)},
        shapes=shapes,
        trained=tuple(name for name in last.trainable_names() if name in graphs.head_names(last)) if last else (),
        table=table, head=head, head_file=head_file,
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
    """One graph to be written. ``kind``: pieces of one kind are one trace; ``weights``: by the trace's names.

    ``bits``: of the matrices among them.
    """

    kind: str
    segment: Segment
    traced: Traced
    weights: Mapping[str, Tensor]
    bits: int = 32


@dataclass(frozen=True)
class Written:
    """One graph in its file, and where its weights are."""

    file: str
    ir_version: int
    weights: Mapping[str, Weight]


def _segment(base: Base, span: Span, run: RunFile) -> Segment:
    """Attention in its explicit form: the fused one's backward has no form in ONNX."""
    segment = build(
        base, span, task=run.model.task, num_labels=len(run.model.labels) or None, lora=run.lora,
        train_head=run.model.head != "frozen", attention="eager",
        map_embedding=not span.heads or streams_head(base, run),
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


def _pieces(
    segment: Segment, params: Mapping[str, Tensor], wanted: Mapping[int, int], others: int, streamed: bool
) -> Iterator[tuple[str, Piece]]:
    """``wanted``: bits by layer; ``others``: those of a head that is not ``streamed``, which gets 8 at least."""
    span, frozen = segment.span, _frozen(segment)
    for index in range(span.lo, span.hi):
        ranks = {params[name].shape[0] for name in graphs.factor_names(segment, index).values() if ".lora_A" in name}
        kind, own = f"{_kind(segment, index)} {sorted(ranks)}", _named_alike(segment, frozen, index)
        bits = wanted.get(index, others)
        yield f"layer.{index}", Piece(f"layer {kind}", segment, graphs.layer(segment, index, params), own, bits)
        back = graphs.layer_grad(segment, index, params)
        yield f"layer_grad.{index}", Piece(f"grad {kind}", segment, back, own, bits)
    rest = {name: value for name, value in frozen.items() if not name.startswith(f"{segment.layers_path}.")}
    if span.heads and streamed:
        yield "finish", Piece("finish", segment, graphs.finish(segment), rest)
        yield "finish_grad", Piece("finish_grad", segment, graphs.finish_grad(segment), rest)
    elif span.heads:
        bits = max(8, others)
        yield "scores", Piece("scores", segment, graphs.scores(segment, params), rest, bits)
        yield "head", Piece("head", segment, graphs.head(segment, params), rest, bits)
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
) -> dict[str, Written]:
    """Pieces of one kind and as many bits share one file. ``held``: as ``WeightFile``'s ``others``."""
    import onnx_ir

    files: dict[tuple[str, int], tuple[str, int, list[str]]] = {}
    made: dict[str, Written] = {}
    with WeightFile(folder / WEIGHTS, held) as weights:
        for name, piece in pieces.items():
            key = piece.kind, piece.bits
            if key not in files:
                make = partial(_traced, name, piece)
                kept = traces and traces.get(piece.kind, piece.segment, piece.traced, piece.weights, make)
                model = kept or make()
                read = [name for name in model.graph.initializers if name in piece.weights]
                as_inputs(model, piece.weights, piece.bits)
                onnx_ir.save(model, folder / f"{name}.onnx")
                files[key] = f"{name}.onnx", int(model.ir_version), read
            file, ir_version, read = files[key]
            made[name] = Written(file, ir_version, _placed(weights, piece, read))
    return made


def _placed(weights: WeightFile, piece: Piece, read: Iterable[str]) -> dict[str, Weight]:
    found: dict[str, Weight] = {}
    for name in read:
        tensor = piece.weights[name]
        stored, _ = packed(tensor.numpy(), bits_of(tensor, piece.bits))
        found |= weights.place({name + end: array for end, array in stored.items()})
    return found


def _traced(name: str, piece: Piece) -> Any:
    """The graph, its weights called as ``piece.weights`` calls them."""
    real = _real(name, piece)
    frozen = {name: piece.weights[key] for name, key in real.items()}
    model = to_onnx(piece.traced, piece.segment.model, frozen)
    untransposed(model)
    stripped(model)
    for value in list(model.graph.initializers.values()):
        value.name = real.get(value.name, value.name)
    return model


def _real(name: str, piece: Piece) -> dict[str, str]:
    """Names of its weights in the model → in the trace."""
    prefix = f"{piece.segment.layers_path}.{name.rpartition('.')[2]}."
    return {(prefix + key.removeprefix(LAYER) if key.startswith(LAYER) else key): key for key in piece.weights}


# ---- checking --------------------------------------------------------------------------------------------------------


def _checked(folder: Path, name: str, piece: Piece, made: Written) -> Graph:
    """Against autograd with the numbers that are read from the stored weights."""
    allowed, arrays = _allowed(piece), Arrays(folder)
    session = open_session(folder / made.file)
    given = {key: arrays.get(weight) for key, weight in made.weights.items()}
    read = {real: _as_read(piece, key) for real, key in _real(name, piece).items() if _is_rounded(piece, key)}
    with torch.nn.utils.stateless._reparametrize_module(piece.segment.model, read):
        error = max(_error(session, piece.traced, sizes, given) for sizes in ({}, *OTHER_SIZES))
    if not error <= allowed:
        raise InternalError(f"the exported graph {name} differs from autograd by {error:.1e} (allowed {allowed:.1e})")
    used = tuple(one.name for one in session.get_inputs() if one.name not in given)
    outputs = tuple(one.name for one in session.get_outputs())
    weights = {one.name: made.weights[one.name] for one in session.get_inputs() if one.name in given}
    return Graph(file=made.file, inputs=used, outputs=outputs, weights=weights, error=error)


def _is_rounded(piece: Piece, key: str) -> bool:
    return bits_of(piece.weights[key], piece.bits) < 32


def _as_read(piece: Piece, key: str) -> Tensor:
    value = piece.weights[key]
    return torch.from_numpy(packed(value.numpy(), bits_of(value, piece.bits))[1])


def _rounding(piece: Piece) -> float:
    """The largest share of a matrix's length that its bits lose."""
    rounded = [key for key in piece.weights if _is_rounded(piece, key)]
    return max((error_of(piece.weights[key].numpy(), _as_read(piece, key).numpy()) for key in rounded), default=0.0)


def _allowed(piece: Piece) -> float:
    """Two correct float32 sums of n terms in different orders differ by about √n roundings: 128,256 in a large head."""
    widest = max((size for value in piece.weights.values() for size in value.shape), default=1)
    return max(TOLERANCE, 2 * float(np.finfo(np.float32).eps) * math.sqrt(widest))


def _error(session: Any, traced: Traced, sizes: Mapping[str, int], given: Mapping[str, NDArray[Any]]) -> float:
    """Largest difference from autograd over the largest value of an output."""
    inputs = {name: _resized(name, value, traced, sizes) for name, value in traced.inputs.items()}
    wanted = [tensor.detach().numpy() for tensor in traced.function(*inputs.values())]
    used = [one.name for one in session.get_inputs() if one.name not in given]
    got = session.run(None, {**given, **{name: inputs[name].detach().numpy() for name in used}})
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
        return torch.randn(shape, generator=torch.Generator().manual_seed(sum(name.encode())))  # no input like another
    if name == "mask":
        mask = torch.ones(shape, dtype=torch.int64)
        if 1 in axes:
            mask[-1, shape[1] - 2 :] = 0
        return mask
    return torch.arange(int(np.prod(shape))).reshape(shape) % 2
