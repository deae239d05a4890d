"""The methods on devices: what trains and travels by round, folds that devices follow, runs that are cut off."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable

import numpy as np
import pytest

from fedsplit.config.load import loads
from fedsplit.errors import ConfigError
from fedsplit.events import StepDone
from fedsplit.lora import LowRank, ModuleKey
from fedsplit.method.record import GlobalState
from fedsplit.testing.faults import Faults
from fedsplit.train.start import first_state, refuse_dead
from fedsplit.wire.messages import Evaluate, Start, Update
from fedsplit_server.serve import method_of
from tests.run.conftest import run_file
from tests.run.party import Party, base_of
from tests.run.processes import Stage, dies_at

Make = Callable[..., Party]
CLIENTS = {"a": 'topology = "u"\ncut = [1, 3]', "b": 'topology = "v"\ncut = [4, 6]', "c": 'topology = "local"'}
TWO = {"a": CLIENTS["a"], "b": 'topology = "w"'}
METHODS = ("ffa-lora", "rolora", "flexlora", "flora")
every_method = pytest.mark.parametrize("name", METHODS)


@every_method
def test_the_split_trains_what_one_machine_trains(party: Make, reference: Make, name: str) -> None:
    """With dropout: a fold is part of the base and is not dropped with the adapter's inputs."""
    settings: dict[str, object] = {"method__name": name, "train__rounds": 3, "lora__dropout": 0.2}
    split = reference(CLIENTS, **settings)
    whole = party(dict.fromkeys(CLIENTS, 'topology = "local"'), **settings)
    assert split.digest == whole.digest
    assert moved(split)


@every_method
def test_a_server_and_a_client_that_die_leave_no_trace(party: Make, reference: Make, name: str) -> None:
    settings: dict[str, object] = {"method__name": name, "train__rounds": 3, "lora__dropout": 0.2}
    run = party(CLIENTS, **settings, start=False)
    run.killed(Faults().crash("update", round=1), ("commit", 2))
    assert run.digest == reference(CLIENTS, **settings).digest


@pytest.mark.parametrize(("name", "mode"), [("rolora", "shared-sequential"), ("flora", "shared-concat")])
def test_shared_copies_alternate_and_fold_like_everybody(party: Make, reference: Make, name: str, mode: str) -> None:
    settings: dict[str, object] = {"method__name": name, "train__rounds": 3, "server__adapters": mode}
    clean = reference(TWO, **settings)
    assert moved(clean)
    run = party(TWO, **settings, start=False)
    run.server_faults, run.faults = Faults().crash("prepare", round=2, step=1), Faults()
    run.start()
    run.world.run(until=lambda: run.actors["server"].done)
    run.serve_again()
    run.finish()
    assert run.digest == clean.digest


# ---- factors that rest -----------------------------------------------------------------------------------------------


def test_ffa_lora_never_moves_nor_sends_a(reference: Make) -> None:
    run = reference(CLIENTS, method__name="ffa-lora", train__rounds=3, lora__dropout=0.2)
    first, last = first_of(run), run.keeper.state
    for key, part in last.adapter.items():
        assert part.A_RN.tobytes() == first.adapter[key].A_RN.tobytes()
        assert part.B_MR.any()
    assert sent_sides(run) == {0: {"B"}, 1: {"B"}, 2: {"B"}}


def test_a_factor_that_is_zero_and_rests_for_ever_is_refused() -> None:
    run = loads(run_file({"a": ""}, method__name="ffa-lora", lora__targets=["embed_tokens", "q_proj"]))
    first = first_state(base_of(run.model.path), run)
    with pytest.raises(ConfigError, match=r"embed_tokens with A = 0, which method 'ffa-lora' never trains"):
        refuse_dead(first, method_of(run))
    refuse_dead(first, method_of(loads(run_file({"a": ""}, method__name="rolora"))))


def test_rolora_takes_turns_and_begins_with_b(party: Make, reference: Make) -> None:
    settings: dict[str, object] = {"method__name": "rolora", "lora__dropout": 0.2}
    run = reference(CLIENTS, **settings, train__rounds=3)
    assert sent_sides(run) == {0: {"B"}, 1: {"A"}, 2: {"B"}}
    states = [first_of(run), *(party(CLIENTS, **settings, train__rounds=rounds).keeper.state for rounds in (1, 2))]
    for side, (before, after) in zip(("B", "A"), itertools.pairwise(states), strict=True):
        for key, part in after.adapter.items():
            a, b = (part.A_RN != before.adapter[key].A_RN).any(), (part.B_MR != before.adapter[key].B_MR).any()
            assert (bool(a), bool(b)) == (side == "A", side == "B")


def test_flexlora_hands_out_the_best_of_each_rank(party: Make) -> None:
    run = party(TWO, method__name="flexlora", plan__layers="fit", plan__ranks=[3, 2], lora__rank=4, start=False)
    run.start().finish()
    state = run.keeper.state
    assert all(part.rank <= min(part.shape) for part in state.adapter.values())
    assert any(part.rank > 4 for part in state.adapter.values())


# ---- folds -----------------------------------------------------------------------------------------------------------


def test_flora_folds_every_round_and_begins_anew(reference: Make) -> None:
    run = reference(CLIENTS, method__name="flora", train__rounds=3, lora__dropout=0.2)
    state, first = run.keeper.state, first_of(run)
    assert state.base_version == 3
    assert [fold.version for fold in state.folds] == [1, 2, 3]
    for key, part in state.adapter.items():
        assert not part.B_MR.any()
        assert (part.A_RN != first.adapter[key].A_RN).any()
        assert part.rank == first.adapter[key].rank
    starts = [packet for packet in run.ends["c"].received if isinstance(packet.message, Start)]
    assert [versions(packet.tensors) for packet in starts] == [set(), {1}, {2}], "each fold travels once"
    assert all(update.base_version == update.round for update in updates(run))


def test_who_was_absent_gets_the_folds_that_it_missed(party: Make) -> None:
    run = party(
        dict.fromkeys("abc", 'topology = "local"'),
        method__name="flora",
        train__rounds=5,
        rounds__participation=0.34,
        evaluate__clients=False,
    )
    versions_of = {
        name: [
            (packet.message, versions(packet.tensors)) for packet in end.received if isinstance(packet.message, Start)
        ]
        for name, end in run.ends.items()
    }
    seen = [one for own in versions_of.values() for one in own]
    assert len(seen) == 5, "one client a round"
    assert any(start.base_version > start.since + 1 for start, _ in seen), "somebody missed more than one"
    for start, found in seen:
        assert isinstance(start, Start)
        missed = set(range(start.since + 1, start.base_version + 1))
        assert found == (missed if start.since else missed & {start.base_version}), "from the start on: their sum"
    everything = {name: result.adapter for name, result in run.results.items()}
    for adapter in everything.values():
        close(adapter, everything["a"])


def test_a_client_that_lost_its_folds_is_given_all(party: Make, reference: Make) -> None:
    settings: dict[str, object] = {"method__name": "flora", "train__rounds": 3, "evaluate__every": 1}
    run = party(TWO, **settings, start=False)
    run.server_faults = Faults()
    run.faults.crash("start", client="a", round=2)
    run.start()
    run.world.run(until=lambda: run.actors["a"].done)
    run.dealers["a"].cut()
    run.join("a")
    run.finish()
    last = [packet for packet in run.ends["a"].received if isinstance(packet.message, Start | Evaluate)]
    assert versions(last[0].tensors) == {2}
    assert run.digest == reference(TWO, **settings).digest


def test_wide_folds_travel_as_one_matrix(party: Make, reference: Make) -> None:
    """From the second round on they are wider than the matrices. One who is killed, and so gets the sum, and one who is
    absent, who gets some of it, end with the bits of those who were there."""
    settings: dict[str, object] = {"method__name": "flora", "train__rounds": 4, "lora__rank": 24, "lora__dropout": 0.2}
    run = party(TWO, **settings, start=False)
    run.killed(Faults().crash("update", round=2, client="b"), ("commit", 3))
    clean = reference(TWO, **settings)
    assert run.digest == clean.digest
    starts = [packet for packet in run.ends["a"].received if isinstance(packet.message, Start)]
    assert {name.rpartition("/")[2] for name in starts[0].tensors if name.startswith("fold/3/")} == {"W"}
    assert versions(starts[0].tensors) == {3}
    matrices = sum(4 * m * n for m, n in (part.shape for part in held(run, "a").values()))
    assert sum(t.nbytes for name, t in starts[0].tensors.items() if name.startswith("fold/")) == matrices
    for name in TWO:
        for key, part in run.results[name].adapter.items():
            assert part.dense().tobytes() == clean.results[name].adapter[key].dense().tobytes()


# ---- real processes --------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("name", METHODS)
def test_processes_over_tcp_end_with_the_same_bits(stage: Callable[[str], Stage], reference: Make, name: str) -> None:
    """The server is killed in the third round and started again; its folds come from the disk."""
    text = run_file(TWO, method__name=name, train__rounds=3)
    run = stage(text)
    server = run.serve(program=dies_at(StepDone, round=2, step=0))
    run.link()
    clients = [run.join(one) for one in TWO]
    server.end(expected=-signal.SIGKILL)
    server = run.serve("--resume")
    for process in (*clients, server):
        process.end()
    assert server.finished.digest == reference(TWO, method__name=name, train__rounds=3).digest


# ---- reading runs ----------------------------------------------------------------------------------------------------


def first_of(run: Party) -> GlobalState:
    return first_state(base_of(run.run.model.path), run.run)


def moved(run: Party) -> bool:
    """Whether every module learnt something, in its factors or in its folds."""
    state = run.keeper.state
    return all(part.B_MR.any() or key in state.patch for key, part in state.adapter.items())


def updates(run: Party) -> list[Update]:
    return [packet.message for end in run.ends.values() for packet in end.sent if isinstance(packet.message, Update)]


def sent_sides(run: Party) -> dict[int, set[str]]:
    """Which factors clients sent, by round."""
    found: dict[int, set[str]] = {}
    for end in run.ends.values():
        for packet in end.sent:
            if isinstance(packet.message, Update):
                sides = {name[-1] for name in packet.tensors if not name.startswith("head/")}
                found.setdefault(packet.message.round, set()).update(sides)
    return found


def held(run: Party, name: str) -> dict[ModuleKey, LowRank]:
    """The modules that a client holds, at its end."""
    return dict(run.results[name].adapter)


def versions(tensors: object) -> set[int]:
    assert isinstance(tensors, dict)
    return {int(name.split("/")[1]) for name in tensors if name.startswith("fold/")}


def close(found: dict[ModuleKey, LowRank], wanted: dict[ModuleKey, LowRank]) -> None:
    assert found.keys() == wanted.keys()
    for key, part in found.items():
        np.testing.assert_array_equal(part.dense(), wanted[key].dense())
