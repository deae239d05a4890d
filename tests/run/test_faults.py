"""A packet that is lost, doubled, late or damaged changes nothing: the run ends with the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedsplit.testing.faults import Faults
from tests.run.party import Party

Make = Callable[..., Party]

MIXED = {
    "a": 'topology = "u"\ncut = [1, 3]',
    "b": 'topology = "v"\ncut = [4, 6]',
    "c": 'topology = "w"',
    "d": 'topology = "local"',
}
KINDS = (
    *("hello", "welcome", "accept", "start", "update", "received", "evaluate", "report", "finish"),
    *("forward", "hidden", "backward", "grad", "prepare", "commit", "missing"),
)
SMALL: dict[str, object] = {"train__steps": 1, "server__stash_bytes": 1}
"""One activation has room: the others are ``missing`` and are asked for again."""


@pytest.mark.parametrize("action", ["drop", "duplicate", "delay", "corrupt"])
def test_one_of_every_kind(party: Make, reference: Make, action: str) -> None:
    faults = Faults()
    for kind in KINDS:
        getattr(faults, action)(kind)
    clean, faulty = reference(MIXED, **SMALL), party(MIXED, **SMALL, faults=faults)
    faults.check()
    assert faulty.digest == clean.digest
    assert {name: result.after for name, result in faulty.results.items()} == {
        name: result.after for name, result in clean.results.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_lost_alone(party: Make, reference: Make, kind: str) -> None:
    client = {"a": MIXED["b"] if kind == "grad" else MIXED["a"]}
    settings = {**SMALL, "train__rounds": 1}
    faults = Faults().drop(kind)
    clean, faulty = reference(client, **settings), party(client, **settings, faults=faults)
    faults.check()
    assert faulty.digest == clean.digest


@pytest.mark.parametrize("mode", ["shared-concat", "shared-sequential"])
@pytest.mark.parametrize("action", ["drop", "duplicate", "corrupt"])
def test_steps_taken_together_or_in_turn(party: Make, reference: Make, mode: str, action: str) -> None:
    faults = Faults()
    for kind in ("forward", "hidden", "backward", "grad", "prepare", "commit", "update"):
        getattr(faults, action)(kind, client="c")
        getattr(faults, action)(kind, client="a")
    settings = {"server__adapters": mode, "train__steps": 2, "train__rounds": 1}
    names = {"a": MIXED["a"], "c": MIXED["c"]}
    clean, faulty = reference(names, **settings), party(names, **settings, faults=faults)
    faults.check()
    assert faulty.digest == clean.digest
