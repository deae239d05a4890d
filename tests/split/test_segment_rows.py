"""Packed rows and wire tensors: nothing is lost, nothing is copied that need not be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsplit.errors import DataError
from fedsplit.split.rows import Rows, pack, unpack
from fedsplit.split.tensors import ALIGNMENT, from_wire, to_wire
from fedsplit.wire.tensors import WireTensor


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from(["left", "right"]))
def test_pack_keeps_valid_tokens_and_unpack_puts_them_back(lengths: list[int], side: str) -> None:
    rows = Rows.of([list(range(10 * b, 10 * b + n)) for b, n in enumerate(lengths)], pad=99, side=side)
    assert rows.ids_BT is not None
    packed = pack(rows.ids_BT, rows)
    assert packed.tolist() == [10 * b + i for b, n in enumerate(lengths) for i in range(n)]
    assert torch.equal(unpack(packed, rows), rows.ids_BT * rows.mask_BT)
    assert rows.ids_BT[torch.arange(len(lengths)), rows.last_B].tolist() == [
        10 * b + n - 1 for b, n in enumerate(lengths)
    ]
    places = rows.positions.expand(len(lengths), -1)[rows.mask_BT.bool()]
    assert places.tolist() == [i for n in lengths for i in range(n)]


def test_without_padding_nothing_is_copied() -> None:
    rows = Rows.of([[1, 2, 3], [4, 5, 6]])
    h = torch.randn(2, 3, 5)
    assert pack(h, rows).data_ptr() == h.data_ptr() == unpack(pack(h, rows), rows).data_ptr()


def test_both_ways_are_differentiable() -> None:
    rows = Rows.of([[1, 2, 3], [4]], side="left")
    h = torch.randn(2, 3, 5, requires_grad=True)
    (unpack(pack(h, rows), rows) * 2).sum().backward()
    assert h.grad is not None
    assert torch.equal(h.grad, 2.0 * rows.mask_BT.unsqueeze(-1).expand(2, 3, 5))


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="sample 1: 3 tokens from position 1 do not fit a row of 3"):
        Rows(None, (3, 3), (0, 1), 3)
    with pytest.raises(DataError, match="2 lengths and 1 starts"):
        Rows(None, (3, 3), (0,), 3)
    with pytest.raises(DataError, match=r"ids_BT: found \(1, 2\), expected \(1, 3\)"):
        Rows(torch.zeros(1, 2), (3,), (0,), 3)
    with pytest.raises(DataError, match="found 5 tokens, expected 4"):
        unpack(torch.zeros(5, 2), Rows(None, (3, 1), (0, 0), 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8])
def test_wire_tensors_keep_every_bit(dtype: torch.dtype) -> None:
    sent = (100 * torch.randn(5, 3)).to(dtype)
    wire = to_wire(sent)
    assert wire.data.ctypes.data == sent.data_ptr()
    assert torch.equal(from_wire(wire), sent)
    assert from_wire(wire).dtype == dtype
    frame = WireTensor(wire.dtype, np.frombuffer(wire.data.tobytes(), wire.data.dtype).reshape(5, 3))
    assert torch.equal(from_wire(frame), sent)


def test_a_misaligned_frame_lands_in_aligned_memory() -> None:
    raw = np.zeros(4 * 15 + 2 * ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT + 4
    frame = raw[start : start + 60].view("<f4").reshape(5, 3)
    frame[:] = np.arange(15).reshape(5, 3)
    received = from_wire(WireTensor("f32", frame))
    assert received.data_ptr() % ALIGNMENT == 0
    assert torch.equal(received, torch.arange(15.0).view(5, 3))


def test_what_does_not_travel() -> None:
    with pytest.raises(TypeError, match="float64 does not travel"):
        to_wire(torch.zeros(2, dtype=torch.float64))
