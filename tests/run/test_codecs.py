"""Runs over TCP whose hidden states travel in fewer bits: bytes of every direction as planned, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsplit.errors import RemoteProtocolError
from fedsplit.exchange.coded import Codecs, CodedLine, decoded, encoded
from fedsplit.lora.adapter import digest, flatten
from fedsplit.plan.traffic import HEADER_BYTES
from fedsplit.wire.codecs import row_bytes
from fedsplit.wire.frames import Packet
from fedsplit.wire.messages import Backward, Forward, Hidden, Message
from fedsplit.wire.tensors import WireTensor
from tests.run.conftest import Rows, run_file
from tests.run.test_obedience import CLIENTS, planned, steps, tensor_bytes
from tests.run.wired import Wired

WIRES: dict[str, dict[str, object]] = {
    "raw": {},
    "bf16": {"wire__codecs": ["bf16"]},
    "int8": {"wire__codecs": ["int8"]},
    "int4": {"wire__codecs": ["int4"]},
    "int4, 8": {"wire__codecs": ["int4"], "wire__gradient_bits": 8},
    "int8 of 16 bits": {"wire__codecs": ["int8"], "model__dtype": "bfloat16"},
}
PAIRS = {
    "raw": ("raw", "raw"),
    "bf16": ("bf16", "bf16"),
    "int8": ("int8", "int8"),
    "int4": ("int5", "int3"),
    "int4, 8": ("int5", "int8"),
    "int8 of 16 bits": ("int8", "int8"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rows: Callable[[str], dict[str, Rows]]) -> Callable[[str], Wired]:
    """Finished runs of four clients, one a topology."""
    known: dict[str, Wired] = {}

    def make(which: str) -> Wired:
        if which not in known:
            text = run_file(CLIENTS, model__max_length=8, lora__dropout=0.0, **WIRES[which])
            known[which] = Wired(text, rows("abcd"), tmp_path_factory.mktemp("run")).finish()
        return known[which]

    return make


@pytest.mark.parametrize("which", PAIRS)
def test_every_direction_carries_the_planned_codec_and_bytes(runs: Callable[[str], Wired], which: str) -> None:
    run, (hidden, gradient) = runs(which), PAIRS[which]
    for name, seen in run.clients.items():
        plan, cost = seen.plan, seen.plan.estimate
        moved = [(tensor_bytes(sent), tensor_bytes(got)) for sent, got in steps(seen)]
        assert cost is not None
        own = ("raw", "raw") if name == "a" else (hidden, gradient)
        assert (plan.wire_up, plan.grad_up) == (plan.wire_down, plan.grad_down) == own
        assert moved == planned(plan, run)["step"]
        assert set(moved) == {(cost.up_bytes, cost.down_bytes)}
        ways = seen.end.sent, seen.end.received
        found = Counter(
            (key, t.codec) for way in ways for p in way for key, t in p.tensors.items() if key in ("h", "g")
        )
        assert set(found) <= {("h", hidden), ("g", gradient)}
        assert len(found) == (0 if name == "a" else 2)


@pytest.mark.parametrize("which", PAIRS)
def test_each_way_has_the_bytes_of_its_rows(runs: Callable[[str], Wired], which: str) -> None:
    """h up, h down, g up, g down, each by itself; and the socket beside them only headers."""
    run, (hidden, gradient) = runs(which), PAIRS[which]
    seen, width = run.clients["b"], run.base.hidden_size
    raw_bytes = 2 if run.run.model.dtype == "bfloat16" else 4
    for step, (sent, received) in zip(seen.steps, steps(seen), strict=True):
        tokens = sum(sum(p.message.lengths) for p in sent if isinstance(p.message, Forward))
        for moved, packets in ((step.up_bytes, sent), (step.down_bytes, received)):
            for name, codec in (("h", hidden), ("g", gradient)):
                own = sum(p.tensors[name].nbytes for p in packets if name in p.tensors)
                assert own == tokens * row_bytes(codec, width, raw_bytes)
            assert 0 < moved - tensor_bytes(packets) <= 2 * HEADER_BYTES * len(packets)


def test_fewer_bits_train_almost_the_same(runs: Callable[[str], Wired]) -> None:
    """Distance of the final factors from the raw run's, relative to how far training moved them."""
    away = {which: _distance(runs("raw"), runs(which)) for which in ("bf16", "int8", "int4, 8", "int4")}
    assert 0 < away["bf16"] < 0.05
    assert 0 < away["int8"] < 0.1
    assert away["int8"] < away["int4, 8"] < away["int4"] < 0.8


def test_the_same_run_has_the_same_bits(
    runs: Callable[[str], Wired], rows: Callable[[str], dict[str, Rows]], tmp_path: Path
) -> None:
    first = runs("int4")
    again = Wired(run_file(CLIENTS, model__max_length=8, lora__dropout=0.0, **WIRES["int4"]), rows("abcd"), tmp_path)
    assert digest(again.finish().state.adapter) == digest(first.state.adapter)


# ---- one message -----------------------------------------------------------------------------------------------------

PLACE: dict[str, Any] = {"client": "pi", "round": 1, "era": 2, "step": 3}
INT8 = Codecs("int8", "int8", "int8", "int8")


def gradient(**place: Any) -> bytes:
    g_ND = np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16)
    return encoded(INT8, Backward(**(PLACE | place)), {"g": WireTensor.of(g_ND)}, 5)["g"].data.tobytes()


def test_a_repeated_gradient_is_rounded_alike_and_another_is_not() -> None:
    assert gradient() == gradient(attempt=1) == gradient(era=7)
    assert len({gradient(), gradient(micro=1), gradient(step=4), gradient(round=2), gradient(client="pc")}) == 5


def test_what_is_not_finite_travels_raw_so_that_the_step_is_dropped() -> None:
    tensors = {"g": WireTensor.of(np.array([[1.0, np.nan]], np.float32))}
    sent = encoded(INT8, Backward(**PLACE), tensors, 0)
    assert sent["g"].codec == "raw"
    assert np.isnan(decoded(INT8, Packet(Backward(**PLACE), sent), 2).tensors["g"].numpy()).any()
    with pytest.raises(RemoteProtocolError, match="found codec 'raw', expected 'int8'"):
        decoded(INT8, Packet(Backward(**PLACE), {"g": WireTensor.of(np.ones((1, 2), np.float32))}), 2)
    with pytest.raises(RemoteProtocolError, match="tensor 'labels': found codec 'int8', expected 'raw'"):
        decoded(INT8, Packet(Backward(**PLACE), {"labels": WireTensor("u8", np.ones((1, 6), "u1"), "int8")}), 2)


class _Echo:
    def __init__(self) -> None:
        self.sent: list[tuple[Message, Any]] = []

    def send(self, message: Message, tensors: Any) -> None:
        self.sent.append((message, tensors))

    def receive(self) -> Packet:
        return Packet(Hidden(**PLACE, label_tokens=1), self.sent[-1][1])


def test_an_odd_width_comes_back_as_it_was_asked() -> None:
    echo = _Echo()
    line = CodedLine(echo, Codecs("int5", "int5"), 0)
    h_ND = np.arange(21, dtype=np.float32).reshape(3, 7)
    line.send(Forward(**PLACE, lengths=(3,), starts=(0,), width=3, label_tokens=1), {"h": WireTensor.of(h_ND)})
    assert echo.sent[0][1]["h"].shape == (3, row_bytes("int5", 7, 4))
    found = line.receive().tensors["h"].numpy()
    assert found.shape == (3, 7)
    assert np.abs(found - h_ND).max() <= 20 / 16


def _distance(raw: Wired, other: Wired) -> float:
    start, end, found = (flatten(state.adapter, {}) for state in (raw.first, raw.state, other.state))
    moved = sum(float(((end[name] - start[name]) ** 2).sum()) for name in end)
    return float(np.sqrt(sum(float(((found[name] - end[name]) ** 2).sum()) for name in end) / moved))
