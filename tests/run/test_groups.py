"""Groups of clients (FedLFC): each has an adapter that the others never touch; saved, resumed, exported."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsplit.cli.after_run import how_to_export
from fedsplit.cli.main import run as command
from fedsplit.config.load import loads
from fedsplit.errors import ConfigError
from fedsplit.events import Measured, StepDone
from fedsplit.lora.adapter import digest
from fedsplit.method.of_run import method_of
from fedsplit.method.stored import state_digest
from fedsplit.method.values import GlobalState
from fedsplit.testing.faults import Faults
from fedsplit.train.exported import read_peft
from fedsplit.train.exporting import export
from fedsplit.train.start import first_state
from tests.run.conftest import Rows, run_file
from tests.run.party import Party, base_of, written
from tests.run.processes import Stage, dies_at

Make = Callable[..., Party]
PLACES = {"a": 'topology = "u"\ncut = [1, 3]', "b": 'topology = "w"', "c": 'topology = "u"\ncut = [2, 6]'}
TAGS = {"a": "deu_Latn", "b": "nl", "c": "fra_Latn"}
CLIENTS = {name: f'{place}\ntag = "{TAGS[name]}"' for name, place in PLACES.items()}
SETTINGS: dict[str, object] = {"method__name": "fedlfc", "lora__dropout": 0.2}


@pytest.fixture
def clean(reference: Callable[..., Party]) -> Party:
    return reference(CLIENTS, **SETTINGS)


def test_a_family_of_its_own_is_training_alone(clean: Party, party: Make) -> None:
    state, first = clean.keeper.state, first_state(clean.base, clean.run)
    assert set(state.groups) == {"germanic", "romance"}
    assert digest(state.adapter) == digest(first.adapter)
    alone = party({"c": PLACES["c"]}, data={"c": clean.rows["c"]}, lora__dropout=0.2)
    assert state_digest(state.of("romance")) == state_digest(alone.keeper.state)
    pair = {name: PLACES[name] for name in "ab"}
    two = party(pair, data={name: clean.rows[name] for name in pair}, lora__dropout=0.2)
    assert state_digest(state.of("germanic")) == state_digest(two.keeper.state)


def test_clients_measure_the_adapter_of_their_group(clean: Party) -> None:
    *_, last = [event for event in clean.all(Measured) if not event.client]
    of_c = next(event for event in reversed(clean.all(Measured)) if event.client == "c" and event.phase == "round")
    assert last.metrics["romance/loss"] == pytest.approx(of_c.metrics["loss"])
    assert {"germanic/loss", "germanic/worst_client_loss", "loss"} <= last.metrics.keys()
    for name, group in {"a": "germanic", "b": "germanic", "c": "romance"}.items():
        held = clean.results[name].adapter
        mine = clean.keeper.best()[0].of(group).adapter
        assert digest(held) == digest({key: mine[key] for key in held})


def test_a_server_that_dies_goes_on_with_all_groups(clean: Party, party: Make) -> None:
    run = party(CLIENTS, **SETTINGS, start=False)
    run.killed(Faults().crash("update", round=1))
    assert state_digest(run.keeper.state) == state_digest(clean.keeper.state)
    assert run.digest == clean.digest


def test_without_a_tag_a_client_trains_with_the_others_of_that_kind(party: Make) -> None:
    clients = {"a": PLACES["b"], "b": f'{PLACES["b"]}\ntag = "tlh"'}
    run = party(clients, **SETTINGS, train__rounds=1)
    assert set(run.keeper.state.groups) == {"other"}
    tags = party(clients, **SETTINGS, train__rounds=1, **{"method.options__groups": "tags"})
    assert set(tags.keeper.state.groups) == {"other", "tlh"}


def test_each_groups_adapter_is_exported(clean: Party, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = clean.folder / "run"
    with pytest.raises(ConfigError, match="one of germanic, romance"):
        export(folder, tmp_path / "none")
    said = how_to_export(clean.run, folder)
    assert f"fedsplit export {folder} --group germanic -o adapter/" in said
    assert "(groups: germanic, romance)" in said
    written = {}
    for group in ("germanic", "romance"):
        out = tmp_path / group
        with pytest.raises(SystemExit, match="0"):
            command(["export", str(folder), "--out", str(out), "--group", group])
        written[group] = digest(read_peft(out, base_of(clean.run.model.path), "causal-lm").adapter)
    assert len(set(written.values())) == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"server__adapters": "shared-concat"}, "server.adapters"),
        ({"server_data__path": "x.jsonl"}, "server_data.path"),
        ({"model__task": "classification", "model__labels": ["short", "long"]}, "policy.shares_labels"),
    ],
)
@pytest.mark.parametrize("name", ["fedlfc", "fedsa-lora"])
def test_what_wants_one_model_is_refused(settings: dict[str, object], words: str, name: str) -> None:
    run = loads(run_file({"a": ""}, **settings, method__name=name))
    if words == "policy.shares_labels" and name == "fedsa-lora":  # the head is common to all there
        method_of(run)
        return
    with pytest.raises(ConfigError, match=words):
        method_of(run)


def test_a_state_without_groups_answers_for_any() -> None:
    state = GlobalState.first({})
    assert state.of("nobody") is state


@pytest.mark.soak
def test_devices_say_where_they_belong_over_tcp(
    tmp_path: Path, rows: Callable[[str], dict[str, Rows]], reference: Callable[..., Party]
) -> None:
    """Tags from the command line; the server is killed in the second round and started again."""
    data = {name: written(tmp_path / f"{name}.jsonl", found) for name, found in rows("abc").items()}
    with Stage(tmp_path, run_file(PLACES, **SETTINGS), data) as run:
        server = run.serve(program=dies_at(StepDone, round=1, step=0))
        clients = [run.join(name, "--tag", tag) for name, tag in TAGS.items()]
        server.end(expected=-signal.SIGKILL)
        server = run.serve("--resume")
        for process in (*clients, server):
            process.end()
        assert server.finished.digest == reference(CLIENTS, **SETTINGS).digest
