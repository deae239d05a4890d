"""Closing a round: updates in, the next global state out. A pure function: no clock, no I/O, no chance of its own.

Per module, over the clients that trained *that* module, with weights renormalised over them: clients may hold other
layers, and some may be missing. Sums run in float64 in the order of client names and are rounded once, so that the
order of arrival leaves no trace, not even in the last bit.

Legend: M out, N in, R rank, K clients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from array_api_compat import array_namespace

from fedsplit.errors import ConfigError, Problem, Refused
from fedsplit.lora.adapter import Adapter, Head, ModuleKey, flatten, here, select, unflatten
from fedsplit.lora.lowrank import Array, LowRank
from fedsplit.lora.patch import summed
from fedsplit.method.chosen import SHARED, shared
from fedsplit.method.merge import weighted_sum
from fedsplit.method.parts import Ask, RankRule
from fedsplit.method.record import SERVER, ClientUpdate, Fold, GlobalState, Group, Memory, Merged, Method, Phases
from fedsplit.seeds import generator

HeadPolicy = Literal["fedavg", "frozen", "local"]
Weighted = Sequence[tuple[ClientUpdate, float]]
Cuts = dict[tuple[ModuleKey, int], LowRank]
"""Factors of one state by module and rank, as ``for_client`` has cut or grown them."""


def run_round(
    state: GlobalState,
    updates: Iterable[ClientUpdate],
    method: Method | Phases,
    *,
    head_policy: HeadPolicy = "fedavg",
    seed: int = 0,
) -> GlobalState:
    """The state after the round that ``state.round`` counts. ``seed``: the run's, for methods that draw. Updates that
    name a group are merged among themselves, into the adapter of that group.

    Updates without examples and updates that hold a non-finite number are left out, the latter with a note in the
    result. Where nothing is left, or where merging leaves the finite numbers, the state comes back as it was, round
    number and versions included, with a note. A module that nobody trained keeps its factors; so does the head under
    ``frozen`` and ``local``, and a head tensor that nobody sent.

    Raises Refused on an update that does not belong to this state (see ``refuse_stranger``) and on two with one name;
    IncompatibleParts where the merge cannot combine the ranks that came.
    """
    arrived = sorted(updates, key=lambda update: update.client)
    _refuse_twins(arrived)
    if not any(update.group for update in arrived):
        return _round(state, arrived, method, head_policy, seed)
    return _by_group(state, arrived, method, head_policy, seed)


def _by_group(
    state: GlobalState, arrived: Sequence[ClientUpdate], method: Method | Phases, head_policy: HeadPolicy, seed: int
) -> GlobalState:
    """Every group is a run of its own beside the same base; one that nobody trained keeps what it has."""
    groups, notes, moved = dict(state.groups), [], False
    for name in sorted({update.group for update in arrived}):
        before = state.of(name)
        members = [update for update in arrived if update.group == name]
        after = _round(before, members, method, head_policy, seed)
        notes += [f"group {name}: {note}" for note in after.notes]
        if after.round > before.round:
            groups[name], moved = Group(after.adapter, after.head, after.memory), True
    count = int(moved)
    return replace(
        state,
        round=state.round + count,
        adapter_version=state.adapter_version + count,
        groups=dict(sorted(groups.items())),
        notes=tuple(notes),
    )


def _round(
    state: GlobalState, updates: Iterable[ClientUpdate], method: Method | Phases, head_policy: HeadPolicy, seed: int
) -> GlobalState:
    """One adapter's round, see ``run_round``."""
    rule = method.at(state.round)
    arrivals, notes = _arrivals(state, updates)
    weighted = _weighted(arrivals, rule) if arrivals else []
    if arrivals and not weighted:
        notes = (*notes, f"weights = {rule.weight_rule.name} gives all {len(arrivals)} updates 0")
    if not weighted:
        return state.noted(*notes)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found below, by name
        after = _merged(state, weighted, rule, head_policy, seed)
    patches = [fold.patch for fold in after.folds[len(state.folds) :]]
    if broken := next(filter(None, (_first_broken(part, after.head) for part in (after.adapter, *patches))), ""):
        return state.noted(*notes, f"round dropped: {broken} of the merged state is not finite")
    return after.noted(*notes)


def refuse_stranger(state: GlobalState, update: ClientUpdate) -> None:
    """Raise Refused unless ``update`` was trained from ``state``: base version, modules, head names, shapes, counts.

    The server asks when the update arrives, so that one stranger does not cost the others their round.
    """
    who = f"the update of {update.client}"
    if update.base_version != state.base_version:
        raise Refused(
            f"{who} was trained on base version {update.base_version}, expected {state.base_version}: its factors "
            "belong to other weights; fetch the missing folds and train again"
        )
    if update.examples < 0 or update.stands_for < 1:
        raise Refused(
            f"{who} counts {update.examples} examples of {update.stands_for} clients: expected 0 and 1 or more"
        )
    for key, part in update.adapter.items():
        if key not in state.adapter:
            raise Refused(f"{who} has module {key}, which the global adapter does not have")
        if SHARED in state.memory and 0 <= key.layer not in shared(state):
            raise Refused(f"{who} has module {key}, of a layer that stays with each client")
        if part.shape != state.adapter[key].shape:
            raise Refused(f"{who} has {part.shape} for module {key}, expected {state.adapter[key].shape} (out, in)")
    for name, tensor in update.head.items():
        if name not in state.head:
            raise Refused(f"{who} has head tensor {name}, which the model does not train")
        if tuple(tensor.shape) != tuple(state.head[name].shape):
            raise Refused(
                f"{who} has {tuple(tensor.shape)} for head tensor {name}, expected {tuple(state.head[name].shape)}"
            )


def for_client(
    state: GlobalState,
    method: Method | Phases,
    *,
    layers: Collection[int] | None = None,
    ask: Ask | None = None,
    cuts: Cuts | None = None,
) -> dict[ModuleKey, LowRank]:
    """The factors a client starts the round from: those of ``layers``, cut or grown to the ranks that the method gives
    this client (``ask``; None: as they are).

    A grown module gets random rows of A (the same for all clients) and zero columns of B: the function is unchanged
    and the new components can learn, which they could not with both zero.

    ``cuts``: what other clients of this state were given, to be looked up and added to.
    """
    chosen = select(state.adapter, layers=layers)
    if ask is None:
        return chosen
    rule, known = method.at(state.round).ranks, {} if cuts is None else cuts
    found = {}
    for key, part in chosen.items():
        rank = rule.of(ask, key)
        if (key, rank) not in known:
            known[key, rank] = _fitted(rule, part, rank, key, ask)
        found[key] = known[key, rank]
    return found


def _fitted(rule: RankRule, part: LowRank, rank: int, key: ModuleKey, ask: Ask) -> LowRank:
    n = part.shape[1]
    if part.rank > rank:
        part = rule.reduce(part.astype("float64"), rank).astype(part.dtype)
    if part.rank == rank:
        return part
    xp = array_namespace(part.A_RN)
    # Row after row of one stream, so that clients of unequal rank share the rows they both get.
    rows_RN = generator(ask.seed, ask.round, str(key), "grow").uniform(-(n**-0.5), n**-0.5, (rank - part.rank, n))
    return part.pad(rank, xp.asarray(rows_RN, dtype=part.dtype, device=getattr(part.A_RN, "device", None)))


# ---- who counts ------------------------------------------------------------------------------------------------------


def _refuse_twins(ordered: Sequence[ClientUpdate]) -> None:
    for before, update in itertools.pairwise(ordered):
        if before.client == update.client:
            raise Refused(f"two updates of {update.client} in one round: expected one a client")


def _arrivals(state: GlobalState, updates: Iterable[ClientUpdate]) -> tuple[list[ClientUpdate], tuple[str, ...]]:
    """Updates that count, in their order, and notes on those that hold non-finite numbers."""
    kept, notes = [], []
    for update in updates:
        refuse_stranger(state, update)
        if broken := _first_broken(update.adapter, update.head):
            notes.append(f"left out {update.client}: {broken} is not finite")
        elif update.examples > 0:
            kept.append(update)
    return kept, tuple(notes)


def _weighted(arrivals: Sequence[ClientUpdate], rule: Method) -> list[tuple[ClientUpdate, float]]:
    """Updates that weigh something, with their weights as the method gives them. Raises ConfigError on a bad rule."""
    weights = [float(weight) for weight in rule.weight_rule(arrivals)]
    if len(weights) != len(arrivals) or not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        expected = f"one finite number, 0 or more, for each of {len(arrivals)} updates"
        raise ConfigError([Problem("method.weights", f"{weights} from {rule.weight_rule.name}", expected)])
    return [(update, weight) for update, weight in zip(arrivals, weights, strict=True) if weight > 0]


def _first_broken(adapter: Adapter, head: Head) -> str:
    """Name of the first tensor with a NaN or an infinity; empty where all are finite."""
    for name, tensor in flatten(adapter, head).items():
        xp = array_namespace(tensor)
        if not bool(xp.all(xp.isfinite(tensor))):
            return name
    return ""


def _trained(weighted: Weighted) -> set[ModuleKey]:
    return {key for update, _ in weighted for key in update.adapter}


def _normalised(weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1; a single one is exactly 1.0."""
    whole = sum(weights)
    return [weight / whole for weight in weights]


# ---- merging ---------------------------------------------------------------------------------------------------------


def _merged(state: GlobalState, weighted: Weighted, rule: Method, head_policy: HeadPolicy, seed: int) -> GlobalState:
    """The next state, whatever its numbers are."""
    merged = {key: _merge_module(state, key, weighted, rule, seed) for key in sorted(_trained(weighted))}
    adapter, memory = dict(state.adapter), dict(state.memory)
    for key, result in merged.items():
        _forget(memory, f"{key}/merge/")
        memory.update({f"{key}/merge/{name}": array for name, array in result.memory.items()})
        adapter[key] = _next_factors(state, key, result, rule, seed, memory)
    head = _next_head(state, weighted, rule, memory) if head_policy == "fedavg" else state.head
    memory |= _own(weighted, rule.factors.of(state.round).own)
    folds = _next_folds(state, merged)
    patch = summed((fold.patch for fold in folds[len(state.folds) :]), state.patch)
    return GlobalState(
        round=state.round + 1,
        adapter_version=state.adapter_version + 1,
        base_version=folds[-1].version if folds else state.base_version,
        adapter=adapter,
        head=head,
        memory=memory,
        folds=folds,
        patch=patch,
    )


def _merge_module(state: GlobalState, key: ModuleKey, weighted: Weighted, rule: Method, seed: int) -> Merged:
    owners = [(update, weight) for update, weight in weighted if key in update.adapter]
    parts = [update.adapter[key].astype("float64") for update, _ in owners]
    p_K = _normalised([weight for _, weight in owners])
    clients, sent = (tuple(one.client for one, _ in owners), tuple(one.sent.get(key) for one, _ in owners))
    merged = rule.merge_rule(parts, p_K, replace(_memory(state, key, seed), clients=clients, sent=sent))
    if not isinstance(merged, Merged):
        found = f"{rule.merge_rule.name} returns {type(merged).__name__}"
        raise ConfigError([Problem("method.merge", found, "Merged", "write: return Merged(adapter=...)")])
    return merged


def _memory(state: GlobalState, key: ModuleKey, seed: int) -> Memory:
    previous = state.adapter[key].astype("float64")
    return Memory(
        key=key, round=state.round, seed=seed, previous=previous, arrays=_recall(state.memory, f"{key}/merge/")
    )


def _next_factors(
    state: GlobalState, key: ModuleKey, merged: Merged, rule: Method, seed: int, memory: dict[str, Array]
) -> LowRank:
    """Server opt on A and B, then the start of the next round, then one rounding to the state's dtype.

    A factor that rested, or that every client has for itself, is what it was, whatever averaging gave.
    """
    before, after, shares = state.adapter[key].astype("float64"), merged.adapter, rule.factors.of(state.round).shares
    if rule.server_opt.entrywise or len(shares) < 2:
        b = _stepped(before.B_MR, after.B_MR, rule, memory, f"{key}/B/") if "B" in shares else before.B_MR
        a = _stepped(before.A_RN, after.A_RN, rule, memory, f"{key}/A/") if "A" in shares else before.A_RN
        after = LowRank(b, a)
    else:  # what an optimiser of an earlier phase remembered is about factors that are gone
        for side in ("A", "B"):
            _forget(memory, f"{key}/{side}/")
    return rule.start.then(after, _memory(state, key, seed)).astype(state.adapter[key].dtype)


def _stepped(previous: Array, merged: Array, rule: Method, memory: dict[str, Array], prefix: str) -> Array:
    following, remembered = rule.server_opt.step(previous, merged, _recall(memory, prefix))
    _forget(memory, prefix)
    memory.update({f"{prefix}{name}": array for name, array in remembered.items()})
    return following


def _next_folds(state: GlobalState, merged: Mapping[ModuleKey, Merged]) -> tuple[Fold, ...]:
    """All folds so far, this round's last, rounded once to the state's dtype. They stay beside the base, as factors:
    however small a residual is, its relative precision is that of the factors."""
    patch: Adapter = {
        key: result.fold.astype(state.adapter[key].dtype) for key, result in merged.items() if result.fold is not None
    }
    return (*state.folds, Fold(state.base_version + 1, patch)) if patch else state.folds


# ---- head ------------------------------------------------------------------------------------------------------------


def _next_head(state: GlobalState, weighted: Weighted, rule: Method, memory: dict[str, Array]) -> Head:
    head: dict[str, Array] = dict(state.head)
    for name, before in state.head.items():
        senders = [(update.head[name], weight) for update, weight in weighted if name in update.head]
        if not senders:
            continue
        xp = array_namespace(before)
        mean = weighted_sum([xp.astype(t, xp.float64) for t, _ in senders], _normalised([w for _, w in senders]))
        after = _stepped(xp.astype(before, xp.float64), mean, rule, memory, f"head/{name}/")
        head[name] = xp.astype(after, before.dtype)
    return head


# ---- what each client has for itself ---------------------------------------------------------------------------------


def own_name(client: str, name: str) -> str:
    """Where the state remembers a client's own factor; ``name``: its flat name."""
    return f"own/{client}/{name}"


def _own(weighted: Weighted, sides: Collection[str]) -> dict[str, Array]:
    """Factors that the server trained for one client each. They are kept as they came and merged with nothing."""
    return {
        own_name(update.client, name): tensor
        for update, _ in weighted
        for name, tensor in flatten(here(update.adapter, update.at_server)).items()
        if name[-1] in sides
    }


def with_own(state: GlobalState, client: str, adapter: Adapter) -> dict[ModuleKey, LowRank]:
    """``adapter`` with the factors that the state remembers as this client's, where they have its shapes."""
    found = {}
    for name, tensor in flatten(adapter).items():
        mine = state.memory.get(own_name(client, name))
        found[name] = mine if mine is not None and tuple(mine.shape) == tuple(tensor.shape) else tensor
    return unflatten(found)[0]


# ---- memory by flat name ---------------------------------------------------------------------------------------------


def _recall(memory: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in memory.items() if name.startswith(prefix)}


def _forget(memory: dict[str, Array], prefix: str) -> None:
    for name in [name for name in memory if name.startswith(prefix)]:
        del memory[name]


__all__ = ["SERVER", "Cuts", "HeadPolicy", "for_client", "own_name", "refuse_stranger", "run_round", "with_own"]
