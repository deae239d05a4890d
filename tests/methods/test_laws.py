"""Every method against every law. A new method is in here by being registered; a law says itself whom it binds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedsplit.lora import LowRank, ModuleKey
from fedsplit.method import ClientUpdate, Merged, Method, merge_rule
from fedsplit.method.merge import mean, weighted_sum
from fedsplit.method.parts import RankRule
from fedsplit.method.stored import pack, state_digest, unpack
from fedsplit.testing.laws import KEYS, LAWS, Law
from fedsplit.testing.verdict import judge
from fedsplit.train.round import run_round
from tests.methods.cases import SHAPES, Case, all_cases, start, three, trajectory, update
from tests.reference import fedavg as reference

CASES = all_cases()
every_method = pytest.mark.parametrize("case", CASES, ids=str)
BOUND = [pytest.param(law, case, id=f"{law.name}-{case}") for law in LAWS for case in CASES if law.binds(case)]


def test_the_matrix_is_not_empty() -> None:
    """Each law binds someone, and the registered methods are all there."""
    names = {case.name for case in CASES}
    assert "fedavg" in names
    assert len(names) == len(CASES)
    assert len({law.name for law in LAWS}) == len({law.text for law in LAWS}) == len(LAWS)
    for law in LAWS:
        assert any(law.binds(case) for case in CASES), law.text
    assert any(not case.first.exact for case in CASES)
    for m, n, r in SHAPES.values():
        assert len({m, n, r}) == 3


@pytest.mark.parametrize(("law", "case"), BOUND)
def test_law(law: Law, case: Case) -> None:
    law.holds(case)


def test_every_law_can_be_broken() -> None:
    """Methods that are wrong in one way each: the laws that see it, by name."""
    seen = {verdict.law for wrong in wrong_methods() for verdict in judge("wrong", wrong) if verdict.broken}
    # What the round itself sees to, whatever the method does, is tested in test_round.py.
    of_the_round = {
        "no examples, no influence",
        "nothing arrived, nothing happens",
        "a non-finite update is left out and named",
        "an update to another base version is refused",
        "a module that nobody trained is untouched",
        "what rests is the same bits afterwards",
        "what a client keeps to itself is merged with nothing",
        "groups do not see each other",
        "saved and taken up in the middle is the same run",
    }
    assert {law.text for law in LAWS} - seen <= of_the_round


def wrong_methods() -> list[Method]:
    calls: list[int] = []

    @merge_rule(equal_ranks=True, exact=True, secure_sum=True)
    def first_only(parts, p_K, memory):  # type: ignore[no-untyped-def]
        return Merged(parts[0])

    @merge_rule(exact=True)
    def counts_calls(parts, p_K, memory):  # type: ignore[no-untyped-def]
        calls.append(1)
        return Merged(mean(parts, p_K) * float(len(calls)))

    @merge_rule()
    def folds_in_silence(parts, p_K, memory):  # type: ignore[no-untyped-def]
        return Merged(mean(parts, p_K), fold=parts[0])

    @merge_rule(equal_ranks=True)
    def writes(parts, p_K, memory):  # type: ignore[no-untyped-def]
        parts[0].B_MR[0, 0] += 1
        return Merged(LowRank(weighted_sum([p.B_MR for p in parts], p_K)[:, :1], parts[0].A_RN[:1]))

    @merge_rule(equal_ranks=True)
    def transposes(parts, p_K, memory):  # type: ignore[no-untyped-def]
        return Merged(LowRank(parts[0].A_RN.T, parts[0].B_MR.T))

    def by_update(updates):  # type: ignore[no-untyped-def]
        for one in updates:
            next(iter(one.head.values()))[:] = 0
        return [1.0 for _ in updates]

    keeps_all = RankRule("keeps_all", lambda ask, key: 1, lambda part, rank: part, equal=True)
    plain = Method()
    merges = (first_only, counts_calls, folds_in_silence, writes, transposes)
    return [*(plain.but(merge=merge) for merge in merges), plain.but(weights=by_update), plain.but(ranks=keeps_all)]


@pytest.mark.parametrize("case", [case for case in CASES if case.name in ("momentum", "fold-then-average")], ids=str)
def test_files_of_a_checkpoint_carry_the_whole_state(case: Case, tmp_path: Path) -> None:
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
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str([state_digest(trajectory(case, 4)) for case in CASES])


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
