"""A base with what was learnt added to its weights: a complete model folder, which transformers reads alone.

Tensors go from the base's files to the new ones some rows at a time, so that a large model needs next to no memory. The
names are those of the installed transformers, whatever the base's files call them. Sums are float32, rounded once.

An adapted head or embedding that the base ties to the other one is not tied any more: each has its own sum.

Legend: M out, N in, R rank; a weight's rows are those of its first dimension, as it is stored.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedsplit.config.run import Task
from fedsplit.devices.here import free_disk
from fedsplit.errors import DataError, InternalError
from fedsplit.lora.adapter import Adapter, Head
from fedsplit.lora.lowrank import LowRank
from fedsplit.split.base import DOWNLOADS, Base, Names
from fedsplit.split.checkpoint import PIECE_BYTES, Stored, encode_header
from fedsplit.split.lora import module_of

Width = Literal["float32", "bfloat16", "float16"]
WIDTHS: Mapping[Width, tuple[torch.dtype, str]] = {
    "float32": (torch.float32, "F32"),
    "bfloat16": (torch.bfloat16, "BF16"),
    "float16": (torch.float16, "F16"),
}
SHARD_BYTES = 5_000_000_000
"""A file holds no more, as on the hub; a larger tensor has a file to itself."""
SPARE_BYTES = 1 << 24
"""Beside the weights: headers, tokenizer, a card."""
_OWN = ("config.json", "model.safetensors.index.json")
"""Files of the base that are not copied: the folder has its own."""


@dataclass(frozen=True)
class Sum:
    """One tensor of the new model: the base's ``stored`` (or a trained tensor ``value``) and what is added to it, as
    ``left`` (rows, R) and ``right`` (R, everything else)."""

    name: str
    shape: tuple[int, ...]
    stored: Stored | None = None
    value: Any = None
    left: Tensor | None = None
    right: Tensor | None = None

    def rows(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, float]]:
        """Some rows after the other as ``dtype``, and the squared length of what rounding to it changed in a sum."""
        if self.stored is None:
            yield torch.from_numpy(np.array(self.value, np.float32)).to(dtype), 0.0
            return
        width = math.prod(self.shape[1:])
        step = max(1, PIECE_BYTES // (4 * max(1, width)))
        for first in range(0, self.shape[0], step):
            count = min(step, self.shape[0] - first)
            exact = self.stored.slab(first, count, torch.float32)
            if self.left is None or self.right is None:
                yield exact.to(dtype), 0.0
            else:
                exact.view(count, -1).addmm_(self.left[first : first + count], self.right)
                rounded = exact.to(dtype)
                yield rounded, float((rounded.float() - exact).double().square().sum())


@dataclass
class Written:
    """``nbytes`` of weights. ``rounded``: length of what rounding changed over that of what was learnt, of the sums."""

    nbytes: int = 0
    rounded: float = 0.0
    files: list[str] = field(default_factory=list)


def write_model(
    base: Base,
    adapter: Adapter,
    head: Head,
    folder: Path,
    *,
    task: Task,
    labels: tuple[str, ...] = (),
    dtype: Width = "float32",
) -> Written:
    """Write config, tokenizer and weights into the existing ``folder``.

    ``adapter``: alpha/r inside B, out x in; what rounds have folded into the base has to be in it. Raises DataError
    where the disk has no room, before anything is written.
    """
    names, model = base.names(task, len(labels) or None), base.skeleton(task, len(labels) or None)
    apart = _parts(base, names, adapter)
    sums = sorted(_sums(base, names, model, adapter, head, apart), key=lambda one: one.name)
    _refuse_full_disk(sums, dtype, folder)
    _write_config(base, model, folder, labels, dtype, apart=apart)
    for name in base.files():
        if name in DOWNLOADS and name not in _OWN:
            shutil.copyfile(base.folder / name, folder / name)
    learnt = math.fsum(part.astype("float64").norm() ** 2 for part in adapter.values())
    written = Written(nbytes=sum(_nbytes(one, dtype) for one in sums))
    lost = _write_weights(sums, dtype, folder, written.files)
    written.rounded = math.sqrt(lost / learnt) if learnt > 0 else 0.0
    return written


def _ties(base: Base, names: Names) -> bool:
    """Whether the base has one matrix as embedding and as head."""
    return "lm_head.weight" in names.shapes and bool(base.config.tie_word_embeddings)


def _parts(base: Base, names: Names, adapter: Adapter) -> bool:
    """Whether these two differ from now on."""
    both = {"lm_head", f"{names.prefix}.{base.family.vocabulary.removesuffix('.weight')}"}
    return _ties(base, names) and any(key.path in both for key in adapter if key.layer < 0)


def _sums(base: Base, names: Names, model: Any, adapter: Adapter, head: Head, apart: bool) -> Iterator[Sum]:
    layers_path = f"{names.prefix}.{base.family.layers}"
    patches = {module_of(key, layers_path): part for key, part in adapter.items()}
    one = _ties(base, names) and not apart
    for name, shape in names.shapes.items():
        if one and name == "lm_head.weight":
            continue
        if name in head:
            yield Sum(name, shape, value=head[name])
            continue
        if name not in names.stored:
            raise InternalError(f"nothing is known of parameter {name}: neither the base nor the run has it")
        stored = base.checkpoint.tensors[names.stored[name]]
        module, _, leaf = name.rpartition(".")
        patch = patches.pop(module, None) if leaf == "weight" else None
        if patch is None:
            yield Sum(name, shape, stored)
        else:
            left, right = _halves(model.get_submodule(module), patch)
            yield Sum(name, shape, stored, left=left, right=right)
    if patches:
        raise InternalError(f"{next(iter(patches))} was adapted, and the model has no such weight")


def _halves(module: nn.Module, patch: LowRank) -> tuple[Tensor, Tensor]:
    """A patch as the module stores its weight: embeddings and GPT-2's ``Conv1D`` have in x out."""
    b_MR, a_RN = (torch.from_numpy(np.array(factor, np.float32)) for factor in (patch.B_MR, patch.A_RN))
    if isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D":
        return a_RN.T.contiguous(), b_MR.T.contiguous()
    return b_MR, a_RN


def _refuse_full_disk(sums: list[Sum], dtype: Width, folder: Path) -> None:
    need, free = sum(_nbytes(one, dtype) for one in sums) + SPARE_BYTES, free_disk(folder)
    if need > free:
        raise DataError(
            f"the model takes {need / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free there; free space, choose another "
            "folder, or write bfloat16",
            str(folder.parent),
        )


def _nbytes(one: Sum, dtype: Width) -> int:
    return math.prod(one.shape) * WIDTHS[dtype][0].itemsize


def _write_config(base: Base, model: Any, folder: Path, labels: tuple[str, ...], dtype: Width, *, apart: bool) -> None:
    config = model.config
    config.use_cache = bool(getattr(base.config, "use_cache", True))
    config.architectures, config.dtype = [type(model).__name__], WIDTHS[dtype][0]
    if apart:
        config.tie_word_embeddings = False
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    config.save_pretrained(folder)


def _write_weights(sums: list[Sum], dtype: Width, folder: Path, files: list[str]) -> float:
    """Returns the squared length of what rounding changed."""
    shards: list[list[Sum]] = [[]]
    for one in sums:
        if shards[-1] and sum(_nbytes(other, dtype) for other in (*shards[-1], one)) > SHARD_BYTES:
            shards.append([])
        shards[-1].append(one)
    lost, placed = 0.0, dict[str, str]()
    for index, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        files.append(name)
        placed |= {one.name: name for one in shard}
        lost += _write_shard(shard, dtype, folder / name)
    if len(shards) > 1:
        total = sum(_nbytes(one, dtype) for one in sums)
        index_file = {"metadata": {"total_size": total}, "weight_map": placed}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index_file, indent=2), "utf-8")
    return lost


def _write_shard(sums: list[Sum], dtype: Width, path: Path) -> float:
    target, code = WIDTHS[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset, lost = 0, 0.0
    for one in sums:
        end = offset + _nbytes(one, dtype)
        header[one.name] = {"dtype": code, "shape": list(one.shape), "data_offsets": [offset, end]}
        offset = end
    with path.open("wb") as stream:
        stream.write(encode_header(header))
        for one in sums:
            for piece, changed in one.rows(target):
                stream.write(piece.contiguous().view(-1).view(torch.uint8).numpy().data)
                lost += changed
    return lost
