"""From a base on disk to the weights of one span, and nothing more.

Tensors are read one by one into their final place: the peak is what the span needs plus one small piece, never the
whole model. The same list of names serves downloads: a device fetches a file with exactly its tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsplit.config.run import Task
from fedsplit.errors import ConfigError, InternalError, OutOfMemory
from fedsplit.split import fewbits
from fedsplit.split.base import IDENTITY, Base, Names
from fedsplit.split.checkpoint import Stored, write
from fedsplit.split.families import Family
from fedsplit.split.placement import free_bytes
from fedsplit.split.span import Span, holds, part_of
from fedsplit.split.streamed import StreamedEmbedding, StreamedLinear, StreamedMatrix


def tensors_for(base: Base, span: Span, task: Task, num_labels: int | None = None) -> list[str]:
    """Names in the checkpoint of what ``span`` needs, sorted. A head that the checkpoint lacks is not among them.

    Raises ConfigError naming the first needed tensor that the folder does not hold.
    """
    names = base.names(task, num_labels)
    wanted = [name for name in names.shapes if holds(span, part_of(name, base.family, names.prefix))]
    found = {stored for name in wanted if (stored := stored_as(base, names, name)) is not None}
    return sorted(found)


def needed_bytes(base: Base, span: Span, task: Task, num_labels: int | None, *, dtype: torch.dtype, bits: int) -> int:
    """Bytes of the weights of ``span`` in memory, the matrices of its layers in ``bits`` where those are fewer."""
    names, width, total = base.names(task, num_labels), dtype.itemsize, 0
    plain = {stored: name for name, stored in names.stored.items()}
    for stored in tensors_for(base, span, task, num_labels):
        shape = base.checkpoint.tensors[stored].shape
        inside = part_of(plain[stored], base.family, names.prefix) in range(base.num_layers)
        packs = bits < 8 * width and inside and len(shape) == 2
        total += fewbits.packed_bytes(shape, bits) if packs else math.prod(shape) * width
    return total


def stored_as(base: Base, names: Names, name: str) -> str | None:
    """The checkpoint's name of a parameter; None where a new one is to be drawn (a head it was not trained with).

    Raises ConfigError where the parameter belongs to the pretrained model.
    """
    if name in names.stored:
        return names.stored[name]
    if trains(base.family, names, name):
        return None
    raise ConfigError(
        f"{base.folder}: found no tensor for {name} ({len(base.checkpoint.tensors)} tensors in "
        f"{len(base.checkpoint.files)} files), expected it there; the folder is incomplete, fetch the missing part"
    )


def is_head(prefix: str, name: str) -> bool:
    """Whether a parameter is a classification head: trained in full, drawn anew where the checkpoint has none."""
    return not name.startswith(f"{prefix}.") and not name.startswith("lm_head.")


def trains(family: Family, names: Names, name: str) -> bool:
    """Whether a parameter of the plain model trains: a head, or BERT's pooler where the checkpoint has none."""
    return is_head(names.prefix, name) or (_is_pooler(family, names.prefix, name) and name not in names.stored)


def frozen_head(base: Base, task: Task, num_labels: int | None = None) -> int:
    """Parameters of BERT's pooler where the checkpoint has one: the planner counts it to the head, but it stays."""
    if task == "causal-lm":
        return 0
    names = base.names(task, num_labels)
    poolers = [name for name in names.stored if _is_pooler(base.family, names.prefix, name)]
    return sum(math.prod(names.shapes[name]) for name in poolers)


def _is_pooler(family: Family, prefix: str, name: str) -> bool:
    return any(name.startswith(f"{prefix}.{module}.") for module in family.final if module == "pooler")


def write_subset(base: Base, names: list[str], path: str | Path) -> None:
    """Write a safetensors file with exactly these tensors of the checkpoint, bytes unchanged, streamed.

    The file carries the identity of the whole base. Name it ``part-….safetensors`` inside a model folder. Raises
    ConfigError for a name that the checkpoint does not hold.
    """
    if missing := sorted(set(names) - set(base.checkpoint.tensors)):
        raise ConfigError(f"{base.folder}: found no tensor {missing[0]}, expected one of the checkpoint's names")
    chosen = {name: base.checkpoint.tensors[name] for name in names}
    write(chosen, Path(path), {IDENTITY: base.identity})


def materialise(
    base: Base,
    model: Any,
    names: Names,
    *,
    dtype: torch.dtype,
    device: torch.device,
    stream: bool = False,
    bits: Mapping[int, int] | None = None,
) -> None:
    """Fill the frozen parameters of a (partial) meta model that the checkpoint holds; buffers are rebuilt.

    ``stream``: leave the token embedding and a frozen language-model head in the file. LoRA factors and heads that
    train stay on meta: they come with each call. ``bits``: of the matrices of some layers (``fewbits``).
    """
    if few := fewbits.fewer(bits, dtype):
        fewbits.replace(base, model, names.stored, few, device)
    if stream:
        _stream(base, model, names, dtype, device)
    for path in [path for path, _ in model.named_parameters(remove_duplicate=False)]:
        name = canonical(path)
        if name not in names.shapes or trains(base.family, names, name):
            continue
        stored = stored_as(base, names, name)
        assert stored is not None
        owner, _, leaf = path.rpartition(".")
        model.get_submodule(owner)._parameters[leaf] = load(base, base.checkpoint.tensors[stored], dtype, device)
    _buffers(model, device)
    waiting = {path for path, p in model.named_parameters() if p.is_meta}
    if left := [path for path in waiting if ".lora_" not in path and not trains(base.family, names, canonical(path))]:
        raise InternalError(f"parameter {left[0]} was never loaded")


def canonical(path: str) -> str:
    """A parameter's name in the plain model: without the wrapper that peft puts around an adapted module."""
    return path.replace(".base_layer.", ".")


def load(base: Base, stored: Stored, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """One frozen tensor; the same object for every segment that uses it while any of them lives."""
    key = (stored.file, stored.offset, dtype, device)
    parameter = base.loaded.get(key)
    if parameter is None:
        target = dtype if stored.dtype in ("F64", "F32", "F16", "BF16") else None
        parameter = nn.Parameter(read(stored, target or torch.float32, device), requires_grad=False)
        base.loaded[key] = parameter
    return parameter


def read(stored: Stored, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor's values. Raises OutOfMemory, saying what is needed and what there is."""
    need = math.prod(stored.shape) * dtype.itemsize
    try:
        return stored.read(dtype, device)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        what = f"a tensor of {stored.file.name} on {device}"
        raise OutOfMemory(what, need, free_bytes(device), "hold fewer layers or use bfloat16") from None


def _stream(base: Base, model: Any, names: Names, dtype: torch.dtype, device: torch.device) -> None:
    matrix = f"{names.prefix}.{base.family.vocabulary}"
    for name, module in list(model.named_modules()):
        plain = canonical(f"{name}.weight")
        if plain not in (matrix, "lm_head.weight") or not isinstance(module, nn.Embedding | nn.Linear):
            continue
        stored = base.checkpoint.tensors[stored_as(base, names, plain) or ""]
        source = StreamedMatrix(stored, dtype, device)
        substitute = StreamedEmbedding(source, module) if isinstance(module, nn.Embedding) else StreamedLinear(source)
        model.set_submodule(name, substitute)


def _buffers(model: Any, device: torch.device) -> None:
    """Rebuild what checkpoints do not hold: rotary tables, Gemma's scale; the rest is given with every call."""
    for name, module in list(model.named_modules()):
        if "RotaryEmbedding" in type(module).__name__:
            model.set_submodule(name, type(module)(config=module.config).to(device))
        elif getattr(module, "embed_scale", None) is not None and isinstance(module, nn.Embedding):
            module.embed_scale = torch.tensor(module.scalar_embed_scale, device=device)
        for unused in ("position_ids", "token_type_ids"):
            module._buffers.pop(unused, None)
    if left := [name for name, buffer in model.named_buffers() if buffer.is_meta]:
        raise InternalError(f"buffer {left[0]} was never built")
