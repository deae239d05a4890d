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
from fedsplit.wire.codecs import BITS, coded, plain, row_bytes
from fedsplit.wire.frames import decode, encode
from fedsplit.wire.limits import Limits
from fedsplit.wire.messages import Forward
from fedsplit.wire.rotated import GROUP
from fedsplit.wire.tensors import WireTensor

Floats = NDArray[np.float32]
LEVELS = {"int5": 16, "int4": 8, "int3": 4}
"""Below zero."""
X = np.array([[0.0, 1.0, -2.0, 3.5, -3.5], [0.0, 0.0, 0.0, 0.0, 0.0], [1e-8, -3e-8, 7e-8, 2e-8, -5e-8]], np.float32)
# By hand, the first row: 3.5 / 127 is 0.02759 in bfloat16, so 1.0 is 36 = 0x24 and -2.0 is -72 = 0xb8.
GOLDEN = {
    "bf16": "0000803f00c0604060c0000000000000000000002c3201b39633ac3257b3",
    "f16": "0000003c00c0004300c30000000000000000000000000180010000000180",
    "int8": "0024b87f81e23c0000000000803f12ca7f24a61830",
    "int5": "e0e0e0e03d3d3d3dc1c1c1c1b5b5b5b5d8d8d8d8a03c00000000000000000000000000000000ffffffff803f"
    "0000000069696969b2b2b2b278787878b3b3b3b3ac2f",
    "int4": "1d1d1d1de1e1e1e1b5b5b5b5d8d8d8d8203d000000000000000000000000ffffffff803f"
    "69696969b2b2b2b278787878b3b3b3b32c30",
    "int3": "e0e0e0e0b4b4b4b4d9d9d9d9a03d0000000000000000ffffffff803ffafafafa78787878b3b3b3b3ac30",
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


@settings(max_examples=60, deadline=None)
@given(x_ND=rows, key=st.integers(0, 3))
def test_no_value_moves_further_than_its_scale_allows(x_ND: Floats, key: int) -> None:
    """Half a step to nearest, a step at random; the scale is a row's largest value over 127, rounded up."""
    part, back = x_ND.astype(float), there(x_ND, "int8", *([key] if key else [])).astype(float)
    step = np.abs(part).max(axis=1, keepdims=True, initial=0.0) / 127 * (1 + 2.0**-7) + 1e-36
    assert (np.abs(part - back) <= step * (1 if key else 0.5) * (1 + 1e-6)).all()


@pytest.mark.parametrize("codec", LEVELS)
@settings(max_examples=60, deadline=None)
@given(x_ND=rows)
def test_a_group_moves_by_no_more_than_a_part_of_its_length(codec: str, x_ND: Floats) -> None:
    """|H x| / 32 is at most |x| / sqrt(32) in any entry, a scale an L-th of that, rounded up; every entry moves by half
    of it, those clipped from +L by all of it; and H makes 32 of |error| at most sqrt(32) of the length."""
    found = there(x_ND, codec)
    for start in range(0, x_ND.shape[1], GROUP):
        part, back = x_ND[:, start : start + GROUP].astype(float), found[:, start : start + GROUP].astype(float)
        most = np.linalg.norm(part, axis=1) / LEVELS[codec] * np.sqrt(GROUP) * (1 + 2.0**-7) + 1e-36
        assert (np.linalg.norm(part - back, axis=1) <= most * (1 + 1e-6)).all()


@pytest.mark.parametrize(("codec", "most"), [("int5", 0.045), ("int4", 0.09), ("int3", 0.19)])
@pytest.mark.parametrize("kind", ["normal", "long tails", "outlier channels", "one value", "alike"])
def test_the_error_is_small_whatever_the_values_are_like(codec: str, most: float, kind: str) -> None:
    """As a share of the length: rounding without turning loses three times as much where few channels are large."""
    draw = np.random.default_rng(5)
    x_ND = draw.standard_normal((200, 96))
    if kind == "long tails":
        x_ND = draw.standard_t(3, (200, 96))
    elif kind == "outlier channels":
        x_ND[:, [3, 40, 41, 70]] *= 40
    elif kind == "one value":
        x_ND *= np.arange(96) == 50
    elif kind == "alike":
        x_ND = 5 + x_ND / 10
    found = there(x_ND.astype(np.float32), codec)
    assert 0 < np.linalg.norm(found - x_ND) <= most * np.linalg.norm(x_ND)


def test_a_group_by_the_definition() -> None:
    """H q · s with H of scipy's law: entry (i, j) is -1 to the number of bits that i and j share."""
    H = np.array([[(-1.0) ** (i & j).bit_count() for j in range(GROUP)] for i in range(GROUP)])
    x_ND = np.random.default_rng(1).standard_normal((4, GROUP)).astype(np.float32)
    for found, x in zip(there(x_ND, "int4"), x_ND, strict=True):
        y = H @ x / GROUP
        scale = y[np.abs(y).argmax()] / -8
        scale = np.array([np.float32(scale)]).view(np.uint32)[0] + 0xFFFF & 0xFFFF0000
        s = float(np.array([scale], np.uint32).view(np.float32)[0])
        assert found == pytest.approx(H @ np.clip(np.rint(y / s), -8, 7) * s, rel=1e-6)


@pytest.mark.parametrize("codec", BITS)
@settings(max_examples=60, deadline=None)
@example(x_ND=np.array([[4.1114e-41]], np.float32))
@given(x_ND=rows)
def test_what_was_decoded_encodes_to_the_same_bytes(codec: str, x_ND: Floats) -> None:
    if codec in LEVELS:  # what was added to fill the last group does not come back
        x_ND = np.pad(x_ND, ((0, 0), (0, -x_ND.shape[1] % GROUP)))
    first = coded(WireTensor.of(x_ND), codec)
    assert first.nbytes == x_ND.shape[0] * row_bytes(codec, x_ND.shape[1], 4)
    again = coded(plain(first, x_ND.shape[1], "float32"), codec)
    assert again.data.tobytes() == first.data.tobytes()


def test_rounding_at_random_is_right_on_average() -> None:
    """The mean over 10^5 draws is within four standard errors, and the same key draws the same."""
    x_ND = np.tile(np.linspace(-1, 1, 32, dtype=np.float32), (100_000, 1))
    found = there(x_ND, "int8", 1)
    step = 1 / 127 * (1 + 2.0**-7)
    assert (np.abs(found.mean(axis=0, dtype=float) - x_ND[0]) <= 4 * step / 2 / np.sqrt(len(x_ND))).all()
    assert (found[:, 3] != x_ND[0, 3]).any()
    assert (there(x_ND[:50], "int8", 1) == there(x_ND[:50], "int8", 1)).all()
    assert (there(x_ND[:50], "int8", 1) != there(x_ND[:50], "int8", 2)).any()


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
    assert all(np.isfinite(there(x_ND, codec)).all() for codec in BITS)


def test_sixteen_bit_models_get_their_dtype_back() -> None:
    found = plain(coded(WireTensor.bf16(X), "int8"), 5, "bfloat16")
    assert (found.dtype, found.codec, found.shape) == ("bf16", "raw", (3, 5))


@pytest.mark.parametrize(("codec", "width"), [("int8", 6), ("int4", 33), ("int3", 70), ("bf16", 4)])
def test_another_width_is_refused(codec: str, width: int) -> None:
    with pytest.raises(RemoteProtocolError, match=r"of shape .* expected"):
        plain(coded(WireTensor.of(X), codec), width, "float32")


@pytest.mark.parametrize(
    ("codec", "scale"),
    [("int8", -1.0), *((codec, bad) for codec in ("int8", *LEVELS) for bad in (0.0, np.nan, np.inf, 3e38))],
)
def test_a_scale_that_no_codec_writes_is_refused(codec: str, scale: float) -> None:
    data = coded(WireTensor.of(X), codec).data.copy()
    data[0, -2:] = WireTensor.bf16(np.array([scale], np.float32)).data.view(np.uint8)
    with pytest.raises(RemoteProtocolError, match="scale"):
        plain(WireTensor("u8", data, codec), 5, "float32")


def test_values_that_no_codec_writes_are_refused() -> None:
    data = coded(WireTensor.of(X), "int8").data.copy()
    data[0, 0] = 0x80
    with pytest.raises(RemoteProtocolError, match="-127 to 127"):
        plain(WireTensor("u8", data, "int8"), 5, "float32")
    for codec in ("bf16", "f16"):
        cast = coded(WireTensor.of(X), codec).data.copy()
        cast.view(np.uint16)[0, 0] = 0x7FC0
        with pytest.raises(RemoteProtocolError, match="not finite"):
            plain(WireTensor(codec, cast, codec), 5, "float32")


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
    with pytest.raises(RemoteProtocolError, match="the padded batch takes 128000 bytes"):
        decode(encode(wide, {"h": tensor}), Limits(tensor_bytes=100_000))
