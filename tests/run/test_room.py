"""A plan that does not fit into what is free now is refused with need and have, before anything is loaded."""

from __future__ import annotations

import pytest

from fedsplit.errors import OutOfMemory
from fedsplit.plan.types import ClientPlan, Cut, Estimate, Topology
from fedsplit_client.room import refuse_too_large


def plan(memory_bytes: int | None) -> ClientPlan:
    estimate = None
    if memory_bytes is not None:
        estimate = Estimate(memory_bytes=memory_bytes, disk_bytes=0, step_s=1.0, up_bytes=0, down_bytes=0)
    return ClientPlan(client="pi", topology=Topology.U, cut=Cut(1, 3), layers=(), batch=1, estimate=estimate)


def test_what_is_held_already_counts_as_free() -> None:
    refuse_too_large(plan(400_000_000), free_bytes=340_000_000, held_bytes=60_000_000)
    refuse_too_large(plan(None), free_bytes=0, held_bytes=0)


def test_need_and_have_are_said() -> None:
    with pytest.raises(OutOfMemory, match=r"the plan u .* needs 401 MB, free here are 400 MB; close other") as error:
        refuse_too_large(plan(401_000_000), free_bytes=340_000_000, held_bytes=60_000_000)
    assert error.value.exit_code == 7


def test_this_machine_is_asked() -> None:
    refuse_too_large(plan(1))
    with pytest.raises(OutOfMemory):
        refuse_too_large(plan(1 << 60))
