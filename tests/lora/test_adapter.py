"""Adapters as flat named tensors: there and back, wrong names, digests."""

from __future__ import annotations

import numpy as np
import pytest

from fedsplit.errors import DataError
from fedsplit.lora import LowRank, ModuleKey, digest, flatten, select, unflatten
from fedsplit.lora.adapter import nbytes

ATTENTION = ModuleKey(3, "self_attn.q_proj")
MLP = ModuleKey(10, "mlp.down_proj")
OUTSIDE = ModuleKey(-1, "vit.pooler/dense")


def factors(m: int, n: int, r: int) -> LowRank:
    rng = np.random.default_rng(m * n * r)
    return LowRank(rng.normal(size=(m, r)).astype(np.float32), rng.normal(size=(r, n)).astype(np.float32))


ADAPTER = {MLP: factors(13, 7, 2), ATTENTION: factors(11, 5, 3), OUTSIDE: factors(3, 5, 2)}
HEAD = {"classifier.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "classifier.bias": np.zeros(2, np.float32)}


def test_flat_names_are_those_of_the_wire() -> None:
    assert list(flatten(ADAPTER, HEAD)) == [
        "-1/vit.pooler/dense/A",
        "-1/vit.pooler/dense/B",
        "3/self_attn.q_proj/A",
        "3/self_attn.q_proj/B",
        "10/mlp.down_proj/A",
        "10/mlp.down_proj/B",
        "head/classifier.bias",
        "head/classifier.weight",
    ]


def test_there_and_back() -> None:
    adapter, head = unflatten(flatten(ADAPTER, HEAD))
    assert list(adapter) == [OUTSIDE, ATTENTION, MLP]
    assert digest(adapter, head) == digest(ADAPTER, HEAD)
    assert nbytes(ADAPTER, HEAD) == 4 * (2 * 20 + 3 * 16 + 2 * 8 + 8)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["0/q/A"], "module 0/q has factor A only"),
        (["0/q/B"], "module 0/q has factor B only"),
        (["q/A"], "unknown tensor 'q/A'"),
        (["zero/q/A"], "unknown tensor"),
        (["0/q/C"], "unknown tensor"),
        (["0//A"], "unknown tensor"),
        (["0/A"], "unknown tensor"),
        ([""], "unknown tensor ''"),
    ],
)
def test_wrong_names_are_refused(names: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        unflatten(dict.fromkeys(names, np.ones((2, 2))))


def test_selecting_layers_and_keys_keeps_global_numbers() -> None:
    assert list(select(ADAPTER, layers=range(3, 11))) == [ATTENTION, MLP]
    assert list(select(ADAPTER, keys=[MLP])) == [MLP]
    assert select(ADAPTER, layers=[3])[ATTENTION] is ADAPTER[ATTENTION]
    assert list(select(ADAPTER, layers=[3], keys=[MLP])) == []
    with pytest.raises(DataError, match="no module 4/q"):
        select(ADAPTER, keys=[ModuleKey(4, "q")])


def test_digest_sees_bits_names_shapes_and_dtypes_and_nothing_else() -> None:
    x = factors(11, 5, 3)
    base = digest({ATTENTION: x})
    strided = np.zeros((22, 6), np.float32)
    strided[::2, ::2] = x.B_MR
    assert digest({ATTENTION: LowRank(strided[::2, ::2], x.A_RN)}) == base
    assert digest({ATTENTION: LowRank(x.B_MR.astype(">f4"), x.A_RN.astype(">f4"))}) == base
    touched = x.B_MR.copy()
    touched[0, 0] = np.nextafter(touched[0, 0], np.float32(9))
    others = [
        {ATTENTION: LowRank(touched, x.A_RN)},
        {MLP: x},
        {ATTENTION: LowRank(x.B_MR.reshape(11, 3), x.A_RN.reshape(3, 5)).astype("float64")},
        {ATTENTION: -x},
    ]
    assert len({base, *(digest(other) for other in others)}) == 5
    assert digest({}, {"a": np.zeros((2, 3))}) != digest({}, {"a": np.zeros((3, 2))})
