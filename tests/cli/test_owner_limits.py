"""The owner's limits from the command line: kept in the profile, lifted again, wrong ones told by their flags."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsplit.cli.main import make_app
from fedsplit.cli.verbs import VERBS
from fedsplit.devices.limits import Limits
from fedsplit.devices.load import load, save
from tests.run.party import LAPTOP


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = save(LAPTOP, tmp_path / "device.toml")
    monkeypatch.setenv("FEDSPLIT_PROFILE", str(path))
    return path


def test_limits_are_kept_shown_and_lifted(own: Path) -> None:
    words = "--max-memory 400MB --threads 2 --upload-per-day 200MB --between 22:00-06:00 --only-on-mains"
    run(0, "profile", "limit", *words.split(), "--pause-when-busy", "--max-temp", "75")
    assert load(own).limits == Limits(
        max_memory_bytes=400_000_000, threads=2, upload_per_day_bytes=200_000_000, between="22:00-06:00",
        only_on_mains=True, pause_when_busy=True, max_temperature_c=75.0,
    )  # fmt: skip
    assert "at most 400 MB of memory, 2 threads, 200 MB up a day" in run(0, "profile", "show")
    run(0, "profile", "limit", "--threads", "none", "--on-battery", "--between", "none")
    left = load(own).limits
    assert left is not None
    assert (left.threads, left.only_on_mains, left.between, left.max_temperature_c) == (0, False, "", 75.0)
    gone = "--max-memory none --upload-per-day none --when-busy --max-temp none"
    assert "limits: none" in run(0, "profile", "limit", *gone.split())
    assert load(own) == LAPTOP


def test_wrong_limits_are_told_together_and_nothing_is_kept(own: Path) -> None:
    said = run(2, "profile", "limit", "--max-memory", "400", "--between", "late", "--threads", "two")
    assert all(flag in said for flag in ("--max-memory", "--between", "--threads"))
    assert load(own) == LAPTOP


def run(code: int, *words: str) -> str:
    done = CliRunner().invoke(make_app(VERBS), list(words))
    assert done.exit_code == code, done.output
    return " ".join(done.output.replace("│", "").split())
