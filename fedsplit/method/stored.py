"""The global state as named arrays and a few numbers, as checkpoints keep it.

Factors and head have their flat names; beside them ``memory/NAME`` and ``fold/VERSION/LAYER/PATH/A`` and ``.../B``,
or, of a sum that is thin no more, ``.../W``.
What a group has for itself lies under ``group/NAME/``, under the same names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote, unquote

from fedsplit.errors import DataError
from fedsplit.lora.adapter import ModuleKey, Tensor, digest_arrays, flatten, key_in, unflatten
from fedsplit.lora.lowrank import LowRank
from fedsplit.lora.patch import Dense, Patch, Step, Sum
from fedsplit.method.values import Fold, GlobalState, Group

FOLD, MEMORY, GROUP = "fold/", "memory/", "group/"
WHOLE = "/W"
"""Ending of a matrix's name, where a sum of folds is no factors."""
_COUNTERS = ("round", "adapter_version", "base_version")


def pack(state: GlobalState) -> tuple[dict[str, Tensor], dict[str, int]]:
    """``(arrays, counters)``: all that the next round depends on (the notes are for the journal)."""
    arrays = _packed(Group(state.adapter, state.head, state.memory)) | pack_folds(state.folds)
    for name, group in state.groups.items():
        arrays |= {f"{GROUP}{quote(name, safe='')}/{inner}": array for inner, array in _packed(group).items()}
    return arrays, {name: getattr(state, name) for name in _COUNTERS}


def unpack(arrays: Mapping[str, Tensor], counters: Mapping[str, Any]) -> GlobalState:
    """The inverse of ``pack``; other entries of ``counters`` are ignored. Raises DataError on a wrong name."""
    groups: dict[str, dict[str, Tensor]] = {}
    everybody: dict[str, Tensor] = {}
    steps, others = unpack_folds(arrays)
    folds = tuple(Fold(step.version, _products(step)) for step in steps)
    for name, array in others.items():
        if name.startswith(GROUP):
            group, _, inner = name.removeprefix(GROUP).partition("/")
            groups.setdefault(unquote(group), {})[inner] = array
        else:
            everybody[name] = array
    whole = _unpacked(everybody)
    round, adapter_version, base_version = (_count(name, counters.get(name)) for name in _COUNTERS)
    own = {name: _unpacked(inner) for name, inner in sorted(groups.items())}
    counted = (round, adapter_version, base_version)
    return GlobalState(*counted, whole.adapter, whole.head, whole.memory, folds, groups=own)


def _packed(group: Group) -> dict[str, Tensor]:
    memory = {f"{MEMORY}{name}": array for name, array in group.memory.items()}
    return flatten(group.adapter, group.head) | memory


def _unpacked(arrays: Mapping[str, Tensor]) -> Group:
    memory = {name.removeprefix(MEMORY): array for name, array in arrays.items() if name.startswith(MEMORY)}
    factors = {name: array for name, array in arrays.items() if not name.startswith(MEMORY)}
    return Group(*unflatten(factors), memory)


def pack_folds(folds: Iterable[Fold | Step]) -> dict[str, Tensor]:
    """Folds under their flat names, as they are kept and as they travel."""
    return {f"{FOLD}{fold.version}/{name}": array for fold in folds for name, array in _flat(fold.patch).items()}


def unpack_folds(arrays: Mapping[str, Tensor]) -> tuple[tuple[Step, ...], dict[str, Tensor]]:
    """(folds by version, all other arrays). Raises DataError on a wrong name."""
    patches: dict[int, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, array in arrays.items():
        if not name.startswith(FOLD):
            others[name] = array
            continue
        version, _, inner = name.removeprefix(FOLD).partition("/")
        patches.setdefault(_count(f"the version in {name}", version), {})[inner] = array
    return tuple(Step(version, _patch(patches[version])) for version in sorted(patches)), others


def _flat(patch: Patch) -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for key, part in sorted(patch.items()):
        flat |= {f"{key}{WHOLE}": part.W_MN} if isinstance(part, Dense) else flatten({key: part})
    return flat


def _products(step: Step) -> dict[ModuleKey, LowRank]:
    if wide := [key for key, part in step.patch.items() if isinstance(part, Dense)]:
        raise DataError(f"fold {step.version} of {wide[0]} is a matrix: a state has every fold as its factors")
    return {key: part for key, part in step.patch.items() if isinstance(part, LowRank)}


def _patch(arrays: Mapping[str, Tensor]) -> dict[ModuleKey, Sum]:
    wide = {key_in(name.removesuffix(WHOLE)): Dense(array) for name, array in arrays.items() if name.endswith(WHOLE)}
    factors = unflatten({name: array for name, array in arrays.items() if not name.endswith(WHOLE)})[0]
    return {**factors, **wide}


def weights_digest(state: GlobalState) -> str:
    """SHA-256 (hex) of what computes: factors, head and folds, of all groups. Without folds and groups it is the
    adapter's ``digest``. What one client has for itself is left out."""
    arrays, _ = pack(
        replace(state, memory={}, groups={name: replace(g, memory={}) for name, g in state.groups.items()})
    )
    return digest_arrays(arrays)


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
