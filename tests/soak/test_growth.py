"""Memory stays flat over thousands of steps: server and two clients as processes, whole rounds."""

from __future__ import annotations

import pytest

from fedsplit.cli.bench_growth import rows

MB = 1_000_000

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


def test_memory_is_flat_over_2000_steps() -> None:
    measured = rows(steps=2000, batch=4, tokens=64, model="llama", hidden=96, layers=4)
    for row in measured:
        print({name: row[name] for name in ("process", "peak_bytes", "growth_bytes_per_1000_steps", "growth")})
    assert {row["process"] for row in measured} == {"server", "u-device", "w-device"}
    for row in measured:
        growth = row["growth_bytes_per_1000_steps"]
        assert isinstance(growth, int)
        assert growth < 2 * MB, row
