"""The journal knows what moved: per client and step, per round and purpose, and the sum is what the clients counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedsplit.events import StepDone
from fedsplit.state.journal import Journal
from fedsplit.wire.messages import Alive, Chunk, Fetch, Forward, Hidden
from fedsplit_server.meter import Entry, Meter, Moved
from tests.run.party import Party

CLIENTS = {"a": 'topology = "u"\ncut = [1, 3]', "b": 'topology = "local"'}


def test_every_byte_of_a_run_is_in_the_journal(party: Callable[..., Party]) -> None:
    done = party(CLIENTS, evaluate__every=1)
    with Journal(done.folder / "run" / "journal.db", read_only=True) as journal:
        totals, steps, rest = journal.totals(), journal.steps(), journal.transfers()
    assert {total.client for total in totals} == {"a", "b"}
    for total in totals:
        end = done.ends[total.client]
        # The goodbye comes when the server has already closed the run.
        assert total.down_bytes == end.down_bytes
        assert total.up_bytes == pytest.approx(end.up_bytes, abs=400)
    assert [(step.client, step.round, step.step) for step in steps] == [("a", r, s) for r in (0, 1) for s in (0, 1)]
    assert min(min(step.up_bytes, step.down_bytes) for step in steps) > 10_000
    assert {row.what for row in rest if row.client == "b"} == {"adapter", "evaluation", "control"}
    adapter = {(row.client, row.round): row.up_bytes for row in rest if row.what == "adapter"}
    assert all(adapter[name, round] > 1_000 for name in "ab" for round in (0, 1))
    assert [event.up_bytes for event in done.all(StepDone) if event.client == "a" and event.loss is None] == [
        step.up_bytes for step in steps
    ]


def test_a_meter_tells_purposes_apart() -> None:
    meter = Meter()
    where = {"run": "r", "client": "pi", "round": 0, "era": 0, "step": 0}
    ask = {"lengths": (1,), "starts": (0,), "width": 1, "label_tokens": 1}
    meter.came("pi", Forward(**where, **ask), 10)  # type: ignore[arg-type]
    meter.went("pi", Hidden(**where, label_tokens=1), 20)  # type: ignore[arg-type]
    meter.came("pi", Fetch(run="r", client="pi", asset="x", offset=0, size=1), 3)
    meter.went("pi", Chunk(asset="x", offset=0), 5)
    assert meter.take_step("pi") == Moved(10, 20)
    assert meter.take_step("pi") == Moved()
    meter.came("pi", Forward(**where, **ask, train=False), 1)  # type: ignore[arg-type]
    meter.went("pi", Hidden(**where, label_tokens=1), 2)  # type: ignore[arg-type]
    meter.went("pi", Alive(), 7)
    assert meter.take_rest() == [
        Entry("pi", "control", Moved(0, 7)),
        Entry("pi", "evaluation", Moved(1, 2)),
        Entry("pi", "weights", Moved(3, 5)),
    ]
    assert meter.take_rest() == []
