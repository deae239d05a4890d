"""The traffic shown before anybody agrees, against the bytes that a run then moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fedsplit.config.load import loads
from fedsplit.plan.traffic import Known, Moved, RunTraffic, run_traffic
from fedsplit.plan.types import ClientPlan
from fedsplit.wire.messages import Accept, Asset, DataSummary, Evaluate, Welcome
from fedsplit_client.ahead import look_ahead
from fedsplit_client.session import Offer
from fedsplit_client.torch_backend import TorchBackend
from fedsplit_server.planning import Planning
from tests.run.conftest import Rows, run_file
from tests.run.party import LAPTOP, Party, base_of, written

MIXED = {
    "a": 'topology = "u"\ncut = [1, 3]',
    "b": 'topology = "v"\ncut = [4, 6]',
    "c": 'topology = "w"',
    "d": 'topology = "local"',
}
CLASSES: dict[str, object] = {
    "model__path": "minilm",
    "model__task": "classification",
    "model__labels": ["short", "long"],
    "train__rounds": 1,
}
Make = Callable[..., Party]


def offered(run: Party, name: str) -> tuple[ClientPlan, DataSummary]:
    """The plan that the client got, and its own rows."""
    end = run.ends[name]
    [plan] = [packet.message.plan for packet in end.received if isinstance(packet.message, Welcome)]
    [data] = [packet.message.data for packet in end.sent if isinstance(packet.message, Accept)]
    assert data is not None
    return msgspec.json.decode(plan, type=ClientPlan), data


def promised(run: Party, name: str) -> RunTraffic:
    plan, data = offered(run, name)
    return run_traffic(plan, run.run, Known(eval_rows=data.eval_examples, row_tokens=data.tokens_mean))


def settings_of(request: pytest.FixtureRequest, which: str) -> dict[str, object]:
    if which == "text":
        return {"train__rounds": 3, "evaluate__every": 2, "model__max_length": 64, "lora__rank": 8}
    request.getfixturevalue("minilm")
    return {**CLASSES, "model__head": "local", "policy__shares_labels": False} if which == "own heads" else CLASSES


@pytest.mark.parametrize("which", ["text", "classes", "own heads"])
def test_what_was_promised_is_what_moved(party: Make, request: pytest.FixtureRequest, which: str) -> None:
    clients = {name: text for name, text in MIXED.items() if which != "own heads" or name != "b"}
    run = party(clients, **settings_of(request, which))
    for name in clients:
        said, link = promised(run, name).total, run.dealers[name]
        assert said.up_bytes == pytest.approx(link.up_bytes, rel=0.1), name
        assert said.down_bytes == pytest.approx(link.down_bytes, rel=0.1), name


def test_a_client_that_holds_everything_still_moves_its_factors(party: Make) -> None:
    run = party({"d": MIXED["d"]}, train__rounds=1)
    said = promised(run, "d")
    assert said.training == said.measuring == Moved()
    assert said.factors.up_bytes > 10_000
    assert not said.assumed_tokens


@pytest.mark.parametrize(("every", "clients"), [(0, True), (1, True), (2, True), (5, True), (1, False)])
def test_measurements_are_counted_as_they_come(party: Make, every: int, clients: bool) -> None:
    settings = {"train__rounds": 3, "train__steps": 1, "evaluate__every": every, "evaluate__clients": clients}
    run = party({"c": MIXED["c"]}, **settings)
    asked = sum(isinstance(packet.message, Evaluate) for packet in run.ends["c"].received)
    assert promised(run, "c").measurements == asked


def test_before_the_model_is_here_rows_are_counted_and_taken_to_be_long(
    party: Make, rows: Callable[[str], dict[str, Rows]], tmp_path: Path
) -> None:
    own = rows("a")["a"]
    run = party({"a": MIXED["a"]}, train__rounds=2)
    plan, data = offered(run, "a")
    elsewhere = msgspec.structs.replace(run.run, model=msgspec.structs.replace(run.run.model, path="another"))
    assets = (Asset("config.json", 500, ""), Asset("part-1.safetensors", 4000, ""))
    offer = Offer(elsewhere, plan, "0123456789abcdef", assets, round=0)
    folder = tmp_path / "state" / "runs" / "run"
    (place := tmp_path / "state" / "models" / offer.base).mkdir(parents=True)
    (place / "part-1.safetensors.part").write_bytes(bytes(1000))
    ahead = look_ahead(TorchBackend("cpu"), offer, elsewhere, written(tmp_path / "rows.jsonl", own), "", folder, "a")
    assert ahead.opened is None
    assert ahead.offer.known == Known(eval_rows=data.eval_examples, download_bytes=3500)
    worst, exact = run_traffic(plan, run.run, ahead.offer.known), promised(run, "a")
    assert worst.assumed_tokens == 32
    assert worst.total.up_bytes > exact.total.up_bytes
    assert worst.total.down_bytes - worst.download_bytes > exact.total.down_bytes


def test_where_the_model_is_here_rows_are_read_once_and_known(
    party: Make, rows: Callable[[str], dict[str, Rows]]
) -> None:
    run = party({"a": MIXED["a"]}, train__rounds=1)
    plan, data = offered(run, "a")
    path = written(run.folder / "again.jsonl", rows("a")["a"])
    offer, folder = Offer(run.run, plan, run.base.identity, (), 0), run.folder / "x" / "y"
    ahead = look_ahead(TorchBackend("cpu"), offer, run.run, path, "", folder, "a")
    assert ahead.opened is not None
    assert ahead.feed is not None
    assert ahead.offer.known == Known(eval_rows=data.eval_examples, row_tokens=data.tokens_mean)


def test_a_run_that_goes_on_costs_what_is_left() -> None:
    run = loads(run_file({"c": MIXED["c"]}, train__rounds=4, evaluate__every=2))
    plan = Planning(run, base_of("pydoc-llama"))("c", LAPTOP, DataSummary(train_examples=0), "")
    whole, rest = (run_traffic(plan, run, Known(eval_rows=5, row_tokens=20.0, rounds_done=done)) for done in (0, 2))
    assert (whole.steps, rest.steps) == (8, 4)
    assert (whole.measurements, rest.measurements) == (3, 1)
