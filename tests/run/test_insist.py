"""A plan says who left it nothing to choose: the run file, or the device itself."""

from __future__ import annotations

from fedsplit.config.load import loads
from fedsplit.wire.messages import DataSummary
from fedsplit_server.planning import Planning
from tests.run.conftest import run_file
from tests.run.party import LAPTOP, base_of


def test_who_fixed_the_topology() -> None:
    run = loads(run_file({"a": 'topology = "w"'}))
    plan, data = Planning(run, base_of("pydoc-llama")), DataSummary(train_examples=1)
    assert plan("a", LAPTOP, data, "").binding == "fixed in the run file"
    assert plan("a", LAPTOP, data, "w").binding == "fixed in the run file"
    assert plan("a", LAPTOP, data, "local").binding == "the topology that this device asked for"
    assert plan("b", LAPTOP, data, "local").binding == "the topology that this device asked for"
