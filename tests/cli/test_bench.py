"""Benches: options from a function's arguments, a table, JSON, and the report brought up to date in place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedsplit.cli.bench import command_line
from fedsplit.cli.bench_table import cell, default_report, write
from fedsplit.cli.lazy import Verb
from fedsplit.cli.main import run
from fedsplit.errors import ConfigError

MODULE = """
import typer
from fedsplit.cli import bench
from fedsplit.cli.lazy import Verb, lazy_group

def rows(sizes: tuple[int, ...] = (1, 2), repeats: int = 3, device: str = "cpu") -> list[dict[str, object]]:
    "Measure something."
    return [{"size_bytes": size * 1_000_000, "seconds": 0.5 / repeats, "device": device, "ok": True} for size in sizes]

app = typer.Typer(cls=lazy_group([Verb("toy", "toy_bench:rows", "A toy.")], bench.as_command))

@app.callback()
def benches() -> None:
    "All of them."
"""


@pytest.fixture
def verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Verb]:
    (tmp_path / "toy_bench.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return [Verb("bench", "toy_bench:app", "Measure.")]


def call(verbs: list[Verb], *args: str) -> int | str | None:
    with pytest.raises(SystemExit) as left:
        run(["bench", "toy", *args], verbs)
    return left.value.code


def test_json_holds_rows_and_nothing_else(verbs: list[Verb], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(verbs, "--json", "--repeats", "5", "--device", "cuda") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["rows"][1] == {"size_bytes": 2_000_000, "seconds": 0.1, "device": "cuda", "ok": True}


def test_a_table_is_printed(verbs: list[Verb], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(verbs) == 0
    printed = capsys.readouterr().out
    assert "size bytes" in printed
    assert "2,000,000" in printed
    assert "yes" in printed


def test_a_wrong_option_is_a_usage_error(verbs: list[Verb]) -> None:
    assert call(verbs, "--repeats", "many") == 2


def test_write_replaces_its_own_table_only(verbs: list[Verb], tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    report.write_text("# Mine\n\nkept\n\n<!-- bench:toy -->\nold\n<!-- /bench:toy -->\n\nafter\n", encoding="utf-8")
    assert call(verbs, "--write", "--report", str(report)) == 0
    text = report.read_text(encoding="utf-8")
    assert "old" not in text
    assert "kept" in text
    assert text.endswith("after\n")
    assert "| size bytes | seconds | device | ok |" in text
    assert "| 2,000,000 | 0.1667 | cpu | yes |" in text
    again = report.read_text(encoding="utf-8")
    assert call(verbs, "--write", "--report", str(report)) == 0
    assert report.read_text(encoding="utf-8") == again


def test_a_new_bench_is_appended(tmp_path: Path) -> None:
    report = tmp_path / "README.md"
    write(report, "new", [{"name": "a|b", "gap": None}], "fedsplit bench new")
    text = report.read_text(encoding="utf-8")
    assert "## new" in text
    assert "| a\\|b | – |" in text
    assert "`fedsplit bench new`" in text


def test_the_command_in_the_report_is_the_one_to_repeat() -> None:
    argv = ["/x/fedsplit", "bench", "wire", "--write", "--report", "r.md", "--repeats", "3", "--json"]
    assert command_line(argv) == "fedsplit bench wire --repeats 3"


def test_without_a_clone_write_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--report"):
        default_report([tmp_path])
    (tmp_path / "benchmarks").mkdir()
    assert default_report([tmp_path]) == tmp_path / "benchmarks" / "README.md"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        (98765.4, "98,765"),
        (True, "yes"),
        (None, "–"),
        ("x", "x"),
        (0, "0"),
    ],
)
def test_cells(value: object, shown: str) -> None:
    assert cell(value) == shown
