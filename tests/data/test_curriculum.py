"""The easiest batches first: which rows a round sees, that nothing is lost, and how fast the share grows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fedsplit.data.curriculum import easiest, steps_of
from fedsplit.errors import ConfigError, DataError
from fedsplit.method import stock
from fedsplit.method.curriculum import share

SHARES = (0.1, 0.3, 0.5, 0.51, 0.99, 1.0)


def difficulty(n: int) -> np.ndarray:
    return np.random.default_rng(n).exponential(size=n)


@pytest.mark.parametrize("n", [1, 4, 7, 8, 41])
def test_the_easiest_batches_come_first_and_whole(n: int) -> None:
    hard = difficulty(n)
    whole = easiest(hard, 1.0, 4, seed=3, client="a")
    assert sorted(whole) == list(range(n)), "with all of them, every row once"
    count = math.ceil(n / 4)
    batches, at = [], 0
    for _ in range(count):
        batches.append(whole[at : at + 4])
        at += 4
    for share_now in SHARES:
        pool = easiest(hard, share_now, 4, seed=3, client="a")
        np.testing.assert_array_equal(pool, whole[: len(pool)])
        assert abs(len(pool) - 4 * math.ceil(share_now * count)) < 4, "only the last batch may be short"
    if n % 4 == 0:
        means = [float(hard[rows].mean()) for rows in batches]
        assert means == sorted(means)


def test_the_rows_used_grow_and_never_shrink() -> None:
    pools = [set(easiest(difficulty(41), one, 4, seed=3, client="a")) for one in SHARES]
    assert all(before <= after for before, after in itertools.pairwise(pools))
    assert len(pools[-1]) == 41


def test_equal_difficulties_keep_their_order() -> None:
    one, two = (easiest(np.full(9, level), 1.0, 2, seed=0, client="a") for level in (0.0, 5.0))
    np.testing.assert_array_equal(one, two)
    assert one.tolist() != easiest(np.zeros(9), 1.0, 2, seed=0, client="b").tolist(), "every client draws its own"


def test_rounds_go_on_where_the_last_one_left_off() -> None:
    pool = easiest(difficulty(11), 1.0, 4, seed=1, client="a")
    both = steps_of(pool, 0, 6, 4)
    np.testing.assert_array_equal(np.concatenate([steps_of(pool, 0, 2, 4), steps_of(pool, 2, 4, 4)]), both)
    assert both.ravel()[:11].tolist() == pool.tolist()
    assert np.bincount(both.ravel(), minlength=11).min() >= 2


def test_no_row_is_an_error_with_the_clients_name() -> None:
    with pytest.raises(DataError, match="client ann has no example"):
        easiest(np.zeros(0), 1.0, 4, seed=0, client="ann")


def test_the_share_worked_out_by_hand() -> None:
    linear = stock.curriculum(first=0.2, full=0.5)
    assert [share(linear, t, 8) for t in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    slow, quick = (stock.curriculum(first=0.2, full=0.5, pace=pace) for pace in ("square", "sqrt"))
    assert share(slow, 2, 8) == pytest.approx(0.2 + 0.8 * 0.25)
    assert share(quick, 1, 8) == pytest.approx(0.2 + 0.8 * 0.5)
    for local in (linear, slow, quick):
        grown = [share(local, t, 8) for t in range(20)]
        assert grown == sorted(grown)
        assert grown[0] == pytest.approx(0.2)
        assert set(grown[4:]) == {1.0}
    assert share(stock.backprop, 0, 8) == 0.0


@pytest.mark.parametrize("wrong", [{"first": 0.0}, {"first": 1.5}, {"full": 0.0}, {"full": -1.0}])
def test_a_share_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=rf"local\.curriculum\.{next(iter(wrong))}: found .*, expected above 0"):
        stock.curriculum(**wrong)  # type: ignore[arg-type]
