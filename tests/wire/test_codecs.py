"""Codecs: bytes that stay the same, errors within half a step, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fedsplit.errors import LocalProtocolError, RemoteProtocolError
from fedsplit.seeds import generator
from fedsplit.wire.codecs import BITS, GROUP, coded, plain, row_bytes
from fedsplit.wire.frames import decode, encode
from fedsplit.wire.limits import Limits
from fedsplit.wire.messages import Forward
from fedsplit.wire.tensors import WireTensor

Floats = NDArray[np.float32]
STEPS = {"int8": 127, "int4": 7}
X = np.array([[0.0, 1.0, -2.0, 3.5, -3.5], [0.0, 0.0, 0.0, 0.0, 0.0], [1e-8, -3e-8, 7e-8, 2e-8, -5e-8]], np.float32)
# By hand, the first row: 3.5 / 127 = 0.02756, so 1.0 is 36 = 0x24; 3.5 / 7 = 0.5, so 1.0 is 2 + 8 = 0xa.
GOLDEN = {
    "bf16": "0000803f00c0604060c0000000000000000000002c3201b39633ac3257b3",
    "f16": "0000003c00c0004300c30000000000000000000000000180010000000180",
    "int8": "0024b77f8100c4e13c00000000000000803f12ca7f24a500821730",
    "int4": "a8f481003f888888803f59af832c32",
}


def there(x_ND: Floats, codec: str, *key: int) -> Floats:
    """Encoded, through the frames of a message, decoded."""
    tensor = coded(WireTensor.of(x_ND), codec, generator(*key) if key else None)
    return np.asarray(plain(tensor, x_ND.shape[1], "float32").numpy(), np.float32)


rows = arrays(
    np.float32,
    st.tuples(st.integers(0, 4), st.integers(1, 70)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-1, 1, width=32),
)


@pytest.mark.parametrize("codec", GOLDEN)
def test_bytes_stay_the_same(codec: str) -> None:
    assert coded(WireTensor.of(X), codec).data.tobytes().hex() == GOLDEN[codec]


@pytest.mark.parametrize("codec", STEPS)
@settings(max_examples=60, deadline=None)
@given(x_ND=rows, key=st.integers(0, 3))
def test_no_value_moves_further_than_its_scale_allows(codec: str, x_ND: Floats, key: int) -> None:
    """Half a step to nearest, a step at random; the scale is a group's largest value over 127 or 7, rounded up."""
    size = x_ND.shape[1] if codec == "int8" else GROUP
    found = there(x_ND, codec, *([key] if key else []))
    for start in range(0, x_ND.shape[1], size):
        part, back = x_ND[:, start : start + size].astype(float), found[:, start : start + size].astype(float)
        step = np.abs(part).max(axis=1, keepdims=True, initial=0.0) / STEPS[codec] * (1 + 2.0**-7) + 1e-36
        assert (np.abs(part - back) <= step * (1 if key else 0.5) * (1 + 1e-6)).all()


@pytest.mark.parametrize("codec", BITS)
@settings(max_examples=60, deadline=None)
@example(x_ND=np.array([[4.1114e-41]], np.float32))
@given(x_ND=rows)
def test_what_was_decoded_encodes_to_the_same_bytes(codec: str, x_ND: Floats) -> None:
    first = coded(WireTensor.of(x_ND), codec)
    assert first.nbytes == x_ND.shape[0] * row_bytes(codec, x_ND.shape[1], 4)
    again = coded(plain(first, x_ND.shape[1], "float32"), codec)
    assert again.data.tobytes() == first.data.tobytes()


@pytest.mark.parametrize("codec", STEPS)
def test_rounding_at_random_is_right_on_average(codec: str) -> None:
    """The mean over 10^5 draws is within four standard errors, and the same key draws the same."""
    x_ND = np.tile(np.linspace(-1, 1, GROUP, dtype=np.float32), (100_000, 1))
    found = there(x_ND, codec, 1)
    step = 1 / STEPS[codec] * (1 + 2.0**-7)
    assert (np.abs(found.mean(axis=0, dtype=float) - x_ND[0]) <= 4 * step / 2 / np.sqrt(len(x_ND))).all()
    assert (found[:, 3] != x_ND[0, 3]).any()
    assert (there(x_ND[:50], codec, 1) == there(x_ND[:50], codec, 1)).all()
    assert (there(x_ND[:50], codec, 1) != there(x_ND[:50], codec, 2)).any()


@pytest.mark.parametrize("codec", [name for name in BITS if name != "raw"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(codec: str, bad: float) -> None:
    x_ND = np.ones((2, 3), np.float32)
    x_ND[1, 2] = bad
    with pytest.raises(LocalProtocolError, match="not finite"):
        coded(WireTensor.of(x_ND), codec)


def test_outliers_are_clamped_not_infinite() -> None:
    x_ND = np.array([[7e4, -1e6, 3.4028235e38]], np.float32)
    assert there(x_ND, "f16").tolist() == [[65504.0, -65504.0, 65504.0]]
    assert np.isfinite(there(x_ND, "bf16")).all()


def test_sixteen_bit_models_get_their_dtype_back() -> None:
    found = plain(coded(WireTensor.bf16(X), "int8"), 5, "bfloat16")
    assert (found.dtype, found.codec, found.shape) == ("bf16", "raw", (3, 5))


@pytest.mark.parametrize(("codec", "width"), [("int8", 6), ("int4", 7), ("bf16", 4)])
def test_another_width_is_refused(codec: str, width: int) -> None:
    with pytest.raises(RemoteProtocolError, match=r"of shape .* expected"):
        plain(coded(WireTensor.of(X), codec), width, "float32")


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 3e38])
@pytest.mark.parametrize("codec", STEPS)
def test_a_scale_that_is_no_positive_number_is_refused(codec: str, scale: float) -> None:
    data = coded(WireTensor.of(X), codec).data.copy()
    if codec == "int8":
        data[0, 5:] = np.array([scale], "<f4").view(np.uint8)
    else:
        data[0, 3:] = WireTensor.bf16(np.array([scale], np.float32)).data.view(np.uint8)
    with pytest.raises(RemoteProtocolError, match="scale"):
        plain(WireTensor("u8", data, codec), 5, "float32")


def test_a_coded_forward_is_held_to_its_header() -> None:
    place = {"round": 0, "era": 0, "step": 0, "label_tokens": 1}
    message = Forward(**place, lengths=(3,), starts=(0,), width=3)  # type: ignore[arg-type]
    tensor = coded(WireTensor.of(X), "int4")
    found = decode(encode(message, {"h": tensor})).tensors["h"]
    assert (found.codec, found.data.tobytes()) == ("int4", tensor.data.tobytes())
    for wrong, words in (
        ({"h": WireTensor("u8", tensor.data, "zip")}, "found codec 'zip', expected one of raw"),
        ({"h": WireTensor("u8", tensor.data[:2], "int4")}, "sum up to 3 tokens, tensor 'h' holds 2"),
        ({"h": WireTensor("u8", tensor.data.reshape(-1), "int4")}, "two dimensions"),
    ):
        with pytest.raises(RemoteProtocolError, match=words):
            decode(encode(message, wrong))
    wide = Forward(**place, lengths=(3,), starts=(0,), width=1000)  # type: ignore[arg-type]
    with pytest.raises(RemoteProtocolError, match="the padded batch takes 40000 bytes"):
        decode(encode(wide, {"h": tensor}), Limits(tensor_bytes=30_000))
