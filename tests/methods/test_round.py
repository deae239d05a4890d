"""The round itself: versions, heads, the server's copy, folds, refusals, what a client is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedsplit.errors import ConfigError, DataError, IncompatibleParts, Refused
from fedsplit.lora import LowRank, ModuleKey, digest, unflatten
from fedsplit.method import Ask, ClientUpdate, GlobalState, Memory, Merged, Method, mean, per_device, total
from fedsplit.method.merge import exact
from fedsplit.method.stored import pack, state_digest, unpack
from fedsplit.train.round import for_client, run_round
from tests.methods.cases import SHAPES, effective, factors, products, start, three, update

KEYS = list(SHAPES)
Q = KEYS[0]


def test_versions_count_committed_rounds() -> None:
    state = start()
    for count in range(1, 4):
        state = run_round(state, three(), Method())
        assert (state.round, state.adapter_version, state.base_version) == (count, count, 0)


def test_the_servers_copy_counts_for_everyone_it_trained_on() -> None:
    """Clients that hold the front, and one shared body on the server, against clients that hold everything."""
    front, body = KEYS[:1], KEYS[1:]
    split = [update("ann", 1, 7, keys=front), update("bob", 2, 30, keys=front)]
    server = replace(update("@server", 3, 37, keys=body), stands_for=2)
    after = run_round(start(), [*split, server], Method())
    alone = run_round(start(), split, Method())
    assert digest({key: after.adapter[key] for key in body}) == digest(server.adapter)
    assert digest({Q: after.adapter[Q]}) == digest({Q: alone.adapter[Q]})
    # A third client holds the body too: it has 13 of the 50 examples that the body was trained on.
    local = update("cyd", 4, 13, keys=body)
    mixed = run_round(start(), [*split, server, local], Method())
    for key in body:
        expected = 37 / 50 * server.adapter[key].A_RN + 13 / 50 * local.adapter[key].A_RN
        np.testing.assert_allclose(mixed.adapter[key].A_RN, expected, rtol=1e-5, atol=1e-6)


def test_uniform_weights_count_clients_also_behind_the_server() -> None:
    from fedsplit.method.weights import uniform

    server, local = replace(update("@server", 3, 5), stands_for=3), update("cyd", 4, 500)
    after = run_round(start(), [server, local], Method(weights=uniform))
    expected = 0.75 * server.adapter[Q].A_RN + 0.25 * local.adapter[Q].A_RN
    np.testing.assert_allclose(after.adapter[Q].A_RN, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["frozen", "local"])
def test_a_head_that_is_not_averaged_stays(policy: Any) -> None:
    after = run_round(start(), three(), Method(), head_policy=policy)
    assert digest({}, after.head) == digest({}, start().head)
    assert digest(after.adapter) == digest(run_round(start(), three(), Method()).adapter)


def test_a_head_tensor_nobody_sent_stays_and_one_sent_alone_is_kept() -> None:
    one, other = three()[:2]
    one = replace(one, head={"score.bias": one.head["score.bias"]})
    other = replace(other, head={})
    after = run_round(start(), [one, other], Method())
    assert digest({}, after.head) == digest({}, {**start().head, **one.head})


def test_many_clients_do_not_lose_the_small_digits() -> None:
    """Summing 1,000 float32 values in float32 would be off by thousands of units in the last place."""
    base = start()
    value = np.float32(1.1)
    ones = {key: LowRank(np.full_like(p.B_MR, value), np.full_like(p.A_RN, value)) for key, p in base.adapter.items()}
    crowd = [ClientUpdate(client=f"{i:04}", examples=1 + i % 7, base_version=0, adapter=ones) for i in range(1000)]
    assert digest(run_round(base, crowd, Method()).adapter) == digest(ones)


# ---- folds -----------------------------------------------------------------------------------------------------------


def folding(parts: Sequence[LowRank], p_K: Sequence[float], memory: Memory) -> Merged:
    average = mean(parts, p_K)
    return Merged(average, fold=total(parts, p_K) - average)


def test_folds_add_up_and_raise_the_base_version() -> None:
    first = run_round(start(), three(), Method(merge=folding))
    assert [fold.version for fold in first.folds] == [1]
    assert first.base_version == 1
    with pytest.raises(Refused, match="base version 0, expected 1"):
        run_round(first, three(), Method(merge=folding))
    later = [replace(u, base_version=1, adapter={Q: u.adapter[Q]}) for u in three()]
    second = run_round(first, later, Method(merge=folding))
    assert [fold.version for fold in second.folds] == [1, 2]
    assert set(second.folds[1].patch) == {Q}
    expected = first.folds[0].patch[Q].dense() + sum(
        n / 38 * u.adapter[Q].astype("float64").dense() for u, n in zip(later, (7, 30, 1), strict=True)
    )
    np.testing.assert_allclose(effective(second)[Q], expected, atol=2e-5)
    arrays, counters = pack(second)
    assert state_digest(unpack(arrays, counters)) == state_digest(second)


# ---- refusals --------------------------------------------------------------------------------------------------------


def stranger(kind: str) -> ClientUpdate:
    ann = three()[0]
    return {
        "module": replace(ann, adapter={ModuleKey(9, "q"): factors(1, Q)}),
        "shape": replace(ann, adapter={Q: factors(1, KEYS[1])}),
        "head": replace(ann, head={"other": np.zeros(3)}),
        "head shape": replace(ann, head={"score.bias": np.zeros((3, 1))}),
        "count": replace(ann, examples=-1),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("module", "ann has module 9/q, which the global adapter does not have"),
        ("shape", r"ann has \(5, 13\) for module 0/attention.query, expected \(11, 7\)"),
        ("head", "ann has head tensor other"),
        ("head shape", r"ann has \(3, 1\) for head tensor score.bias, expected \(3,\)"),
        ("count", "ann counts -1 examples"),
    ],
)
def test_strangers_are_refused(kind: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        run_round(start(), [stranger(kind), three()[1]], Method())


def test_two_updates_under_one_name_are_refused() -> None:
    with pytest.raises(Refused, match="two updates of bob"):
        run_round(start(), [*three(), three()[1]], Method())


def test_ranks_that_do_not_average_say_what_would_work() -> None:
    mixed = [update("ann", 1), update("bob", 2, rank=lambda key: 2)]
    with pytest.raises(IncompatibleParts, match=r"ranks 2, 3 for one module.*merge = exact"):
        run_round(start(), mixed, Method())
    run_round(start(), mixed, Method(merge=exact))


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0]])
def test_a_weight_rule_must_give_one_usable_number_each(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"method.weights.*one finite number, 0 or more, for each of 3"):
        run_round(start(), three(), Method(weights=lambda updates: weights))


def test_weight_zero_is_absence() -> None:
    after = run_round(start(), three(), Method(weights=lambda updates: [1.0, 0.0, 0.0]))
    assert digest(after.adapter, after.head) == digest(three()[0].adapter, three()[0].head)
    before = start()
    nothing = run_round(before, three(), Method(weights=lambda updates: [0.0, 0.0, 0.0]))
    assert replace(nothing, notes=()) == before
    assert "gives all 3 updates 0" in nothing.notes[0]


def test_a_merge_that_leaves_the_finite_numbers_drops_the_round() -> None:
    """Finite factors, but a rule of one's own that makes of them what float32 cannot hold."""

    def overflowing(parts: Sequence[LowRank], p_K: Sequence[float], memory: Memory) -> Merged:
        return Merged(mean(parts, p_K) * 1e39)

    before = start()
    after = run_round(before, three(), Method(merge=overflowing))
    assert replace(after, notes=()) == before
    assert after.notes[0].startswith("round dropped: -1/score/B")


# ---- memory and what a client is sent --------------------------------------------------------------------------------


def test_a_merge_remembers_per_module() -> None:
    seen: dict[tuple[int, ModuleKey], Any] = {}

    def counting(parts: Sequence[LowRank], p_K: Sequence[float], memory: Memory) -> Merged:
        seen[memory.round, memory.key] = memory.arrays.get("count"), memory.seed
        count = memory.arrays.get("count", np.zeros(1)) + 1
        return Merged(mean(parts, p_K), memory={"count": count})

    state = start()
    for only in (KEYS[:2], KEYS[1:]):
        state = run_round(state, [update("ann", 1, keys=only)], Method(merge=counting), seed=5)
    assert seen[0, KEYS[1]] == (None, 5)
    assert seen[1, KEYS[1]] == (np.ones(1), 5)
    assert seen[1, KEYS[2]] == (None, 5)
    assert state.memory[f"{KEYS[1]}/merge/count"] == 2


def ask(client: str, rank: int) -> Ask:
    return Ask(round=1, client=client, seed=4, layers=2, rank=rank)


def test_a_client_is_sent_its_layers_at_its_rank() -> None:
    method = Method(merge=exact, ranks=per_device({"big": 6, "small": 1}))
    state = run_round(start(), three(), method)
    small, big = (for_client(state, method, ask=ask(name, 3)) for name in ("small", "big"))
    other = for_client(state, method, ask=ask("other", 3), layers=[1])
    assert {part.rank for part in small.values()} == {1}
    assert {part.rank for part in big.values()} == {6}
    assert {key: part.rank for key, part in other.items()} == dict.fromkeys(KEYS[1:3], 3)
    whole = products(state.adapter)[Q]
    u, s, vt = np.linalg.svd(whole)
    np.testing.assert_allclose(products(small)[Q], s[0] * np.outer(u[:, 0], vt[0]), atol=1e-5)
    assert {part.dtype for part in small.values()} == {np.dtype(np.float32)}


def test_a_grown_module_is_the_same_function_and_can_learn() -> None:
    state = start()
    grown = for_client(state, Method(ranks=per_device()), ask=ask("ann", 8))
    wider = for_client(state, Method(ranks=per_device()), ask=ask("bob", 9))
    for key, part in grown.items():
        np.testing.assert_array_equal(part.slice(SHAPES[key][2]).dense(), state.adapter[key].dense())
        new = part.A_RN[SHAPES[key][2] :]
        assert part.rank == 8
        assert np.all(np.linalg.norm(new, axis=1) > 0)
        assert not part.B_MR[:, SHAPES[key][2] :].any()
        np.testing.assert_array_equal(new, wider[key].A_RN[SHAPES[key][2] : 8])


def test_equal_ranks_are_sent_as_they_are() -> None:
    state = start()
    sent = for_client(state, Method(), ask=ask("ann", 3), layers=[0])
    assert sent[Q] is state.adapter[Q]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"round": None}, "round is None"),
        ({"base_version": "x"}, "base_version is 'x'"),
        ({"adapter_version": -1}, "adapter_version is -1"),
    ],
)
def test_a_damaged_checkpoint_is_refused(change: dict[str, Any], words: str) -> None:
    arrays, counters = pack(start())
    with pytest.raises(DataError, match=words):
        unpack(arrays, {**counters, **change})
    with pytest.raises(DataError, match="the version in fold/x"):
        unpack({**arrays, "fold/x/0/q/A": np.ones((1, 1))}, counters)


def test_unflatten_of_what_was_packed_ignores_nothing() -> None:
    arrays, _ = pack(GlobalState.first({Q: factors(0, Q)}))
    assert set(unflatten(arrays)[0]) == {Q}
