"""What a client has for itself (FedSA-LoRA's B): it never travels, is merged with nothing, and outlives a crash."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedsplit.events import StepDone
from fedsplit.lora.adapter import flatten
from fedsplit.method.stored import state_digest
from fedsplit.state.personal import Personal
from fedsplit.testing.faults import Faults
from fedsplit.train.start import first_state
from fedsplit.wire.messages import Evaluate, Finish, Start, Update
from fedsplit_client.own import Own
from tests.run.conftest import Rows, run_file
from tests.run.party import Party, written
from tests.run.processes import Stage, dies_at

MakeRows = Callable[[str], dict[str, Rows]]
Make = Callable[..., Party]
CLIENTS = {"a": 'topology = "u"\ncut = [1, 3]', "b": 'topology = "v"\ncut = [4, 6]', "c": 'topology = "local"'}
SETTINGS: dict[str, object] = {"method__name": "fedsa-lora", "train__rounds": 2, "lora__dropout": 0.2}


@pytest.fixture
def clean(reference: Callable[..., Party]) -> Party:
    return reference(CLIENTS, **SETTINGS)


def kept(run: Party, name: str) -> Own:
    return Own(Personal(run.folder / "devices" / name).run(run.run.run.name, client=name), head=False, drawn=dict)


def own(run: Party, name: str, round: int = 2) -> dict[str, np.ndarray]:
    """A client's Bs after that round: those on its disk and those at the server."""
    prefix = f"own/{name}/"
    there = {key.removeprefix(prefix): b for key, b in run.keeper.state.memory.items() if key.startswith(prefix)}
    return dict(sorted((kept(run, name).until(round) | there).items()))


def test_no_b_travels(clean: Party) -> None:
    for name, end in clean.ends.items():
        letters = [p for p in end.received if isinstance(p.message, Start | Evaluate | Finish)]
        updates = [p for p in end.sent if isinstance(p.message, Update)]
        assert letters
        assert len(updates) == 2
        for packet in (*letters, *updates):
            assert packet.tensors
            assert all(tensor.endswith("/A") for tensor in packet.tensors), name
        for packet in updates:  # exactly R N numbers a module
            held = [key for key in clean.keeper.state.adapter if f"{key}/A" in packet.tensors]
            count = sum(clean.keeper.state.adapter[key].A_RN.size for key in held)
            assert sum(tensor.nbytes for tensor in packet.tensors.values()) == 4 * count


def test_every_client_has_its_own_and_the_server_none(clean: Party) -> None:
    state, first = clean.keeper.state, first_state(clean.base, clean.run)
    modules = {f"{key}/B" for key in state.adapter}
    for key, part in state.adapter.items():
        assert not part.B_MR.any()
        assert (part.A_RN != first.adapter[key].A_RN).any()
    mine = {name: own(clean, name) for name in CLIENTS}
    for name, factors in mine.items():
        assert set(factors) == modules, name
        assert all(factor.any() for factor in factors.values())
    for name in modules:
        assert (mine["a"][name] != mine["c"][name]).any()
        assert (mine["a"][name] != mine["b"][name]).any()
    assert {key.split("/")[1] for key in state.memory} == {"a", "b"}  # c holds all layers itself


def test_clients_measure_with_their_own(clean: Party) -> None:
    """The base alone gives what was measured before training."""
    for result in clean.results.values():
        assert result.after["loss"] < result.before["loss"]
    final = flatten(clean.results["c"].adapter)
    best = clean.keeper.best()[0]
    for name, factor in own(clean, "c", best.round).items():
        assert final[name].tobytes() == factor.tobytes()
        assert final[f"{name[:-1]}A"].tobytes() == flatten(best.adapter)[f"{name[:-1]}A"].tobytes()


def test_the_split_trains_what_one_machine_trains(clean: Party, party: Make) -> None:
    whole = party(dict.fromkeys(CLIENTS, 'topology = "local"'), **SETTINGS)
    assert whole.digest == clean.digest
    for name in CLIENTS:
        assert bits(own(whole, name)) == bits(own(clean, name))


def test_one_client_alone_trains_as_ever(party: Make) -> None:
    """K = 1, one round: ordinary LoRA training."""
    settings = {**SETTINGS, "train__rounds": 1}
    alone = party({"a": CLIENTS["a"]}, **settings)
    usual = party({"a": CLIENTS["a"]}, **{**settings, "method__name": "fedavg"})
    for key, part in usual.keeper.state.adapter.items():
        assert part.A_RN.tobytes() == alone.keeper.state.adapter[key].A_RN.tobytes()
        assert part.B_MR.tobytes() == own(alone, "a", 1)[f"{key}/B"].tobytes()


def test_a_server_and_a_client_that_die_leave_no_trace(clean: Party, party: Make) -> None:
    run = party(CLIENTS, **SETTINGS, start=False)
    run.killed(Faults().crash("update", round=0, client="c"), ("commit", 1))
    assert state_digest(run.keeper.state) == state_digest(clean.keeper.state)
    for name in CLIENTS:
        assert bits(own(run, name)) == bits(own(clean, name))


def test_who_was_away_goes_on_with_what_it_left(party: Make) -> None:
    run = party(CLIENTS, **{**SETTINGS, "train__rounds": 3}, rounds__participation=0.34)
    asked = {round: name for name in CLIENTS for round in trained(run, name)}
    assert len(asked) == 3
    for name in CLIENTS:
        last = max(trained(run, name), default=-1)
        if last >= 0:
            assert bits(kept(run, name).until(3)) == bits(kept(run, name).until(last + 1))
        else:
            assert not kept(run, name)


@pytest.mark.soak
def test_processes_over_tcp_keep_their_own(tmp_path: Path, rows: MakeRows, reference: Callable[..., Party]) -> None:
    """A client is killed in the second round and joins again; its Bs come from its disk."""
    settings = {**SETTINGS, "train__rounds": 2}
    clients = {"a": CLIENTS["a"]}
    data = {name: written(tmp_path / f"{name}.jsonl", found) for name, found in rows("a").items()}
    with Stage(tmp_path, run_file(clients, **settings), data) as run:
        server, first = run.serve(), run.join("a", program=dies_at(StepDone, round=1, step=0))
        first.end(expected=-signal.SIGKILL)
        again = run.join("a")
        again.end()
        server.end()
        usual = reference(clients, **settings)
        assert server.finished.digest == usual.digest
        [kept] = (run.folder / "devices" / "a" / "runs").iterdir()
        found = {n: b.tobytes() for n, b in load_file(next((kept / "0002").glob("*.safetensors"))).items()}
    for name, factor in bits(own(usual, "a", 2)).items():
        assert name.startswith(("1/", "2/")) or found[name] == factor


def trained(run: Party, name: str) -> list[int]:
    return [p.message.round for p in run.ends[name].sent if isinstance(p.message, Update)]


def bits(factors: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: factor.tobytes() for name, factor in factors.items()}
