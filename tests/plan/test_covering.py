"""Which candidate each client takes so that every layer is trained: exhaustive search, the program, and without it."""

from __future__ import annotations

from itertools import combinations_with_replacement, product

import numpy as np
import pytest

from fedsplit.plan.covering import Cost, Picks, Row, Task, cost_of, exact, greedy, short


def instance(seed: int, *, clients: int = 3, candidates: int = 4, layers: int = 5, least: int = 1) -> Task:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(clients):
        trains = rng.random((candidates, layers)) < rng.uniform(0.1, 0.6)
        loss = np.append(0, rng.integers(0, 50, candidates - 1))
        seconds = rng.integers(1, 9, candidates) / 4
        rows.append(Row(count=int(rng.integers(1, 3)), trains_JL=trains, seconds_J=seconds, loss_J=loss))
    floor = max(float(row.seconds_J[0]) for row in rows)
    return Task(rows=rows, need_L=np.full(layers, least), floor_s=floor)


def every_choice(task: Task) -> list[Picks]:
    a_row = [
        [
            np.bincount(some, minlength=len(row.seconds_J))
            for some in combinations_with_replacement(range(len(row.seconds_J)), row.count)
        ]
        for row in task.rows
    ]
    return [list(picks) for picks in product(*a_row)]


def rounded(cost: Cost) -> Cost:
    return *cost[:3], round(cost[3], 4)


@pytest.mark.parametrize("seed", range(60))
def test_the_program_is_as_good_as_trying_everything(seed: int) -> None:
    pytest.importorskip("scipy")
    task = instance(seed, least=1 + seed % 2)
    found = exact(task)
    assert found is not None
    assert [int(pick_J.sum()) for pick_J in found] == [row.count for row in task.rows]
    best = min(cost_of(task, picks) for picks in every_choice(task))
    assert rounded(cost_of(task, found)) == rounded(best)


def test_without_the_program_it_covers_only_what_can_be_and_mostly_that() -> None:
    can, does, same = 0, 0, 0
    for seed in range(120):
        task = instance(seed, least=1 + seed % 2)
        found = greedy(task)
        assert [int(pick_J.sum()) for pick_J in found] == [row.count for row in task.rows]
        best, mine = min(cost_of(task, picks) for picks in every_choice(task)), cost_of(task, found)
        assert mine >= (*best[:3], best[3] - 1e-9)
        can, does, same = can + (best[0] == 0), does + (mine[0] == 0), same + (mine[:2] == best[:2])
        assert not (mine[0] == 0 and best[0] > 0)
    assert 30 < can < 100, "the instances are neither all easy nor all impossible"
    assert does >= 0.9 * can
    assert same >= 0.7 * 120


def test_what_is_enough_stays() -> None:
    pytest.importorskip("scipy")
    task = instance(3, least=0)
    for picks in (greedy(task), *filter(None, [exact(task)])):
        assert [int(pick_J[0]) for pick_J in picks] == [row.count for row in task.rows] or cost_of(task, picks)[2] == 0


def test_nobody_is_slowed_down_where_another_need_not_be() -> None:
    pytest.importorskip("scipy")
    """Both could train the missing layer: the one whose step stays below the slowest does."""
    trains = np.array([[False, True], [True, False]])
    slow = Row(count=1, trains_JL=trains, seconds_J=np.array([4.0, 6.0]), loss_J=np.array([0, 0]))
    quick = Row(count=1, trains_JL=trains, seconds_J=np.array([1.0, 3.9]), loss_J=np.array([0, 30]))
    task = Task(rows=[slow, quick], need_L=np.array([1, 1]), floor_s=4.0)
    for picks in (greedy(task), exact(task)):
        assert picks is not None
        assert cost_of(task, picks)[:3] == (0, 4.0, 30)
        assert short(task, picks).tolist() == [0, 0]


def test_many_clients_and_layers_take_a_moment() -> None:
    pytest.importorskip("scipy")
    task = instance(1, clients=30, candidates=40, layers=24, least=3)
    found = greedy(task)
    assert cost_of(task, found)[0] == 0
    better = exact(task)
    assert better is None or cost_of(task, better)[:3] <= cost_of(task, found)[:3]
