"""An onnxruntime that is too old for a folder's graphs is named before it fails in the middle of one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedsplit.edge import versions
from fedsplit.edge.manifest import Manifest
from fedsplit.edge.versions import check_runtime
from fedsplit.errors import DataError, MissingExtra


def manifest(opset: int = 20, ir: int = 10) -> Manifest:
    return Manifest(
        version=1, model="bert", task="classification", hidden=8, layers=(0,), front=1, layers_path="encoder.layer",
        opset=opset, ir_version=ir, weight_bits=32, graphs={}, factors={}, shapes={}, trained=(),
        rounding=0.0, table_rounding=0.0,
    )  # fmt: skip


@pytest.mark.parametrize("found", ["1.18.0", "1.20.1", "1.99", "2.0.0", "1.18.0+cpu", "head"])
def test_one_that_is_recent_enough_or_newer_than_we_know(found: str) -> None:
    check_runtime(manifest(), Path(), found)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ("1.17.3", "needs ONNX opset 20 and IR 10, onnxruntime 1.17.3 knows opset 20 and IR 9"),
        ("1.15.0", "onnxruntime 1.15.0 knows opset 19 and IR 9"),
        ("1.2.0", "onnxruntime 1.2.0 is older"),
    ],
)
def test_one_that_is_too_old(found: str, says: str) -> None:
    with pytest.raises(DataError) as error:
        check_runtime(manifest(), Path("graphs"), found)
    assert says in str(error.value)
    assert "pip install 'onnxruntime>=1.18'" in str(error.value)
    assert "manifest.json" in str(error.value)


def test_what_is_installed_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    check_runtime(manifest(), Path())
    monkeypatch.setattr(versions.runtime(), "__version__", "1.16.2")
    with pytest.raises(DataError, match=r"1\.16\.2"):
        check_runtime(manifest(), Path())


def test_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"fedsplit\[edge\]"):
        check_runtime(manifest(), Path())
