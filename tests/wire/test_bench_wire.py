"""The measurement runs, compares equal bytes, and leaves no process behind."""

from __future__ import annotations

import psutil

from fedsplit.cli.bench_wire import rows


def test_rows() -> None:
    measured = rows(sizes="10000,1000000", steps=3)
    assert [row["size_bytes"] for row in measured] == [10_000, 1_000_000]
    for row in measured:
        assert set(row) == {"size_bytes", "seconds", "bare_seconds", "ratio"}
        assert row["ratio"] == row["seconds"] / row["bare_seconds"] > 0
    children = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    assert not [line for line in children if "bench_wire" in line]
