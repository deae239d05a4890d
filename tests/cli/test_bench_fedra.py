"""``fedsplit bench fedra`` on a tiny model: memory falls with the layers held, as measured and as planned."""

from __future__ import annotations

import pytest

from fedsplit.cli.bench_fedra import numbers, plan_of, rows
from fedsplit.errors import ConfigError


@pytest.mark.soak
def test_fewer_layers_take_less_memory_and_time() -> None:
    found = rows(held="8,1", trained="1", layers=8, hidden=192, batch=16, tokens=64, steps=5)
    whole, one, frozen = found
    assert [(row["held"], row["train"]) for row in found] == [(8, 8), (1, 1), (8, 1)]
    assert one["peak_bytes"] < frozen["peak_bytes"] < whole["peak_bytes"]
    assert one["planned_bytes"] < frozen["planned_bytes"] < whole["planned_bytes"]
    assert one["time_ratio"] < frozen["time_ratio"] < whole["time_ratio"] == 1
    assert one["planned_seconds"] < frozen["planned_seconds"] < whole["planned_seconds"]


def test_layers_are_numbers_of_the_model() -> None:
    assert numbers("--held", "3,1", 3) == [3, 1]
    assert [layer.trains for layer in plan_of(4, 3, 2).layers] == [False, True, True, False]
    for wrong in ("0", "4", "x"):
        with pytest.raises(ConfigError, match=r"--held.*from 1 to 3"):
            numbers("--held", wrong, 3)
