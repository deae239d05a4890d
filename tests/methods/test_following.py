"""Following the base: whoever gets the sum instead of the history goes on with the same bits, for fewer bytes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from fedsplit.errors import DataError
from fedsplit.lora.adapter import ModuleKey
from fedsplit.lora.lowrank import LowRank
from fedsplit.lora.patch import Dense, Patch, added, nbytes, summed, thin, whole
from fedsplit.method.following import MOST_TENSORS, to_send
from fedsplit.method.stored import pack, pack_folds, unpack, unpack_folds
from fedsplit.method.values import Fold, GlobalState
from fedsplit.wire import Packet, WireTensor
from fedsplit.wire.messages import Start
from fedsplit_client.folds import Folds
from fedsplit_client.line import Restart

SHAPES = {ModuleKey(0, "q"): (13, 11), ModuleKey(1, "q"): (13, 11), ModuleKey(1, "down"): (7, 29)}
RANK = 2


def product(key: ModuleKey, version: int) -> LowRank:
    draw = np.random.default_rng([version, key.layer, len(key.path)])
    m, n = SHAPES[key]
    return LowRank(draw.normal(size=(m, RANK)).astype("f4"), draw.normal(size=(RANK, n)).astype("f4"))


def state(versions: int) -> GlobalState:
    folds = tuple(Fold(v, {key: product(key, v) for key in SHAPES}) for v in range(1, versions + 1))
    adapter = {key: LowRank.zeros(product(key, 0), RANK) for key in SHAPES}
    return GlobalState(versions, versions, versions, adapter, folds=folds)


def send(after: GlobalState, client: Folds, known: int, held: Any = SHAPES) -> int:
    """What the server sends to a client that it takes to be at ``known``; its bytes."""
    since, steps = to_send(after, known, list(held))
    tensors = {name: WireTensor.of(array) for name, array in pack_folds(steps).items()}
    version = after.base_version
    start = Start(round=0, era=0, steps=1, first_step=0, base_version=version, adapter_version=0, since=since)
    assert client.take(start, Packet(start, tensors)) == {}
    return sum(tensor.nbytes for tensor in tensors.values())


def bits(patch: Patch) -> dict[ModuleKey, tuple[str, bytes]]:
    return {
        key: (type(part).__name__, part.W_MN.tobytes() if isinstance(part, Dense) else part.dense().tobytes())
        for key, part in patch.items()
    }


def test_thin_factors_side_by_side_then_a_matrix() -> None:
    key = ModuleKey(0, "q")
    kinds = [type(state(versions).patch[key]).__name__ for versions in range(1, 6)]
    assert kinds == ["LowRank", "LowRank", "Dense", "Dense", "Dense"], "13 * 11 / (13 + 11) = 5.96 components are thin"
    exact = sum(product(key, v).astype("float64").dense() for v in range(1, 6))
    np.testing.assert_allclose(state(5).patch[key].dense(), exact, rtol=1e-5, atol=1e-5)
    assert not thin(product(key, 0).pad(6))
    assert added(Dense(np.ones((13, 11))), Dense(np.zeros((13, 11)))).dense().sum() == 0, "a matrix is the whole sum"


@pytest.mark.parametrize(("known", "now"), list(itertools.combinations_with_replacement(range(8), 2)))
def test_who_was_absent_goes_on_bit_for_bit(known: int, now: int) -> None:
    late, ever = Folds(), Folds()
    for version in range(1, now + 1):
        send(state(version), ever, version - 1)
    send(state(known), late, 0)
    send(state(now), late, known)
    assert bits(late.patch) == bits(ever.patch) == bits(state(now).patch)
    send(state(now + 3), late, now)
    assert bits(late.patch) == bits(state(now + 3).patch)


def test_never_more_bytes_than_the_history_nor_than_the_matrices() -> None:
    dense = sum(4 * m * n for m, n in SHAPES.values())
    for known, now in itertools.combinations((0, 1, 2, 3, 5, 8, 20, 40), 2):
        history = sum(nbytes(fold.patch) for fold in state(now).folds[known:])
        late = Folds()
        send(state(known), late, 0)
        sent = send(state(now), late, known)
        assert sent <= min(history, dense)
        assert nbytes(late.patch) <= dense, "and what it keeps does not grow"
    assert nbytes(state(40).patch) == dense


def test_many_small_folds_travel_as_one_sum() -> None:
    """Hundreds of rounds would be more tensors than a message may have, long before the sum is a matrix."""
    keys = [ModuleKey(layer, "q") for layer in range(60)]
    one = {key: LowRank(np.ones((300, 1), "f4"), np.ones((1, 300), "f4")) for key in keys}
    folds = tuple(Fold(v, one) for v in range(1, 50))
    after = GlobalState(49, 49, 49, {}, folds=folds)
    since, steps = to_send(after, 1, keys)
    assert (since, len(steps)) == (0, 1)
    assert len(pack_folds(steps)) <= MOST_TENSORS
    since, steps = to_send(after, 40, keys)
    assert (since, len(steps)) == (40, 9)


def test_only_what_a_device_holds_travels() -> None:
    held, client = [ModuleKey(1, "down")], Folds()
    send(state(9), client, 0, held)
    assert set(client.patch) == set(held)
    assert bits(client.patch) == {held[0]: bits(state(9).patch)[held[0]]}


def test_what_the_server_has_not_heard_of_is_not_added_twice() -> None:
    client = Folds()
    send(state(1), client, 0)
    send(state(2), client, 1)
    send(state(3), client, 1)  # its answer to version 2 was lost
    assert bits(client.patch) == bits(state(3).patch)


def test_an_older_state_comes_whole() -> None:
    """The best round may be one before the last: nobody takes a fold out of a sum again."""
    client = Folds()
    send(state(6), client, 0)
    send(state(2), client, 6)
    assert bits(client.patch) == bits(state(2).patch)


def test_a_gap_is_asked_for_again() -> None:
    client = Folds()
    with pytest.raises(Restart, match="at version 0 here, the server speaks of 3 to 5"):
        client.take(message(3, 5), Packet(message(3, 5), {}))
    send(state(5), client, 0)
    with pytest.raises(Restart, match="at version 5 here, the server speaks of 3 to 4"):
        client.take(message(3, 4), Packet(message(3, 4), {}))


def test_factors_beside_the_whole_base_weights_know_it_all() -> None:
    adapter = {key: product(key, 99) for key in SHAPES}
    for versions in (1, 2, 5):
        patch = state(versions).patch
        for key, part in whole(adapter, patch).items():
            assert part.rank <= min(part.shape)
            np.testing.assert_allclose(part.dense(), patch[key].dense() + adapter[key].dense(), rtol=1e-4, atol=1e-4)


def test_a_state_keeps_its_history_and_comes_back_with_its_sum() -> None:
    before = state(5)
    after = unpack(*pack(before))
    assert [fold.version for fold in after.folds] == [1, 2, 3, 4, 5]
    assert bits(after.patch) == bits(before.patch)
    steps, _ = unpack_folds(pack_folds(to_send(before, 0, list(SHAPES))[1]))
    with pytest.raises(DataError, match="fold 5 of 0/q is a matrix"):
        unpack(pack_folds(steps), pack(before)[1])
    assert bits(summed(step.patch for step in steps)) == bits(before.patch)


def message(since: int, version: int) -> Start:
    return Start(round=0, era=0, steps=1, first_step=0, base_version=version, adapter_version=0, since=since)
