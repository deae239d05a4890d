"""Every method against every law. A new method is in here by being registered; a law says itself whom it binds."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedsplit.errors import Refused
from fedsplit.lora import LowRank, ModuleKey, digest, flatten
from fedsplit.method import Ask, ClientUpdate, GlobalState
from fedsplit.method.stored import pack, state_digest, unpack
from fedsplit.train.round import for_client, run_round
from fedsplit.wire.frames import encode
from fedsplit.wire.messages import Update
from fedsplit.wire.tensors import WireTensor
from tests.methods.cases import SHAPES, Case, all_cases, effective, factors, products, start, three, update
from tests.reference import fedavg as reference

CASES = all_cases()
every_method = pytest.mark.parametrize("case", CASES, ids=str)
REPLACING = [case for case in CASES if case.replaces]
replacing_methods = pytest.mark.parametrize("case", REPLACING, ids=str)
exact_methods = pytest.mark.parametrize("case", [case for case in CASES if case.first.exact], ids=str)
KEYS = list(SHAPES)


def close(x: dict[ModuleKey, np.ndarray], y: dict[ModuleKey, np.ndarray], tolerance: float = 1e-5) -> None:
    assert x.keys() == y.keys()
    for key in x:
        np.testing.assert_allclose(x[key], y[key], rtol=tolerance, atol=tolerance, err_msg=str(key))


def test_the_matrix_is_not_empty() -> None:
    """Each law binds someone, and the registered methods are all there."""
    names = {case.name for case in CASES}
    assert "fedavg" in names
    assert len(names) == len(CASES)
    assert any(case.first.exact for case in CASES)
    assert any(not case.first.exact for case in CASES)
    for m, n, r in SHAPES.values():
        assert len({m, n, r}) == 3


@replacing_methods
def test_one_client_is_the_identity(case: Case) -> None:
    only = case.update("ann", 1, 7)
    after = run_round(start(), [only], case.method)
    close(effective(after), products(only.adapter), 1e-6)
    if not after.folds:
        assert digest(after.adapter, after.head) == digest(only.adapter, only.head)


@every_method
def test_the_order_of_arrival_leaves_no_trace(case: Case) -> None:
    results = {state_digest(run_round(start(), order, case.method)) for order in itertools.permutations(case.three())}
    assert len(results) == 1


@every_method
@pytest.mark.parametrize("count", [1, 2, 7])
def test_clients_that_changed_nothing_change_nothing(case: Case, count: int) -> None:
    before = start()
    same = [
        ClientUpdate(client=f"c{i}", examples=3 + i, base_version=0, adapter=before.adapter, head=before.head)
        for i in range(count)
    ]
    after = run_round(before, same, case.method)
    close(effective(after), effective(before), 1e-6)
    for name, tensor in before.head.items():
        np.testing.assert_allclose(after.head[name], tensor, rtol=1e-6)


@replacing_methods
@pytest.mark.parametrize("count", [2, 3, 7])
def test_equal_clients_are_a_fixed_point(case: Case, count: int) -> None:
    same = [replace(case.update("x", 5, 3 + i), client=f"c{i}") for i in range(count)]
    after = run_round(start(), same, case.method)
    close(effective(after), products(same[0].adapter), 1e-5)


@every_method
def test_a_module_that_nobody_trained_is_untouched(case: Case) -> None:
    before = start()
    updates = [case.update("ann", 1, keys=KEYS[:2]), case.update("bob", 2, keys=KEYS[1:3])]
    after = run_round(before, updates, case.method)
    untouched = KEYS[3]
    assert (
        flatten({untouched: after.adapter[untouched]}).keys() == flatten({untouched: before.adapter[untouched]}).keys()
    )
    assert digest({untouched: after.adapter[untouched]}) == digest({untouched: before.adapter[untouched]})
    assert all(untouched not in fold.patch for fold in after.folds)


@replacing_methods
def test_a_module_trained_alone_is_kept(case: Case) -> None:
    """Weights are renormalised over the clients of the module, not over all."""
    updates = [case.update("ann", 1, 7, keys=KEYS[:1]), case.update("bob", 2, 900, keys=KEYS[1:])]
    after = run_round(start(), updates, case.method)
    close(effective(after), products({**updates[0].adapter, **updates[1].adapter}), 1e-6)


@exact_methods
@pytest.mark.parametrize("ranks", ["equal", "mixed"])
def test_exact_methods_give_the_dense_ideal(case: Case, ranks: str) -> None:
    if ranks == "mixed" and not case.first.unequal_ranks:
        pytest.skip("needs equal ranks")
    rank = {"ann": 2, "bob": 3, "cyd": 7} if ranks == "mixed" else {}
    updates = [
        case.update(name, seed, n, rank=(lambda key, name=name: rank[name]) if rank else None)
        for seed, (name, n) in enumerate([("ann", 7), ("bob", 30), ("cyd", 1)], start=1)
    ]
    before = start()
    after = run_round(before, updates, case.method)
    close(effective(after), reference.ideal(as_pairs(updates), pairs(before.adapter)), 2e-5)


@exact_methods
def test_exact_methods_do_not_see_how_a_product_was_split(case: Case) -> None:
    """(B, A) and (2 B, A / 2) are one update."""
    if case.resting():
        pytest.skip("one factor is common, so there is no other way to split")
    split = [
        replace(u, adapter={key: LowRank(p.B_MR * 2, p.A_RN / 2) for key, p in u.adapter.items()}) for u in case.three()
    ]
    close(effective(run_round(start(), case.three(), case.method)), effective(run_round(start(), split, case.method)))


@every_method
def test_no_examples_no_influence(case: Case) -> None:
    with_idle = [*case.three(), case.update("dot", 9, 0)]
    assert state_digest(run_round(start(), with_idle, case.method)) == state_digest(
        run_round(start(), case.three(), case.method)
    )


@every_method
@pytest.mark.parametrize("updates", [[], [update("ann", 1, 0), update("bob", 2, 0)]], ids=["none", "idle"])
def test_nothing_arrived_nothing_happens(case: Case, updates: list[ClientUpdate]) -> None:
    before = start()
    assert run_round(before, updates, case.method) == before


@every_method
def test_a_non_finite_update_is_left_out_and_named(case: Case) -> None:
    key, bad = KEYS[2], case.update("bob", 2, 30)
    broken = bad.adapter[key].A_RN.copy()
    broken[1, 2] = np.nan
    bad = replace(bad, adapter={**bad.adapter, key: LowRank(bad.adapter[key].B_MR, broken)})
    good = [case.three()[0], case.three()[2]]
    after = run_round(start(), [good[0], bad, good[1]], case.method)
    assert state_digest(after) == state_digest(run_round(start(), good, case.method))
    assert after.notes == ("left out bob: 1/mlp.up/A is not finite",)


@every_method
def test_an_update_to_another_base_is_refused(case: Case) -> None:
    with pytest.raises(Refused, match="ann was trained on base version 1, expected 0"):
        run_round(start(), [replace(case.three()[0], base_version=1)], case.method)


@every_method
def test_what_rests_is_the_same_bits_afterwards(case: Case) -> None:
    state = start()
    for _ in range(4):
        before, state = state, trajectory(case, state.round + 1, state)
        for key, part in state.adapter.items():
            for side in case.resting(before.round):
                name = {"A": "A_RN", "B": "B_MR"}[side]
                assert getattr(part, name).tobytes() == getattr(before.adapter[key], name).tobytes()


@every_method
def test_inputs_are_not_written_to(case: Case) -> None:
    before, updates = start(), case.three()
    marks = [state_digest(before), *(digest(u.adapter, u.head) for u in updates)]
    state = before
    for _ in range(2):
        here = [replace(one, base_version=state.base_version) for one in updates]
        state = run_round(state, here, case.method)
    assert marks == [state_digest(before), *(digest(u.adapter, u.head) for u in updates)]


@every_method
def test_dtype_and_shape_stay(case: Case) -> None:
    after = run_round(start(), case.three(), case.method)
    for key, (m, n, _) in SHAPES.items():
        assert after.adapter[key].dtype == np.float32
        assert after.adapter[key].shape == (m, n)
    assert {name: tensor.dtype for name, tensor in after.head.items()} == dict.fromkeys(start().head, np.float32)


def trajectory(case: Case, rounds: int, state: GlobalState | None = None) -> GlobalState:
    """Rounds in which clients come and go and move the factors they were sent."""
    state = state or start()
    while state.round < rounds:
        updates = []
        for index in range(3):
            if (state.round + index) % 3 == 2:
                continue
            received = for_client(state, case.method, layers=[-1, 0, 1])
            moved = {key: part.slice(SHAPES[key][2]).pad(SHAPES[key][2]) for key, part in received.items()}
            away = {key: 0.1 * factors(100 * state.round + index, key) for key in moved}
            moved = {
                key: case.followed(LowRank(part.B_MR + away[key].B_MR, part.A_RN + away[key].A_RN), part, state.round)
                for key, part in moved.items()
            }
            updates.append(
                ClientUpdate(client=f"c{index}", examples=5 + index, base_version=state.base_version, adapter=moved)
            )
        state = run_round(state, updates, case.method, seed=17)
    return state


@every_method
def test_saved_and_loaded_in_the_middle_is_the_same_run(case: Case, tmp_path: Path) -> None:
    arrays, counters = pack(trajectory(case, 2))
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, tmp_path / "state.safetensors")
    (tmp_path / "counters.json").write_text(json.dumps(counters))
    again = unpack(load_file(tmp_path / "state.safetensors"), json.loads((tmp_path / "counters.json").read_text()))
    assert state_digest(trajectory(case, 5, again)) == state_digest(trajectory(case, 5))
    assert state_digest(trajectory(case, 5)) != state_digest(trajectory(case, 4))


def test_same_seed_same_bytes_in_another_process() -> None:
    script = (
        "from tests.methods.test_laws import CASES, trajectory\n"
        "from fedsplit.method.stored import state_digest\n"
        "print([state_digest(trajectory(case, 4)) for case in CASES])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str([state_digest(trajectory(case, 4)) for case in CASES])


@every_method
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_bytes_on_the_wire_are_those_of_the_formula(case: Case, key: ModuleKey) -> None:
    m, n, r = SHAPES[key]
    traffic = case.first.traffic(m, n, r)
    state = run_round(start(), case.three(), case.first)
    ask = Ask(round=1, client="ann", seed=0, layers=2, rank=r)
    assert wire_bytes(key, for_client(state, case.first, ask=ask)[key]) == 4 * traffic.down
    assert wire_bytes(key, case.three()[0].adapter[key], case.resting()) == 4 * traffic.up


def wire_bytes(key: ModuleKey, part: LowRank, resting: Collection[str] = ()) -> int:
    """Bytes of the tensor frames that carry one module, less what rests."""
    tensors = {name: WireTensor.of(tensor) for name, tensor in flatten({key: part}).items() if name[-1] not in resting}
    frames = encode(Update(round=0, era=0, base_version=0, examples=1, steps=1), tensors)
    return sum(len(memoryview(frame).cast("B")) for frame in frames[1:])


@every_method
def test_torch_gives_what_numpy_gives(case: Case) -> None:
    torch = pytest.importorskip("torch", reason="the server's arrays are torch tensors")

    def moved(adapter: dict[ModuleKey, LowRank]) -> dict[ModuleKey, LowRank]:
        return {
            key: LowRank(torch.from_numpy(part.B_MR.copy()), torch.from_numpy(part.A_RN.copy()))
            for key, part in adapter.items()
        }

    def moved_head(head: dict[str, np.ndarray]) -> dict[str, object]:
        return {name: torch.from_numpy(tensor.copy()) for name, tensor in head.items()}

    before = start()
    state = replace(before, adapter=moved(before.adapter), head=moved_head(before.head))
    updates = [replace(u, adapter=moved(u.adapter), head=moved_head(u.head)) for u in case.three()]
    after, expected = run_round(state, updates, case.method), run_round(before, case.three(), case.method)
    for key, part in after.adapter.items():
        assert isinstance(part.B_MR, torch.Tensor)
        np.testing.assert_allclose(part.dense().numpy(), expected.adapter[key].dense(), atol=1e-5)
    for name, tensor in after.head.items():
        np.testing.assert_allclose(tensor.numpy(), expected.head[name], atol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if case.name == "fedavg"], ids=str)
def test_fedavg_equals_the_naive_version(case: Case) -> None:
    updates = [*three(), update("dot", 4, 5, keys=KEYS[:2]), update("eve", 5, 0)]
    before = start()
    after = run_round(before, updates, case.method)
    expected = reference.average_factors(as_pairs(updates), pairs(before.adapter))
    for key, (b, a) in expected.items():
        np.testing.assert_allclose(after.adapter[key].B_MR, b, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(after.adapter[key].A_RN, a, rtol=1e-6, atol=1e-7)
    head = reference.average_tensors([(u.examples, dict(u.head)) for u in updates], dict(before.head))
    for name, tensor in head.items():
        np.testing.assert_allclose(after.head[name], tensor, rtol=1e-6, atol=1e-7)


def pairs(adapter: dict[ModuleKey, LowRank]) -> reference.Pairs:
    return {key: (part.B_MR, part.A_RN) for key, part in adapter.items()}


def as_pairs(updates: list[ClientUpdate]) -> list[tuple[int, reference.Pairs]]:
    return [(u.examples, pairs(u.adapter)) for u in updates]
