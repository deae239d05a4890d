"""Bytes out and back, and what happens to every other kind of bytes."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any
from zlib import crc32

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsplit.errors import LocalProtocolError, RemoteProtocolError
from fedsplit.wire import Frame, Limits, Packet, WireTensor, decode, encode, size_of
from fedsplit.wire import messages as m
from fedsplit.wire.tensors import DTYPES

FORWARD = m.Forward(round=1, era=2, step=3, lengths=(2, 3), starts=(1, 0), width=3, label_tokens=4)
H = WireTensor.of(np.arange(35, dtype="<f4").reshape(5, 7))
UPDATE = m.Update(round=0, era=0, base_version=0, examples=3, steps=1)


def packet(message: m.Message = FORWARD, **tensors: WireTensor) -> list[bytes]:
    return [bytes(frame) for frame in encode(message, tensors or {"h": H})]


def header(body: object, version: int = m.PROTOCOL, magic: bytes = b"fs") -> bytes:
    raw = body if isinstance(body, bytes) else msgspec.msgpack.encode(body)
    return struct.pack("<2sHI", magic, version, crc32(raw)) + raw


def broken(frames: list[Any], *words: str, limits: Limits | None = None) -> None:
    with pytest.raises(RemoteProtocolError) as error:
        decode(frames, limits)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (5, 7), (1, 2, 3, 4, 5, 6, 7, 8)])
def test_every_dtype_and_shape_comes_back(dtype: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, (*shape, DTYPES[dtype].itemsize), np.uint8)
    data = values.view(DTYPES[dtype]).reshape(shape)
    found = decode(packet(UPDATE, x=WireTensor(dtype, data))).tensors["x"]
    assert (found.dtype, found.shape, found.data.dtype) == (dtype, shape, DTYPES[dtype])
    assert found.data.tobytes() == data.tobytes()
    assert found.data.flags.writeable
    assert found.data.flags.c_contiguous
    assert found.data.ctypes.data % 64 == 0 or not data.size


@given(hnp.arrays(np.dtype("<f4"), hnp.array_shapes(max_dims=4, max_side=6)), st.text(max_size=20), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_any_tensor_at_any_offset_in_memory(data: np.ndarray[Any, Any], name: str, offset: int) -> None:
    """Decrypted frames start anywhere; what comes out never does."""
    frames = encode(UPDATE, {name: WireTensor.of(data)})
    shifted = [memoryview(bytes(offset) + bytes(frame))[offset:] for frame in frames]
    found = decode(shifted)
    assert found.message.tensors[0].name == name
    assert found.tensors[name].data.tobytes() == data.tobytes()
    assert found.tensors[name].data.ctypes.data % 64 == 0
    assert found.nbytes == size_of(frames)


def test_sending_does_not_copy_and_receiving_copies_once() -> None:
    data = np.arange(1000, dtype="<f4")
    frames = encode(UPDATE, {"x": WireTensor.of(data)})
    assert np.shares_memory(np.frombuffer(frames[1], np.uint8), data)
    assert not np.shares_memory(decode(frames).tensors["x"].data, data)


def test_codec_and_order_of_tensors_travel() -> None:
    tensors = {"b": WireTensor("u8", np.zeros(3, "u1"), codec="int8"), "a": H}
    found = decode(encode(UPDATE, tensors))
    assert list(found.tensors) == ["b", "a"]
    assert [tensor.codec for tensor in found.tensors.values()] == ["int8", "raw"]


@pytest.mark.parametrize("kind", m.AnyMessage.__args__)
def test_every_kind_survives(kind: type[m.Message]) -> None:
    fields = {field.name: _example(str(field.type)) for field in msgspec.structs.fields(kind) if field.required}
    fields |= {"starts": [0]} if kind is m.Forward else {}
    message = msgspec.convert(fields | {"kind": m.kind_of(kind)}, kind)
    tensors = {m.Forward: {"h": WireTensor.of(np.zeros((1, 1), "<f4"))}, m.Backward: {"g": H}}
    tensors |= {one: {"data": WireTensor.of(np.zeros(3, "u1"))} for one in (m.Chunk, m.Probe, m.Probed)}
    found = decode(encode(message, tensors.get(kind)))
    assert type(found.message) is kind
    assert msgspec.structs.replace(found.message, tensors=()) == message


def test_a_probe_carries_at_most_a_mebibyte_of_plain_bytes() -> None:
    probe = m.Probe(number=1)
    broken(packet(probe, data=WireTensor.of(np.zeros(m.PROBE_BYTES + 1, "u1"))), "at most 1048576 bytes")
    broken(packet(probe, data=H), "flat u8")
    broken(packet(probe, other=H), "needs a tensor 'data'")
    broken([header({"kind": "probe", "number": 1, "back": m.PROBE_BYTES + 1})], "back")


def _example(annotation: str) -> Any:
    if "tuple" in annotation:
        return ["pi"] if "str" in annotation else [1.0] if "float" in annotation else [1]
    if "dict" in annotation:
        return {"accuracy": 0.5}
    if "bytes" in annotation:
        return b"x"
    return "word" if "str" in annotation else True if "bool" in annotation else 1.0 if "float" in annotation else 1


@given(st.lists(st.binary(max_size=200), max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_packet_or_a_remote_error(frames: list[bytes]) -> None:
    with suppress(RemoteProtocolError):
        assert isinstance(decode(frames), Packet)


@given(st.binary(max_size=200), st.lists(st.binary(max_size=50), max_size=2))
@settings(max_examples=200, deadline=None)
def test_any_bytes_behind_a_good_checksum_too(body: bytes, frames: list[bytes]) -> None:
    with suppress(RemoteProtocolError):
        assert isinstance(decode([header(body), *frames]), Packet)


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_real_header_with_one_field_replaced_by_junk(data: st.DataObject) -> None:
    fields = msgspec.msgpack.decode(packet()[0][8:])
    fields[data.draw(st.sampled_from([*fields, "extra"]))] = data.draw(_JUNK)
    try:
        found = decode([header(fields), packet()[1]])
    except RemoteProtocolError:
        return
    assert found.tensors["h"].data.nbytes == H.nbytes


@given(st.integers(0, 1), st.data())
@settings(max_examples=150, deadline=None)
def test_any_flipped_bit_is_found(which: int, data: st.DataObject) -> None:
    frames = [bytearray(frame) for frame in packet()]
    at = data.draw(st.integers(0, len(frames[which]) - 1))
    frames[which][at] ^= 1 << data.draw(st.integers(0, 7))
    broken([bytes(frame) for frame in frames])


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_any_cut_or_appended_frame_is_found(data: st.DataObject) -> None:
    frames = packet()
    which = data.draw(st.integers(0, 1))
    frames[which] = frames[which][: data.draw(st.integers(0, len(frames[which]) - 1))]
    broken(frames)
    broken([*packet(), b""], "names 1 tensors, 2 frames")
    broken(packet()[:1], "names 1 tensors, 0 frames")


def test_another_protocol_version_is_named_on_both_sides() -> None:
    newer = msgspec.structs.replace(FORWARD, protocol=7)
    broken(packet(newer), "protocol 7", "protocol 1", "install the same version")
    broken([header({"kind": "hello", "protocol": 7, "new_field": 1}, version=7)], "protocol 7", "protocol 1")
    broken([header({"kind": "hello", "protocol": 7})], "protocol 7", "protocol 1")
    broken([header(b"a format of the future", version=2)], "protocol 2", "protocol 1")


def test_the_version_always_travels() -> None:
    assert msgspec.msgpack.decode(packet(m.Alive(), x=H)[0][8:])["protocol"] == m.PROTOCOL


def test_other_programs_are_recognised() -> None:
    broken([b"GET / HTTP/1.1\r\n"], "not a fedsplit packet")
    broken([], "empty")
    broken([b""], "not a fedsplit packet")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (["h", "f64", [5, 7], 140, 0], "f64"),
        (["h", "f32", [5, 8], 140, 0], "needs 160 bytes"),
        (["h", "f32", [5, 7], 141, 0], "header says 141"),
        (["h", "f32", [2**40, 2**40, 2**40], 140, 0], "needs"),
        (["h", "f32", [-1, 7], 140, 0], "not a message"),
        (["h", "f32", [1] * 9, 140, 0], "not a message"),
        (["h", "f32", [5, 7], 140, 1], "checksum is wrong"),
        (["h" * 300, "f32", [5, 7], 140, 0], "not a message"),
    ],
)
def test_lying_tensor_headers(spec: list[Any], words: str) -> None:
    fields = msgspec.msgpack.decode(packet()[0][8:]) | {"tensors": [spec]}
    broken([header(fields), packet()[1]], words)


def test_one_name_for_two_tensors() -> None:
    frames = packet(UPDATE, a=H, b=H)
    fields = msgspec.msgpack.decode(frames[0][8:])
    fields["tensors"][1][0] = "a"
    broken([header(fields), *frames[1:]], "twice")


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(tensor_bytes=139), "at most 139"),
        (Limits(header_bytes=30), "at most 30"),
        (Limits(packet_bytes=200), "at most 200"),
        (Limits(tensors=0), "at most 0"),
    ],
)
def test_limits_hold_on_both_sides(limits: Limits, words: str) -> None:
    with pytest.raises(LocalProtocolError, match=words):
        encode(FORWARD, {"h": H}, limits)
    broken(packet(), words, limits=limits)


def test_a_huge_claim_takes_no_memory() -> None:
    """A terabyte in the header is refused by comparison with the frame, before anything is allocated."""
    fields = msgspec.msgpack.decode(packet()[0][8:]) | {"tensors": [["h", "f32", [1 << 38], 1 << 40, 0]]}
    broken([header(fields), b"1234"], "its frame holds 4")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lengths": (2, 4)}, "beyond the padded width"),
        ({"lengths": (1, 3)}, "sum up to 4"),
        ({"starts": (1,)}, "2 lengths and 1 starts"),
        ({"width": 1 << 40}, "padded batch"),
        ({"lengths": (-1, 6), "width": 9}, "not a message"),
        ({"micros": 0}, "not a message"),
        ({"micros": 1 << 40}, "not a message"),
    ],
)
def test_a_forward_whose_rows_do_not_fit_its_tensor(changes: dict[str, Any], words: str) -> None:
    broken(packet(msgspec.structs.replace(FORWARD, **changes)), words)


@pytest.mark.parametrize("size", [-1, 0, 1 << 40])
def test_a_fetch_asks_for_a_sensible_amount(size: int) -> None:
    broken(packet(m.Fetch(asset="w", offset=0, size=size), x=H), "not a message")


def test_a_step_message_without_its_tensor() -> None:
    broken(packet(FORWARD, x=H), "needs a tensor 'h'")
    broken([bytes(encode(m.Backward(round=0, era=0, step=0))[0])], "needs a tensor 'g', found none")
    broken(packet(FORWARD, h=WireTensor.of(np.zeros(5, "<f4"))), "two dimensions")


def test_what_cannot_be_sent() -> None:
    with pytest.raises(LocalProtocolError, match="not contiguous"):
        encode(UPDATE, {"x": WireTensor("f32", np.zeros((4, 4), "<f4").T[::2])})
    with pytest.raises(LocalProtocolError, match="float64"):
        encode(UPDATE, {"x": WireTensor("f32", np.zeros(3))})
    with pytest.raises(TypeError, match="float64 does not travel"):
        WireTensor.of(np.zeros(3))
    big_endian = np.zeros(3, ">f4")
    with pytest.raises(TypeError, match="does not travel"):
        WireTensor.of(big_endian)


@given(hnp.arrays(np.dtype("<f4"), 8, elements=st.floats(width=32, allow_nan=True, allow_infinity=True)))
@settings(max_examples=150, deadline=None)
def test_bfloat16_rounds_to_nearest_even(values: np.ndarray[Any, Any]) -> None:
    torch = pytest.importorskip("torch")
    expected = torch.from_numpy(values).to(torch.bfloat16)
    found = WireTensor.bf16(values)
    nan = np.isnan(values)
    assert np.array_equal(found.data[~nan], expected.view(torch.int16).numpy().view("<u2")[~nan])
    assert np.isnan(found.numpy()[nan]).all()
    assert np.array_equal(found.numpy()[~nan], expected.float().numpy()[~nan])


def test_frames_are_bytes_or_views() -> None:
    frames: list[Frame] = encode(FORWARD, {"h": H})
    assert isinstance(frames[0], bytes)
    assert isinstance(frames[1], memoryview)
