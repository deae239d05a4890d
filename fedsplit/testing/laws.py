"""What must hold of every method, as functions of a method: the tests run them, and ``fedsplit methods check`` does.

A law binds the methods it is about (a method that is not exact need not give the ideal aggregate) and raises ``Broken``
where it does not hold. Everything is stated in ``W + D``, or in bits. How the checks are run: ``verdict.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedsplit.errors import Refused
from fedsplit.lora.adapter import digest, flatten, here
from fedsplit.lora.lowrank import Array, LowRank
from fedsplit.method.parts import Ask
from fedsplit.method.record import ClientUpdate
from fedsplit.method.stored import pack, state_digest, unpack
from fedsplit.testing.rounds import SHAPES, Case, Dense, effective, ideal, products, start, trajectory
from fedsplit.train.round import for_client, own_name, run_round
from fedsplit.wire.frames import encode
from fedsplit.wire.messages import Update
from fedsplit.wire.tensors import WireTensor

KEYS = list(SHAPES)


class Broken(AssertionError):
    """A law does not hold; the message says what was found."""


@dataclass(frozen=True)
class Law:
    """``text``: what must hold. ``binds``: whether it is about this method. ``holds`` raises where it does not."""

    text: str
    binds: Callable[[Case], bool]
    holds: Callable[[Case], None]

    @property
    def name(self) -> str:
        """The function's name."""
        return getattr(self.holds, "__name__", self.text)


LAWS: list[Law] = []
"""All laws, in the order of this file."""


def _every(case: Case) -> bool:
    return True


def _replacing(case: Case) -> bool:
    return case.replaces


def law(
    text: str, binds: Callable[[Case], bool] = _every
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Put the function on the list of laws."""

    def declare(holds: Callable[[Case], None]) -> Callable[[Case], None]:
        LAWS.append(Law(text, binds, holds))
        return holds

    return declare


# ---- who takes part --------------------------------------------------------------------------------------------------


@law("one client is the identity", _replacing)
def one_client_is_the_identity(case: Case) -> None:
    only = case.update("ann", 1, 7)
    after = run_round(start(), [only], case.method)
    close(effective(after), products(only.adapter), 1e-6)
    if not after.folds:
        alike(digest(after.adapter, after.head), digest(only.adapter, only.head), "the only client's factors")


@law("the order of arrival leaves no trace")
def order_leaves_no_trace(case: Case) -> None:
    results = {state_digest(run_round(start(), order, case.method)) for order in itertools.permutations(case.three())}
    require(len(results) == 1, f"{len(results)} different results from 6 orders of 3 clients")


@law("clients that changed nothing change nothing")
def unchanged_clients_change_nothing(case: Case) -> None:
    before = start()
    for count in (1, 2, 7):
        same = [
            ClientUpdate(client=f"c{i}", examples=3 + i, base_version=0, adapter=before.adapter, head=before.head)
            for i in range(count)
        ]
        after = run_round(before, same, case.method)
        close(effective(after), effective(before), 1e-6)
        for name, tensor in before.head.items():
            require(bool(np.allclose(after.head[name], tensor, rtol=1e-6)), f"head tensor {name} moved")


@law("equal clients are a fixed point", _replacing)
def equal_clients_are_a_fixed_point(case: Case) -> None:
    for count in (2, 3, 7):
        same = [replace(case.update("x", 5, 3 + i), client=f"c{i}") for i in range(count)]
        close(effective(run_round(start(), same, case.method)), products(same[0].adapter), 1e-5)


@law("a module that nobody trained is untouched")
def an_untrained_module_is_untouched(case: Case) -> None:
    before, untouched = start(), KEYS[3]
    updates = [case.update("ann", 1, keys=KEYS[:2]), case.update("bob", 2, keys=KEYS[1:3])]
    after = run_round(before, updates, case.method)
    old, new = (digest({untouched: state.adapter[untouched]}) for state in (before, after))
    alike(new, old, str(untouched))
    require(all(untouched not in fold.patch for fold in after.folds), f"a fold patches {untouched}")


@law("a module trained alone is kept", _replacing)
def a_module_trained_alone_is_kept(case: Case) -> None:
    updates = [case.update("ann", 1, 7, keys=KEYS[:1]), case.update("bob", 2, 900, keys=KEYS[1:])]
    after = run_round(start(), updates, case.method)
    close(effective(after), products({**updates[0].adapter, **updates[1].adapter}), 1e-6)


@law("no examples, no influence")
def no_examples_no_influence(case: Case) -> None:
    idle = state_digest(run_round(start(), [*case.three(), case.update("dot", 9, 0)], case.method))
    alike(idle, state_digest(run_round(start(), case.three(), case.method)), "the state without the idle client")


@law("nothing arrived, nothing happens")
def nothing_arrived_nothing_happens(case: Case) -> None:
    before = start()
    for updates in ([], [case.update("ann", 1, 0), case.update("bob", 2, 0)]):
        require(run_round(before, updates, case.method) == before, f"{len(updates)} idle clients change the state")


@law("a non-finite update is left out and named")
def a_non_finite_update_is_left_out(case: Case) -> None:
    key, bad = KEYS[2], case.update("bob", 2, 30)
    rows = bad.adapter[key].A_RN.copy()
    rows[1, 2] = np.nan
    bad = replace(bad, adapter={**bad.adapter, key: LowRank(bad.adapter[key].B_MR, rows)})
    good = [case.three()[0], case.three()[2]]
    after = run_round(start(), [good[0], bad, good[1]], case.method)
    alike(state_digest(after), state_digest(run_round(start(), good, case.method)), "the state without that client")
    alike(after.notes, ("left out bob: 1/mlp.up/A is not finite",), "the note")


@law("an update to another base version is refused")
def another_base_is_refused(case: Case) -> None:
    try:
        run_round(start(), [replace(case.three()[0], base_version=1)], case.method)
    except Refused as error:
        require("base version 1, expected 0" in str(error), f"the refusal says {error}")
    else:
        raise Broken("an update to base version 1 was merged into version 0")


# ---- what is declared ------------------------------------------------------------------------------------------------


@law("an exact method gives the dense ideal", lambda case: case.first.exact)
def exact_is_the_dense_ideal(case: Case) -> None:
    for mixed in (False, True) if case.first.unequal_ranks else (False,):
        updates = three_of(case, mixed)
        close(effective(run_round(start(), updates, case.method)), ideal(updates, start()), 2e-5)


@law("an exact method does not see how a product was split", lambda case: case.first.exact and not case.resting())
def splitting_is_not_seen(case: Case) -> None:
    split = [
        replace(u, adapter={key: LowRank(p.B_MR * 2, p.A_RN / 2) for key, p in u.adapter.items()}) for u in case.three()
    ]
    close(effective(run_round(start(), split, case.method)), effective(run_round(start(), case.three(), case.method)))


@law("clients of unequal ranks are merged", lambda case: case.first.unequal_ranks)
def unequal_ranks_are_merged(case: Case) -> None:
    updates = three_of(case, mixed=True)
    after = run_round(start(), updates, case.method)
    alike(after.round, 1, "the round that follows")
    require(not after.notes, f"the round was closed with {after.notes}")
    for key, (m, n, _) in SHAPES.items():
        alike(after.adapter[key].shape, (m, n), f"the shape of {key}")
        part = for_client(after, case.first, ask=Ask(round=1, client="ann", seed=0, layers=2, rank=2))[key]
        require(part.rank > 0 and bool(np.isfinite(part.dense()).all()), f"a client of rank 2 cannot go on with {key}")


@law("folds come only from a method that says so", lambda case: not case.first.mutates_base)
def undeclared_folds(case: Case) -> None:
    require(not run_round(start(), case.three(), case.method).folds, "declare it: merge_rule(mutates_base=True)")


@law("a merge of sums cannot tell two clients from their mean", lambda case: case.first.merge_rule.secure_sum)
def sums_are_enough(case: Case) -> None:
    ann, bob, cyd = (replace(one, examples=10) for one in case.three())
    mean = {
        key: LowRank((one.B_MR + bob.adapter[key].B_MR) / 2, (one.A_RN + bob.adapter[key].A_RN) / 2)
        for key, one in ann.adapter.items()
    }
    pair = [replace(ann, adapter=mean, head=ann.head), replace(bob, adapter=mean, head=bob.head)]
    close(
        effective(run_round(start(), [*pair, cyd], case.method)),
        effective(run_round(start(), [ann, bob, cyd], case.method)),
    )


def _resting(case: Case) -> bool:
    return any(case.resting(round) for round in range(4)) and not case.first.start.redraws


@law("what rests is the same bits afterwards", _resting)
def what_rests_stays(case: Case) -> None:
    state = start()
    while state.round < 4:
        before, state = state, trajectory(case, state.round + 1, state)
        for key, part in state.adapter.items():
            for side in case.resting(before.round):
                old, new = (getattr(one, {"A": "A_RN", "B": "B_MR"}[side]) for one in (before.adapter[key], part))
                require(new.tobytes() == old.tobytes(), f"{side} of {key} moved in round {before.round}")


@law("what a client keeps to itself is merged with nothing", lambda case: bool(case.first.factors.of(0).own))
def own_factors_are_not_merged(case: Case) -> None:
    own, at_server, before = case.first.factors.of(0).own, frozenset(KEYS[:2]), start()
    after = run_round(before, [replace(one, at_server=at_server) for one in case.three()], case.method)
    for name, tensor in flatten(before.adapter).items():
        moved = flatten(after.adapter)[name].tobytes() != tensor.tobytes()
        require(not (moved and name[-1] in own), f"{name} moved, which nobody shares")
    for one in case.three():
        there = {name: array for name, array in flatten(here(one.adapter, at_server)).items() if name[-1] in own}
        kept = {name for name in after.memory if name.startswith(own_name(one.client, ""))}
        alike(kept, {own_name(one.client, name) for name in there}, f"what is kept of {one.client}")
        for name, array in there.items():
            alike(after.memory[own_name(one.client, name)].tobytes(), array.tobytes(), f"{name} of {one.client}")


@law("groups do not see each other", lambda case: not case.first.mutates_base)
def groups_do_not_see_each_other(case: Case) -> None:
    ann, bob, cyd = case.three()
    pair = [replace(ann, group="x/y"), replace(bob, group="x/y")]
    after = run_round(start(), [*pair, replace(cyd, group="z")], case.method)
    alone = run_round(start(), [ann, bob], case.method)
    alike(state_digest(after.of("x/y")), state_digest(alone), "a group beside another one")
    alike(digest(after.adapter, after.head), digest(start().adapter, start().head), "the adapter beside the groups")
    again = run_round(after, [replace(one, base_version=after.base_version) for one in pair], case.method)
    require(again.groups["z"] == after.groups["z"], "a group that nobody trained changed")
    alike(state_digest(unpack(*pack(again))), state_digest(again), "groups that were saved")


@law("bytes on the wire are those of the formula", lambda case: case.first.mask.down >= 1 <= case.first.mask.up)
def bytes_are_those_of_the_formula(case: Case) -> None:
    state = run_round(start(), case.three(), case.first)
    for key, (m, n, r) in SHAPES.items():
        ask = Ask(round=1, client="ann", seed=0, layers=2, rank=r)
        factors = case.first.factors.of(0)
        given = flatten({key: for_client(state, case.first, ask=ask)[key]})
        sent = {name: tensor for name, tensor in given.items() if name[-1] in factors.common}
        trained = flatten({key: case.three()[0].adapter[key]})
        shared = {name: tensor for name, tensor in trained.items() if name[-1] in factors.shares}
        down = case.first.traffic(m, n, case.first.ranks.of(ask, key)).down
        alike(wire_bytes(sent), 4 * down, f"bytes of {key} down")
        alike(wire_bytes(shared), 4 * case.first.traffic(m, n, r).up, f"bytes of {key} up")


# ---- state -----------------------------------------------------------------------------------------------------------


@law("the same seed gives the same bytes")
def same_seed_same_bytes(case: Case) -> None:
    alike(state_digest(trajectory(case, 4)), state_digest(trajectory(case, 4)), "the first of two equal runs")


@law("what comes in is not written to")
def inputs_are_not_written_to(case: Case) -> None:
    before, updates = start(), case.three()
    marks = [state_digest(before), *(digest(u.adapter, u.head) for u in updates)]
    state = before
    for _ in range(2):
        here = [replace(one, base_version=state.base_version) for one in updates]
        state = run_round(state, here, case.method)
    alike([state_digest(before), *(digest(u.adapter, u.head) for u in updates)], marks, "what came in")


@law("dtype and shape stay")
def dtype_and_shape_stay(case: Case) -> None:
    after = run_round(start(), case.three(), case.method)
    for key, (m, n, _) in SHAPES.items():
        alike(after.adapter[key].dtype, np.dtype("f4"), f"the dtype of {key}")
        alike(after.adapter[key].shape, (m, n), f"the shape of {key}")
    alike({str(tensor.dtype) for tensor in after.head.values()}, {"float32"}, "the head's dtypes")


@law("saved and taken up in the middle is the same run")
def saved_in_the_middle_is_the_same_run(case: Case) -> None:
    arrays, counters = pack(trajectory(case, 2))
    again = unpack({name: np.array(array, copy=True) for name, array in arrays.items()}, counters)
    whole = state_digest(trajectory(case, 5))
    alike(state_digest(trajectory(case, 5, again)), whole, "the uninterrupted run")


# ---- how it is compared ----------------------------------------------------------------------------------------------


def three_of(case: Case, mixed: bool) -> list[ClientUpdate]:
    """Three clients with unequal data; ``mixed``: and with ranks 2, 3 and 7, where a module has room for them."""
    ranks = {"ann": 2, "bob": 3, "cyd": 7}
    return [
        case.update(name, seed, n, rank=(lambda key, name=name: ranks[name]) if mixed else None)
        for seed, (name, n) in enumerate([("ann", 7), ("bob", 30), ("cyd", 1)], start=1)
    ]


def wire_bytes(tensors: Mapping[str, Array]) -> int:
    """Bytes of the tensor frames that carry these."""
    sent = {name: WireTensor.of(tensor) for name, tensor in tensors.items()}
    frames = encode(Update(round=0, era=0, base_version=0, examples=1, steps=1), sent)
    return sum(len(memoryview(frame).cast("B")) for frame in frames[1:])


def close(found: Dense, expected: Dense, tolerance: float = 1e-5) -> None:
    """Raise Broken unless both have the same modules with the same numbers."""
    alike(sorted(map(str, found)), sorted(map(str, expected)), "the modules")
    for key, matrix in expected.items():
        off = float(np.abs(found[key] - matrix).max())
        near = np.allclose(found[key], matrix, rtol=tolerance, atol=tolerance)
        require(bool(near), f"{key} is off by up to {off:.2g}, expected at most about {tolerance:.0e}")


def alike(found: object, expected: object, what: str) -> None:
    """Raise Broken unless equal."""
    short: Sequence[str] = [str(one) if len(str(one)) <= 60 else f"{str(one)[:57]}..." for one in (found, expected)]
    require(found == expected, f"{what}: found {short[0]}, expected {short[1]}")


def require(holds: bool, otherwise: str) -> None:
    """Raise Broken with ``otherwise`` unless ``holds``."""
    if not holds:
        raise Broken(otherwise)
