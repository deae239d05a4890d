"""``fedsplit bench plan``: every shipped fleet has a plan no simpler rule beats."""

from __future__ import annotations

from fedsplit.cli.bench_plan import rows


def test_rows() -> None:
    found = rows(sizes="30")
    assert [row["devices"] for row in found[:1]] == [30]
    assert {"home"} < {row["fleet"] for row in found}
    for row in found:
        assert isinstance(row["gap"], float)
        assert 0 <= row["gap"] <= 0.02
        for rule in ("common", "equal"):
            assert row[rule] == "" or float(str(row[rule])) >= 0.999
