"""An adapter: the LoRA factors of a set of modules, and its flat form for the wire and for checkpoints.

Three normalisations hold wherever an ``Adapter`` exists: alpha/r is absorbed into B, matrices are out x in (also
GPT-2's transposed ``Conv1D``), and keys are global: a layer keeps its number where other layers are absent. They are
applied once, on entry (``fedsplit/split/lora.py``), so that no method sees alpha, peft's names or layer arithmetic.

Flat names: ``"{layer}/{path}/A"``, ``"{layer}/{path}/B"``, ``"head/{name}"``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedsplit.errors import DataError
from fedsplit.lora.lowrank import LowRank

Tensor: TypeAlias = NDArray[Any]
Sides: TypeAlias = Literal["AB", "A", "B"]
"""Factors that learn; the others rest."""


class ModuleKey(NamedTuple):
    """One adapted module: the layer's number and the path inside it (layer -1: outside the layers, the whole name)."""

    layer: int
    path: str

    def __str__(self) -> str:
        return f"{self.layer}/{self.path}"


Adapter = Mapping[ModuleKey, LowRank]
Head = Mapping[str, Tensor]
"""Trainable tensors that are no LoRA factors, by their name in the model (a classification head)."""


def flatten(adapter: Adapter, head: Head | None = None) -> dict[str, Tensor]:
    """Every tensor under its flat name, modules in the order of their keys, A before B, the head last."""
    flat: dict[str, Tensor] = {}
    for key in sorted(adapter):
        flat[f"{key}/A"], flat[f"{key}/B"] = adapter[key].A_RN, adapter[key].B_MR
    for name in sorted(head or {}):
        flat[f"head/{name}"] = (head or {})[name]
    return flat


def unflatten(flat: Mapping[str, Tensor]) -> tuple[dict[ModuleKey, LowRank], dict[str, Tensor]]:
    """The inverse of ``flatten``. Raises DataError on an unknown name or half a module."""
    halves: dict[ModuleKey, dict[str, Tensor]] = {}
    head: dict[str, Tensor] = {}
    for name, tensor in flat.items():
        if name.startswith("head/"):
            head[name.removeprefix("head/")] = tensor
        else:
            key, side = _parse(name)
            halves.setdefault(key, {})[side] = tensor
    return {key: _whole(key, sides) for key, sides in sorted(halves.items())}, head


def select(
    adapter: Adapter, *, layers: Collection[int] | None = None, keys: Iterable[ModuleKey] | None = None
) -> dict[ModuleKey, LowRank]:
    """The modules in ``layers`` (and among ``keys``), not copied. Raises DataError on a missing key."""
    wanted = set(adapter) if keys is None else set(keys)
    if missing := sorted(wanted - set(adapter)):
        raise DataError(f"the adapter has no module {missing[0]}; it has {', '.join(map(str, sorted(adapter)))}")
    return {key: adapter[key] for key in sorted(wanted) if layers is None or key.layer in layers}


def here(adapter: Adapter, held: Collection[ModuleKey]) -> dict[ModuleKey, LowRank]:
    """The modules that are among ``held``; others are left out."""
    return {key: part for key, part in sorted(adapter.items()) if key in held}


def sides(adapter: Adapter, trains: Sides) -> dict[str, Tensor]:
    """The factors named in ``trains`` of every module, under their flat names."""
    return {name: tensor for name, tensor in flatten(adapter).items() if name[-1] in trains}


def digest(adapter: Adapter, head: Head | None = None) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and little-endian bytes: equal digests mean equal bits."""
    return digest_arrays(flatten(adapter, head))


def digest_arrays(arrays: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of named arrays, independent of their order, memory layout and byte order."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        plain = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        total.update(f"{len(name)}:{name}:{plain.dtype.str}:{array.shape};".encode())
        total.update(plain.tobytes())
    return total.hexdigest()


def nbytes(adapter: Adapter, head: Head | None = None) -> int:
    """Bytes of all tensors, as they travel with the ``raw`` codec."""
    return sum(int(tensor.nbytes) for tensor in flatten(adapter, head).values())


def key_in(text: str) -> ModuleKey:
    """The inverse of ``str(key)``. Raises DataError where it is none."""
    layer, _, path = text.partition("/")
    if not path or not layer.removeprefix("-").isdecimal():
        raise DataError(f"unknown module {text!r}: expected 'LAYER/PATH'")
    return ModuleKey(int(layer), path)


def _parse(name: str) -> tuple[ModuleKey, str]:
    module, _, side = name.rpartition("/")
    layer, _, path = module.partition("/")
    if side not in ("A", "B") or not path or not layer.removeprefix("-").isdecimal():
        raise DataError(f"unknown tensor {name!r}: expected 'LAYER/PATH/A', 'LAYER/PATH/B' or 'head/NAME'")
    return ModuleKey(int(layer), path), side


def _whole(key: ModuleKey, sides: Mapping[str, Tensor]) -> LowRank:
    if len(sides) != 2:
        (found,) = sides
        raise DataError(f"module {key} has factor {found} only: expected both A and B")
    return LowRank(sides["B"], sides["A"])
