"""The global state as named arrays and a few numbers, as checkpoints keep it.

Factors and head have their flat names; beside them ``memory/NAME`` and ``fold/VERSION/LAYER/PATH/A`` and ``.../B``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedsplit.errors import DataError
from fedsplit.lora.adapter import Tensor, digest_arrays, flatten, unflatten
from fedsplit.method.values import Fold, GlobalState

FOLD = "fold/"
_COUNTERS = ("round", "adapter_version", "base_version")


def pack(state: GlobalState) -> tuple[dict[str, Tensor], dict[str, int]]:
    """``(arrays, counters)``: all that the next round depends on (the notes are for the journal)."""
    arrays = flatten(state.adapter, state.head)
    arrays |= {f"memory/{name}": array for name, array in state.memory.items()}
    arrays |= pack_folds(state.folds)
    return arrays, {name: getattr(state, name) for name in _COUNTERS}


def unpack(arrays: Mapping[str, Tensor], counters: Mapping[str, Any]) -> GlobalState:
    """The inverse of ``pack``; other entries of ``counters`` are ignored. Raises DataError on a wrong name."""
    adapter_and_head: dict[str, Tensor] = {}
    memory: dict[str, Tensor] = {}
    folds, others = unpack_folds(arrays)
    for name, array in others.items():
        kind, _, rest = name.partition("/")
        if kind == "memory":
            memory[rest] = array
        else:
            adapter_and_head[name] = array
    adapter, head = unflatten(adapter_and_head)
    round, adapter_version, base_version = (_count(name, counters.get(name)) for name in _COUNTERS)
    return GlobalState(round, adapter_version, base_version, adapter, head, memory, folds)


def pack_folds(folds: Iterable[Fold]) -> dict[str, Tensor]:
    """Folds under their flat names, as they are kept and as they travel."""
    return {f"{FOLD}{fold.version}/{name}": array for fold in folds for name, array in flatten(fold.patch).items()}


def unpack_folds(arrays: Mapping[str, Tensor]) -> tuple[tuple[Fold, ...], dict[str, Tensor]]:
    """(folds by version, all other arrays). Raises DataError on a wrong name."""
    patches: dict[int, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, array in arrays.items():
        if not name.startswith(FOLD):
            others[name] = array
            continue
        version, _, inner = name.removeprefix(FOLD).partition("/")
        patches.setdefault(_count(f"the version in {name}", version), {})[inner] = array
    return tuple(Fold(version, unflatten(patches[version])[0]) for version in sorted(patches)), others


def weights_digest(state: GlobalState) -> str:
    """SHA-256 (hex) of what computes: factors, head and folds. Without folds it is the adapter's ``digest``."""
    arrays, _ = pack(state)
    return digest_arrays({name: array for name, array in arrays.items() if not name.startswith("memory/")})


def state_digest(state: GlobalState) -> str:
    """SHA-256 (hex) of the arrays, then the counters: equal digests mean an equal future."""
    arrays, counters = pack(state)
    numbers = "/".join(str(counters[name]) for name in _COUNTERS)
    return f"{digest_arrays(arrays)}:{numbers}"


def _count(what: str, found: Any) -> int:
    try:
        count = int(found)
    except (TypeError, ValueError):
        count = -1
    if count < 0:
        raise DataError(f"{what} is {found!r}: expected a whole number, 0 or more")
    return count
