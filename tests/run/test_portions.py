"""What of the global factors goes to a client: by layer, at the rank that plan and method give it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from fedsplit.lora.adapter import ModuleKey
from fedsplit.lora.lowrank import LowRank
from fedsplit.method import Method, exact, per_device, uniform
from fedsplit.method.record import GlobalState
from fedsplit.plan.types import ClientPlan, Cut, LayerPlan, Topology
from fedsplit_server.portions import Portions

RANKS = {0: 6, 1: 2, 2: 4}
STATE = GlobalState.first(
    {
        ModuleKey(layer, path): LowRank(
            np.random.default_rng(layer + 1).normal(size=(7, 6)).astype("f4"),
            np.random.default_rng(layer + 9).normal(size=(6, 11)).astype("f4"),
        )
        for layer in (-1, 0, 1, 2)
        for path in ("q", "v")
    }
)


def plan(client: str = "a", trains: bool = True) -> ClientPlan:
    layers = tuple(LayerPlan(layer=layer, place="client", rank=rank, trains=trains) for layer, rank in RANKS.items())
    return ClientPlan(client=client, topology=Topology.LOCAL, cut=Cut(3, 3), layers=layers, batch=1)


def portions(method: Method) -> Portions:
    return Portions(method, rank=6, seed=0, num_layers=3)


def ranks(adapter: dict[ModuleKey, LowRank]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for key, part in adapter.items():
        found.setdefault(key.layer, set()).add(part.rank)
    return found


@pytest.mark.parametrize("rule", [uniform(), per_device()])
def test_every_layer_has_the_rank_of_its_plan(rule: object) -> None:
    """What lies outside the layers has the run's; what is not cut is not copied."""
    given = portions(Method(merge=exact).but(ranks=rule)).of(plan(), STATE, {-1, 0, 1, 2})
    assert ranks(given) == {-1: {6}, 0: {6}, 1: {2}, 2: {4}}
    assert list(given) == sorted(given)
    assert given[ModuleKey(0, "q")] is STATE.adapter[ModuleKey(0, "q")]
    near, far = (STATE.adapter[ModuleKey(1, "q")].truncate(rank).dense() for rank in (2, 1))
    found = given[ModuleKey(1, "q")].dense()
    assert np.allclose(found, near, atol=1e-5)
    assert not np.allclose(found, far, atol=1e-2)


def test_only_the_layers_that_are_asked_for() -> None:
    assert ranks(portions(Method(merge=exact)).of(plan(), STATE, {1})) == {1: {2}}


def test_clients_of_equal_ranks_share_what_was_cut_until_the_state_changes() -> None:
    one = portions(Method(merge=exact, ranks=per_device()))
    first, second = (one.of(plan(name), STATE, {1})[ModuleKey(1, "q")] for name in "ab")
    later = one.of(plan("a"), replace(STATE, round=1), {1})[ModuleKey(1, "q")]
    assert first is second
    assert later is not first


def test_a_method_with_a_table_of_ranks_rewrites_the_plan() -> None:
    """So that what the device is shown is what it will train."""
    one = portions(Method(merge=exact, ranks=per_device({"b": 3})))
    assert [layer.rank for layer in one.ranked(plan("a"), STATE).layers] == [6, 2, 4]
    assert [layer.rank for layer in one.ranked(plan("b"), STATE).layers] == [3, 3, 3]
    assert ranks(one.of(one.ranked(plan("b"), STATE), STATE, {0, 1})) == {0: {3}, 1: {3}}
    assert one.ranked(plan("b", trains=False), STATE) == plan("b", trains=False)


def test_what_the_server_holds_for_all_has_one_rank_in_every_plan() -> None:
    method = Method(merge=exact, ranks=per_device({"b": 3}))
    layers = (LayerPlan(layer=0, place="client", rank=4), LayerPlan(layer=1, place="server", rank=2))
    split = msgspec.structs.replace(plan("b"), topology=Topology.V, cut=Cut(1, 3), layers=layers)
    found = {}
    for shared in (False, True):
        one = Portions(method, rank=6, seed=0, num_layers=3, shared=shared)
        found[shared] = [layer.rank for layer in one.ranked(split, STATE).layers]
        assert ranks(one.of(split, STATE, {0, 1})) == {0: {3}, 1: {found[shared][1]}}
    assert found == {False: [3, 3], True: [3, 6]}


def test_a_shared_copy_has_the_rank_of_the_run_file() -> None:
    assert ranks(portions(Method(merge=exact, ranks=per_device())).common(STATE)) == {n: {6} for n in (-1, 0, 1, 2)}
