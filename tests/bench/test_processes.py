"""Every bench of steps and memory runs in a tiny configuration, with real processes; its rows make sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedsplit.cli import bench_growth, bench_large, bench_memory, bench_step
from fedsplit.cli.bench_models import write_model

HIDDEN, LAYERS, INNER, RANK = 48, 3, 128, 8
ATTENTION, NORMS = 4 * HIDDEN * HIDDEN, 2 * HIDDEN


def layer_bytes() -> int:
    """float32 weights of one Llama layer of the shape below."""
    return 4 * (ATTENTION + 3 * HIDDEN * INNER + NORMS)


def test_step() -> None:
    [row] = bench_step.rows(
        families="llama", shapes="2x16", topologies="u", pairs=2, warmup=1, hidden=HIDDEN, layers=LAYERS
    )
    assert (row["family"], row["batch"], row["tokens"]) == ("llama", 2, 16)
    assert (row["topology"], row["cut"], row["threads"]) == ("u", "1-2", 1)
    seconds, plain = row["seconds"], row["plain_seconds"]
    assert isinstance(seconds, float)
    assert isinstance(plain, float)
    assert 0 < seconds < 60
    assert 0 < plain < 60
    assert isinstance(row["ratio"], float)
    assert row["ratio"] > 0
    crossings, tensor_bytes = 4, 2 * 16 * HIDDEN * 4
    moved = row["bytes"]
    assert isinstance(moved, int)
    assert crossings * tensor_bytes < moved < crossings * tensor_bytes + 8_000


def test_memory() -> None:
    rows = bench_memory.rows(models="llama", topologies="u", batch=2, tokens=16, steps=2, hidden=HIDDEN, layers=LAYERS)
    assert [row["client"] for row in rows] == ["local", "u"]
    for row, layers in zip(rows, (0, 1), strict=True):
        assert row["weights_bytes"] == layers * layer_bytes()
        # Query and value: two factors of hidden x rank each; a value, a gradient and two moments in float32.
        assert row["optimizer_bytes"] == layers * 2 * 2 * HIDDEN * RANK * 4 * 4
        assert bool(row["activations_bytes"]) == bool(layers)
        peak = row["peak_bytes"]
        assert isinstance(peak, int)
        assert 100e6 < peak < 2e9, "a process that imported torch"
    assert rows[0]["below_local_bytes"] == 0


@pytest.mark.soak
def test_growth() -> None:
    rows = bench_growth.rows(steps=50, batch=2, tokens=16, model="llama", topologies="w", hidden=HIDDEN, layers=LAYERS)
    assert [row["process"] for row in rows] == ["server", "w-device"]
    assert all(row["steps"] == 50 for row in rows)
    assert all(isinstance(row["growth_bytes_per_1000_steps"], int) for row in rows)


@pytest.mark.soak
def test_large(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "llama", hidden=HIDDEN, layers=LAYERS)
    [row] = bench_large.rows(model=str(model), topologies="w", tokens=16)
    assert (row["client"], row["cut"]) == ("w", f"0-{LAYERS}")
    assert row["model_bytes"] == (model / "model.safetensors").stat().st_size
    assert isinstance(row["up_bytes"], int)
    assert isinstance(row["down_bytes"], int)
    assert row["up_bytes"] > 2 * 16 * HIDDEN * 2, "states up and their gradient back, in bfloat16"
    assert row["up_bytes"] > row["down_bytes"] > 16 * HIDDEN * 2
    json.dumps(row)


@pytest.mark.parametrize("shapes", ["8", "8x", "x64", "0x4", "8x64x2"])
def test_a_shape_that_is_none(shapes: str) -> None:
    with pytest.raises(bench_step.ConfigError, match="--shapes"):
        bench_step.rows(families="llama", shapes=shapes, hidden=HIDDEN, layers=LAYERS)
