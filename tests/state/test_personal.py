"""A device's own state: separate for every run, safe names, forgotten completely."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedsplit.errors import ConfigError, DataError
from fedsplit.state.personal import KEEP, Personal


def test_saved_and_found_again(tmp_path: Path) -> None:
    run = Personal(tmp_path).run("news", server="KEY", client="pi")
    assert run.load() is None
    run.save(4, {"exp_avg": np.arange(5.0)}, {"step": 40})
    again = Personal(tmp_path).run("news", server="KEY", client="pi").load()
    assert again is not None
    assert (again.round, again.meta) == (4, {"step": 40})
    np.testing.assert_array_equal(again.arrays["exp_avg"], np.arange(5.0))


def test_only_the_last_rounds_are_kept_and_later_ones_can_be_taken_back(tmp_path: Path) -> None:
    run = Personal(tmp_path).run("news")
    for round in range(10):
        run.save(round, {"w": np.full(3, round)})
    assert run.rounds() == tuple(range(10 - KEEP, 10))
    run.back_to(8)
    assert run.rounds() == (7, 8)


def test_runs_do_not_mix(tmp_path: Path) -> None:
    personal = Personal(tmp_path)
    runs = [
        personal.run("run", server="A", client="pi"),
        personal.run("run", server="B", client="pi"),
        personal.run("run", server="A", client="pc"),
        personal.run("RUN", server="A", client="pi"),
        personal.run("ru", server="nA", client="pi"),
    ]
    assert len({run.path for run in runs}) == 5
    assert len(personal.runs()) == 5


@pytest.mark.parametrize("name", ["../../etc/passwd", "/abs", "", "..", "a\0b", "con", "ü" * 300, "a/b\\c:d"])
def test_no_name_escapes(tmp_path: Path, name: str) -> None:
    run = Personal(tmp_path).run(name)
    run.save(0, {"w": np.ones(1)})
    assert run.path.parent == tmp_path / "runs"
    assert run.path.name.isascii()
    assert len(run.path.name) < 60
    assert [info.run for info in Personal(tmp_path).runs()] == [name]


def test_forget(tmp_path: Path) -> None:
    personal = Personal(tmp_path)
    (personal.keys / "client.key").write_text("secret")
    for server in "AB":
        personal.run("news", server=server).save(0, {"w": np.ones(1)})
    other = personal.run("mail")
    assert personal.forget("news") == 2
    assert personal.forget("news") == 0
    assert list((tmp_path / "runs").iterdir()) == [other.path]
    assert (personal.keys / "client.key").exists(), "the device stays who it is"


def test_a_run_in_use_is_not_forgotten(tmp_path: Path) -> None:
    personal = Personal(tmp_path)
    run = personal.run("news")
    with run.lock():
        with pytest.raises(ConfigError, match="one process a client of a run"):
            personal.forget("news")
        with pytest.raises(ConfigError, match="join under another --name"), personal.run("news").lock():
            pass
    assert run.path.is_dir()


def test_a_damaged_entry_names_its_file(tmp_path: Path) -> None:
    run = Personal(tmp_path).run("news")
    (run.path / "info.json").write_text("{")
    with pytest.raises(DataError, match=r"info.json: cannot be read"):
        Personal(tmp_path).runs()
