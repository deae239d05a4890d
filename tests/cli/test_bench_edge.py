"""``fedsplit bench edge`` on a tiny model: processes with and without torch, their memory and time side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from fedsplit.cli.bench_edge import installed, plan_of, rows, whole_numbers
from fedsplit.errors import ConfigError
from fedsplit.testing.models import tiny


@pytest.mark.soak
def test_a_device_without_torch_takes_less(tmp_path: Path) -> None:
    model = tiny(tmp_path / "model", "bert", layers=1, num_labels=6, vocab_size=512)
    [row] = rows(models=str(model), topologies="w", bits="8", batch=2, tokens=9, steps=4)
    assert (row["client"], row["cut"], row["bits"]) == ("w", "0-1", 8)
    for key in ("seconds", "torch_seconds", "files_bytes", "step_ratio"):
        assert isinstance(row[key], float | int)
        assert row[key] > 0
    for key in ("predicted_bytes", "peak_bytes"):
        assert isinstance(row[key], int)
    assert row["predicted_bytes"] == pytest.approx(row["peak_bytes"], rel=0.15)
    assert row["predicted_s"] > 0  # type: ignore[operator]
    assert 20e6 < row["peak_bytes"] < 0.6 * row["torch_peak_bytes"]  # type: ignore[operator]
    assert 10e6 < installed("edge") < 0.5 * installed("torch")


def test_words_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="--topologies"):
        plan_of(4, "x")
    with pytest.raises(ConfigError, match="--bits"):
        whole_numbers("32,7")
