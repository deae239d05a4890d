"""FibecFed's curriculum on devices: difficulties are the per-row Fisher traces, stay there, and decide the rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedsplit.data.batches import Batch
from fedsplit.data.curriculum import easiest
from fedsplit.exchange.difficulty import difficulties
from fedsplit.exchange.step import label_tokens
from fedsplit.testing.faults import Faults
from fedsplit.train.batch import as_torch
from fedsplit.wire.frames import Packet, encode
from fedsplit.wire.messages import Start
from tests.run.conftest import Rows, run_file
from tests.run.party import Party
from tests.run.wired import Seen, Wired

Make = Callable[..., Party]
LOCAL = dict.fromkeys("ab", 'topology = "local"')
SETTINGS: dict[str, object] = {
    "method.but__topology": "local",
    "method.but__probe": "fisher",
    "method.but.local__name": "curriculum",
    "method.but.local__first": 0.25,
    "method.but.local__full": 0.7,
    "train__rounds": 3,
}


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory, rows: Callable[[str], dict[str, Rows]]) -> Wired:
    """A run over TCP."""
    return Wired(run_file(LOCAL, **SETTINGS), few(rows), tmp_path_factory.mktemp("run")).finish()


def test_the_share_grows_as_the_method_says(wired: Wired) -> None:
    for seen in wired.clients.values():
        shares = [packet.message.easiest for packet in seen.end.received if isinstance(packet.message, Start)]
        assert shares == pytest.approx([0.25, 0.25 + 0.75 / 2.1, 0.25 + 0.75 * 2 / 2.1])


def test_difficulties_are_those_of_a_loop_over_rows(wired: Wired) -> None:
    """autograd by hand, one row after another: the sum over factors of the squared gradient of -log p(y | x)."""
    seen = wired.clients["a"]
    found = measured(wired, seen)
    start(wired, seen)
    wanted = []
    for row in seen.feed.singly():
        loss = seen.part.loss(as_torch(row), 1)
        grads = torch.autograd.grad(loss, list(seen.part.params.values()))
        wanted.append(sum(float((grad.double() ** 2).sum()) for grad in grads))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert (found > 0).all()
    assert len(set(found)) > 3


def test_a_mean_gradient_would_say_something_else(wired: Wired) -> None:
    seen = wired.clients["a"]
    found = measured(wired, seen)
    rows = [row for row, _ in zip(seen.feed.singly(), range(4), strict=False)]
    start(wired, seen)
    for row in rows:
        seen.part.learn(row, len(rows), (0,))
    squared_mean = sum(seen.part.squares())
    seen.part.drop()
    assert squared_mean < 0.99 * float(found[:4].mean())


def test_rows_of_a_round_are_the_easiest(wired: Wired) -> None:
    """The first step's loss is that of the first state on the easiest batch."""
    seen = wired.clients["b"]
    found, batch = measured(wired, seen), wired.run.train.batch
    pool = easiest(found, 0.25, batch, wired.run.run.seed, "b")
    assert found[pool[:batch]].mean() < found.mean()
    [step] = seen.feed.easiest(found, 0.25, 0, 1)
    start(wired, seen)
    loss = sum(seen.part.learn(micro, label_tokens(step), (0,)) for micro in step)
    seen.part.drop()
    assert seen.steps[0].loss == loss
    taken = [seen.feed.dataset.train[int(at)].ids for at in pool[:batch]]
    rows = [row for micro in step for row in zip(as_rows(micro), micro.starts, micro.lengths, strict=True)]
    assert [tuple(ids[begin : begin + length].tolist()) for ids, begin, length in rows] == taken


def test_nothing_of_it_leaves_the_device(wired: Wired) -> None:
    for seen in wired.clients.values():
        found = measured(wired, seen)
        sent = b"".join(as_bytes(packet) for packet in seen.end.sent)
        for value in found:
            assert np.float64(value).tobytes() not in sent
            assert np.float32(value).tobytes() not in sent
            assert repr(float(value)).encode() not in sent


def test_a_server_and_a_client_that_die_leave_no_trace(party: Make, rows: Callable[[str], dict[str, Rows]]) -> None:
    """A client that is started again goes on with what it measured of the first state."""
    run = party(LOCAL, data=few(rows), **SETTINGS, start=False)
    run.killed(Faults().crash("update", round=1), ("start", 2))
    said = [event for event in run.events if "how difficult" in getattr(event, "text", "")]
    assert len(said) == 2, "each client measures once"
    assert run.digest == party(LOCAL, data=few(rows), **SETTINGS).digest


# ---- reading runs ----------------------------------------------------------------------------------------------------


def few(rows: Callable[[str], dict[str, Rows]]) -> dict[str, Rows]:
    return {name: own[:22] for name, own in rows("ab").items()}


def as_rows(micro: Batch) -> np.ndarray:
    assert micro.ids_BT is not None
    return micro.ids_BT


def start(wired: Wired, seen: Seen) -> None:
    """Back to the first state."""
    seen.part.load(wired.first.adapter, wired.first.head)


def measured(wired: Wired, seen: Seen) -> np.ndarray:
    start(wired, seen)
    return difficulties(seen.part, seen.feed.singly(), (wired.run.run.seed, seen.plan.client))


def as_bytes(packet: Packet) -> bytes:
    return b"".join(bytes(frame) for frame in encode(packet.message, packet.tensors))
