"""``plan.coverage`` at a server: who joins takes the layers that are left, and a run that lacks some does not start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace as with_changes

import numpy as np
import pytest
from msgspec.structs import replace

from fedsplit.config.load import loads
from fedsplit.errors import Closed, PlanError
from fedsplit.events import Note
from fedsplit.plan.coverage import coverage
from fedsplit.plan.question import priced, questions, step_of
from fedsplit.plan.types import Cut, Topology
from fedsplit.train.start import first_state
from fedsplit_server.planning import Planning
from tests.run.conftest import run_file
from tests.run.party import LAPTOP, Party

Make = Callable[..., Party]

PLAIN = "threads = 1"
SETTINGS: dict[str, object] = {
    "model__max_length": 8, "lora__rank": 56, "train__rounds": 1, "train__steps": 1, "train__batch": 1,
    "train__micro_batches": 1, "evaluate__clients": False, "policy__topologies": ["local"], "plan__layers": "fit",
    "plan__checkpoint": False, "plan__coverage": 1,
}  # fmt: skip


def small(run: Party, share: float) -> Party:
    """On devices with this share of the memory between training one layer and training all of them."""
    planning = Planning(run.run, run.base)
    asked = questions(planning.card, {"a": LAPTOP}, run.run)["a"]
    depth = planning.card.num_layers
    [work] = step_of(asked)[1]
    low, high = (
        priced(asked, Topology.LOCAL, Cut(depth, depth), [with_changes(work, ranks=ranks)]).memory.total
        for ranks in ((0,) * (depth - 1) + (56,), ())
    )
    run.device = replace(LAPTOP, free_memory_bytes=int((low + share * (high - low)) / 0.9) + 1)
    return run


def counts(run: Party) -> dict[int, int]:
    card = Planning(run.run, run.base).card
    return coverage([member.plan for member in run.host.roster], card, run.run.lora.targets)


def test_three_small_devices_train_every_layer_between_them(party: Make) -> None:
    plain = small(
        party(
            {"a": PLAIN, "b": PLAIN, "c": PLAIN},
            start=False,
            **SETTINGS,
        ),
        0.6,
    )
    plain.run = loads(run_file({"a": PLAIN, "b": PLAIN, "c": PLAIN}, **SETTINGS | {"plan__coverage": 0}))
    plain.start().finish()
    assert min(counts(plain).values()) == 0
    run = small(party({"a": PLAIN, "b": PLAIN, "c": PLAIN}, start=False, **SETTINGS), 0.6).start().finish()
    assert min(counts(run).values()) >= 1
    assert len(run.results) == 3
    said = [note.text for note in run.all(Note) if note.warning]
    assert any(text.startswith("so far, too few clients train layer") for text in said)
    before, after = first_state(run.base, run.run).adapter, run.keeper.state.adapter
    moved = {key.layer for key in after if not np.array_equal(before[key].B_MR, after[key].B_MR)}
    assert moved == set(range(run.base.num_layers))


def test_one_that_lacks_layers_does_not_start_and_everybody_hears_why(party: Make) -> None:
    run = small(party({"a": PLAIN}, start=False, **SETTINGS), 0.6)
    run.world.tolerated = {"server", "a"}
    run.start().finish()
    error = run.actors["server"].error
    assert isinstance(error, PlanError)
    assert "where plan.coverage asks for 1, and all 1 clients are here. Lower plan.coverage" in str(error)
    with pytest.raises(Closed, match="gave the run up: too few clients train layer"):
        raise run.actors["a"].error or AssertionError("it ended well")
    assert run.keeper.state.round == 0
