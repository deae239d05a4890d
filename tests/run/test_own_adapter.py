"""What a device exports of its own: a peft adapter that gives the numbers its own measurements gave."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from fedsplit import assets
from fedsplit.cli.after_run import how_to_export
from fedsplit.cli.main import run as command
from fedsplit.config.load import loads
from fedsplit.errors import ConfigError
from fedsplit.exchange.evaluate import evaluate, nowhere
from fedsplit.exchange.feed import Feed
from fedsplit.exchange.predict import asked
from fedsplit.lora.adapter import flatten
from fedsplit.lora.peft_folder import Card
from fedsplit.state.own_adapter import export_own
from fedsplit.state.personal import ClientRun, Personal
from fedsplit.train.exported import read_card, read_peft
from fedsplit.train.feed import reading_of
from fedsplit.train.part import ClientPart
from fedsplit.train.predict import local_logits
from fedsplit_client.ending import keep_end
from fedsplit_client.session import Offer
from tests.run.conftest import run_file
from tests.run.party import Party, base_of
from tests.run.processes import Process

BLOCKED = (sys.executable, str(Path(__file__).parents[1] / "edge" / "blocked.py"))
CLIENTS = {"a": 'topology = "u"\ncut = [1, 3]', "c": 'topology = "local"'}
SETTINGS: dict[str, object] = {
    "method__name": "fedsa-lora",
    "model__task": "classification",
    "model__labels": ["short", "long"],
    "model__head": "local",
    "lora__rank": 4,
    "data__eval_fraction": 0.3,
    "evaluate__every": 1,
}


@dataclass(frozen=True)
class Ended:
    """A run in which both clients have kept their ends."""

    run: Party
    offers: dict[str, Offer]
    kept: dict[str, ClientRun]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, rows: Callable[[str], Any]) -> Ended:
    offers: dict[str, Offer] = {}

    def noting(offer: Offer) -> ClientPart:
        offers[offer.plan.client] = offer
        return ClientPart(base_of("pydoc-llama"), offer.plan, offer.run)

    config = json.loads((assets.path("pydoc-llama") / "config.json").read_text("utf-8"))
    data = dict(zip(CLIENTS, rows("ab").values(), strict=True))
    with Party(run_file(CLIENTS, **SETTINGS), data, tmp_path_factory.mktemp("own")) as run:
        run.parts = dict.fromkeys(CLIENTS, noting)
        run.start().finish()
    kept = {}
    for name, offer in offers.items():
        kept[name] = Personal(run.folder / "devices" / name).run(offer.run.run.name, client=name)
        keep_end(kept[name], offer, config, run.results[name], {"base": offer.base})
    return Ended(run, offers, kept)


def test_it_gives_the_numbers_that_the_device_measured(ended: Ended, tmp_path: Path) -> None:
    card, base = export_own(ended.kept["c"].path, tmp_path / "own"), base_of("pydoc-llama")
    result, offer = ended.run.results["c"], ended.offers["c"]
    assert (card.client, card.round, card.metrics) == ("c", result.round, result.after)
    assert read_card(tmp_path / "own") == card
    assert len({path.stat().st_mode for path in (tmp_path / "own").iterdir()}) == 1, "who may read one may read all"
    exported = read_peft(tmp_path / "own", base, "classification")
    for name, array in flatten(result.adapter, result.head).items():
        np.testing.assert_array_equal(flatten(exported.adapter, exported.head)[name], array, err_msg=name)
    part = ClientPart(base, offer.plan, offer.run)
    part.load(exported.adapter, exported.head)
    reading = replace(reading_of(base, offer.run), side="right")
    feed = Feed.open(ended.run.folder / "c.jsonl", offer.run, reading, "c")
    assert evaluate(part, feed.test(), 2, nowhere)[0] == result.after
    base_alone = AutoModelForSequenceClassification.from_pretrained(assets.path("pydoc-llama"), num_labels=2)
    model = PeftModel.from_pretrained(base_alone, str(tmp_path / "own")).eval()
    ids = [[5, 17, 300, 40], [9, 9, 1000, 3, 77, 21]]
    for row in ids:
        with torch.no_grad():
            by_peft = model(torch.tensor([row])).logits.numpy()
        np.testing.assert_allclose(local_logits(base, exported)(asked(row)), by_peft, rtol=0, atol=1e-6)


def test_without_torch_from_the_state_directory(ended: Ended, tmp_path: Path) -> None:
    """The same bytes; and with torch in sight the command says how to load it."""
    devices = ended.run.folder / "devices" / "c"
    Process(["export", str(devices), "-o", str(tmp_path / "own")], BLOCKED).end()
    export_own(ended.kept["c"].path, tmp_path / "again")
    for name in ("adapter_model.safetensors", "adapter_config.json", "fedsplit.json"):
        assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_command_that_is_named_at_the_end_works(ended: Ended, tmp_path: Path) -> None:
    run, devices = ended.run.run, ended.run.folder / "devices"
    assert "fedsplit join named at its end" in how_to_export(run, tmp_path), (
        "real devices have their folders themselves"
    )
    (tmp_path / "clients").mkdir()
    assert "none of them holds all layers" in how_to_export(run, tmp_path)
    for name in CLIENTS:
        (tmp_path / "clients" / name).symlink_to(devices / name, target_is_directory=True)
    said = how_to_export(run, tmp_path)
    assert said.endswith(f":\n  fedsplit export {tmp_path / 'clients' / 'c'} -o adapter/"), "the server has layers of a"
    export_own(tmp_path / "clients" / "c", tmp_path / "own")
    common = loads(run_file(CLIENTS))
    assert how_to_export(common, tmp_path) == f"Export with:\n  fedsplit export {tmp_path} -o adapter/"


def test_what_cannot_be_exported_is_said(ended: Ended, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"without layers 1, 2, expected all of it; the server has"):
        export_own(ended.kept["a"].path, tmp_path / "own")
    begun = Personal(tmp_path / "state").run("another")
    with pytest.raises(ConfigError, match="found nothing of a run, expected the end of a run"):
        export_own(begun.path, tmp_path / "own")
    begun.save(1, {"0/q/B": np.zeros((3, 2), "f4")})
    with pytest.raises(ConfigError, match="found a run that has not ended here"):
        export_own(tmp_path / "state", tmp_path / "own")
    Personal(tmp_path / "state").run("a third one")
    with pytest.raises(ConfigError, match=r"found 2 runs, expected one; export one of them by its folder"):
        export_own(tmp_path / "state", tmp_path / "own")
    with pytest.raises(SystemExit):
        command(["export", str(begun.path), "--merge", str(tmp_path / "own"), "--rank", "3"])
    said = capsys.readouterr().err
    assert "--merge: found a device's folder" in said
    assert "--rank: found a device's folder" in said
    assert not (tmp_path / "own").exists()


def test_the_end_is_kept_however_long_ago_the_best_round_is(ended: Ended, tmp_path: Path) -> None:
    config = json.loads((assets.path("pydoc-llama") / "config.json").read_text("utf-8"))
    kept = Personal(tmp_path).run("long")
    for round in range(3, 9):
        kept.save(round, {"0/q/B": np.zeros((3, 2), "f4")})
    keep_end(kept, ended.offers["c"], config, ended.run.results["c"], {})
    card: Card = export_own(kept.path, tmp_path / "own")
    assert card.round == ended.run.results["c"].round < 3
