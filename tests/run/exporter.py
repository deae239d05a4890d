"""Stands in for ``fedsplit_server.exporting`` in tests: the real order, lock, listing and move, but files made at once.

It counts exports in ``FAKE/count``, waits while ``FAKE/hold`` is there, and says on stderr what ``FAKE/fail`` holds.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from fedsplit.errors import DataError
from fedsplit_server import exporting


def _export(order: exporting.Order, folder: Path) -> None:
    control = Path(os.environ["FAKE"])
    with (control / "count").open("a") as file:
        file.write(".")
    (folder / "manifest.json").write_text("{}")
    while (control / "hold").exists():
        time.sleep(0.02)
    if (control / "fail").exists():
        raise DataError((control / "fail").read_text())
    cut = order.plan.cut
    (folder / "table.bin").write_bytes(bytes(1_000))
    (folder / "weights.bin").write_bytes(bytes([cut.c1, cut.c2]) * 1_500_000)


def _exported(order: exporting.Order, folder: Path) -> None:
    _export(order, folder / "new")


exporting._export = _exported
sys.exit(exporting.main())
