"""What a device must get to follow the base: the folds that it has not, or what all of them add up to.

Both end with the same bits (``lora.patch``). After many rounds, or many modules, the sum is less.
"""

from __future__ import annotations

from collections.abc import Collection

from fedsplit.lora.adapter import ModuleKey, here
from fedsplit.lora.patch import Step, nbytes
from fedsplit.method.values import GlobalState

MOST_TENSORS = 4096
"""So many folds and modules travel one by one; a message has room for 16,384 tensors."""


def to_send(state: GlobalState, known: int, held: Collection[ModuleKey]) -> tuple[int, tuple[Step, ...]]:
    """``(since, steps)`` for a device that has version ``known`` of the modules in ``held``.

    ``since`` > 0: the folds after it. 0: the device forgets what it had, and all it needs is there: as one sum of the
    state's version. That is so for a device that has nothing, for one that has a later version (nobody can take a fold
    out of a sum again), and where the folds are more bytes than their sum.
    """
    if not state.folds:
        return 0, ()
    sums = {key: state.patch[key] for key in sorted(held) if key in state.patch}
    whole = (Step(state.base_version, sums),) if sums else ()
    if not 0 < known <= state.base_version:
        return 0, whole
    missing = [Step(fold.version, here(fold.patch, held)) for fold in state.folds if fold.version > known]
    count = 2 * sum(len(step.patch) for step in missing)
    if count > MOST_TENSORS or sum(nbytes(step.patch) for step in missing) > nbytes(sums):
        return 0, whole
    return known, tuple(missing)
