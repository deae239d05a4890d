"""A process dies at the worst moment and is started again: the run ends with the bits of one without a fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedsplit.events import Measured
from fedsplit.testing.faults import Faults
from tests.run.party import Party

Make = Callable[..., Party]

CLIENTS = {"a": 'topology = "u"\ncut = [1, 3]', "b": 'topology = "v"\ncut = [4, 6]', "c": 'topology = "local"'}
SPLIT = {"a": CLIENTS["a"], "b": 'topology = "w"'}
MODES = ["per-client", "shared-concat", "shared-sequential"]
MEASURED: dict[str, object] = {"evaluate__every": 1}

MOMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "joining": ("welcome", {}),
    "measuring before": ("report", {"phase": "before"}),
    "the first round begins": ("start", {"round": 0}),
    "the first step": ("backward", {"round": 0, "step": 0}),
    "between prepare and commit": ("commit", {"round": 1, "step": 1}),
    "the last update but one": ("update", {"round": 1}),
    "measuring after": ("report", {"phase": "round", "round": 1}),
    "the end": ("finish", {}),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_server_dies(party: Make, reference: Make, moment: str) -> None:
    kind, where = MOMENTS[moment]
    faults = Faults().crash(kind, **where)
    clean = reference(CLIENTS, **MEASURED)
    run = party(CLIENTS, **MEASURED, start=False)
    crashed_server(run, faults)
    assert run.digest == clean.digest
    assert last_measured(run) == last_measured(clean)
    assert {name: one.before for name, one in run.results.items()} == {
        name: one.before for name, one in clean.results.items()
    }


@pytest.mark.parametrize("mode", MODES[1:])
def test_the_server_dies_with_a_shared_optimiser(party: Make, reference: Make, mode: str) -> None:
    settings: dict[str, object] = {"server__adapters": mode, "train__rounds": 3}
    faults = Faults().crash("prepare", round=1, step=1)
    clean = reference(SPLIT, **settings)
    run = party(SPLIT, **settings, start=False)
    crashed_server(run, faults)
    assert run.digest == clean.digest


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("moment", ["forward", "commit", "update", "received"])
def test_a_client_dies(party: Make, reference: Make, mode: str, moment: str) -> None:
    settings: dict[str, object] = {"server__adapters": mode, **MEASURED}
    clean = reference(SPLIT, **settings)
    run = party(SPLIT, **settings, start=False)
    run.server_faults = Faults()
    run.faults.crash(moment, client="a", round=1)
    run.start()
    run.world.run(until=lambda: run.actors["a"].done)
    assert run.actors["a"].crashed
    run.dealers["a"].cut()
    run.join("a")
    run.finish()
    run.faults.check()
    assert run.digest == clean.digest
    assert run.results["a"].before == clean.results["a"].before
    assert run.results["a"].after == clean.results["a"].after


def test_an_update_without_an_answer_dies_with_its_connection(party: Make, reference: Make) -> None:
    """Its answer was lost, the link is new, and another client is waited for longer than requests go unrepeated."""
    run = party(SPLIT, start=False)
    run.server_faults = Faults()
    run.faults.drop("received", client="a", round=0).crash("update", client="b", round=0)
    run.start()
    run.world.run(until=lambda: run.actors["b"].done and any(fired.action == "drop" for fired in run.faults.fired))
    for name in "ab":
        run.dealers[name].cut()
    run.dealers["a"].restore()
    begun = run.world.now_s
    run.world.run(until=lambda: run.world.now_s > begun + 30)
    run.join("b")
    run.finish()
    run.faults.check()
    assert run.digest == reference(SPLIT).digest


def test_a_client_that_dies_while_it_measures_is_waited_for(party: Make, reference: Make) -> None:
    clean = reference(CLIENTS, **MEASURED)
    run = party(CLIENTS, **MEASURED, start=False)
    run.faults.crash("report", client="b", phase="round", round=1)
    run.start()
    run.world.run(until=lambda: run.actors["b"].done)
    run.dealers["b"].cut()
    run.world.run(until=lambda: run.world.now_s > 30)
    run.join("b")
    run.finish()
    assert last_measured(run) == last_measured(clean)
    assert run.digest == clean.digest


def test_connections_that_break_all_the_time(party: Make, reference: Make) -> None:
    clean = reference(CLIENTS)
    run = party(CLIENTS, start=False)
    left = [5, 11, 17, 29, 41, 53]

    def breaks() -> bool:
        packets = sum(len(end.sent) for end in run.ends.values())
        if left and packets >= left[0]:
            dealer = run.dealers["abc"[left.pop(0) % 3]]
            dealer.cut()
            dealer.restore()
        return False

    run.start()
    run.world.run(until=breaks)
    assert not left
    assert run.digest == clean.digest


def crashed_server(run: Party, faults: Faults) -> None:
    """Run into the crash of the server, start it again, run to the end."""
    run.server_faults, run.faults = faults, Faults()
    run.start()
    run.world.run(until=lambda: run.actors["server"].done)
    assert run.actors["server"].crashed
    run.serve_again()
    run.finish()
    faults.check()


def last_measured(run: Party) -> Measured:
    return [event for event in run.all(Measured) if not event.client][-1]
