"""A process above its ceiling is killed, and a burst between two looks counts, too."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from fedsplit.emulate.ceiling import Ceilings, peak_of
from tests.waiting import LIMIT_S

TAKE = "import sys, time\nx = bytes(1) * (int(sys.argv[1]) << 20)\ny = bytearray(x)\n{}\ntime.sleep(120)"


def child(megabytes: int, then: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", TAKE.format(then), str(megabytes)], stdout=subprocess.PIPE)


def test_a_process_that_takes_too_much_is_killed() -> None:
    with Ceilings() as ceilings, child(300) as process:
        ceiling = ceilings.watch("pi", process.pid, 100 << 20)
        assert process.wait(LIMIT_S) == -signal.SIGKILL
        assert ceilings.broken("pi") is ceiling
        assert ceiling.peak_bytes > 100 << 20


def test_a_process_below_it_lives_and_ends_by_itself() -> None:
    with Ceilings() as ceilings, child(10, "sys.exit(3)") as process:
        ceilings.watch("pi", process.pid, 400 << 20)
        assert process.wait(LIMIT_S) == 3
        assert ceilings.broken("pi") is None
        assert ceilings.broken("another") is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of another process")
def test_memory_that_was_given_back_counts() -> None:
    with child(300, "x = y = None; print('on', flush=True)") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        with Ceilings() as ceilings:
            ceilings.watch("pi", process.pid, 200 << 20)
            assert process.wait(LIMIT_S) == -signal.SIGKILL


def test_a_process_that_is_gone_holds_nothing() -> None:
    with child(1, "sys.exit()") as process:
        process.wait(LIMIT_S)
    assert peak_of(process.pid) == 0
