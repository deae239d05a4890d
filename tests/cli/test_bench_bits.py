"""``fedsplit bench bits`` on a small random model: what is counted is what is planned, four bits are a seventh."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsplit.cli.bench_bits import Case, rows, weights
from fedsplit.cli.bench_models import model_and_task
from fedsplit.cli.bench_runs import Shape
from fedsplit.split.base import open_base


def test_counted_as_planned(tmp_path: Path) -> None:
    source, task = model_and_task("llama", tmp_path, hidden=192, layers=2)
    case = Case(source, open_base(source), task, Shape(batch=2, tokens=16, steps=1), 1)
    full, none_planned, none = weights(case, 32)
    four, planned, rounding = weights(case, 4)
    assert (full, four, none) == (none_planned, planned, 0.0)
    assert four <= 0.15 * full
    assert rounding == pytest.approx(0.092, abs=0.005)


@pytest.mark.soak
def test_processes_take_turns() -> None:
    full, four = rows(models="llama", bits="32,4", batch=2, tokens=16, steps=1, hidden=192, layers=2)
    assert (full["step_ratio"], full["of_float32"]) == (1.0, 1.0)
    assert full["seconds"]
    assert four["peak_bytes"]
