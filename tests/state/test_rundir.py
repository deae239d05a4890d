"""A run directory: begun once, resumed on purpose, served by one process."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fedsplit.errors import ConfigError, DataError
from fedsplit.state.rundir import RunDir

RUN = """
[run]
name = "x"
[model]
path = "minilm"
[lora]
targets = ["query", "value"]
[train]
learning_rate = 0.001
rounds = 3
[server]
port = 5700
[[clients]]
name = "pi"
"""


def test_begin_then_resume(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "x")
    assert run.begin(RUN) is False
    assert run.begin(RUN) is False, "nothing was learnt yet, so starting over loses nothing"
    run.save(0, {"w": np.ones(3)}, {})
    assert RunDir(run.path).begin(RUN, resume=True) is True
    assert run.run_toml.read_text() == RUN
    loaded = run.load()
    assert loaded is not None
    assert loaded.round == 0


def test_resume_of_nothing_starts_afresh(tmp_path: Path) -> None:
    assert RunDir(tmp_path / "new").begin(RUN, resume=True) is False


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.begin(RUN)
    run.save(0, {"w": np.ones(3)}, {})
    with pytest.raises(ConfigError, match=r"found a run with 1 checkpoints, expected a new folder; add --resume"):
        run.begin(RUN)


def test_resume_with_another_run_file(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.begin(RUN)
    run.save(0, {"w": np.ones(3)}, {})
    where = RUN.replace("5700", "5701").replace("rounds = 3", "rounds = 9")
    assert run.begin(where, resume=True)
    assert run.run_toml.read_text() == where
    what = RUN.replace("0.001", "0.1").replace('"pi"', '"laptop"').replace('"query", ', "")
    with pytest.raises(ConfigError) as caught:
        run.begin(what, resume=True)
    assert {problem.path for problem in caught.value.problems} == {
        "train.learning_rate",
        "clients.0.name",
        "lora.targets",
    }
    assert "found 0.1, expected 0.001 as when the run began" in str(caught.value)
    assert run.run_toml.read_text() == where, "a refused resume changes nothing"


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps rights elsewhere")
@pytest.mark.parametrize(("content", "words"), [(b"\xff\xfe[run]", "not UTF-8"), (b"[run", "not TOML")])
def test_a_damaged_run_file_in_the_folder(tmp_path: Path, content: bytes, words: str) -> None:
    run = RunDir(tmp_path)
    run.begin(RUN)
    run.save(0, {"w": np.ones(3)}, {})
    run.run_toml.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"run\.toml: .*{words}.*; restore it, or start a new run"):
        run.begin(RUN, resume=True)


def test_eras_rise_whatever_the_clock_says(tmp_path: Path) -> None:
    run, now_ns = RunDir(tmp_path), 1_700_000_000_000_000_000
    run.begin(RUN)
    eras = [run.next_era(now_ns), *(RunDir(tmp_path).next_era(at) for at in (now_ns, now_ns - 10**15, 0, 2 * now_ns))]
    assert all(after - before >= 1 << 32 for before, after in pairwise(eras))
    assert max(eras) < 1 << 63
    run.era.write_text("nothing")
    with pytest.raises(DataError, match="era: found no number; delete it"):
        run.next_era()


def test_keys_are_private(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "x")
    run.begin(RUN)
    assert stat.S_IMODE(run.keys.stat().st_mode) == 0o700


def test_one_process_a_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with (
        run.lock(),
        pytest.raises(ConfigError, match=rf"in use by process {os.getpid()}, expected one process"),
        run.lock(),
    ):
        pass
    with run.lock():
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_owner_frees_the_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time; from fedsplit.state.rundir import RunDir\n"
        "with RunDir(sys.argv[1]).lock(): print(1, flush=True); time.sleep(60)"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"1\n"
        with pytest.raises(ConfigError, match=f"in use by process {owner.pid}"), RunDir(tmp_path).lock():
            pass
        owner.send_signal(signal.SIGKILL)
    with RunDir(tmp_path).lock():
        pass
