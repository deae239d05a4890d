"""``fedsplit verify`` as a user types it: the table, the JSON, the exit status, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedsplit.cli.main import run
from fedsplit.cli.verify import conclusion, parse_cuts, passes
from fedsplit.errors import ConfigError
from fedsplit.split.verify import VerifyRow
from fedsplit.testing.models import tiny


def leaves(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        run(["verify", *words])
    code = left.value.code
    assert isinstance(code, int)
    return code


def row(difference: float, exact: bool = False) -> VerifyRow:
    return VerifyRow("llama", "causal-lm", "left", (1, 2), exact, difference, exact)


def test_without_a_model_it_is_the_one_that_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert leaves("--cuts", "0:6,2:3") == 0
    out = capsys.readouterr().out
    assert "all 2" in out
    assert "causal-lm" in out
    assert "equal: 12 comparisons on cpu, float32, every bit of loss and gradients" in out


def test_a_folder_and_one_line_a_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny(tmp_path / "bert", "bert", layers=2)
    assert leaves(str(folder), "--each") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("bert")]
    assert len(lines) == 2 * 2 * 6  # tasks, sides of padding, cuts
    assert [line[3] for line in lines[:6]] == ["0:0", "0:1", "0:2", "1:1", "1:2", "2:2"]
    assert {tuple(line[4:]) for line in lines} == {("equal", "0", "yes")}


def test_json_is_all_there_is_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert leaves("--family", "gpt2", "--cuts", "1:2", "--dtype", "bfloat16", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tolerance"] == 0
    assert len(found["rows"]) == 6
    first = found["rows"][0]
    assert first == {
        "family": "gpt2", "task": "causal-lm", "padding": "right", "cut": [1, 2],
        "loss_equal": True, "max_difference": 0.0, "exact": True, "passes": True,
    }  # fmt: skip


def test_a_difference_passes_only_within_a_tolerance_that_is_not_zero() -> None:
    assert passes(row(0.0, exact=True), 0.0)
    assert not passes(row(0.0), 0.0)  # the loss differs, the gradients do not
    assert not passes(row(1e-9), 0.0)
    assert passes(row(1e-9), 1e-6)
    assert not passes(row(2e-6), 1e-6)
    assert not passes(row(float("nan")), 1e-6)
    assert not passes(row(float("inf")), 1e-6)


def test_the_last_line_says_how_equal() -> None:
    here = "cuda:0, float32"
    assert conclusion([row(0, True), row(3e-7)], 0.0, here).startswith("not equal: 1 of 2 comparisons on cuda:0")
    assert conclusion([row(0, True), row(3e-7)], 1e-4, here).startswith("equal within 0.0001: 2 comparisons")
    assert "every bit" in conclusion([row(0, True)], 1e-4, here)


@pytest.mark.parametrize(("text", "expected"), [("all", "all"), ("1:4", [(1, 4)]), ("0:6, 2:2", [(0, 6), (2, 2)])])
def test_cuts(text: str, expected: object) -> None:
    assert parse_cuts(text) == expected


def test_every_wrong_cut_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'1-2', '3:'.*1:4,2:3"):
        parse_cuts("1-2,0:1,3:")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cuts", "1:9"), "[1, 9) are not within the model's [0, 6)"),
        (("--cuts", "3:1"), "[3, 1)"),
        (("--family", "nope"), "expected all or one of llama"),
        (("--dtype", "float8"), "float32 or bfloat16"),
        (("pydoc-llama", "--family", "bert"), "a model or a family"),
        (("--tolerance=-1",), "0 or more"),
        (("--tolerance=nan",), "0 or more"),
        (("--device", "tpu"), "expected cpu, cuda or cuda:NUMBER"),
    ],
)
def test_bad_input(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert leaves(*words) == 2
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_no_cuda_here(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert leaves("--device", device) == 2
    assert f"found {device}, this machine has no CUDA device" in capsys.readouterr().err
