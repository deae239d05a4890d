"""What goes into a round and what comes out: updates, merged modules, the global state. Values only.

Legend: M out, N in, R rank, K clients. A *fold* is a low-rank patch to the frozen base weight, with a version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fedsplit.lora.adapter import Adapter, Head, ModuleKey
from fedsplit.lora.lowrank import Array, LowRank, stack
from fedsplit.lora.patch import Patch, summed, whole

SERVER = "@server"
"""Name of the update that stands for a server copy which trained on behalf of many clients."""


@dataclass(frozen=True, kw_only=True)
class ClientUpdate:
    """One client's factors after its local steps, only of the modules it trained.

    ``examples``: rows it trained on this round (n_k, >= 0; 0 is dropped before anything else). A server copy that all
    clients trained together comes as ``client="@server"`` with the sum of their examples and ``stands_for`` clients.
    ``sent``: of a module that came in part, the rank components that did (the others are as they were sent down); a
    module that is not named came whole.
    """

    client: str
    examples: int
    base_version: int
    adapter: Adapter
    head: Head = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    stands_for: int = 1
    sent: Mapping[ModuleKey, frozenset[int]] = field(default_factory=dict)
    group: str = ""
    """Whose adapter it belongs to; empty: the one for everybody."""
    at_server: frozenset[ModuleKey] = frozenset()
    """Modules that the server trained for it: what of them is its own is kept there."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a merge rule may know of its module besides the parts, and what it remembered from earlier rounds.

    ``previous`` is the global factor the round started from (None in the first round of a module), in the precision of
    the merge; ``arrays`` is what the rule returned as ``Merged.memory`` the last time; ``seed`` is the run's. Of the
    parts, in their order: ``clients``, who sent them, and ``sent``, which rank components each sent (None: all).
    """

    key: ModuleKey
    round: int = 0
    seed: int = 0
    previous: LowRank | None = None
    arrays: Mapping[str, Array] = field(default_factory=dict)
    clients: tuple[str, ...] = ()
    sent: tuple[frozenset[int] | None, ...] = ()


@dataclass(frozen=True)
class Merged:
    """One module after merging: the next global factors, what goes into the base beside them, what to remember."""

    adapter: LowRank
    fold: LowRank | None = None
    memory: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Fold:
    """A patch that turns base version ``version - 1`` into ``version``: ``W += B_MR @ A_RN`` for each module."""

    version: int
    patch: Adapter


@dataclass(frozen=True)
class Group:
    """What clients of one group share instead of the state's own adapter and head."""

    adapter: Adapter
    head: Head = field(default_factory=dict)
    memory: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class GlobalState:
    """Everything the server carries from round to round. The effective weight of a module is
    ``W + sum of its folds + adapter[key]``; a quantised base keeps its folds beside it.

    ``round``: rounds committed so far. ``memory``: arrays of the method, by flat name (momentum, ...). ``notes``: what
    the last round left out and why, for the journal; no part of the state that training depends on.
    """

    round: int
    adapter_version: int
    base_version: int
    adapter: Adapter
    head: Head = field(default_factory=dict)
    memory: Mapping[str, Array] = field(default_factory=dict)
    folds: tuple[Fold, ...] = ()
    """All of them, exactly, whatever becomes of their sum."""
    notes: tuple[str, ...] = ()
    groups: Mapping[str, Group] = field(default_factory=dict)
    """By name; a group that never trained has the state's own adapter, which stays the first one beside groups."""
    patch: Patch = field(default_factory=dict)
    """What the folds add up to, which is what computes. It comes from them where it is not given."""

    def __post_init__(self) -> None:
        if self.folds and not self.patch:
            object.__setattr__(self, "patch", summed(fold.patch for fold in self.folds))

    def of(self, group: str) -> GlobalState:
        """The state as one group sees it: the same rounds and versions, its own factors."""
        mine = self.groups.get(group)
        if mine is None:
            return replace(self, groups={}) if self.groups else self
        return replace(self, adapter=mine.adapter, head=mine.head, memory=mine.memory, groups={})

    @property
    def learnt(self) -> dict[ModuleKey, LowRank]:
        """All folds and the adapter as factors beside the file's weights; ranks add up, at most to min(M, N)."""
        return whole(self.adapter, folded(self.folds))

    @staticmethod
    def first(adapter: Adapter, head: Head | None = None) -> GlobalState:
        """The state before round 0."""
        return GlobalState(0, 0, 0, dict(adapter), dict(head or {}))

    def noted(self, *notes: str) -> GlobalState:
        """The same state with other notes."""
        return replace(self, notes=notes)


def folded(folds: Iterable[Fold]) -> dict[ModuleKey, LowRank]:
    """The sum of ``folds`` as factors side by side in the order of their versions, however wide they get."""
    parts: dict[ModuleKey, list[LowRank]] = {}
    for fold in sorted(folds, key=lambda fold: fold.version):
        for key, part in fold.patch.items():
            parts.setdefault(key, []).append(part)
    return {key: stack(parts[key]) for key in sorted(parts)}
