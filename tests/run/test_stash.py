"""Too little room must cost repeats, never progress."""

from __future__ import annotations

import torch

from fedsplit.split.rows import Rows
from fedsplit.split.stash import Kept, Key, Stash

ROWS = Rows(None, (1,), (0,), 1)


def key(client: str, micro: int = 0) -> Key:
    return (client, 0, 0, 0, micro)


def kept(attempt: int = 0, nbytes: int = 1) -> Kept:
    return Kept(torch.zeros(1), torch.zeros(1), ROWS, attempt, nbytes)


def test_the_oldest_goes_first() -> None:
    stash = Stash(2)
    for name in "abc":
        stash.put(key(name), kept())
    assert [name for name in "abc" if stash.pop(key(name))] == ["b", "c"]
    assert (stash.nbytes, stash.evicted) == (0, 1)


def test_a_repeat_is_never_evicted_for_another() -> None:
    stash = Stash(1)
    stash.put(key("a"), kept(attempt=1))
    for attempt in range(5):
        stash.put(key("b"), kept(attempt=attempt))
    assert stash.pop(key("a")) is not None
    assert stash.nbytes == 0


def test_three_that_take_turns_all_get_through() -> None:
    """Forwards of all, then backwards of all, again and again in lockstep: each round lets at least one through."""
    stash, attempts = Stash(1), dict.fromkeys("abc", 0)
    rounds = 0
    while attempts:
        for name in attempts:
            stash.put(key(name), kept(attempts[name]))
        left = [name for name in attempts if stash.pop(key(name)) is None]
        assert len(left) < len(attempts), f"nobody got through in round {rounds}"
        attempts = {name: attempts[name] + 1 for name in left}
        rounds += 1
    assert rounds == 3


def test_one_that_is_larger_than_the_budget_still_has_room() -> None:
    stash = Stash(1)
    stash.put(key("a"), kept(nbytes=100))
    assert stash.pop(key("a")) is not None
