"""kill -9 at every point of a save: what is found afterwards is the state before or the state after, never less.

A child process saves round 2 over round 1 and is killed at the n-th call that touches the disk (``sys.addaudithook``
reports opens, renames and deletions, writes and flushes are counted by a wrapper around ``os.fsync``); n runs over all
of them. The order of calls is checked as well, because kill -9 alone does not show a missing flush.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedsplit.state import checkpoints

CHILD = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
from fedsplit.state import checkpoints

base, count, before, after = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
calls = []

def content(round):
    return {"w": np.full((40, 40), round, np.float32)}

def save(folder, fatal):
    def touch(*call):
        calls.append([str(part) for part in call])
        if len(calls) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, args):
        opened = event == "open" and str(folder) in str(args[0])
        if opened or event in {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}:
            touch(event, *args[:2])

    def fsync(fd, really=os.fsync):
        path = os.readlink(f"/proc/self/fd/{fd}") if os.path.exists("/proc/self/fd") else ""
        touch("before fsync", path)
        really(fd)
        touch("fsync", path)

    checkpoints.save(folder, 0, content(0), {"value": 0})
    checkpoints.save(folder, before, content(before), {"value": before})
    os.fsync = fsync
    sys.addaudithook(hook)
    checkpoints.save(folder, after if after != 3 else before, content(after), {"value": after}, keep=2)

def killed(number):
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    save(base / str(number), number)
    os._exit(0)

if count:
    print(json.dumps([killed(number) for number in range(1, count + 1)]))
else:
    save(base, -1)
    print(json.dumps(calls))
"""


def run(folder: Path, before: int, after: int, *, killed: int = 0) -> list[object]:
    """The calls of one save; with ``killed`` the exit codes of as many, each killed at its number of calls."""
    command = [sys.executable, "-c", CHILD, str(folder), str(killed), str(before), str(after)]
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, "PYTHONPATH": paths}, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[object] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, 3)], ids=["a new round", "a round again"])
def test_killed_anywhere(tmp_path: Path, before: int, after: int) -> None:
    calls = run(tmp_path / "whole", before, after)
    assert len(calls) >= 10
    codes = run(tmp_path, before, after, killed=len(calls))
    assert codes == [-signal.SIGKILL] * len(calls), "the fault must fire"
    seen = set()
    for fatal in range(1, len(calls) + 1):
        folder = tmp_path / str(fatal)
        loaded = checkpoints.load(folder)
        assert loaded is not None
        assert loaded.warnings == ()
        value = loaded.meta["value"]
        assert value in (before, after)
        assert (loaded.arrays["w"] == value).all()
        seen.add(value)
        checkpoints.save(folder, 7, loaded.arrays, {"value": 7}, keep=1)
        assert [path.name for path in folder.iterdir()] == ["0007"], "leftovers are swept"
    assert seen == {before, after}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to name what is flushed")
@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, 3)], ids=["a new round", "a round again"])
def test_everything_is_flushed_before_it_is_renamed(tmp_path: Path, before: int, after: int) -> None:
    calls: list[list[str]] = run(tmp_path, before, after)  # type: ignore[assignment]
    flushed: list[str] = []
    renames = 0
    for position, call in enumerate(calls):
        if call[0] == "fsync":
            flushed.append(call[1])
        if call[0] == "os.rename" and ".aside" in call[1]:
            renames += 1
            source = call[1]
            assert source in flushed
            inside = [c[1] for c in calls[:position] if c[0] == "open" and c[1].startswith(source + "/")]
            assert set(inside) <= set(flushed)
            parent = str(Path(call[2]).parent)
            assert ["fsync", parent] in calls[position:], "the new name must reach the disk, too"
    assert renames == (1 if after == 2 else 2)
