"""Whose factors the server trains: one copy per client, averaged each round, or one copy that all clients share.

* ``per-client`` (SplitFed v1): every client trains its own copy of its body's factors; fresh optimiser each round.
* ``shared-sequential`` (SplitFed v2, SplitLoRA's code): one copy, one step after each client's step, in turn.
* ``shared-concat`` (SplitLoRA's paper): one copy, one step on all clients' batches together. In both shared modes the
  server's optimiser lives across rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from fedsplit.config.run import TrainSection
from fedsplit.lora.adapter import Adapter, Head, select
from fedsplit.lora.patch import Patch
from fedsplit.split.lora import read, write, write_patch
from fedsplit.split.segment import Segment
from fedsplit.train.optim import Stepper, finite, make, squares


@dataclass(frozen=True)
class Held:
    """What the server trains on behalf of one client: layers [lo, hi), and the head in topology ``v``."""

    lo: int
    hi: int
    head: bool = False


class Copy:
    """Trainable leaves with their optimiser. ``examples`` counts the rows that moved them since the round began."""

    def __init__(self, params: dict[str, Tensor], train: TrainSection) -> None:
        self.params = params
        self.examples = 0
        self._optimizer: Stepper | None = make(train, params) if params else None

    def step(self, clip: float, rate: float) -> None:
        """One optimiser step with gradients times ``clip`` and learning rate times ``rate``; gradients are cleared."""
        if self._optimizer is not None:
            self._optimizer.step(clip=clip, rate=rate)
        self.drop()

    def drop(self) -> None:
        """Forget the gradients of a step that was not committed."""
        for value in self.params.values():
            value.grad = None

    def optimizer(self) -> dict[str, NDArray[Any]]:
        """The optimiser's state by ``tensor name/slot``."""
        return self._optimizer.arrays() if self._optimizer is not None else {}

    def resume(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over the state of the tensors that are here."""
        mine = {key: array for key, array in arrays.items() if key.rsplit("/", 1)[0] in self.params}
        if self._optimizer is not None and mine:
            self._optimizer.load(mine)


class Copies:
    """The server's copies of one run; ``mode`` is ``server.adapters`` of the run file.

    Together-batches accumulate each client's gradient in leaves of its own that share storage with the common copy,
    and are summed in name order at the commit: the result does not depend on who answered first.

    ``kept``: what ``keep`` returned before a stop. The common optimiser goes on from the last committed round, never
    from a round that was dropped or is repeated.
    """

    def __init__(
        self, segment: Segment, mode: str, train: TrainSection, kept: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        self._kept = dict(kept or {})
        self.shared = mode.startswith("shared")
        self._together = mode == "shared-concat"
        self._segment, self._train = segment, train
        self._leaves: dict[str, dict[str, Tensor]] = {}
        self._owners: dict[str, Copy] = {}
        self._common: Copy | None = None
        self._patch: dict[str, Tensor] = {}
        self._trains = "AB"

    def open_round(
        self,
        common: Adapter,
        head: Head,
        members: Mapping[str, Held],
        own: Mapping[str, Adapter],
        *,
        trains: str = "AB",
        patch: Patch | None = None,
    ) -> None:
        """Every member starts from the global factors, cut to what is its ``own``; a copy that all share from
        ``common``. In shared modes the optimiser's state stays, but of a factor that rests: ``trains`` has the others.
        ``patch``: what rounds have folded into the base."""
        self._leaves, self._owners, self._common, self._trains = {}, {}, None, trains
        self._patch = write_patch(patch or {}, self._segment)
        if self.shared and members:
            self._open_common(common, head, members)
        for name, held in members.items():
            self.reopen(name, own[name], head, held)

    def reopen(self, name: str, own: Adapter, head: Head, held: Held) -> None:
        """Start one client's round from its ``own`` factors (in shared modes: join the common copy)."""
        if self._common is not None and self.shared:
            self._owners[name] = self._common
            self._leaves[name] = self._twins(self._common.params) if self._together else self._common.params
        else:
            self._owners[name] = Copy(self._write(own, head, held), self._train)
            self._leaves[name] = self._owners[name].params

    def leaves(self, name: str) -> Mapping[str, Tensor]:
        """What the forward of ``name`` runs with; its backward accumulates here."""
        return {**self._patch, **self._leaves[name]}

    def squares(self, names: Sequence[str]) -> tuple[float, ...]:
        """Squared norms of the gradient that ``commit(names)`` would apply, one a tensor, float64."""
        return squares(self._gathered(names).params)

    def finite(self, names: Sequence[str]) -> bool:
        return finite(self._gathered(names).params)

    def commit(self, names: Sequence[str], examples: int, clip: float, rate: float) -> None:
        """One step of the copy that ``names`` train (one client, or all of a together-batch)."""
        copy = self._gathered(names)
        copy.step(clip, rate)
        copy.examples += examples
        self.drop(names)

    def drop(self, names: Sequence[str]) -> None:
        """Forget the gradients of these clients' open step."""
        for name in names:
            self._owners[name].drop()
            for leaf in self._leaves[name].values():
                leaf.grad = None

    def collect(self, name: str) -> tuple[Adapter, Head]:
        """The factors trained for ``name``, as they are now (``per-client``)."""
        return read(self._owners[name].params, self._segment)

    def collect_common(self) -> tuple[Adapter, Head, int] | None:
        """The shared factors and the rows that moved them; None when nothing is shared or nobody moved it."""
        if self._common is None or not self.shared or not self._common.examples:
            return None
        return *read(self._common.params, self._segment), self._common.examples

    def keep(self) -> dict[str, NDArray[Any]]:
        """The round is committed: the next one goes on from the common optimiser as it is now. Returns its state."""
        if self._common is not None:
            self._kept |= self._common.optimizer()
        return dict(self._kept)

    def _open_common(self, adapter: Adapter, head: Head, members: Mapping[str, Held]) -> None:
        spans = members.values()
        widest = Held(min(h.lo for h in spans), max(h.hi for h in spans), any(h.head for h in spans))
        self._common = Copy(self._write(adapter, head, widest), self._train)
        resting = {name for name, leaf in self._common.params.items() if not leaf.requires_grad}
        self._kept = {key: array for key, array in self._kept.items() if key.rsplit("/", 1)[0] not in resting}
        self._common.resume(self._kept)

    def _gathered(self, names: Sequence[str]) -> Copy:
        """The owner's copy with the names' gradients summed into it."""
        owner = self._owners[names[0]]
        if self._together:
            for key, value in owner.params.items():
                grads = [grad for name in sorted(names) if (grad := self._leaves[name][key].grad) is not None]
                value.grad = sum(grads[1:], start=grads[0].clone()) if grads else None
        return owner

    @staticmethod
    def _twins(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.detach().requires_grad_(value.requires_grad) for name, value in params.items()}

    def _write(self, adapter: Adapter, head: Head, held: Held) -> dict[str, Tensor]:
        # Adapted modules outside the layers (-1) that this segment has belong to the head.
        layers = {-1, *range(held.lo, held.hi)} if held.head else set(range(held.lo, held.hi))
        return write(select(adapter, layers=layers), head if held.head else {}, self._segment, self._trains)
