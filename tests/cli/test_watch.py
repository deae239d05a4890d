"""A watch sees what a process really takes: its peak, and whether it grows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsplit.cli.watch import Sample, Watch, growth, high_water, summary
from fedsplit.errors import ConfigError
from tests.waiting import LIMIT_S, wait_for

MB = 1_000_000

CHILD = """
import sys
burst = bytearray(b"x" * 80_000_000)
del burst
print("ready", flush=True)
kept, each = [], int(sys.argv[1])
for _ in sys.stdin:
    kept.append(bytearray(b"x" * each))
    print("more", flush=True)
"""


def watched(each_bytes: int) -> Watch:
    command = [sys.executable, "-c", CHILD, str(each_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with Watch(child.pid, every_s=0.001) as watch:
            for _ in range(60):
                child.stdin.write("\n")
                child.stdin.flush()
                assert child.stdout.readline() == "more\n"
                seen(watch)
        child.stdin.close()
    return watch


def seen(watch: Watch, more: int = 1) -> None:
    """Until so many more looks were taken."""
    enough = len(watch.samples) + more
    wait_for(lambda: len(watch.samples) >= enough)


def test_a_process_that_grows() -> None:
    usage = watched(1 * MB).usage()
    assert usage.growth_bytes_per_s * usage.seconds > 10 * MB  # however long this machine paused in between
    assert usage.end_bytes - usage.start_bytes > 20 * MB


def test_a_process_that_does_not() -> None:
    usage = watched(10).usage()
    assert abs(usage.growth_bytes_per_s) * usage.seconds < 1 * MB
    if sys.platform.startswith("linux"):
        assert usage.peak_bytes > usage.end_bytes + 60 * MB, "the burst before the watch is the peak and no growth"


def test_a_process_that_ends_while_watched() -> None:
    command = [sys.executable, "-c", "import sys; print('on', flush=True); sys.stdin.readline()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        with Watch(child.pid, every_s=0.01) as watch:
            child.stdin.close()
            child.wait(LIMIT_S)
            watch._thread.join(LIMIT_S)
            assert not watch._thread.is_alive()
    assert watch.usage().end_bytes > 1 * MB


def test_only_what_comes_before_the_mark_counts() -> None:
    with Watch(os.getpid(), every_s=0.01) as watch:
        seen(watch, 2)
        watch.mark()
        before = watch.usage()
        seen(watch, 2)
    assert before.samples >= 2
    assert watch.usage().samples == before.samples < len(watch.samples)


def test_no_such_process() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait(30)
    with pytest.raises(ConfigError, match=f"found no process {child.pid}"), Watch(child.pid):
        pass


def test_growth_is_not_moved_by_bursts() -> None:
    bytes_at = [100 * MB + 1000 * t + (50 * MB if t in (40, 41, 90) else 0) for t in range(100)]
    samples = [Sample(float(t), 0, value) for t, value in enumerate(bytes_at)]
    assert growth(samples) == pytest.approx(1000, rel=0.05)
    assert growth(samples[:1]) == 0.0
    long = [Sample(t / 10, 0, 7 * t) for t in range(10_000)]
    assert growth(long) == pytest.approx(70)


def test_settling_is_left_out() -> None:
    samples = [Sample(float(t), 0, MB * min(t, 20)) for t in range(200)]
    usage = summary(samples, peak_bytes=30 * MB)
    assert (usage.start_bytes, usage.end_bytes, usage.peak_bytes) == (20 * MB, 20 * MB, 30 * MB)
    assert usage.growth_bytes_per_s == 0.0
    assert summary([]).peak_bytes == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells private from shared memory apart")
def test_mapped_files_are_no_growth(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"x" * 60 * MB)
    code = (
        "import mmap, sys\nprint('ready', flush=True); sys.stdin.readline()\n"
        "f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); sum(m[::4096])\n"
        "print('done', flush=True); sys.stdin.readline()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "weights")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        with Watch(child.pid, every_s=0.01) as watch:
            before = watch.samples[0]
            child.stdin.write("\n")
            child.stdin.flush()
            child.stdout.readline()
            seen(watch, 2)  # the first of them may have begun before
        child.stdin.close()
    assert watch.usage().peak_bytes > before.rss_bytes + 50 * MB
    assert watch.samples[-1].private_bytes < before.private_bytes + 10 * MB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_high_water() -> None:
    before = high_water(os.getpid())
    assert before > 10 * MB
    assert high_water(2**22 + 1) == 0
